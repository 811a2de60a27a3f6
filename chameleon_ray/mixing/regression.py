"""Regressors from a mixture to a loss, and how well they order mixtures they have not seen.

    r    [n, k] ratios, rows on the simplex
    L    [n] losses of one target

`REGRESSORS` is the table: each entry fits and returns a function from [s, k] ratios to [s] predicted losses, the same one for the same runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.errors import UserError

Array = NDArray[np.float64]
Predict = Callable[[Array], Array]
FOLDS = 5
MIN_RUNS = 2 * FOLDS
LEAF_RUNS = 20
TREES = 1000
RANDOM_STARTS = 3


@dataclass(frozen=True)
class Regressor:
    """How to fit, and the runs a fit needs for k domains, in cross-validation too."""

    fit: Callable[[Array, Array], Predict]
    parameters: Callable[[int], int]

    def min_runs(self, k: int) -> int:
        """The smallest swarm of k domains: four fifths of it determine the parameters, and every fold holds two runs."""
        return max(MIN_RUNS, math.ceil(self.parameters(k) * FOLDS / (FOLDS - 1)))


def fit_lightgbm(ratios: Array, losses: Array) -> Predict:
    """Gradient-boosted trees: 1000 of them, learning rate 0.01, seed 42, no early stopping on anything.

    Cannot predict beyond the losses it has seen. Reference: RegMix (Liu et al. 2024). Cost: under a second for 512 runs of 17 domains.
    """
    import lightgbm  # here, because its import takes seconds

    settings = {
        "objective": "regression",
        "boosting": "gbdt",
        "learning_rate": 0.01,
        "min_data_in_leaf": LEAF_RUNS,
        "seed": 42,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    booster = lightgbm.train(settings, lightgbm.Dataset(ratios, losses, params=settings), num_boost_round=TREES)
    return lambda mixtures: np.asarray(booster.predict(mixtures, num_threads=0), dtype=np.float64)


def fit_linear(ratios: Array, losses: Array) -> Predict:
    """Ordinary least squares with an intercept; of equally good solutions (the ratios sum to 1) the smallest."""
    center, mean = ratios.mean(axis=0), losses.mean()
    slopes = np.linalg.lstsq(ratios - center, losses - mean, rcond=None)[0]  # [k]
    return lambda mixtures: (mixtures - center) @ slopes + mean


def fit_law(ratios: Array, losses: Array) -> Predict:
    """The exponential mixing law L(r) = c + kappa exp(sum_j t_j r_j), by least squares from several seeded starts.

    Since sum_j r_j = 1, kappa > 0 is one of the t_j in another guise: with u_j = t_j + log kappa the law is c + exp(u . r), whose k + 1 parameters
    are determined. Losses are brought to [0, 1] first.

    Reference: Ye et al. 2024, "Data mixing laws". Cost: about a second for 512 runs of 17 domains.
    """
    from scipy.optimize import least_squares  # here, because most commands need none of it

    low, span = losses.min(), np.ptp(losses) or 1.0
    scaled = (losses - low) / span  # [n] in [0, 1]

    def residuals(point: Array) -> Array:
        return point[0] + np.exp(ratios @ point[1:]) - scaled

    def jacobian(point: Array) -> Array:
        return np.column_stack([np.ones(len(ratios)), np.exp(ratios @ point[1:])[:, None] * ratios])

    def start(floor: float) -> Array:
        """u by linear regression on log(L - c), for a guess at c."""
        return np.concatenate([[floor], np.linalg.lstsq(ratios, np.log(scaled - floor), rcond=None)[0]])

    generator = np.random.default_rng(42)
    starts = [start(floor) for floor in (-0.05, -0.5)]
    starts += [start(-float(10 ** generator.uniform(-2, 1))) + generator.normal(0, 0.5, ratios.shape[1] + 1) for _ in range(RANDOM_STARTS)]
    with np.errstate(over="ignore"):  # a step that overflows has infinite cost and is taken back
        best = min((least_squares(residuals, point, jac=jacobian, max_nfev=200) for point in starts), key=lambda found: found.cost).x
    return lambda mixtures: low + span * (best[0] + np.exp(mixtures @ best[1:]))


REGRESSORS: dict[str, Regressor] = {
    "lightgbm": Regressor(fit_lightgbm, lambda k: 2 * LEAF_RUNS + 2),  # a split falls between bins of runs: exactly two leaves' worth would allow none
    "linear": Regressor(fit_linear, lambda k: k + 1),
    "law": Regressor(fit_law, lambda k: k + 2),
}


def fit_mean(regressor: str, ratios: Array, columns: Array) -> Predict:
    """Predict the mean of several losses as the mean of one fit each.

    A domain's loss is simple in the mixture (it falls with the domain's own share), while the mean over domains rises towards every corner: a plane or
    a single exponential cannot follow it, a sum of them can.

    Args:
        columns: [n, c] losses.
    """
    fits = [REGRESSORS[regressor].fit(ratios, losses) for losses in columns.T]
    return lambda mixtures: np.mean([predict(mixtures) for predict in fits], axis=0)


def candidates(regressor: str, num_runs: int, k: int, where: str) -> tuple[str, ...]:
    """The regressors to try: the one that is named, or for `best` all that the swarm is large enough for.

    Raises:
        UserError: the swarm is smaller than the regression needs; `where` names what counts the runs.
    """
    wanted = tuple(REGRESSORS) if regressor == "best" else (regressor,)
    fitting = tuple(name for name in wanted if num_runs >= REGRESSORS[name].min_runs(k))
    if not fitting:
        needs = ", ".join(f"{name} {found.min_runs(k)}" for name, found in REGRESSORS.items())
        raise UserError(f"{where}: {num_runs} runs are too few for regressor {regressor!r} with {k} domains; needed are {needs}")
    return fitting


def cross_validated_spearman(regressor: str, ratios: Array, columns: Array, seed: int, folds: int = FOLDS) -> float:
    """Rank correlation of the mean of the losses with predictions for runs the fit has not seen, all folds pooled.

    Args:
        columns: [n, c] losses, each fitted by itself.
        seed: decides which runs fall into one fold; the same runs in the same order give the same answer.
    Returns:
        A number in [-1, 1]; 0 where all predictions are equal.
    """
    order = np.random.default_rng(seed).permutation(len(columns))
    predicted = np.empty(len(columns))
    for fold in range(folds):
        held_out = order[fold::folds]
        others = np.setdiff1d(order, held_out)
        predicted[held_out] = fit_mean(regressor, ratios[others], columns[others])(ratios[held_out])
    return spearman(predicted, columns.mean(axis=1))


def spearman(first: Array, second: Array) -> float:
    """Rank correlation of two lists, ties sharing their mean rank; 0 where one of them is constant."""
    from scipy.stats import rankdata  # here, because its import takes a second

    ranks = [rankdata(values) for values in (first, second)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])
