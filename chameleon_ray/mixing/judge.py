"""What a mixture would score, by runs that exist: a regression on swarms of one or several model sizes, and nothing trained.

    r       [n, k] mixtures of the runs of one size, L [n, m] their losses on m targets
    f_j     [m] regressions from a mixture to a target's loss, the regressor chosen by cross-validated rank correlation of the mean loss
    draws   the same fits on runs drawn with replacement; an interval is of these, and says nothing of how far a mixture lies from all runs. Penalties that
            leave single runs out meet copies of them in a draw and come out small, so that intervals are rather wide
    d       L1 distance of a mixture to the nearest run; it is covered where that is no more than runs are usually apart from their nearest, and where it is no
            more even than the most even run (effective number of domains)

Means over targets are arithmetic means of losses in nats per token, and of perplexities. The hard domains rule the latter: both are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.regression import REGRESSORS, candidates, cross_validated_spearman
from chameleon_ray.mixing.regressors.regressor import Array
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
    """

    mixture: str
    losses: Mapping[str, float]
    nats: Interval
    perplexity: Interval
    nats_change: Interval | None
    perplexity_change: Interval | None
    distance: float
    covered: bool


@dataclass(frozen=True)
class Verdict:
    """All mixtures at one model size, judged by one regression.

    Attributes:
        spearman: regressor -> cross-validated rank correlation of the target on the size's own runs.
        usual_distance: the L1 distance that 95 of 100 runs have to their nearest at most.
    """

    size: str
    num_runs: int
    regressor: str
    spearman: Mapping[str, float]
    usual_distance: float
    mixtures: tuple[Judged, ...]


def judge(mixtures: Mapping[str, Mapping[str, float]], swarm: Swarm, size: str, target: str = MEAN, regressor: str = "best", seed: int = 0) -> Verdict:
    """Judge mixtures by the runs of one model size, all against the first.

    Args:
        mixtures: label -> domain -> weight. Domains of the swarm that a mixture leaves out have none of it.
        target: one of the swarm's, or `mean`.
        regressor: a key of `REGRESSORS`, or `best`.
    Raises:
        UserError: domains that the swarm does not have, no such target, too few runs, or a regression that cannot order its own runs.
    Cost: five fits per regressor and target, and per target as many fits for the intervals as the regressor allows (200; 50 for the law, 20 for trees).
    """
    names = sorted(swarm.domains)
    ratios = swarm.ratios[:, [swarm.domains.index(name) for name in names]]  # [n, k]
    columns = swarm.columns(target)  # [n, m]
    targets = sorted(swarm.targets) if swarm.target(target) == MEAN else [swarm.target(target)]
    asked = np.array([_row(weights, names, label) for label, weights in mixtures.items()])  # [s, k]
    tried = candidates(regressor, len(ratios), len(names), f"--swarm of {size}")
    spearman = {name: cross_validated_spearman(name, ratios, columns, seed) for name in tried}
    chosen = max(spearman, key=lambda name: spearman[name])
    if spearman[chosen] < MIN_SPEARMAN:
        raise UserError(
            f"--swarm of {size}: no regression orders its own {len(ratios)} runs; the best, {chosen}, has a cross-validated rank correlation of "
            f"{spearman[chosen]:.2f}: give more runs, runs that differ more, or another --target"
        )
    found = _predicted(chosen, ratios, columns, asked)  # [s, m]
    generator = np.random.default_rng([seed, len(ratios)])
    picks = generator.integers(len(ratios), size=(REGRESSORS[chosen].draws, len(ratios)))
    draws = np.stack([_predicted(chosen, ratios[pick], columns[pick], asked) for pick in picks])  # [draws, s, m]
    distances = np.abs(asked[:, None] - ratios[None]).sum(axis=2).min(axis=1)  # [s]
    usual = float(np.quantile(_nearest_others(ratios), COVERED_QUANTILE))
    evenest = max(map(effective_number, ratios))
    if not np.isfinite(np.exp(draws)).all():
        label = list(mixtures)[int(np.argmin(np.isfinite(np.exp(draws)).all(axis=(0, 2))))]
        raise UserError(f"mixture {label!r}: {chosen} predicts no finite loss so far from the runs of {size}; try another --regressor")
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
        )
        for i, label in enumerate(mixtures)
    )
    return Verdict(size, len(ratios), chosen, spearman, usual, judged)


def joined(swarms: Sequence[Swarm]) -> Swarm:
    """Runs of one model size from several files; ids may repeat between them.

    Raises:
        UserError: files with other domains or targets.
    """
    first = swarms[0]
    for other in swarms[1:]:
        for what, mine, theirs in (("domain", first.domains, other.domains), ("target", first.targets, other.targets)):
            if odd := sorted(set(mine) ^ set(theirs)):
                raise UserError(f"--swarm: {what} {odd[0]!r} is in only one of two swarms of one size; give them sizes of their own, or the same columns")
    runs = tuple(f"{i}/{run}" for i, swarm in enumerate(swarms) for run in swarm.runs)
    ratios = np.concatenate([swarm.ratios[:, [swarm.domains.index(name) for name in first.domains]] for swarm in swarms])
    metrics = np.concatenate([swarm.metrics[:, [swarm.targets.index(name) for name in first.targets]] for swarm in swarms])
    return Swarm(runs, first.domains, ratios, first.targets, metrics)


def _row(weights: Mapping[str, float], names: Sequence[str], label: str) -> list[float]:
    """[k] the mixture in the order of the swarm's domains, whose common prefix (`the_pile_`) a mixture need not repeat."""
    plain = {name.removeprefix(_prefix(names)): name for name in names}
    known = {name: name if name in names else plain.get(name) for name, weight in weights.items() if weight > 0}
    if missing := [name for name, found in known.items() if found is None]:
        raise UserError(f"mixture {label!r}: {', '.join(map(repr, missing))} in no run of the swarm, which has {', '.join(sorted(plain))}")
    if len(set(known.values())) < len(known):
        twice = next(name for name, found in known.items() if list(known.values()).count(found) > 1)
        raise UserError(f"mixture {label!r}: domain {twice!r} is there twice, with and without the prefix {_prefix(names)!r}; add the two up")
    by_name = {found: weights[name] for name, found in known.items()}
    return [by_name.get(name, 0.0) for name in names]


def _prefix(names: Sequence[str]) -> str:
    """The words, each with its underscore, that all names begin with."""
    words = [name.split("_")[:-1] for name in names]
    shared = 0
    while all(len(each) > shared for each in words) and len({each[shared] for each in words}) == 1:
        shared += 1
    return "".join(f"{word}_" for word in words[0][:shared])


def _predicted(regressor: str, ratios: Array, columns: Array, asked: Array) -> Array:
    """[s, m]."""
    return np.stack([REGRESSORS[regressor].fit(ratios, losses)(asked) for losses in columns.T], axis=1)


def _nearest_others(ratios: Array) -> Array:
    """[n] L1 distance of every run to its nearest other one."""
    found = np.empty(len(ratios))
    for i, row in enumerate(ratios):
        distances = np.abs(ratios - row).sum(axis=1)
        distances[i] = np.inf
        found[i] = distances.min()
    return found


def _mean_nats(losses: Array) -> Array:
    return np.asarray(losses.mean(axis=-1))


def _mean_perplexity(losses: Array) -> Array:
    return np.asarray(np.exp(losses).mean(axis=-1))


def _interval(value: float, draws: Array) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
