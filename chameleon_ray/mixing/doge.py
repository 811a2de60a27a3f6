"""DoGE: weights from how well each domain's gradient agrees with what all domains need (Fan et al. 2024, algorithm 1).

    g_i       gradient of domain i's mean loss, clipped to norm 5
    G         sum of g_j over the target domains, and over targets that are not trained on, on their valid halves
    W_i       eta_t <g_i, G> / (mean_i |g_i| + 1e-6), clipped to [0, 5] eta_t; eta_t the learning rate, which enters once
    alpha_t   softmax(log alpha_{t-1} + W_i / mu)
    step      sum_i alpha_i g_i, with the alpha just computed
    answer    mean of alpha_1 … alpha_T

Rows are drawn uniformly. mu = 0.01 is the authors' shipped configuration. Whether a domain's own gradient counts in G is `own_domain`: the
authors' code means to leave it out, but its comparison never matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import field_validator

from chameleon_ray.backend import Array, Changes, FitContext, Rule, RuleState, Seen, TrainJob
from chameleon_ray.config import ProxyChanges, TrainingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.learned import check_batch, check_own_proxy, learned, own_training, proxy_keys, proxy_training
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.simplex import domain_names, softmax, uniform
from chameleon_ray.mixture import Mixture
from chameleon_ray.settings import PositiveFloat

EPSILON = 1e-6


@dataclass(frozen=True)
class DoGERule:
    """The update of alpha; its state remembers log alpha. `targets` are indices of domains, all when None; `external` names targets of the corpus."""

    name: ClassVar[str] = "doge"
    version: ClassVar[int] = 1
    signal: ClassVar[str] = "gradients"
    changes: ClassVar[Changes] = "loss"
    mu: float = 0.01
    max_norm: float = 5.0
    max_score: float = 5.0
    own_domain: bool = True
    targets: tuple[int, ...] | None = None
    external: tuple[str, ...] = ()

    def start(self, names: Sequence[str], prior: Array, horizon_steps: int) -> RuleState:
        """Uniform weights."""
        k = len(names)
        return RuleState.start(names, np.full(k, 1 / k), {"logits": np.full(k, -np.log(k))})

    def target_mask(self, num_domains: int) -> Array:
        """[k] 1 for the domains whose gradients make up G."""
        mask = np.zeros(num_domains)
        mask[list(range(num_domains) if self.targets is None else self.targets)] = 1
        return mask

    def update(self, state: RuleState, seen: Seen) -> RuleState:
        """One step. Of what is seen, `products` [k] are <g_i, G> of clipped gradients, and `norms` [k] |g_i| after clipping, 0 for a domain that the batch
        does not show, which then keeps its place."""
        products, norms = seen.values["products"], seen.values["norms"]
        own = 0.0 if self.own_domain else self.target_mask(len(norms)) * norms**2
        present = norms > 0
        scale = norms[present].mean() if present.any() else 0.0
        scores = seen.learning_rate * np.clip((products - own) / (scale + EPSILON), 0, self.max_score)
        logits = state.memory["logits"] + scores / self.mu
        alpha = softmax(logits)
        logits = logits - logits.max()
        logits -= np.log(np.exp(logits).sum())
        return state.updated(alpha, {"logits": logits}, seen.step + 1)

    def answer(self, state: RuleState) -> Array:
        """The mean over updates."""
        return state.mean()

    def done(self, state: RuleState) -> bool:
        """Never before the run's end."""
        return False


class DoGE(Method):
    """Weigh up the domains whose gradients help the target domains, all of them unless `targets` names some; or targets of the corpus, which are measured
    and never trained on.

    `proxy` is what differs from the experiment's proxy. Batches of at least four rows per domain cost what a plain step of the same batch costs.
    """

    name: ClassVar[str] = "doge"
    needs: ClassVar[frozenset[str]] = frozenset({"proxy"})
    rule: ClassVar[type[Rule] | None] = DoGERule
    mu: PositiveFloat = 0.01
    max_norm: PositiveFloat = 5.0
    max_score: PositiveFloat = 5.0
    own_domain: bool = True
    targets: tuple[str, ...] | None = None
    proxy: ProxyChanges | None = None

    @field_validator("targets")
    @classmethod
    def _each_once(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets is not None and (not targets or len(set(targets)) < len(targets)):
            raise ValueError("give at least one target, each once; null takes all domains")
        return targets

    def check_settings(self, label: str, proxy: TrainingConfig) -> None:
        """Raise `UserError` where the experiment's proxy is pretrained and this method has none of its own."""
        check_own_proxy(label, proxy, self.proxy)

    def trainings(self, proxy: TrainingConfig) -> list[TrainingConfig]:
        """Of the proxy."""
        return [own_training(proxy, self.proxy)]

    def check(self, context: FitContext) -> None:
        """Raise `UserError` for a domain that is empty, a target that is not in the corpus, or batches with fewer rows than there are domains."""
        names = domain_names(context.corpus)
        known = (*names, *context.corpus.targets)
        for target in self.targets or ():
            if target not in known:
                raise UserError(f"methods.{context.label}.targets: {target!r} is no domain and no target of the corpus; it has {', '.join(known)}")
        for job in self.jobs(context):
            check_batch(job)

    def jobs(self, context: FitContext) -> list[TrainJob]:
        """The proxy."""
        names = domain_names(context.corpus)
        targets = None if self.targets is None else tuple(names.index(target) for target in self.targets if target in names)
        external = tuple(target for target in self.targets or () if target not in names)
        rule = DoGERule(self.mu, self.max_norm, self.max_score, self.own_domain, targets, external)
        training, keys = proxy_training(context, self.proxy), proxy_keys(context, self.proxy)
        return [TrainJob("doge", training, uniform(names), context.seed, rule, keys=keys)]

    def fit(self, context: FitContext) -> Mixture:
        """Train the proxy. Cost: one training run, and a few passes over k gradients at every step."""
        self.check(context)
        (proxy,) = context.backend.train_many(context.corpus, self.jobs(context))
        return learned(self, context, proxy, "the updates are too large for the length of the run; raise mu, or lower the proxy's learning rate")
