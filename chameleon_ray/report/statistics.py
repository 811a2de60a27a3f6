"""Means over seeds and their standard errors, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Over = Literal["seeds", "documents"]


@dataclass(frozen=True)
class Measurement:
    """One evaluation number of one seed over so many documents; `stderr` is clustered by document, None where unknown."""

    value: float
    stderr: float | None
    documents: int


@dataclass(frozen=True)
class SeedMean:
    """A mean over `num_seeds` seeds; `stderr` is its standard error over what `over` says, None where unknown."""

    mean: float
    stderr: float | None
    num_seeds: int
    over: Over


def over_seeds(values: Sequence[float]) -> SeedMean:
    """Mean and standard error s / sqrt(n), s with n - 1 degrees of freedom; one value has no standard error over seeds."""
    array = np.asarray(values, dtype=np.float64)
    stderr = float(array.std(ddof=1) / np.sqrt(array.size)) if array.size > 1 else None
    return SeedMean(float(array.mean()), stderr, array.size, "seeds")


def summarise(by_seed: Mapping[int, Measurement]) -> SeedMean:
    """Mean over seeds; with one seed, its value with the standard error clustered by document."""
    if len(by_seed) > 1:
        return over_seeds([each.value for each in by_seed.values()])
    (only,) = by_seed.values()
    return SeedMean(only.value, only.stderr, 1, "documents")


def common_seeds(first: Mapping[int, Measurement], second: Mapping[int, Measurement]) -> list[int]:
    """Seeds that both have, in order."""
    return sorted(first.keys() & second.keys())


def mean_difference(first: Mapping[int, Measurement], second: Mapping[int, Measurement]) -> SeedMean:
    """first - second, seed by seed: what a seed does to both cancels."""
    return over_seeds([first[seed].value - second[seed].value for seed in common_seeds(first, second)])


def mean_change_percent(first: Mapping[int, Measurement], second: Mapping[int, Measurement]) -> SeedMean:
    """100 (first / second - 1), seed by seed."""
    return over_seeds([100 * (first[seed].value / second[seed].value - 1) for seed in common_seeds(first, second)])
