"""DoReMi: weights from a small proxy trained by group DRO against a reference model (Xie et al. 2023, algorithm 1).

    excess_i  mean over domain i's tokens of max(l_proxy - l_reference, 0), in nats per token, over the batch and all ranks
    alpha_t   softmax(log alpha_{t-1} + eta excess), then (1 - c) alpha + c / k
    loss      sum_i alpha_i l_i, with the alpha just computed
    answer    mean of alpha_1 … alpha_T

Rows are drawn uniformly throughout: alpha changes what a domain counts for, not how often it is seen.

Deviations from the authors' code, all towards the paper: c is 1e-3, not 1e-4; alpha_0 is not in the mean; a domain that no batch has shown
yet has excess 0, not log V, which would give one absent domain nearly all the weight when batches are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from chameleon_ray.backend import Array, Changes, FitContext, Rule, RuleState, Seen, TrainJob
from chameleon_ray.config import ProxyChanges, TrainingConfig
from chameleon_ray.mixing.learned import check_batch, check_own_proxy, learned, own_training, proxy_keys, proxy_training
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.simplex import domain_names, normalised, softmax, token_shares, uniform
from chameleon_ray.mixture import Mixture
from chameleon_ray.settings import PositiveFloat


@dataclass(frozen=True)
class DoReMiRule:
    """The update of alpha; its state remembers the last mean excess loss of every domain."""

    name: ClassVar[str] = "doremi"
    version: ClassVar[int] = 1
    signal: ClassVar[str] = "excess_losses"
    changes: ClassVar[Changes] = "loss"
    step_size: float = 1.0
    smoothing: float = 1e-3

    def start(self, names: Sequence[str], prior: Array, horizon_steps: int) -> RuleState:
        """Uniform weights; no excess seen yet."""
        k = len(names)
        return RuleState.start(names, np.full(k, 1 / k), {"excess": np.zeros(k)})

    def update(self, state: RuleState, seen: Seen) -> RuleState:
        """One step. Of what is seen, `excess` [k] sums the clipped excess loss over a domain's `tokens` [k]; a domain without any keeps its last mean."""
        excess, tokens = seen.values["excess"], seen.values["tokens"]
        last = np.where(tokens > 0, excess / np.maximum(tokens, 1), state.memory["excess"])
        with np.errstate(divide="ignore"):
            raised = softmax(np.log(state.weights) + self.step_size * last)
        alpha = normalised((1 - self.smoothing) * raised + self.smoothing / len(raised))
        return state.updated(alpha, {"excess": last}, seen.step + 1)

    def answer(self, state: RuleState) -> Array:
        """The mean over updates."""
        return state.mean()

    def done(self, state: RuleState) -> bool:
        """Never before the run's end."""
        return False


class DoReMi(Method):
    """Weigh up the domains on which a proxy can still learn most from what a reference of its size already knows.

    `reference` gives the weights that the reference is trained on, and `proxy` what differs from the experiment's proxy, for both runs.
    """

    name: ClassVar[str] = "doremi"
    needs: ClassVar[frozenset[str]] = frozenset({"proxy"})
    rule: ClassVar[type[Rule] | None] = DoReMiRule
    step_size: PositiveFloat = 1.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    reference: Literal["uniform", "proportional"] = "uniform"
    proxy: ProxyChanges | None = None

    @property
    def by_size(self) -> bool:
        """Where the reference is trained on shares of tokens."""
        return self.reference == "proportional"

    def check_settings(self, label: str, proxy: TrainingConfig) -> None:
        """Raise `UserError` where the experiment's proxy is pretrained and this method has none of its own."""
        check_own_proxy(label, proxy, self.proxy)

    def trainings(self, proxy: TrainingConfig) -> list[TrainingConfig]:
        """Of the reference and of the proxy alike."""
        return [own_training(proxy, self.proxy)]

    def check(self, context: FitContext) -> None:
        """Raise `UserError` for a domain that is empty, or batches with fewer rows than there are domains."""
        super().check(context)
        for job in self.jobs(context):
            check_batch(job)

    def jobs(self, context: FitContext) -> list[TrainJob]:
        """The reference, and the proxy that waits for it."""
        names = domain_names(context.corpus)
        where = f"methods.{context.label}.reference"
        weights = uniform(names) if self.reference == "uniform" else token_shares(context.corpus.tokens(), names, where)
        training, keys = proxy_training(context, self.proxy), proxy_keys(context, self.proxy)
        rule = DoReMiRule(self.step_size, self.smoothing)
        return [
            TrainJob("proxy", training, weights, context.seed, keys=keys),
            TrainJob("doremi", training, uniform(names), context.seed, rule, keys=keys, ahead=False),
        ]

    def fit(self, context: FitContext) -> Mixture:
        """Train the reference, then the proxy against it.

        Cost: two training runs, one of them with a forward pass of the reference at every step.
        """
        self.check(context)
        first, second = self.jobs(context)
        (reference,) = context.backend.train_many(context.corpus, [first])
        (proxy,) = context.backend.train_many(context.corpus, [replace(second, reference=reference)])
        remedy = "one domain's excess loss stays highest; train the reference longer, lower step_size or raise smoothing"
        mixture = learned(self, context, proxy, remedy)
        provenance = {**mixture.provenance, "reference": reference.digest, "reference_address": reference.address}
        return replace(mixture, ledger={reference.run: reference.cost, **mixture.ledger}, provenance=provenance)
