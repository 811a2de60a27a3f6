"""The one doorway from methods and commands to compute: `RayBackend` in production, a closed-form fake in tests.

What passes through it is data: a run (`TrainJob`), a rule that learns while one trains (`Rule`), and what comes back.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from chameleon_ray.artifacts import LARGEST_NATS, Clusters, Cost, Embeddings, SplitLosses, TokenCorpus, TrainedModel
from chameleon_ray.config import EmbeddingConfig, TrainingConfig
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.limits import Limits

Array = NDArray[np.float64]
Changes = Literal["loss", "nothing"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class RuleState:
    """What a `Rule` carries from update to update; all of it is part of the checkpoint.

    Attributes:
        names: the k domains.
        weights: [k] now.
        total: [k] sum of the weights over the updates so far, the start not counted.
        updates: how many.
        memory: arrays of the rule's own, by name.
        next_look: the first step after which the rule wants its signal again; for a rule that changes the loss every step is one.
    """

    names: tuple[str, ...]
    weights: Array
    total: Array
    updates: int
    memory: Mapping[str, Array]
    next_look: int

    @classmethod
    def start(cls, names: Sequence[str], weights: Array, memory: Mapping[str, Array], next_look: int = 1) -> RuleState:
        """Before the first update."""
        return cls(tuple(names), np.asarray(weights, np.float64), np.zeros(len(names)), 0, memory, next_look)

    def updated(self, weights: Array, memory: Mapping[str, Array], next_look: int) -> RuleState:
        """After one more update."""
        return replace(self, weights=weights, total=weights + self.total, updates=self.updates + 1, memory=memory, next_look=next_look)

    def mean(self) -> Array:
        """[k] weights averaged over the updates."""
        return self.total / self.updates

    def to_dict(self) -> dict[str, Any]:
        """Arrays and plain values."""
        return {**vars(self), "names": list(self.names), "memory": dict(self.memory)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RuleState:
        """Back from `to_dict`, also where a checkpoint made tensors of the arrays."""
        memory = {name: np.asarray(value) for name, value in fields["memory"].items()}
        arrays = {part: np.asarray(fields[part]) for part in ("weights", "total")}
        return cls(tuple(fields["names"]), **arrays, updates=fields["updates"], memory=memory, next_look=fields["next_look"])


@dataclass(frozen=True, eq=False)
class Seen:
    """What a signal showed a rule after so many steps: arrays by name, as the signal's docstring lists them."""

    step: int
    learning_rate: float
    values: Mapping[str, Array]


class Rule(Protocol):
    """A method that learns weights while a model trains, as data; its functions are pure and know neither torch nor Ray.

    `signal` is a key of `training.signals.SIGNALS`. `changes` says what the weights do to the run: `loss` (what each domain counts for in the loss, at
    every step) or `nothing` (the run is only watched, and may be ended).
    """

    name: ClassVar[str]
    version: ClassVar[int]
    signal: ClassVar[str]
    changes: ClassVar[Changes]

    def start(self, names: Sequence[str], prior: Array, horizon_steps: int) -> RuleState:
        """The state before the first step; `prior` are the weights [k] that rows are drawn with."""
        ...

    def update(self, state: RuleState, seen: Seen) -> RuleState:
        """The state after a look."""
        ...

    def answer(self, state: RuleState) -> Array:
        """[k] the weights that the rule stands for by now."""
        ...

    def done(self, state: RuleState) -> bool:
        """Whether the run may end."""
        ...


def rule_settings(rule: Rule) -> dict[str, Any]:
    """A rule's name, version and fields as plain values, for digests and records."""
    fields = {name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for name, value in vars(rule).items()}
    return {"name": rule.name, "version": rule.version, **fields}


