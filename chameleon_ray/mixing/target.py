"""Scores that look towards some of the domains, or towards text that is none of them: what is like it counts for more.

    eta_i     how many times domain i counts in what explains the domains; 1 where nothing is asked for
    w_i       k pi_i eta_i;  w_t of a text t that is no domain, 0 where nothing is asked for
    S_i       y_i^T (sum_j w_j y_j y_j^T + sum_t w_t y_t y_t^T + k lam I)^-1 y_i, krls.py's score where every eta is 1 and every w_t is 0
    Q_i       the same without domain i in the sum
    b         boost: by how much the odds of a domain are multiplied that is the target, or just like it, while its neighbours stay

By the Sherman-Morrison formula 1 / S_i = w_i + 1 / Q_i, and d(1 / Q_i) / d w_j = (y_i^T A^-1 y_j)^2 / Q_i^2 >= 0 with A the sum without i and the ridge: a
domain's own 1 / S rises by what it counts more, and that of the others by the square of how much it explains them. So when pretraining, where weights grow
with 1 / S, both the target and its neighbours gain; when finetuning eta_i S_i takes the place of S_i, the target's own score rises and its neighbours, which
it explains, fall. lam, the floor F, the temperature tau and the centre are those of the embeddings without any target, or a boost would also move them.

b is a matter of closed form: 1 / (S' + F) = 1 / (S + F) + tau ln b, and the target has to count (1 / S' - 1 / S) more. With a floor no weight exceeds that
of S' = 0, and with eta = 0 it is not under that of 1 / Q: what lies beyond is refused.

Source: Chameleon (ICML 2025), lemma A.3 with eta_i != 1, whose score is eta_i S_i here, and section 5, which leaves it for later. The lemma's own logit,
1 / (eta_i S_i), would lower the target's weight and raise its neighbours' alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chameleon_ray.errors import UserError
from chameleon_ray.mixing import krls
from chameleon_ray.mixing.krls import Array


@dataclass(frozen=True)
class Outside:
    """Embeddings [m, p] of texts that are no domains, by name."""

    names: tuple[str, ...]
    means: Array


@dataclass(frozen=True)
class Target:
    """What is looked towards.

    Attributes:
        eta: [k].
        outside: [m, p] embeddings of texts that are no domains, as they are. outside_counted: [m] w_t.
        tau, bound: of the formula without a target; `bound` is the most that a score counts for when finetuning.
        own: whether scores are eta_i S_i, as when finetuning.
    """

    eta: Array
    outside: Array
    outside_counted: Array
    tau: float
    bound: float
    own: bool

    def leverage(self, embeddings: Array, centered: bool, ridge: float, prior: Array | None) -> Array:
        """[k] S_i, or eta_i S_i, of embeddings [k, p]; lam and the prior pi as in krls.py."""
        found = _scores(embeddings, self.outside, centered, ridge, prior, self.eta, self.outside_counted)[: len(embeddings)]
        return found * self.eta if self.own else found


def outside_scores(embeddings: Array, outside: Array, centered: bool, ridge: float, prior: Array | None) -> Array:
    """[m] S of texts that are no domains and do not count."""
    k, m = len(embeddings), len(outside)
    return _scores(embeddings, outside, centered, ridge, prior, np.ones(k), np.zeros(m))[k:] if m else np.zeros(0)


def _scores(embeddings: Array, outside: Array, centered: bool, ridge: float, prior: Array | None, eta: Array, outside_counted: Array) -> Array:
    """[k + m] S_i of the domains and S_t of the other texts."""
    k, n = len(embeddings), len(embeddings) + len(outside)
    rows = krls.prepare(embeddings, centered, prior)
    mean = 0.0 if not centered else embeddings.mean(axis=0) if prior is None else prior @ embeddings
    counted = np.concatenate([(np.ones(k) if prior is None else k * prior) * eta, outside_counted])
    return krls.leverage(np.concatenate([rows, outside - mean]), k * ridge / n, counted / n)


def boosted(name: str, boost: float, score: float, floor: float, tau: float, counts: float | None) -> float:
    """How much more a target has to count, in units of w, for its odds to be multiplied by `boost` when pretraining.

    Args:
        score, floor, tau: S and F and the temperature without any target.
        counts: its w without any target; None for a text that is no domain.
    Raises:
        UserError: a boost that is beyond what the formula can give.
    """
    if score <= 0:
        raise UserError(f"targets.{name}: its embedding is that of the mean of all, so that it tells no domain from another; leave it out")
    wanted = 1 / (score + floor) + tau * math.log(boost)
    most = math.exp((1 / floor - 1 / (score + floor)) / tau) if floor > 0 and (1 / floor - 1 / (score + floor)) / tau < 700 else math.inf
    if floor > 0 and wanted >= 1 / floor:
        raise UserError(f"targets.{name}: {boost:g} cannot be reached, {most:.3g} is the most that the floor of this formula allows here; lower it")
    least = 1 / score - (counts or 0.0)
    alone = 1 / (1 / least + floor) if least > 0 else 0.0
    if wanted <= 0 or 1 / (1 / wanted - floor) < least * (1 - 1e-12):
        lowest = math.exp((alone - 1 / (score + floor)) / tau)
        raise UserError(f"targets.{name}: {boost:g} cannot be reached, {lowest:.3g} is the least, when it explains nothing; raise it")
    return 1 / (1 / wanted - floor) - 1 / score


def check_outside(name: str, boost: float, finetuning: bool) -> None:
    """Raise `UserError` for a boost that text that is no domain cannot have."""
    if finetuning and boost != 1:
        told = "text that is no domain, and when finetuning what a target explains gets less; name a domain, or let the method have stage: pretrain"
        raise UserError(f"targets.{name}: {told}")
    if boost < 1:
        raise UserError(f"targets.{name}: {boost:g}, and text that is no domain can only be looked towards; give 1 or more")


def target_of(
    boosts: Mapping[str, float],
    names: Sequence[str],
    outside: Outside,
    scores: Array,
    others_scores: Array,
    prior: Array | None,
    floor: float,
    tau: float | None,
    bound: float,
    finetuning: bool,
) -> Target | None:
    """What boosts of domains and of other texts come to; None where they ask for nothing.

    Args:
        boosts: name -> b when pretraining; when finetuning, where scores end at 1, eta itself.
        names: k domains.
        scores, others_scores: S of the domains [k], and of the other texts [m], without any target.
        floor, tau, bound: of the formula without a target; tau is None where the embeddings say nothing.
    Raises:
        UserError: a name that is neither a domain nor embedded text, a boost that cannot be reached, or text that is no domain when finetuning.
    """
    others = outside.names
    eta, counted = np.ones(len(names)), np.zeros(len(others))
    for name, boost in boosts.items():
        if name not in names and name not in others:
            raise UserError(f"targets.{name}: neither a domain nor a target of the corpus; there are {', '.join((*names, *others))}")
        if boost == 1:
            continue
        if tau is None or math.isinf(floor):
            raise UserError(f"targets.{name}: the embeddings say nothing of these domains, so that none can be looked towards; leave targets out")
        if name in names:
            i = names.index(name)
            share = 1.0 if prior is None else len(names) * float(prior[i])
            if share == 0:
                raise UserError(f"targets.{name}: its prior is 0, and so is its weight whatever is asked for; give it a share of the prior")
            eta[i] = boost if finetuning else max(0.0, 1 + boosted(name, boost, float(scores[i]), floor, tau, share) / share)
        else:
            check_outside(name, boost, finetuning)
            j = others.index(name)
            counted[j] = boosted(name, boost, float(others_scores[j]), floor, tau, None)
    if (eta == 1).all() and not counted.any():
        return None
    assert tau is not None
    return Target(eta, outside.means, counted, tau, bound, finetuning)
