"""Samples into hash groups: what the bootstrap resamples, so that rows of one document stay together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.artifacts import NUM_GROUPS


def group_of(document: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group, 0 … 31, of each row by the document it begins in (splitmix64 of the document's number)."""
    mixed = document.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(NUM_GROUPS)).astype(np.int64)


def group_sums(vectors: NDArray[np.float64], document: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """vectors [n, p], document [n] -> sums [32, p] and counts [32]."""
    groups = group_of(document)
    sums = np.zeros((NUM_GROUPS, vectors.shape[1]))
    np.add.at(sums, groups, vectors)
    return sums, np.bincount(groups, minlength=NUM_GROUPS)
