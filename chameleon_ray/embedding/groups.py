"""Samples into hash groups, from which error bars are taken, so that rows of one document stay together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.artifacts import NUM_GROUPS, group_layout


def group_of(document: NDArray[np.int64], num_groups: int = NUM_GROUPS) -> NDArray[np.int64]:
    """The group of each row by the document it begins in (splitmix64 of the document's number); a power of two of groups halves another."""
    mixed = document.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(num_groups)).astype(np.int64)


def group_sums(vectors: NDArray[np.float64], document: NDArray[np.int64], num_groups: int = NUM_GROUPS) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """vectors [n, p], document [n] -> sums [groups, p] and counts [groups]."""
    groups = group_of(document, num_groups)
    sums = np.zeros((num_groups, vectors.shape[1]))
    np.add.at(sums, groups, vectors)
    return sums, np.bincount(groups, minlength=num_groups)


def accumulate(
    num_parts: Mapping[str, int], parts: Iterable[tuple[str, int, NDArray[np.float64], NDArray[np.int64]]]
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """The group sums of all domains, from parts of them in whatever order they come.

    A domain's parts wait until all are there and are then added up in their own order, so that the order of arrival changes no bit. Only what
    waits is held beside the result.

    Args:
        num_parts: of every domain; a domain of none has zeros.
        parts: (domain, number that increases within the domain, sums [groups, p], counts [groups]), at least one.
    Returns:
        [k, groups, p] in the precision of `group_layout`, [k, groups].
    """
    place = {name: i for i, name in enumerate(num_parts)}
    _, dtype = group_layout(len(place))
    sums: NDArray[np.floating] = np.empty((0, 0, 0), dtype)
    counts = np.empty((0, 0), np.int64)
    waiting: dict[str, dict[int, tuple[NDArray[np.float64], NDArray[np.int64]]]] = {}
    for name, number, part_sums, part_counts in parts:
        if not len(sums):
            sums, counts = np.zeros((len(place), *part_sums.shape), dtype), np.zeros((len(place), *part_counts.shape), np.int64)
        waiting.setdefault(name, {})[number] = (part_sums, part_counts)
        if len(waiting[name]) == num_parts[name]:
            arrived = waiting.pop(name)
            # From left to right, in float64.
            sums[place[name]] = sum(arrived[each][0] for each in sorted(arrived))
            counts[place[name]] = sum(arrived[each][1] for each in arrived)
    assert not waiting, f"{len(waiting)} domains are not complete"
    return sums, counts
