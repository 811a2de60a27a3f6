"""From the embeddings of domains to their weights, in the order that the domains come in: scores, noise, floor, weights, error bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.errors import UserError
from chameleon_ray.mixing import krls
from chameleon_ray.mixing.formula import Formula, Weighing
from chameleon_ray.mixing.krls import Array, Leverage
from chameleon_ray.mixing.noise import noise_of, reliability
from chameleon_ray.mixing.standard_errors import StandardErrors, standard_errors
from chameleon_ray.mixing.target import Outside, outside_scores, target_of

MAX_AFFINITY_DOMAINS = 200


@dataclass(frozen=True)
class Estimate:
    """Weights of domains, and everything that they were found from.

    Attributes:
        names: k domains in the order of their names, that of all arrays.
        leverage: the scores, not normalised; towards a target where there is one, its other numbers being those without.
        reliability: R; 1 where noise is not asked for, NaN where it cannot be told.
        affinity: [k, k] inner products of the embeddings as they are, up to 200 domains.
        errors: None where none were asked for.
    """

    names: tuple[str, ...]
    leverage: Leverage
    reliability: float
    weighing: Weighing
    affinity: Array | None
    errors: StandardErrors | None

    @property
    def scores(self) -> Array:
        """[k] S, normalised where the formula says so."""
        return self.weighing.scores(self.leverage.scores)

    @property
    def weights(self) -> Array:
        """[k] alpha."""
        return self.weighing.weights(self.leverage.scores)


def estimate(
    embeddings: Embeddings,
    formula: Formula,
    prior: Mapping[str, float],
    draws: int,
    counted: Mapping[str, float] | None = None,
    boosts: Mapping[str, float] | None = None,
    others: Embeddings | None = None,
) -> Estimate:
    """Weigh embedded domains (algorithm 1 of the paper, steps 6 to 14).

    Domains are taken in the order of their names, so that another order of the input changes no digit.

    Args:
        prior: domain -> share, on the simplex.
        draws: of the bootstrap; 0 for no error bars.
        counted: domain -> by how much it counts less, where all do not count alike.
        boosts: what the weights look towards (target.py), by name: a domain, or one of the texts whose embeddings `others` are.
    Raises:
        UserError: a boost that cannot be had, a domain without samples or embedded twice, embeddings that are not finite, or a ridge lost in rounding.
    Cost: O(k p min(k, p)), times 1 + draws up to 1,000 domains, a few times that beyond (see standard_errors.py).
    """
    order = sorted(range(len(embeddings.names)), key=embeddings.names.__getitem__)
    names = tuple(embeddings.names[i] for i in order)
    for name, following in pairwise(names):
        if name == following:
            raise UserError(f"domain {name!r} is embedded twice; rename one of the two or leave it out")
    shares = np.array([prior[name] for name in names])
    means = embeddings.means_of(order)  # X, [k, p]
    affinity = means @ means.T if len(names) <= MAX_AFFINITY_DOMAINS else None
    given = None if (shares == shares[0]).all() else shares
    whole = means.copy() if boosts else means
    leverage = krls.scores(means, formula.ridge, formula.center, names, given, overwrite=True)
    reliable = reliability(noise_of(embeddings, order), leverage.energy, given) if formula.noise else 1.0
    weighing = Weighing.of(formula, leverage, reliable, None if counted is None else np.array([counted[name] for name in names]))
    if boosts:
        weighing, leverage = _towards(boosts, others, names, whole, weighing, leverage)
    errors = standard_errors(embeddings, order, leverage, weighing, draws) if draws else None
    return Estimate(names, leverage, reliable, weighing, affinity, errors)


def _towards(
    boosts: Mapping[str, float], others: Embeddings | None, names: tuple[str, ...], means: Array, weighing: Weighing, leverage: Leverage
) -> tuple[Weighing, Leverage]:
    """The weighing and the scores that look towards a target; what else is known of the scores is that of those without."""
    outside = Outside(others.names, others.means) if others else Outside((), np.zeros((0, means.shape[1])))
    scores, formula = leverage.scores, weighing.formula
    other_scores = outside_scores(means, outside.means, formula.center, weighing.ridge, weighing.prior)
    target = target_of(
        boosts,
        names,
        outside,
        scores,
        other_scores,
        weighing.prior,
        weighing.floor,
        weighing.tau(scores),
        weighing.bound(scores),
        formula.stage == "finetune",
    )
    if target is None:
        return weighing, leverage
    aimed = replace(weighing, target=target)
    return aimed, replace(leverage, scores=aimed.leverage(means))
