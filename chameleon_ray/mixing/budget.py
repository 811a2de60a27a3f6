"""From weights to whole rows or tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from chameleon_ray.errors import UserError
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
