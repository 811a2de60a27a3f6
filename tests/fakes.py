"""A backend and a corpus in closed form: no files, no models, everything a function of the domains' names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chameleon_ray.artifacts import NUM_GROUPS, Cost, DomainCounts, Embeddings, SplitCounts, TokenCorpus, TrainedModel
from chameleon_ray.backend import FitContext, ProxyLosses, TrainJob
from chameleon_ray.config import EmbeddingConfig, ModelConfig, TrainingConfig
from chameleon_ray.mixing.doge import DoGERule
from chameleon_ray.mixing.doremi import DoReMiRule

ROW_TOKENS = 16


def make_corpus(rows: Mapping[str, int]) -> TokenCorpus:
    """A corpus with these train rows per domain, and 2 rows in each held-out split."""
    domains = {name: DomainCounts(_split(count), _split(2), _split(2), 64 * count, 0, {}, 5.0) for name, count in rows.items()}
    return TokenCorpus("nowhere", "c0ffee000000", tuple(rows), domains, ROW_TOKENS, 300, 0, "0" * 64)


def make_context(rows: Mapping[str, int], seed: int = 0) -> FitContext:
    """What the spine would hand to a method for that corpus."""
    proxy = TrainingConfig(model=ModelConfig(layers=2, heads=2, width=8), steps=10, batch_rows=max(4, len(rows)))
    return FitContext(make_corpus(rows), FakeBackend(), proxy, EmbeddingConfig(samples_per_domain=256), seed)


def noisy_embeddings(means: Mapping[str, np.ndarray], samples: int, noise: float = 0.0, seed: int = 0) -> Embeddings:
    """Embeddings whose samples scatter around the given means with standard deviation `noise` per dimension.

    Sums of normal samples are drawn directly; every domain's noise depends on its own name and `seed`.
    """
    counts = np.full(NUM_GROUPS, samples // NUM_GROUPS)
    counts[: samples % NUM_GROUPS] += 1
    sums = [
        counts[:, None] * mean + noise * np.sqrt(counts)[:, None] * rng(name, seed).standard_normal((NUM_GROUPS, len(mean))) for name, mean in means.items()
    ]
    cost = Cost(samples * len(means) * ROW_TOKENS, 1e6 * samples, 0.5)
    return Embeddings(tuple(means), np.array(sums), np.tile(counts, (len(means), 1)), layer=1, cost=cost)


def rng(name: str, seed: int = 0) -> np.random.Generator:
    """A generator that depends on a name and a seed only."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def learned_weights(job: TrainJob) -> dict[str, Any]:
    """What a rule ends with after the job's steps, when every domain sends the same signal at each of them, decided by its name."""
    names = tuple(job.weights)
    signal = np.array([rng(name).random() for name in names])
    assert job.rule is not None
    state = job.rule.start(len(names))
    for _ in range(job.training.steps):
        if isinstance(job.rule, DoReMiRule):
            state = job.rule.update(state, 100 * signal, np.full(len(names), 100.0))
        else:
            assert isinstance(job.rule, DoGERule)
            state = job.rule.update(state, signal, np.ones(len(names)), 1e-3)
    mean, last = (dict(zip(names, values, strict=True)) for values in (state.mean(), state.weights))
    return {"name": job.rule.name, "updates": state.updates, "mean": mean, "last": last}


def best_mixture(names: Sequence[str]) -> dict[str, float]:
    """The mixture for which the mean loss of the fake swarm is least."""
    shares = {name: 0.1 + rng(name).random() for name in sorted(names)}
    return {name: shares[name] / sum(shares.values()) for name in names}


def swarm_losses(weights: Mapping[str, float]) -> dict[str, float]:
    """A domain's loss in closed form: 3 + (weight - best weight) ** 2, so that the mean is least at `best_mixture`."""
    best = best_mixture(tuple(weights))
    return {name: 3 + (weights[name] - best[name]) ** 2 for name in weights}


@dataclass
class FakeBackend:
    """Trains nothing: a model is its job and what it would have cost; a domain's embedding follows from its name."""

    jobs: list[TrainJob] = field(default_factory=list)

    def train_many(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> list[TrainedModel]:
        self.jobs.extend(jobs)
        models = []
        for job in jobs:
            tokens = job.training.steps * job.training.batch_rows * corpus.row_tokens
            cost = Cost(tokens, 6.0 * 1000 * tokens, 1e-6 * tokens)
            details = {"rule": learned_weights(job)} if job.rule else {}
            models.append(TrainedModel("nowhere", f"{job.role}-{job.seed}", dict(job.weights), corpus.vocab_size, corpus.tokenizer_sha256, cost, details))
        return models

    def train_swarm(self, corpus: TokenCorpus, jobs: Sequence[TrainJob], split: str) -> list[ProxyLosses]:
        assert split == "valid"
        return [ProxyLosses(swarm_losses(job.weights), model.cost) for job, model in zip(jobs, self.train_many(corpus, jobs), strict=True)]

    def embed(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig) -> Embeddings:
        means = {name: 2.0 + rng(name).standard_normal(8) for name in corpus.names}
        return noisy_embeddings(means, samples=spec.samples_per_domain, noise=0.3)


def _split(rows: int) -> SplitCounts:
    return SplitCounts(documents=rows, tokens=rows * ROW_TOKENS, shard_rows=(rows,) if rows else ())
