"""What a person should read beside Chameleon's weights: what drove them, and what speaks against trusting them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing.estimate import Estimate
from chameleon_ray.mixing.noise import MIN_RELIABILITY
from chameleon_ray.mixing.simplex import effective_domains, spread
from chameleon_ray.settings import listed

MAX_NAMED = 3
MIN_GAIN = 1.1
MIN_COSINE = 0.3
MAX_SAMPLE_WARNINGS = 10
MIN_RELATIVE_SPREAD = 0.01


def explanation_of(found: Estimate) -> tuple[str, ...]:
    """What drove the weights, which domains explain each other, and how sure that is."""
    if len(found.names) < 3 or math.isinf(found.weighing.floor) or not found.leverage.scores.any():
        return ()
    return (*_drivers(found), *_neighbours(found), *_certainty(found))


def _drivers(found: Estimate) -> list[str]:
    """Domains that gain against the prior, and those that lose."""
    k, prior = len(found.names), found.leverage.prior
    times = found.weights / (np.full(k, 1 / k) if prior is None else np.where(prior > 0, prior, np.inf))
    order = [int(i) for i in np.argsort(-times, kind="stable") if times[i] > 0]
    gain = [f"{found.names[i]} ({times[i]:.2g} ×)" for i in order if times[i] >= MIN_GAIN]
    lose = [f"{found.names[i]} ({times[i]:.2g} ×)" for i in reversed(order) if times[i] <= 1 / MIN_GAIN]
    middle = "near the middle of all domains" if found.weighing.formula.center else "close to what the others have in common"
    inside, outside = ("lie", f"{middle}, where others explain"), ("stand", "apart, where little explains")
    up, down = (inside, outside) if found.weighing.formula.stage == "pretrain" else (outside, inside)
    if found.weighing.target is not None:
        moved = [f"{verb} {listed(names, MAX_NAMED)}" for verb, names in (("gain:", gain), ("lose:", lose)) if names]
        return [f"With what the weights look towards, against {'a uniform share' if prior is None else 'the prior'} {'; '.join(moved) or 'nothing moves'}."]
    said = [_moved(*side) for side in (("gain", gain, *up), ("lose", lose, *down)) if side[1]]
    against = "a uniform share" if prior is None else "the prior"
    return [f"Against {against} {'; '.join(said) if said else 'no domain gains or loses a tenth'}."]


def _moved(verb: str, names: Sequence[str], lie: str, where: str) -> str:
    if len(names) == 1:
        return f"{names[0]} {verb}s, since it {lie}s {where} it"
    return f"{listed(names, MAX_NAMED)} {verb}, since they {lie} {where} them"


def _neighbours(found: Estimate) -> list[str]:
    """Pairs of domains that point the same way."""
    if found.affinity is None:
        return []
    rows, prior = found.leverage.rows, found.leverage.prior
    rows = rows - (rows.mean(axis=0) if prior is None else prior @ rows)
    lengths = np.linalg.norm(rows, axis=1)
    cosines = np.triu(rows @ rows.T / np.maximum(np.outer(lengths, lengths), np.finfo(float).tiny), 1)
    best = [divmod(int(i), len(rows)) for i in np.argsort(-cosines, axis=None, kind="stable")[:MAX_NAMED]]
    pairs = [f"{found.names[i]} and {found.names[j]} (cosine {cosines[i, j]:.2f})" for i, j in best if cosines[i, j] >= MIN_COSINE]
    return [f"Closest to each other, once the mean of all is taken off, are {', '.join(pairs)}."] if pairs else []


def _certainty(found: Estimate) -> list[str]:
    """The largest relative error of a weight, and how much is noise."""
    said = []
    if found.errors is not None:
        relative = np.divide(found.errors.weights, found.weights, out=np.zeros(len(found.names)), where=found.weights > 0)
        worst = int(np.argmax(relative))
        said.append(f"other samples would move the weights by {np.median(relative):.0%}, and {found.names[worst]}'s by {relative[worst]:.0%} (standard errors)")
    if found.weighing.formula.noise and not math.isnan(found.reliability):
        said.append(f"{1 - found.reliability:.1%} of what tells the domains apart is noise of the samples")
    sentence = "; ".join(said)
    return [f"{sentence[:1].upper()}{sentence[1:]}."] if said else []


def warnings_of(found: Estimate, embeddings: Embeddings, formats: Sequence[str]) -> tuple[str, ...]:
    """One sentence each, with what to do about it."""
    of_weights = (*_silence_warnings(found), *_spread_warnings(found), *_weight_warnings(found), *_noise_warnings(found))
    return (*of_weights, *_sample_warnings(embeddings), *format_warnings(formats))


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
    noisy = found.reliability < MIN_RELIABILITY  # then it is right that they are flat
    if spread(weights) == "flat" and not noisy and not math.isinf(found.weighing.floor) and found.leverage.scores.any():
        cause = "since the temperature is too high for these scores or they do not spread"
        return [f"{effective_domains(weights)}: the weights are nearly uniform, {cause}; {remedy or 'lower temperature'}."]
    return []


def _noise_warnings(found: Estimate) -> list[str]:
    if len(found.names) == 1 or found.leverage.energy == 0:
        return []
    if math.isnan(found.reliability):
        return ["How much of what tells the domains apart is noise cannot be told, since each has its samples in one hash group; give more documents."]
    if found.reliability >= MIN_RELIABILITY:
        return []
    return [
        f"The answer is mostly noise: {1 - found.reliability:.0%} of what tells the domains apart is chance in their samples, so that the weights "
        "stay near the prior; raise embedding.samples_per_domain, or merge domains of the same text."
    ]


def format_warnings(formats: Sequence[str]) -> list[str]:
    """That machines differed in their number formats."""
    if len(formats) < 2:
        return []
    return [f"Text was embedded in {' and '.join(formats)}, so that embeddings differ by more than their text; set embedding.precision."]


def _sample_warnings(embeddings: Embeddings) -> list[str]:
    filled = (embeddings.group_counts > 0).sum(axis=1)  # [k]
    alone = [embeddings.names[i] for i in (filled < 2).nonzero()[0]]
    what = "samples in only 1 hash group, so that {} standard errors leave out {} own noise; embed more samples."
    named = [f"Domain {name!r} has {what.format('its', 'its')}" for name in alone[:MAX_SAMPLE_WARNINGS]]
    more = len(alone) - len(named)
    return [*named, f"{more:,} more domains have {what.format('their', 'their')}"] if more else named
