"""The one doorway from a method to compute: `RayBackend` in production, a closed-form fake in tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from chameleon_ray.artifacts import Cost, Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.config import EmbeddingConfig, TrainingConfig


@dataclass(frozen=True)
class RuleState:
    """What a `Rule` carries from step to step: weights now [k], their sum over the updates so far [k], number of updates, and numbers of its own [k]."""

    weights: tuple[float, ...]
    total: tuple[float, ...]
    updates: int
    memory: tuple[float, ...]

    def mean(self) -> tuple[float, ...]:
        """Weights averaged over the updates: the answer of DoReMi and DoGE."""
        return tuple(value / self.updates for value in self.total)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RuleState:
        """Back from `asdict`, also after JSON, which knows no tuples."""
        return cls(tuple(fields["weights"]), tuple(fields["total"]), fields["updates"], tuple(fields["memory"]))


class Rule(Protocol):
    """A method that learns weights while a proxy trains, as data: which signal it needs is known by its type, what it makes of it is pure."""

    name: ClassVar[str]
    version: ClassVar[int]

    def start(self, num_domains: int) -> RuleState:
        """The state before the first step."""
        ...


@dataclass(frozen=True)
class TrainJob:
    """One training run: what to train, on which corpus, drawn with which weights (fractions of tokens by domain name).

    `rule` changes what every domain counts for in the loss, not how often it is drawn; `reference` is the frozen model that DoReMi's rule needs.
    """

    role: str
    training: TrainingConfig
    weights: Mapping[str, float]
    seed: int
    rule: Rule | None = None
    reference: TrainedModel | None = None


@dataclass(frozen=True)
class Trial:
    """One run of a comparison: the base model of a method with a seed."""

    label: str
    seed: int
    job: TrainJob

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class ProxyLosses:
    """What is kept of a proxy of a swarm: loss on every domain of a held-out split, in nats per token, and what it took."""

    losses: Mapping[str, float]
    cost: Cost


class Backend(Protocol):
    """What a method may ask for. Every call returns a finished artifact at once when there is one."""

    def train_many(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> list[TrainedModel]:
        """Train models, as many at a time as the resources allow; results in the order of the jobs."""
        ...

    def train_swarm(self, corpus: TokenCorpus, jobs: Sequence[TrainJob], split: str) -> list[ProxyLosses]:
        """Train many tiny models and measure each on a split; the models themselves are not kept. Results in the order of the jobs."""
        ...

    def embed(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig) -> Embeddings:
        """One embedding per domain of the corpus from the model's hidden states."""
        ...


@dataclass(frozen=True)
class FitContext:
    """What the spine knows and a method may need: how the proxy is trained, what is embedded, and the first seed."""

    corpus: TokenCorpus
    backend: Backend
    proxy: TrainingConfig
    embedding: EmbeddingConfig
    seed: int
