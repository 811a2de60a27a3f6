"""From weights to whole tokens, and how often text is read for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.counts import DomainCounts
from chameleon_ray.errors import UserError
from chameleon_ray.mixture import check_weights
from chameleon_ray.settings import listed

MANY_EPOCHS = 4  # up to which repeated text is worth about what fresh text is (Muennighoff et al. 2023, Scaling data-constrained language models)


def largest_remainder(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Share `total` indivisible units by weight (Hamilton's method).

    Every domain gets its quota weight * total rounded down; what is left goes one by one to the largest remainders, equal ones in the order of
    their names. Exact arithmetic: the counts sum to `total` and do not depend on the order of the domains.

    Args:
        weights: name -> fraction, on the simplex. A weight of 0 gets 0.
        total: units to share, at least 0.
    Raises:
        UserError: weights off the simplex, or a negative total.
    """
    check_weights(weights, "weights")
    if total < 0:
        raise UserError(f"total: {total} units cannot be shared; give at least 0")
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    mass = sum(exact.values())
    quotas = {name: weight * total / mass for name, weight in exact.items()}
    counts = {name: math.floor(quota) for name, quota in quotas.items()}
    left = total - sum(counts.values())
    for name in sorted(quotas, key=lambda name: (counts[name] - quotas[name], name))[:left]:
        counts[name] += 1
    return counts


def read_over(corpus: TokenCorpus, runs: Iterable[tuple[Mapping[str, float], int]]) -> list[str]:
    """A sentence on domains that runs read too often though there is more of them than was read, and on the remedy; none where there are none.

    Args:
        runs: of each its weights and the rows that it draws.
    """
    often: dict[str, float] = {}
    stored = {name: rows for name, rows in corpus.rows().items() if rows and corpus.domains[name].excerpt is not None}
    for weights, drawn in runs:
        for name, rows in stored.items():
            if (times := weights.get(name, 0.0) * drawn / rows) > max(MANY_EPOCHS, often.get(name, 0.0)):
                often[name] = times
    if not often:
        return []
    read = {name: _tokens_read(corpus.domains[name]) for name in stored}
    if corpus.clusters is not None:  # a number is asked of all found domains together
        tokens = math.ceil(sum(read.values()) / len(read) * max(often.values()) / MANY_EPOCHS)
    else:
        tokens = math.ceil(max(read[name] * times / MANY_EPOCHS for name, times in often.items()))
    told = listed([f"{name} {times:,.0f} times" if times >= 10 else f"{name} {times:.2g} times" for name, times in often.items()])
    return [
        f"Only part of the text was read, and base models read {told}, though there is more: beyond {MANY_EPOCHS} epochs repeated text is worth less. "
        f"Set corpus.tokens_per_domain to {tokens:,} or more."
    ]


def _tokens_read(counts: DomainCounts) -> float:
    """Of a domain that was read in part: with the copies and what is held out, as `corpus.tokens_per_domain` counts."""
    assert counts.excerpt is not None
    return counts.train.tokens * max(1.0, counts.excerpt.read_bytes / max(1, counts.train.text_bytes))
