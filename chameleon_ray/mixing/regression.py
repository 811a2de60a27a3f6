"""Regressors from a mixture to a loss, and how well they order mixtures they have not seen.

r    [n, k] ratios, rows on the simplex
L    [n] losses of one target
"""

from __future__ import annotations

import numpy as np

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.regressors.exponential import EXPONENTIAL
from chameleon_ray.mixing.regressors.linear import LINEAR
from chameleon_ray.mixing.regressors.log_ridge import LOG_RIDGE
from chameleon_ray.mixing.regressors.regressor import FOLDS, Array, Predict, Regressor
from chameleon_ray.mixing.regressors.trees import TREES_REGRESSOR

REGRESSORS: dict[str, Regressor] = {
    "lightgbm": TREES_REGRESSOR,
    "linear": LINEAR,
    "law": EXPONENTIAL,
    "log-ridge": LOG_RIDGE,
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
