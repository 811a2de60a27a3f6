"""The one doorway from a method to compute: `RayBackend` in production, a closed-form fake in tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from chameleon_ray.artifacts import Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.config import EmbeddingConfig, TrainingConfig


@dataclass(frozen=True)
class TrainJob:
    """One training run: what to train, on which corpus, drawn with which weights (fractions of tokens by domain name)."""

    role: str
    training: TrainingConfig
    weights: Mapping[str, float]
    seed: int


class Backend(Protocol):
    """What a method may ask for. Every call returns a finished artifact at once when there is one."""

    def train_many(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> list[TrainedModel]:
        """Train models, as many at a time as the resources allow; results in the order of the jobs."""
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
