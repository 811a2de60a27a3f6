"""What a mixture would score, by runs that exist: a regression on swarms of one or several model sizes, and nothing trained.

    r       [n, k] mixtures of the runs, L [n, m] their losses on m targets
    f       [m] regressions from a mixture to a target's loss at the size asked for, the regressor chosen by cross-validated rank correlation of the mean loss
    draws   the same fits on runs drawn with replacement; an interval is of these, and says nothing of how far a mixture lies from all runs. Penalties that
            leave single runs out meet copies of them in a draw and come out small, so that intervals are rather wide
    d       L1 distance of a mixture to the nearest run; it is covered where that is no more than runs are usually apart from their nearest, and where it is no
            more even than the most even run (effective number of domains)

A size that no model was trained at is reached by regressors that learn from several sizes; they are then chosen by how well they order the runs of the
largest size, given those of smaller ones and a fold of its own.

Means over targets are arithmetic means of losses in nats per token, and of perplexities. The hard domains rule the latter: both are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.regression import BEST, REGRESSORS, candidates, cross_validated_spearman, distinct, fit
from chameleon_ray.mixing.regressors.regressor import Array, Runs
from chameleon_ray.mixing.runs import by_parameters, first_of, prefix, runs_of, size_asked, targets_of, unseen
from chameleon_ray.mixing.simplex import effective_number
from chameleon_ray.mixing.swarm import MEAN, Swarm

LEVEL = 0.90
MIN_SPEARMAN = 0.5
COVERED_QUANTILE = 0.95


@dataclass(frozen=True)
class Interval:
    """A number and where it lies in nine tenths of the draws."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Judged:
    """One mixture at one model size.

    Attributes:
        losses: target -> predicted nats per token.
        nats, perplexity: their mean, and the mean of the perplexities.
        nats_change, perplexity_change: against the first mixture, in nats and as a fraction; None for the first itself.
        distance: L1, to the nearest run.
        covered: whether the runs reach it; where not, the intervals leave out how wrong the regression may be so far from them.
        unseen: domains of it that no run has any of: what they do is told by their embeddings alone.
    """

    mixture: str
    losses: Mapping[str, float]
    nats: Interval
    perplexity: Interval
    nats_change: Interval | None
    perplexity_change: Interval | None
    distance: float
    covered: bool
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """All mixtures at one model size, judged by one regression.

    Attributes:
        target: what was predicted: one, or `mean`.
        num_runs: of models of this size; 0 where none was trained and other sizes tell.
        spearman: regressor -> cross-validated rank correlation of the target on the size's own runs; without any, on those of the largest size, predicted
            from the smaller ones and a fold of its own.
        usual_distance: the L1 distance that 95 of 100 runs have to their nearest at most.
    """

    size: str
    target: str
    num_runs: int
    regressor: str
    spearman: Mapping[str, float]
    usual_distance: float
    mixtures: tuple[Judged, ...]


def judge(
    mixtures: Mapping[str, Mapping[str, float]],
    swarms: Mapping[str, Swarm],
    size: str,
    target: str = MEAN,
    regressor: str = BEST,
    seed: int = 0,
    embeddings: Embeddings | None = None,
) -> Verdict:
    """Judge mixtures for models of one size, all against the first.

    Args:
        mixtures: label -> domain -> weight. Domains of the swarms that a mixture leaves out have none of it.
        swarms: model size (60M, 1B) -> its runs, all of the same domains and targets; a single one that has no size is `THE_RUNS`.
        size: one of these, or another.
        target: one of the swarms', or `mean`.
        regressor: a key of `REGRESSORS`, or `best`.
        embeddings: of the swarms' domains, of some of them, and of those that no run has.
    Raises:
        UserError: domains that neither swarms nor embeddings have, no such target, too few runs, or a regression that cannot order its own runs.
    Cost: five fits per regressor, and as many for the intervals as the regressor allows (200; 50 for the law, 20 for the additive one and trees).
    """
    asked, runs, new = _table(mixtures, swarms, target, embeddings)  # [s, k]
    parameters = size_asked(size, swarms)
    here = runs.only(runs.parameters == parameters)
    spearman = _chosen(regressor, runs, parameters, seed, f"--swarm of {size}" if len(here) else f"--at {size}", any(new.values()))
    chosen = max(spearman, key=lambda name: spearman[name])
    found = fit(chosen, runs, parameters)(asked)  # [s, m]
    draws = np.stack([fit(chosen, drawn, parameters)(asked) for drawn in _drawn(runs, REGRESSORS[chosen].draws, seed)])  # [draws, s, m]
    near = distinct((here if len(here) else runs).ratios)
    distances = np.abs(asked[:, None] - near[None]).sum(axis=2).min(axis=1)  # [s]
    usual = float(np.quantile(_nearest_others(near), COVERED_QUANTILE))
    evenest = max(map(effective_number, near))
    if not np.isfinite(np.exp(draws)).all():
        label = list(mixtures)[int(np.argmin(np.isfinite(np.exp(draws)).all(axis=(0, 2))))]
        raise UserError(f"mixture {label!r}: {chosen} predicts no finite loss so far from the runs of {size}; try another --regressor")
    first = first_of(swarms)
    targets = targets_of(first, target)
    nats, perplexity = ((mean(found), mean(draws)) for mean in (_mean_nats, _mean_perplexity))  # [s], [draws, s] each
    judged = tuple(
        Judged(
            mixture=label,
            losses=dict(zip(targets, found[i].tolist(), strict=True)),
            nats=_interval(nats[0][i], nats[1][:, i]),
            perplexity=_interval(perplexity[0][i], perplexity[1][:, i]),
            nats_change=_interval(nats[0][i] - nats[0][0], nats[1][:, i] - nats[1][:, 0]) if i else None,
            perplexity_change=_interval(perplexity[0][i] / perplexity[0][0] - 1, perplexity[1][:, i] / perplexity[1][:, 0] - 1) if i else None,
            distance=float(distances[i]),
            covered=bool(distances[i] <= usual and effective_number(asked[i]) <= evenest),
            unseen=new[label],
        )
        for i, label in enumerate(mixtures)
    )
    return Verdict(size, first.target(target), len(here), chosen, spearman, usual, judged)


