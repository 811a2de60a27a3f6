"""Points on the simplex, and the names of the domains they belong to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.errors import UserError


def softmax(logits: ArrayLike, prior: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """pi_i exp(z_i) / sum_j pi_j exp(z_j) without overflow; logits of +inf share all the mass as their priors do, which is the limit.

    Args:
        logits: [k], no NaN.
        prior: pi, [k] not negative, somewhere positive; None where it is uniform. What has none of it has no weight.
    """
    z = np.asarray(logits, dtype=np.float64)  # [k]
    if prior is not None:
        z = np.where(prior > 0, z, -np.inf)
    top = z.max()
    mass = (z == top).astype(np.float64) if top == np.inf else np.exp(z - top)
    return normalised(mass if prior is None else mass * prior)


def normalised(weights: ArrayLike) -> NDArray[np.float64]:
    """[k] non-negative numbers divided by their sum. The sum is exact, so that the order of the domains changes no digit."""
    values = np.asarray(weights, dtype=np.float64)  # [k]
    total = math.fsum(values.tolist())
    assert total > 0, "weights of a simplex need a positive sum"
    return values / total


def token_shares(tokens: Mapping[str, float], names: Sequence[str], where: str) -> dict[str, float]:
    """The domains' shares of all tokens; raises `UserError` for a domain of which it is not known how many it has, naming the setting `where`."""
    for name in names:
        if name not in tokens:
            raise UserError(f"{where}: nothing tells how much text domain {name!r} has; set corpus.tokens_per_domain to null to read all of it, or give shares")
    return named(names, normalised([tokens[name] for name in names]))


def effective_number(weights: ArrayLike) -> float:
    """exp(entropy): k for uniform weights, 1 when one domain has everything."""
    values = np.asarray(weights, dtype=np.float64)  # [k]
    positive = values[values > 0]
    return math.exp(-math.fsum((positive * np.log(positive)).tolist()))


def spread(weights: ArrayLike) -> Literal["collapsed", "flat"] | None:
    """Whether weights say too much or too little: an effective number of domains under 2 (under 1.2 of two), or over 0.99 k."""
    k = np.size(weights)
    if k == 1:
        return None
    effective = effective_number(weights)
    # Two domains reach 2 only when equal, so that they need a bound of their own.
    if effective < (2.0 if k > 2 else 1.2):
        return "collapsed"
    return "flat" if effective > 0.99 * k else None


def effective_domains(weights: ArrayLike) -> str:
    """The beginning of a warning about weights that collapse or are flat."""
    return f"The effective number of domains is {effective_number(weights):.2f} of {np.size(weights)}"


def named(names: Sequence[str], values: Iterable[float]) -> dict[str, float]:
    """Plain floats under the names of their domains, in the order of the names."""
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def uniform(names: Sequence[str]) -> dict[str, float]:
    """1/k for every domain."""
    return named(names, normalised(np.ones(len(names))))


def in_order(values: Mapping[str, float], names: Sequence[str], where: str, noun: str) -> dict[str, float]:
    """One value for each of the domains, in their order.

    Args:
        where: the setting that gives them, and `noun`, what they are, for errors.
    Raises:
        UserError: a domain without one, or one of no domain.
    """
    for name in sorted(set(names) ^ set(values)):
        side = f"has no {noun}" if name in names else "is no domain"
        raise UserError(f"{where}: {name!r} {side}; give one {noun} for each of {', '.join(names)}")
    return {name: values[name] for name in names}


def domain_names(corpus: TokenCorpus) -> tuple[str, ...]:
    """The domains a method has to weigh.

    Raises:
        UserError: a domain that is named but absent, or that has no row to train on.
    """
    for name in corpus.names:
        if name not in corpus.domains:
            raise UserError(f"domain {name!r} is missing from the corpus; add it under corpus.domains or remove its name")
        if corpus.domains[name].train.rows == 0:
            raise UserError(f"domain {name!r} has no train rows; add documents or remove the domain")
    return corpus.names
