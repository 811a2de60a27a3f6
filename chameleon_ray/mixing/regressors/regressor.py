"""What a regressor is, and what it learns from.

n   runs
k   domains
m   targets
r   [n, k] ratios, rows on the simplex
L   [n, m] losses, in nats per token
N   [n] parameters of the model of each run
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Predict = Callable[[Array], Array]
FOLDS = 5
MIN_RUNS = 2 * FOLDS


@dataclass(frozen=True)
class Runs:
    """Mixtures and what was measured of the models that were trained on them.

    Attributes:
        ratios: r.
        losses: L.
        own: [m] the domain that a target is the loss of, by its index; -1 for a target that is the text of none.
        parameters: N; all equal where models of one size were trained.
        alike: [m, k] how much the text of a target is like that of a domain, from 0 to 1; not a number where one of them has no embedding. None where
            there are no embeddings.
    """

    ratios: Array
    losses: Array
    own: tuple[int, ...]
    parameters: Array
    alike: Array | None = None

    def __len__(self) -> int:
        return len(self.ratios)

    def only(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Runs:
        """Some of the runs."""
        return replace(self, ratios=self.ratios[rows], losses=self.losses[rows], parameters=self.parameters[rows])

    @property
    def sizes(self) -> Array:
        """The distinct N, ascending."""
        return np.unique(self.parameters)

    @property
    def is_own(self) -> Array:
        """[m, k] 1 where the target is the loss of the domain, 0 elsewhere."""
        return (np.array(self.own)[:, None] == np.arange(self.ratios.shape[1])).astype(np.float64)


@dataclass(frozen=True)
class Regressor:
    """How to fit, and the runs a fit needs for k domains, in cross-validation too.

    Attributes:
        fit: runs and the parameters of the model asked for -> a function from [s, k] ratios to [s, m] predicted losses, the same one for the same runs.
        parameters: k -> the runs that a single fit needs.
        draws: how often it is fitted again for a range, by how long a fit takes.
        across_sizes: whether it learns from models of several sizes, and then needs them; another one takes every run for one of the size asked for.
        from_content: whether it needs embeddings.
    """

    fit: Callable[[Runs, float], Predict]
    parameters: Callable[[int], int]
    draws: int = 200
    across_sizes: bool = False
    from_content: bool = False

    def min_runs(self, k: int) -> int:
        """The smallest swarm of k domains: four fifths of it determine the parameters, and every fold holds two runs."""
        return max(MIN_RUNS, math.ceil(self.parameters(k) * FOLDS / (FOLDS - 1)))


def each_target(fit_one: Callable[[Array, Array], Predict]) -> Callable[[Runs, float], Predict]:
    """A fit of one target's losses, ([n, k], [n]) -> ([s, k] -> [s]), as one of each target by itself."""

    def fit(runs: Runs, parameters: float) -> Predict:
        fits = [fit_one(runs.ratios, losses) for losses in runs.losses.T]
        return lambda ratios: np.stack([predict(ratios) for predict in fits], axis=1)

    return fit


def along_sizes(logs: Array, values: Array, asked: float) -> Array:
    """Values [sizes, …] at ascending log N, at another: between the sizes that stand around it, beyond them from the nearest on, as steep as the line through
    all."""
    if len(logs) == 1:
        return np.asarray(values[0])
    if logs[0] <= asked <= logs[-1]:
        upper = int(np.clip(np.searchsorted(logs, asked), 1, len(logs) - 1))
        part = (asked - logs[upper - 1]) / (logs[upper] - logs[upper - 1])
        return np.asarray((1 - part) * values[upper - 1] + part * values[upper])
    slope, _ = np.polyfit(logs, values, 1)
    end = 0 if asked < logs[0] else -1
    return np.asarray(values[end] + slope * (asked - logs[end]))