def _table(
    mixtures: Mapping[str, Mapping[str, float]], swarms: Mapping[str, Swarm], target: str, embeddings: Embeddings | None
) -> tuple[Array, Runs, dict[str, tuple[str, ...]]]:
    """Mixtures [s, k], runs of the same domains, and the domains of every mixture that no run has."""
    sizes, shared = by_parameters(swarms), prefix(first_of(swarms).domains)
    plain = {label: _short(weights, shared, label) for label, weights in mixtures.items()}
    new = {label: tuple(unseen(list(weights), sizes, embeddings, f"mixture {label!r}")) for label, weights in plain.items()}
    order, runs = runs_of(sizes, target, embeddings, [name for names in new.values() for name in names])
    return np.array([[weights.get(name, 0.0) for name in order] for weights in plain.values()]), runs, new


def _short(weights: Mapping[str, float], shared: str, label: str) -> dict[str, float]:
    """What a mixture gives the domains it has any of, by their short names."""
    found: dict[str, float] = {}
    for name, weight in weights.items():
        if weight > 0:
            short = name.removeprefix(shared)
            if short in found:
                raise UserError(f"mixture {label!r}: domain {short!r} is there twice, with and without the prefix {shared!r}; add the two up")
            found[short] = weight
    return found


def _chosen(regressor: str, runs: Runs, parameters: float, seed: int, where: str, unseen: bool) -> dict[str, float]:
    """Regressor -> rank correlation of those that can be used, the best of which orders its runs."""
    tried = candidates(regressor, runs, parameters, where, unseen)
    spearman = {name: cross_validated_spearman(name, runs, parameters, seed) for name in tried}
    best = max(spearman, key=lambda name: spearman[name])
    if spearman[best] < MIN_SPEARMAN:
        raise UserError(
            f"{where}: no regression orders the runs there are; the best, {best}, has a cross-validated rank correlation of "
            f"{spearman[best]:.2f}: give more runs, runs that differ more, or another --target"
        )
    return spearman


def _drawn(runs: Runs, draws: int, seed: int) -> Iterator[Runs]:
    """The runs drawn with replacement, those of every size among themselves."""
    generator = np.random.default_rng([seed, len(runs)])
    sizes = [np.flatnonzero(runs.parameters == size) for size in runs.sizes]
    for _ in range(draws):
        yield runs.only(np.concatenate([rows[generator.integers(len(rows), size=len(rows))] for rows in sizes]))


def _nearest_others(ratios: Array) -> Array:
    """[n] L1 distance of every mixture to its nearest other one; 2, the most there is, where it has none."""
    found = np.empty(len(ratios))
    for i, row in enumerate(ratios):
        distances = np.abs(ratios - row).sum(axis=1)
        distances[i] = 2.0
        found[i] = distances.min()
    return found


def _mean_nats(losses: Array) -> Array:
    return np.asarray(losses.mean(axis=-1))


def _mean_perplexity(losses: Array) -> Array:
    return np.asarray(np.exp(losses).mean(axis=-1))


def _interval(value: float, draws: Array) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
