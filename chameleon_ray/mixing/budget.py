"""From weights to whole rows or tokens, and how often a small domain may be repeated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.simplex import named
from chameleon_ray.mixture import check_weights


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


def cap_repetition(weights: Mapping[str, float], available: Mapping[str, int], total: int, max_repetition: float) -> dict[str, float]:
    """Lower the weights that would repeat a domain more than `max_repetition` times; the others grow in proportion to their weights.

    Water-filling: alpha_i = min(R n_i / total, s w_i) with the one s for which alpha sums to 1.

    Args:
        weights: name -> fraction, on the simplex. A weight of 0 stays 0.
        available: name -> n_i, rows or tokens, the same unit as `total`.
        total: what the whole run draws.
        max_repetition: R > 0; 1 means that nothing is read twice.
    Returns:
        name -> fraction, summing to 1 within 1e-9, with alpha_i * total <= R n_i up to rounding. The weights themselves where no cap binds.
    Raises:
        UserError: even R times everything that has weight is less than `total`, or a domain has no entry in `available`.
    Cost: at most k passes over k numbers.
    """
    check_weights(weights, "weights")
    names = tuple(weights)
    for name in names:
        if name not in available:
            raise UserError(f"available: nothing is said of domain {name!r}; give the rows or tokens it has")
    w = np.array([weights[name] for name in names], dtype=np.float64)  # [k]
    n = np.array([available[name] for name in names], dtype=np.float64)  # [k]
    usable = sum(available[name] for name in names if weights[name] > 0)
    if max_repetition * usable < total:
        raised = f"raise it to at least {math.ceil(1000 * total / usable) / 1000:g}, " if usable else ""
        raise UserError(
            f"corpus.max_repetition: {max_repetition:g} times the {usable} rows or tokens of the domains with weight is less than the {total} "
            f"that training draws; {raised}train fewer steps or add documents"
        )
    if (w * total <= max_repetition * n).all():
        return named(names, w)
    caps = max_repetition * n / total  # [k]
    alpha, capped = w, np.zeros(len(names), dtype=bool)
    while (violated := ~capped & (alpha > caps)).any():
        capped |= violated
        free = math.fsum(w[~capped].tolist())
        scale = (1 - math.fsum(caps[capped & (w > 0)].tolist())) / free if free > 0 else 0.0
        alpha = np.where(capped, caps, w * max(scale, 0.0))
    return named(names, alpha)
