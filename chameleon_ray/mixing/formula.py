"""From leverage scores to weights: what a variant of Chameleon and its overrides amount to.

    S        [k] leverage scores (krls.py), over their sum where they are normalised
    pi       [k] prior, 1/k unless given; a mean with a bar is taken under it
    R        reliability of the embeddings (noise.py); 1 where noise is not asked for
    F        floor, mean(S) (gamma + (1 - R) / R)
    T        S + F, what enters the softmax
    tau      temperature: alpha_i ~ pi_i exp(1 / (T_i tau)) when pretraining, pi_i exp(T_i / tau) when finetuning
    t        relative temperature: alpha_i ~ pi_i exp((mean T / T_i) / t), pi_i exp((T_i / mean T) / t)
    c        cap on T_i / mean T when finetuning

With pi = 1/k and F = 0 this is the paper's formula. With a floor no domain's 1 / T exceeds (gamma + 1) / gamma times that of the mean score, however near
it lies to the centre; the more of what tells the domains apart is noise, the nearer the weights are to the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chameleon_ray.mixing import krls
from chameleon_ray.mixing.krls import Array, Leverage, OneOf, Ridge
from chameleon_ray.mixing.simplex import normalised, softmax
from chameleon_ray.mixing.target import Target
from chameleon_ray.settings import NonNegativeFloat, PositiveFloat, Settings

Stage = Literal["pretrain", "finetune"]


class Temperature(OneOf):
    """tau itself, or t relative to the mean score: the same t means the same for every number of domains and every ridge."""

    absolute: PositiveFloat | None = None
    relative: PositiveFloat | None = None

    def resolve(self, mean_score: float, stage: Stage) -> float:
        """tau for scores of this mean."""
        if self.absolute is not None:
            return self.absolute
        assert self.relative is not None
        return self.relative / mean_score if stage == "pretrain" else self.relative * mean_score


class Formula(Settings):
    """The formula a variant and its overrides amount to."""

    stage: Stage
    ridge: Ridge
    temperature: Temperature
    center: bool
    normalize: bool
    noise: bool
    floor: NonNegativeFloat
    cap: PositiveFloat | None


@dataclass(frozen=True)
class Weighing:
    """A formula with what stays as it is when the embeddings change a little: error bars are of everything else.

    Attributes:
        prior: pi, [k]; None where it is uniform.
        ridge: lam.
        counted: [k] by how much each domain counts less, in front of everything and not in the scores; None where all count alike.
        floor: F in the units of S before they are normalised; infinite where nothing but the prior can be said.
        target: what the scores look towards (target.py).
    """

    formula: Formula
    prior: Array | None
    ridge: float
    floor: float
    counted: Array | None = None
    target: Target | None = None

    @classmethod
    def of(cls, formula: Formula, leverage: Leverage, reliability: float, counted: Array | None = None) -> Weighing:
        """From the scores of the embeddings as they are.

        Of two domains that have any prior, the distances to the mean under it follow from the prior alone, whatever the text: it is returned.
        """
        k, prior = len(leverage.scores), leverage.prior
        if math.isnan(reliability):
            reliability = 1.0  # nothing tells how far samples scatter
        two = (k if prior is None else int((prior > 0).sum())) == 2
        silent = reliability == 0 or (formula.center and two)
        return cls(formula, prior, leverage.ridge, math.inf if silent else leverage.mean * (formula.floor + (1 - reliability) / reliability), counted)

    @property
    def scale_free(self) -> bool:
        """Whether the weights depend on the ratios of the scores alone."""
        return self.formula.normalize or self.formula.temperature.relative is not None

    def leverage(self, embeddings: Array) -> Array:
        """[k] S, not normalised, of embeddings [k, p] in the order of the prior."""
        if self.target is not None:
            return self.target.leverage(embeddings, self.formula.center, self.ridge, self.prior)
        rows = krls.prepare(embeddings, self.formula.center, self.prior)
        return krls.leverage(rows, self.ridge, self.prior)

    def scores(self, leverage: Array) -> Array:
        """[k] S."""
        return krls.normalise(leverage, self.prior) if self.formula.normalize else leverage

    def mean(self, values: Array) -> float:
        """Under the prior."""
        return float(values.mean() if self.prior is None else self.prior @ values)

    def tau(self, leverage: Array) -> float | None:
        """The absolute temperature; None where every score is 0 or all is noise, since no temperature matters there."""
        if not leverage.any() or math.isinf(self.floor):
            return None
        if self.target is not None:
            return self.target.tau
        return self.formula.temperature.resolve(self.mean(self.floored(leverage)), self.formula.stage)

    def logits(self, leverage: Array) -> Array | None:
        """[k] whose exponentials times the prior are the weights; +inf where T is 0 when pretraining, None where the weights are the prior."""
        tau = self.tau(leverage)
        if tau is None:
            return None
        floored = self.floored(leverage)
        if self.formula.stage == "pretrain":
            with np.errstate(divide="ignore", over="ignore"):
                return 1 / (floored * tau)
        return np.minimum(floored, self.bound(leverage)) / tau

    def bound(self, leverage: Array) -> float:
        """The most that T counts for when finetuning."""
        if self.target is not None:
            return self.target.bound
        return math.inf if self.formula.cap is None else self.formula.cap * self.mean(self.floored(leverage))

    def weights(self, leverage: Array) -> Array:
        """[k] alpha; the prior where every score is 0."""
        logits = self.logits(leverage)
        prior = self.prior if self.counted is None else self.counted * (1.0 if self.prior is None else self.prior)
        if logits is None:
            return normalised(np.ones(len(leverage)) if prior is None else prior)
        return softmax(logits, None if prior is None else normalised(prior))

    def floored(self, leverage: Array) -> Array:
        """[k] T."""
        if self.floor == 0:
            return self.scores(leverage)
        total = krls.dimension(leverage, self.prior) if self.formula.normalize else 1.0
        return (leverage + self.floor) / total


def structureless(weighing: Weighing, leverage: Leverage) -> Array:
    """[k] what the formula would give domains that have nothing to do with each other and are all as long: what the prior says by itself.

    Of orthogonal unit vectors the moment under the prior is diag(pi), less pi pi^T if centred, so that with lam = rho E

        S_i k = 1 / (pi_i + lam)                                                            uncentred, E = 1
        S_i k = 1 / (pi_i + lam) - 2 g_i + q + (g_i - q)^2 / (1 - q)                        centred, E = 1 - sum_i pi_i^2

    with g_i = pi_i / (pi_i + lam) and q = sum_i pi_i g_i, by the Sherman-Morrison formula. lam stands to E, and F to the mean score, as they do for the
    embeddings at hand. Cost: O(k).
    """
    prior, k = weighing.prior, len(leverage.scores)
    if prior is None or leverage.energy == 0 or math.isinf(weighing.floor):
        return np.full(k, 1 / k) if prior is None else normalised(prior)
    energy = 1 - float(prior @ prior) if weighing.formula.center else 1.0
    lam = weighing.ridge / leverage.energy * energy
    scores = 1 / (prior + lam) / k
    if weighing.formula.center:
        g = prior / (prior + lam)
        q = float(prior @ g)
        scores += (-2 * g + q + (g - q) ** 2 / (1 - q)) / k
    same = Weighing(weighing.formula, prior, lam, weighing.floor / leverage.mean * float(prior @ scores))
    return same.weights(scores)