@dataclass(frozen=True)
class Reads:
    """How much train text of a corpus is read, in tokens; what is held out comes on top.

    Attributes:
        domain_tokens: of every domain.
        run_tokens: of all domains together, shared alike: the longest run on uniform weights then reads nothing twice.
        small_bytes: shared by the domains: a source that has no more text than its share is read whole.
    """

    domain_tokens: int
    run_tokens: int = 0
    small_bytes: int = 0

    def per_domain(self, num_domains: int) -> int:
        """Tokens of each of so many domains."""
        return max(self.domain_tokens, -(-self.run_tokens // num_domains))


@dataclass(frozen=True)
class TrainJob:
    """One training run: what to train, on which corpus, drawn with which weights (fractions of tokens by domain name).

    Attributes:
        role: what folders and progress call the run.
        rule: learns weights while it trains.
        reference: the frozen model that a rule's signal may need.
        start: the model to go on from instead of a fresh one; with 0 steps it is taken as it is.
        corpus: what it is trained on, where that is not the corpus that the call is about.
        keys: setting of the training -> its key in the experiment file, where that is not `base.…` of a base model or `proxy.…` of any other.
        ahead: whether it may be started before its method asks for it; not so where it waits for another run.
    """

    role: str
    training: TrainingConfig
    weights: Mapping[str, float]
    seed: int
    rule: Rule | None = None
    reference: TrainedModel | None = None
    start: TrainedModel | None = None
    corpus: TokenCorpus | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    ahead: bool = True

    def key(self, setting: str) -> str:
        """The key of a setting of the training in the experiment file, for error messages."""
        return self.keys.get(setting, f"{'base' if self.role == 'base' else 'proxy'}.{setting}")

    def divergence(self, losses: Mapping[str, float]) -> str | None:
        """What went wrong in training, where one of its held-out losses is past measuring."""
        found = past_measuring(losses)
        return found and f"{self.role}: {found}: it has diverged; lower {self.key('learning_rate')} or raise {self.key('warmup_steps')}"


def past_measuring(losses: Mapping[str, float]) -> str | None:
    """Of held-out losses in nats per token the first that is not finite, or whose perplexity is not, in words; None where there is none."""
    return next((f"its loss on held-out text of {name!r} is {nats:.4g} nats a token" for name, nats in losses.items() if not nats < LARGEST_NATS), None)


@dataclass(frozen=True)
class Text:
    """Domains or targets of a corpus that are embedded together; None stands for all its domains."""

    corpus: TokenCorpus
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Transfer:
    """The domains that the proxy is trained on, where they are others than those to weigh.

    Attributes:
        same: domain to weigh -> what it is called there, of those whose text is the same.
    """

    corpus: TokenCorpus
    same: Mapping[str, str]


@dataclass(frozen=True)
class Work:
    """What fitting a method takes of a backend, known before it is done.

    Attributes:
        trains: every model that is kept, in the order that they are asked for.
        swarm: models that are only measured, on `valid_tokens` of the valid split of everything measured.
        embeds: the one of `trains` that embeds domains, where one does. texts: what it embeds.
        glance_tokens: of each domain that this one is measured on.
    """

    trains: tuple[TrainJob, ...] = ()
    swarm: tuple[TrainJob, ...] = ()
    valid_tokens: int = 0
    embeds: TrainJob | None = None
    texts: tuple[Text, ...] = ()
    glance_tokens: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a run that was trained and measured: the model and its losses, or in one line what went wrong."""

    model: TrainedModel | None = None
    losses: SplitLosses | None = None
    failure: str | None = None


@dataclass(frozen=True)
class ProxyLosses:
    """What is kept of a proxy that was only measured: its digest, the loss on everything measured of a held-out split in nats per token, what it took."""

    digest: str
    losses: Mapping[str, float]
    cost: Cost


class Backend(Protocol):
    """What methods and commands may ask for. Every call returns a finished artifact at once when there is one."""

    root: str

    def find_clusters(self, config: CorpusConfig, model: TrainedModel, layer: Literal["middle"] | int, seed: int, reads: Reads | None) -> Clusters:
        """The domains of a corpus that are to be found among documents (`corpus.domains_from.clusters`), by a model that embeds them at a layer; `reads` says
        how much of each source is read."""
        ...

    def tokenize(self, config: CorpusConfig, seed: int, reads: Reads | None, clusters: Clusters | None = None) -> TokenCorpus:
        """The corpus of an experiment, from so much of the text as is needed; None reads all of it. `clusters`: its domains, where they were found."""
        ...

    def check(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> None:
        """Raise the `UserError` with which training one of the jobs would begin; nothing is started."""
        ...

    def train_many(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> list[TrainedModel]:
        """Train models, as many at a time as the resources allow; results in the order of the jobs."""
        ...

    def train_swarm(self, corpus: TokenCorpus, jobs: Sequence[TrainJob], split: str, tokens_per_domain: int) -> list[ProxyLosses]:
        """Train many tiny models and measure each on a split, at most `tokens_per_domain` of every measured domain; the models themselves are not
        kept. Results in the order of the jobs."""
        ...

    def embed(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> Embeddings:
        """One embedding per domain of the corpus from the model's hidden states, or of these domains, or of these targets (by their valid rows)."""
        ...

    def has_embedded(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> bool:
        """Whether `embed` has nothing left to do."""
        ...

    def find_model(self, name: str, row_tokens: int, where: str, allow_remote_code: bool = False) -> TrainedModel:
        """A trained model: a folder of ours, or any Hugging Face causal LM, by folder, GGUF file or hub name; raises what makes it useless for such rows."""
        ...

    def open_model(self, name: str, corpus: TokenCorpus, where: str = "model", allow_remote_code: bool = False) -> TrainedModel:
        """The same, with the corpus's tokenizer."""
        ...

    def evaluate(self, models: Sequence[TrainedModel], corpus: TokenCorpus, splits: Sequence[str]) -> list[SplitLosses]:
        """Held-out losses of every model on every domain of some splits."""
        ...

    def glance(self, model: TrainedModel, corpus: TokenCorpus, tokens_per_domain: int) -> ProxyLosses:
        """Losses of a model on about so many tokens of the valid split of everything that is measured."""
        ...

    def run_trials(self, name: str, corpus: TokenCorpus, jobs: Mapping[Key, TrainJob], splits: Sequence[str]) -> dict[Key, Outcome]:
        """Train and measure every job as a trial of the experiment called `name`; one that fails does not stop the others."""
        ...


@dataclass(frozen=True)
class FitContext:
    """What the spine knows and a method may need: what the experiment calls it, how the proxy is trained, what is embedded, the first seed, the
    pretrained model that the proxy starts from, if it does, the domains that it is trained on where they are others, and what weights may be; those that a
    method gives are brought within these limits, and one that searches for weights may search there."""

    label: str
    corpus: TokenCorpus
    backend: Backend
    proxy: TrainingConfig
    embedding: EmbeddingConfig
    seed: int
    start: TrainedModel | None = None
    transfer: Transfer | None = None
    limits: Limits | None = None


def start_of(training: TrainingConfig, corpus: TokenCorpus, backend: Backend, where: str) -> TrainedModel | None:
    """The pretrained model that a training section names.

    Args:
        where: the section, for errors.
    """
    model = training.model
    if model.pretrained is None:
        return None
    return backend.open_model(model.pretrained, corpus, f"{where}.model.pretrained", model.allow_remote_code)
