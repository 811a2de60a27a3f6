"""Regressors from a mixture to losses: how they are chosen, and how well they order mixtures they have not seen.

Shapes and names: `regressors/regressor.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.regressors.additive import ADDITIVE
from chameleon_ray.mixing.regressors.bimix import BIMIX
from chameleon_ray.mixing.regressors.content import CONTENT
from chameleon_ray.mixing.regressors.exponential import EXPONENTIAL
from chameleon_ray.mixing.regressors.linear import LINEAR
from chameleon_ray.mixing.regressors.log_ridge import LOG_RIDGE
from chameleon_ray.mixing.regressors.regressor import FOLDS, MIN_RUNS, Array, Predict, Regressor, Runs
from chameleon_ray.mixing.regressors.shrinking import shrinking
from chameleon_ray.mixing.regressors.trees import TREES_REGRESSOR
from chameleon_ray.settings import nearest

BEST = "best"
REGRESSORS: dict[str, Regressor] = {
    "lightgbm": TREES_REGRESSOR,
    "linear": LINEAR,
    "law": EXPONENTIAL,
    "log-ridge": LOG_RIDGE,
    "additive": ADDITIVE,
    "content": CONTENT,
    "parallel": shrinking(ADDITIVE, ADDITIVE, fixed=True),
    "shrinking": shrinking(ADDITIVE, ADDITIVE),
    "shrinking-lightgbm": shrinking(TREES_REGRESSOR, ADDITIVE),
    "shrinking-law": shrinking(EXPONENTIAL, ADDITIVE),
    "shrinking-content": shrinking(CONTENT, CONTENT),
    "bimix": BIMIX,
}
SAME_MIXTURE = 1e-6
MIN_SIZES = 2


def known_regressor(name: str) -> str:
    """The name itself; raises `ValueError` for one that is not there."""
    if name not in (*REGRESSORS, BEST):
        raise ValueError(f"unknown regressor {name!r}; known: {', '.join(REGRESSORS)}, {BEST}{nearest(name, (*REGRESSORS, BEST))}")
    return name


def fit(regressor: str, runs: Runs, parameters: float) -> Predict:
    """Fitted to what it learns from: runs of all sizes, or those of models of the size asked for."""
    found = REGRESSORS[regressor]
    with threadpool_limits(1):  # matrices this small are multiplied several times as fast by one thread as by many
        return found.fit(runs if found.across_sizes else runs.only(runs.parameters == parameters), parameters)


def mean_loss(predict: Predict) -> Predict:
    """[s, k] -> [s] mean of the predicted losses.

    A domain's loss is simple in the mixture (it falls with the domain's own share), while the mean over domains rises towards every corner: a plane or
    a single exponential cannot follow it, a sum of them can.
    """
    return lambda ratios: np.asarray(predict(ratios).mean(axis=1))


def candidates(regressor: str, runs: Runs, parameters: float, where: str, unseen: bool = False) -> tuple[str, ...]:
    """The regressors to try for models of a size: the one that is named, or for `best` all that the runs suffice for.

    Args:
        unseen: whether some of the domains are in no run, so that only embeddings tell of them.
    Raises:
        UserError: fewer runs than the regression needs, no embeddings, or no other sizes, where it needs them; `where` names what holds the runs.
    """
    here = int((runs.parameters == parameters).sum())
    scored = here or int((runs.parameters == runs.sizes[-1]).sum())
    sizes = len(runs.sizes)
    found = possible(regressor, here, runs.ratios.shape[1], where, sizes, len(runs), runs.alike is not None, unseen)
    if scored < MIN_RUNS:
        largest = "" if here else " of the largest size"
        raise UserError(f"{where}: {scored} runs{largest} are too few to tell how well a regression orders them; give at least {MIN_RUNS}")
    return found


def possible(
    regressor: str, num_runs: int, k: int, where: str, sizes: int = 1, in_all: int | None = None, embedded: bool = False, unseen: bool = False
) -> tuple[str, ...]:
    """As `candidates`, of runs that are only counted.

    Args:
        num_runs: of models of the size asked for. sizes, in_all: how many sizes have runs, and how many runs these have together.
        embedded: whether domains have embeddings.
    """
    wanted = tuple(REGRESSORS) if regressor == BEST else (regressor,)
    lacking = {name: _lacks(REGRESSORS[name], num_runs, sizes, embedded, unseen) for name in wanted}
    able = {name: (in_all or num_runs) if REGRESSORS[name].across_sizes else num_runs for name in wanted if not lacking[name]}
    fitting = tuple(name for name, count in able.items() if count >= REGRESSORS[name].min_runs(k))
    if fitting:
        return fitting
    if not able and regressor == BEST:
        what = "no regressor knows domains that no run has without embeddings" if unseen else "runs of one size tell nothing of another"
        raise UserError(f"{where}: {what}; give {'--embeddings' if unseen else 'runs of at least two sizes'}")
    if not able:
        raise UserError(f"{where}: regressor {regressor!r} {lacking[regressor]}")
    needs = ", ".join(f"{name} {REGRESSORS[name].min_runs(k)}" for name in able)
    raise UserError(f"{where}: {max(able.values())} runs are too few for regressor {regressor!r} with {k} domains; needed are {needs}")


def cross_validated_spearman(regressor: str, runs: Runs, parameters: float, seed: int, folds: int = FOLDS) -> float:
    """Rank correlation of the mean of the losses with predictions for runs of the size asked for that the fit has not seen, all folds pooled. A mixture that
    models of several sizes were trained on is left out with all of them.

    Of a size without runs: that of the largest size there is, predicted from the runs of smaller ones and one fold of its own.

    Args:
        seed: decides which runs fall into one fold; the same runs in the same order give the same answer.
    Returns:
        A number in [-1, 1]; 0 where all predictions are equal.
    """
    if not (runs.parameters == parameters).any():
        return _predicted_spearman(regressor, runs, seed, folds)
    here = np.flatnonzero(runs.parameters == parameters)
    predicted = np.empty(len(here))
    for held_out in _folds(len(here), seed, folds):
        seen = runs.only(~_same_mixture(runs.ratios, runs.ratios[here[held_out]]))
        predicted[held_out] = mean_loss(fit(regressor, seen, parameters))(runs.ratios[here[held_out]])
    return spearman(predicted, runs.losses[here].mean(axis=1))


def spearman(first: Array, second: Array) -> float:
    """Rank correlation of two lists, ties sharing their mean rank; 0 where one of them is constant or not finite."""
    from scipy.stats import rankdata  # here, because its import takes a second

    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return 0.0
    ranks = [rankdata(values) for values in (first, second)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _predicted_spearman(regressor: str, runs: Runs, seed: int, folds: int) -> float:
    """Mean over the folds."""
    largest = float(runs.sizes[-1])
    here = np.flatnonzero(runs.parameters == largest)
    found = []
    for fold in _folds(len(here), seed, folds):
        asked = np.delete(here, fold)
        seen = runs.only(~_same_mixture(runs.ratios, runs.ratios[asked]))
        found.append(spearman(mean_loss(fit(regressor, seen, largest))(runs.ratios[asked]), runs.losses[asked].mean(axis=1)))
    return float(np.mean(found))


def _folds(n: int, seed: int, folds: int) -> list[NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(n)
    return [order[fold::folds] for fold in range(folds)]


def distinct(ratios: Array) -> Array:
    """The mixtures, those that several runs have once."""
    return ratios[[i for i, row in enumerate(ratios) if not _same_mixture(ratios[:i], row[None]).any()]]


def _same_mixture(ratios: Array, held_out: Array) -> NDArray[np.bool_]:
    """[n] whether a run's mixture is one of those."""
    found = np.zeros(len(ratios), dtype=bool)
    for row in held_out:
        found |= np.abs(ratios - row).sum(axis=1) < SAME_MIXTURE
    return found


def _lacks(regressor: Regressor, num_runs: int, sizes: int, embedded: bool, unseen: bool) -> str:
    """What a regressor needs and does not get, with the remedy; empty where it gets all."""
    if unseen and not regressor.from_content:
        return "knows nothing of domains that no run has; use content, or best"
    if regressor.from_content and not embedded:
        return "needs embeddings of the domains"
    if regressor.across_sizes and sizes < MIN_SIZES:
        return "learns from models of several sizes; give runs of at least two"
    if not regressor.across_sizes and not num_runs:
        return "knows only models of a size that was run; choose one that carries on to other sizes, such as shrinking"
    return ""
