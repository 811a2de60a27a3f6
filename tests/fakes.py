"""A backend and a corpus in closed form: no files, no models, everything a function of the domains' names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from chameleon_ray.artifacts import NUM_GROUPS, Cost, Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.backend import FitContext, ProxyLosses, Seen, TrainJob
from chameleon_ray.config import EmbeddingConfig, ModelConfig, TrainingConfig
from chameleon_ray.counts import DomainCounts, SplitCounts
from chameleon_ray.training.history import History
from chameleon_ray.training.learner import Learner, learned

ROW_TOKENS = 16


def make_corpus(rows: Mapping[str, int]) -> TokenCorpus:
    """A corpus with these train rows per domain, and 2 rows in each held-out split."""
    domains = {name: DomainCounts(_split(count), _split(2), _split(2), 64 * count, 0, {}, 5.0) for name, count in rows.items()}
    return TokenCorpus("nowhere", "c0ffee000000", tuple(rows), domains, ROW_TOKENS, 300, 0, "0" * 64)


def with_target(corpus: TokenCorpus, *targets: str) -> TokenCorpus:
    """The corpus with texts that are only measured; the fake swarm learns them the better, the more it has of the first domain."""
    domains = {name: DomainCounts(_split(0), _split(2), _split(2), 64, 0, {}, 0.0) for name in targets}
    return replace(corpus, domains={**corpus.domains, **domains}, targets=targets)


def leave_unmeasured(corpus: TokenCorpus, *names: str) -> TokenCorpus:
    """The corpus with no held-out text of some domains."""
    domains = {name: replace(counts, valid=_split(0), test=_split(0)) if name in names else counts for name, counts in corpus.domains.items()}
    return replace(corpus, domains=domains)


def make_context(rows: Mapping[str, int], seed: int = 0) -> FitContext:
    """What the spine would hand to a method for that corpus."""
    proxy = TrainingConfig(model=ModelConfig(layers=2, heads=2, width=8), steps=10, batch_rows=max(4, len(rows)))
    return FitContext("label", make_corpus(rows), FakeBackend(), proxy, EmbeddingConfig(samples_per_domain=256), seed)


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
    return Embeddings(tuple(means), np.array(sums), np.tile(counts, (len(means), 1)), layer=1, ledger={"embeddings": cost})


def rng(name: str, seed: int = 0) -> np.random.Generator:
    """A generator that depends on a name and a seed only."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def seen_by(signal: str, names: Sequence[str], step: int) -> Seen:
    """What a signal shows at every step: the same for a domain whenever it is asked, decided by its name."""
    level = np.array([rng(name).random() for name in names])
    means = np.stack([2.0 + rng(name).standard_normal(8) for name in names])
    counts = np.full((len(names), NUM_GROUPS), 2.0)
    values = {
        "excess_losses": {"excess": 100 * level, "tokens": np.full(len(names), 100.0)},
        "gradients": {"products": level, "norms": np.ones(len(names))},
        "embeddings": {"group_sums": counts[:, :, None] * means[:, None, :], "group_counts": counts, "layer": np.array(1)},
    }
    return Seen(step, 1e-3, values[signal])


@dataclass(frozen=True)
class LearnedModel(TrainedModel):
    """A model that a rule watched; its history is at hand."""

    history: pa.Table | None = None

    def weight_history(self) -> pa.Table:
        assert self.history is not None
        return self.history


def learned_model(job: TrainJob, model: TrainedModel) -> TrainedModel:
    """What a rule ends with after the job's steps, or when it lets the run end."""
    assert job.rule is not None
    learner = Learner(job, None)
    history = History()
    step = 0
    while step < job.training.steps and not learner.done:
        step += 1
        learner.begin(step, 1e-3)
        if learner.due:
            learner.see(**seen_by(job.rule.signal, learner.state.names, step).values)
            learner.note(history)
    details = {"rule": learned(job.rule, learner.state, step)}
    return LearnedModel(**{**vars(model), "details": details}, history=history.table())


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

    def check(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> None: ...

    def train_many(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> list[TrainedModel]:
        self.jobs.extend(jobs)
        models = []
        for job in jobs:
            tokens = job.training.steps * job.training.batch_rows * corpus.row_tokens
            cost = Cost(tokens, 6.0 * 1000 * tokens, 1e-6 * tokens)
            model = TrainedModel("nowhere", f"{job.role}-{job.seed}", dict(job.weights), corpus.vocab_size, corpus.tokenizer_sha256, cost)
            models.append(learned_model(job, model) if job.rule else model)
        return models

    def train_swarm(self, corpus: TokenCorpus, jobs: Sequence[TrainJob], split: str, tokens_per_domain: int) -> list[ProxyLosses]:
        assert split == "valid" and tokens_per_domain > 0
        losses = [{name: loss for name, loss in swarm_losses(job.weights).items() if name in corpus.measured} for job in jobs]
        losses = [{**found, **dict.fromkeys(corpus.targets, 4 - 2 * job.weights[corpus.names[0]])} for found, job in zip(losses, jobs, strict=True)]
        models = self.train_many(corpus, jobs)
        return [ProxyLosses(f"{i}", found, model.cost) for i, (found, model) in enumerate(zip(losses, models, strict=True))]

    def glance(self, model: TrainedModel, corpus: TokenCorpus, tokens_per_domain: int) -> ProxyLosses:
        return ProxyLosses("glance", dict.fromkeys(corpus.measured, 3.0), Cost(tokens_per_domain, 1.0, 0.0))

    def has_embedded(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> bool:
        return True

    def embed(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> Embeddings:
        means = {name: 2.0 + rng(name).standard_normal(8) for name in names or corpus.names}
        return noisy_embeddings(means, samples=spec.samples_per_domain, noise=0.3)


def _split(rows: int) -> SplitCounts:
    return SplitCounts(documents=rows, tokens=rows * ROW_TOKENS, text_bytes=4 * rows * ROW_TOKENS, shard_rows=(rows,) if rows else ())
