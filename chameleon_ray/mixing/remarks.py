"""What a person should read before trusting Chameleon's weights."""

from __future__ import annotations

import math

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing.estimate import Estimate
from chameleon_ray.mixing.simplex import effective_domains, spread

MAX_SAMPLE_WARNINGS = 10
MIN_RELATIVE_SPREAD = 0.01
MIN_RELIABILITY = 0.5


def warnings_of(found: Estimate, embeddings: Embeddings) -> tuple[str, ...]:
    """One sentence each, with what to do about it."""
    return (*_silence_warnings(found), *_spread_warnings(found), *_weight_warnings(found), *_noise_warnings(found), *_sample_warnings(embeddings))


def _silence_warnings(found: Estimate) -> list[str]:
    """Where the embeddings say nothing and the weights are the prior."""
    scores, prior, centered = found.leverage.scores, found.leverage.prior, found.weighing.formula.center
    if len(scores) == 1:
        return []
    what = "uniform" if prior is None else "the prior"
    if not scores.any():
        reason = "all domains have the same embedding" if centered else "all embeddings are zero"
        return [f"The weights are {what} because {reason}; look for copies of one domain, or for a proxy that has not learned anything."]
    given = len(scores) if prior is None else int((prior > 0).sum())
    if centered and given == 2:
        return [
            f"The weights are {what}: how far two domains lie from their mean follows from the prior alone, whatever the text; "
            "give three domains or more, or set center: false."
        ]
    return []


def _spread_warnings(found: Estimate) -> list[str]:
    leverage, formula = found.leverage.scores, found.weighing.formula
    if len(leverage) == 1 or math.isinf(found.weighing.floor) or not leverage.any():
        return []
    spread = float((leverage.max() - leverage.min()) / leverage.mean())
    if spread >= MIN_RELATIVE_SPREAD:
        return []
    saturated = leverage.mean() > 0.5
    cause = "the ridge is far below the spectrum, so that every score saturates near 1" if saturated else "the embeddings hardly differ at this ridge"
    remedy = "set variant: calibrated, or ridge: {energy: 1}" if formula.ridge.absolute else "change ridge, or train the proxy longer"
    return [f"The scores differ by only {spread:.2%} of their mean and say little about the domains: {cause}; {remedy}."]


def _weight_warnings(found: Estimate) -> list[str]:
    weights, formula, prior = found.weights, found.weighing.formula, found.leverage.prior
    absolute = formula.temperature.absolute is not None
    remedy = "set variant: calibrated, or temperature: {relative: 1.5} with ridge: {energy: 1}" if absolute else None
    if spread(weights) == "collapsed" and (prior is None or spread(prior) != "collapsed"):
        remedy = remedy or "raise temperature or floor"
        return [f"{effective_domains(weights)}: the weights collapse, since the temperature is too low for these scores; {remedy}."]
    if spread(weights) == "flat" and not math.isinf(found.weighing.floor) and found.leverage.scores.any():
        cause = "since the temperature is too high for these scores or they do not spread"
        return [f"{effective_domains(weights)}: the weights are nearly uniform, {cause}; {remedy or 'lower temperature'}."]
    return []


def _noise_warnings(found: Estimate) -> list[str]:
    if found.reliability >= MIN_RELIABILITY or len(found.names) == 1 or found.leverage.energy == 0:
        return []
    return [
        f"The answer is mostly noise: {1 - found.reliability:.0%} of what tells the domains apart is chance in their samples, so that the weights "
        "stay near the prior; raise embedding.samples_per_domain, or merge domains of the same text."
    ]


def _sample_warnings(embeddings: Embeddings) -> list[str]:
    filled = (embeddings.group_counts > 0).sum(axis=1)  # [k]
    alone = [embeddings.names[i] for i in (filled < 2).nonzero()[0]]
    what = "samples in only 1 hash group, so that {} standard errors leave out {} own noise; embed more samples."
    named = [f"Domain {name!r} has {what.format('its', 'its')}" for name in alone[:MAX_SAMPLE_WARNINGS]]
    more = len(alone) - len(named)
    return [*named, f"{more:,} more domains have {what.format('their', 'their')}"] if more else named
