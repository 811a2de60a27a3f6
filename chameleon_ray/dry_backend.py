"""A backend that does nothing and notes down what it is asked for: every command plans itself with the code that carries it out.

What is finished is what it is; what is not is a placeholder with the digest and address that it will have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from chameleon_ray.artifacts import Clusters, Cost, Embeddings, SplitLosses, TokenCorpus, TrainedModel
from chameleon_ray.backend import Key, Outcome, ProxyLosses, Reads, TrainJob
from chameleon_ray.config import EmbeddingConfig, ModelConfig, Precision
from chameleon_ray.corpus.chunks import embedded_rows
from chameleon_ray.corpus.outlook import divided, outlook
from chameleon_ray.corpus.sources import Source, combined, documents_of, plan_documents, plan_sources
from chameleon_ray.corpus_config import CorpusConfig, TokenizerConfig
from chameleon_ray.evaluation.losses import MEASURED_IN, mean_of_tokens
from chameleon_ray.models.architecture import Architecture, measuring
from chameleon_ray.models.devices import Device
from chameleon_ray.places import Place, layer_of
from chameleon_ray.ray_backend import RayBackend, longest
from chameleon_ray.records import is_complete
from chameleon_ray.training.pace import Shape

READING_BYTES = 128 << 20  # of all processes that read and tokenize on a small machine, above what they take at rest (analysis/results/scale.md)

Kind = Literal["read", "train", "trial", "swarm", "forward", "measure", "report"]


@dataclass(frozen=True)
class Item:
    """Something that a command does.

    Attributes:
        part: of the command: the text, a method's label, the base models.
        what: in words.
        group: items of one group go on side by side.
        tokens, flops: of all of it; the most memory that one process takes for it, and disk, in bytes.
        count: runs that it stands for. `beside`: items of its group.
        shape: what its speed depends on; None of what computes nothing to speak of.
        text_bytes: that are read and tokenized.
    """

    part: str
    what: str
    kind: Kind
    group: int
    is_done: bool
    tokens: float = 0.0
    flops: float = 0.0
    memory_bytes: int = 0
    disk_bytes: float = 0.0
    count: int = 1
    beside: int = 1
    shape: Shape | None = None
    text_bytes: float = 0.0


@dataclass
class DryBackend:
    """Notes down what is asked of a backend.

    Attributes:
        real: knows what is finished.
        device: the GPU that the plan is for, where that is not this machine's.
        part: what items are noted under.
        guessed: whether names of domains are not known yet.
        parts: the order to show some parts in; others follow as they came.
    """

    real: RayBackend
    device: Device | None = None
    part: str = "text"
    guessed: bool = False
    parts: list[str] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    _group: int = 0
    _seen: set[str] = field(default_factory=set)
    _tokenizers: dict[str, TokenizerConfig] = field(default_factory=dict)  # address of one that is not trained yet -> how it will be
    _seen_text: dict[str, TokenCorpus] = field(default_factory=dict)  # by digest what can be said of text that is not read yet
    _found: dict[str, TokenCorpus] = field(default_factory=dict)  # digest of clusters that are not found yet -> what they will be

    def __post_init__(self) -> None:
        self.root = self.real.root

    def find_clusters(self, config: CorpusConfig, model: TrainedModel, layer: Literal["middle"] | int, seed: int, reads: Reads | None) -> Clusters:
        """Those that were found; else placeholders, as many as are wanted."""
        from chameleon_ray.embedding.clusters import SearchSize

        found = config.domains_from and config.domains_from.clusters
        assert found
        asked = config.model_copy(update={"tokenizer": self._tokenizers.get(config.tokenizer.pretrained or "", config.tokenizer)})
        sources = plan_documents(config, reads)
        number, per_token = layer_of(model, config.row_tokens, layer)
        place = self.real.places.clusters(config, sources, model, number, seed, reads)
        if place.is_complete:
            self._note(Item(self.part, f"{found.k} clusters", "forward", self._next(), True), place.digest)
            return self.real.find_clusters(config, model, layer, seed, reads)
        read = documents_of(asked).model_copy(update={"targets": config.targets})
        text = self._outlook(read, plan_sources(read, reads), place)
        names = [f"{source}/{i + 1}" if found.within else f"cluster-{i + 1}" for source in text.names for i in range(found.k)]
        found_in = [text.domains[name] for name in text.names]
        text_bytes, tokens = float(sum(each.text_bytes for each in found_in)), float(sum(each.train.tokens for each in found_in))
        documents = round(tokens / config.row_tokens)  # a row each: not counted yet
        search = SearchSize.of(documents, found.k, Architecture.of_trained(model, config.row_tokens).width, len(text.names))
        self._found[place.digest] = divided(text, asked, names)
        self.guessed = True
        what, flops = f"{len(names)} clusters: documents embedded at layer {number}", per_token.flops * tokens
        held = max(self._forward_bytes(model, config.row_tokens, number, "auto"), search.driver_bytes)
        shape = self._shape(model, config.row_tokens, number, "auto")
        item = Item(self.part, what, "forward", self._next(), False, tokens, flops, held, text_bytes / 3, shape=shape, text_bytes=text_bytes)
        self._note(item, place.digest)
        return Clusters(place.address, place.digest, {}, "domain", {}, Cost())

    def tokenize(self, config: CorpusConfig, seed: int, reads: Reads | None, clusters: Clusters | None = None) -> TokenCorpus:
        """The corpus that is there, or what can be said of it."""
        config = config.model_copy(update={"tokenizer": self._tokenizers.get(config.tokenizer.pretrained or "", config.tokenizer)})
        if clusters is not None and clusters.digest in self._found:
            corpus = self._found[clusters.digest]
        else:
            sources = plan_sources(config, reads, clusters)
            place = self.real.places.corpus(config, sources, seed, reads)
            if place.is_complete:
                self._note(Item(self.part, "tokens", "read", self._next(), True), place.digest)
                return self.real.tokenize(config, seed, reads, clusters)
            corpus = self._outlook(config, sources, place)
            self.guessed |= any(source.origin.domain is None and not source.origin.only for source in sources) and clusters is None
            if clusters is not None:
                corpus = divided(corpus, config, clusters.table()["name"].to_pylist())
            self._tokenizers[corpus.tokenizer_address] = config.tokenizer
        tokens = float(sum(each.train.tokens + each.valid.tokens + each.test.tokens for each in corpus.domains.values()))
        text_bytes = float(sum(each.text_bytes for each in corpus.domains.values()))
        size = 2 if corpus.vocab_size <= 1 << 16 else 4
        what = f"{len(corpus.names)} domain{'s' if len(corpus.names) > 1 else ''}, read and tokenized"
        item = Item(self.part, what, "read", self._next(), False, tokens, memory_bytes=READING_BYTES, disk_bytes=size * tokens, text_bytes=text_bytes)
        self._note(item, f"{corpus.digest} tokens")
        return corpus

    def _outlook(self, config: CorpusConfig, sources: Sequence[Source], place: Place) -> TokenCorpus:
        """What can be said of a corpus, looked at once."""
        if place.digest not in self._seen_text:
            self._seen_text[place.digest] = outlook(config, sources, place.address, place.digest, *_vocabulary(config))
        return self._seen_text[place.digest]

    def check(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> None:
        """As the real backend, where the domains are known."""
        from chameleon_ray.training.loop import check_job

        if not self.guessed:
            for job in jobs:
                if job.training.steps:
                    check_job(job, job.corpus or corpus, self.real.resources.num_workers)

    def train_many(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> list[TrainedModel]:
        """Trained models, or placeholders."""
        self.train_ahead(corpus, [(self.part, job) for job in jobs])
        return [self._model(corpus, job) for job in jobs]

    def train_ahead(self, corpus: TokenCorpus, jobs: Sequence[tuple[str, TrainJob]]) -> None:
        """Note runs of several parts that are started together; those that a longer one passes through take nothing of their own."""
        group, before = self._next(), self.part
        runs = {run.digest: run for _, job in jobs if job.training.steps for run in [self.real.places.run(job, corpus)] if not is_complete(run.address)}
        alone = {run.digest for run in longest(list(runs.values()))}
        for self.part, job in jobs:
            passed = job.training.steps > 0 and self.real.places.run(job, corpus).digest in runs.keys() - alone
            self._train(corpus, job, group, max(1, len(alone)), passed=passed)
        self.part = before

    def run_trials(self, name: str, corpus: TokenCorpus, jobs: Mapping[Key, TrainJob], splits: Sequence[str]) -> dict[Key, Outcome]:
        """Note base models and their held-out losses; what is known of each."""
        found = self.note_trials(corpus, {(str(key), job.seed): (job, True) for key, job in jobs.items()}, splits)
        return {key: found[str(key), job.seed] for key, job in jobs.items()}

    def note_trials(self, corpus: TokenCorpus, jobs: Mapping[tuple[str, int], tuple[TrainJob, bool]], splits: Sequence[str]) -> dict[tuple[str, int], Outcome]:
        """Note base models and their held-out losses, by label and seed; of one whose mixture is not known yet that it is to be trained. What becomes of each,
        as far as that is known."""
        training, evaluating = self._next(), self._next()
        places = {key: self.real.places.run(job, corpus) for key, (job, is_known) in jobs.items() if is_known}
        measured = [key for key, run in places.items() if self.real.places.is_measured(run, splits)]
        missing = len(jobs) - len(measured)
        for key, (job, is_known) in jobs.items():
            self._train(corpus, job, training, max(1, missing), key, is_known)
        models = {key: self._model(corpus, job) for key, (job, _) in jobs.items()}
        for key, model in models.items():
            unknown = None if jobs[key][1] else f"{key} measured"
            self._measure(model, corpus, splits, evaluating, max(1, missing), unknown)
        known = measured if corpus.tokenizer_sha256 else []  # a tokenizer that is not trained yet cannot be compared
        losses = dict(zip(known, self.real.evaluate([models[key] for key in known], corpus, splits), strict=True))
        failed = {key: odd for key in known if (odd := jobs[key][0].divergence(mean_of_tokens(losses[key])))}
        return {key: Outcome(failure=failed[key]) if key in failed else Outcome(model) for key, model in models.items()}

    def train_swarm(self, corpus: TokenCorpus, jobs: Sequence[TrainJob], split: str, tokens_per_domain: int) -> list[ProxyLosses]:
        """Notes the swarm as one item; nothing is known of its losses."""
        runs = {(run := self.real.places.proxy(job, corpus, split, tokens_per_domain)).digest: run for job in jobs}
        missing = [run.job for run in runs.values() if not is_complete(run.address)]
        done = len(runs) - len(missing)
        what = f"{len(runs)} proxies of a swarm{f', {done} of them done' if done and missing else ''}"
        self._note(self._swarm_item(corpus, missing, split, tokens_per_domain, what), combined(runs))
        return []

    def has_embedded(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> bool:
        """As the real one has it."""
        return self.real.has_embedded(model, corpus, spec, names)

    def embed(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> Embeddings:
        """Placeholders: a domain's embedding is nothing yet."""
        number, per_token = layer_of(model, corpus.row_tokens, spec.layer)
        place, rows = self.real.places.embeddings(model.digest, corpus, number, spec, names), embedded_rows(corpus, names)
        if place.is_complete:
            self._note(Item(self.part, "embeddings", "forward", self._next(), True), place.digest)
            if corpus.tokenizer_sha256:
                return self.real.embed(model, corpus, spec, names)
        width, k = Architecture.of_trained(model, corpus.row_tokens).width, len(rows)
        if not place.is_complete:
            tokens = float(sum(min(each, spec.samples_per_domain) for each in rows.values()) * corpus.row_tokens)
            what = f"embedding {f'{len(rows)} of them ' if names else ''}at layer {number}"
            shape = self._shape(model, corpus.row_tokens, number, spec.precision)
            held = self._forward_bytes(model, corpus.row_tokens, number, spec.precision)
            disk = 32.0 * 8 * width * k
            self._note(Item(self.part, what, "forward", self._next(), False, tokens, per_token.flops * tokens, held, disk, shape=shape), place.digest)
        return Embeddings(tuple(rows), np.broadcast_to(0.0, (k, 1, width)), np.ones((k, 1), np.int64), number)

    def find_model(self, name: str, row_tokens: int, where: str, allow_remote_code: bool = False) -> TrainedModel:
        """As the real backend: a model that is named is there."""
        return self.real.find_model(name, row_tokens, where, allow_remote_code)

    def open_model(self, name: str, corpus: TokenCorpus, where: str = "model", allow_remote_code: bool = False) -> TrainedModel:
        """As the real backend; a tokenizer that is not trained yet cannot be compared."""
        if not corpus.tokenizer_sha256:
            return self.find_model(name, corpus.row_tokens, where, allow_remote_code)
        return self.real.open_model(name, corpus, where, allow_remote_code)

    def evaluate(self, models: Sequence[TrainedModel], corpus: TokenCorpus, splits: Sequence[str]) -> list[SplitLosses]:
        """Note held-out losses; nothing is known of them."""
        group = self._next()
        for model in models:
            self._measure(model, corpus, splits, group)
        return []

    def note_report(self, address: str | None) -> None:
        """Note the report of a comparison; where it will lie is known once all its models are."""
        is_done = address is not None and is_complete(address)
        self._note(Item("report", "pictures and tables", "report", self._next(), is_done), "report")

    def note_failure(self, told: str, key: str) -> None:
        """Note what will not be done, and why."""
        self._note(Item(self.part, told, "report", self._next(), True), f"{key} left out")

    def note_done(self, what: str, key: str) -> None:
        """Note something that is finished."""
        self._note(Item(self.part, what, "read", self._next(), True), key)

    def glance(self, model: TrainedModel, corpus: TokenCorpus, tokens_per_domain: int) -> ProxyLosses:
        """Note a look at losses."""
        self._measure(model, corpus, ("valid",), self._next(), glance_rows=corpus.rows_in(tokens_per_domain))
        return ProxyLosses("", {}, Cost())

    def _measure(
        self,
        model: TrainedModel,
        corpus: TokenCorpus,
        splits: Sequence[str],
        group: int,
        beside: int = 0,
        unknown: str | None = None,
        glance_rows: int | None = None,
    ) -> None:
        """Losses by all actors that there is room for (a short pass starts fewer, in the time that these would take); beside others, in trials, by one run's
        workers. Of an `unknown` model nothing can be done yet. `glance_rows`: of a glance."""
        rows_at_most = glance_rows or corpus.measured_at_most
        what = "a look at the proxy's losses" if glance_rows else "held-out losses"
        places = self.real.places
        place = places.glance(model.digest, corpus, glance_rows) if glance_rows else places.losses(model.digest, corpus, splits, rows_at_most)
        tokens, flops = measuring(model, corpus, splits, rows_at_most)
        shape, is_done = self._shape(model, corpus.row_tokens, None, MEASURED_IN), place.is_complete and unknown is None
        kind: Kind = "measure" if beside else "forward"
        held = 0 if is_done else self._forward_bytes(model, corpus.row_tokens, None, MEASURED_IN)
        item = Item(self.part, what, kind, group, is_done, tokens, flops, held, beside=max(1, beside), shape=shape)
        self._note(item, unknown or place.digest)

    def _train(
        self,
        corpus: TokenCorpus,
        job: TrainJob,
        group: int,
        beside: int = 1,
        trial: tuple[str, int] | None = None,
        is_known: bool = True,
        passed: bool = False,
    ) -> None:
        """Args:
        trial: label and seed of a base model.
        is_known: whether the job's weights are those that it will have.
        passed: whether a longer run passes through it.
        """
        from chameleon_ray.training.forecast import run_forecast

        if job.training.steps == 0:
            return
        corpus = job.corpus or corpus
        run = self.real.places.run(job, corpus)
        kind: Kind = "trial" if trial else "train"
        what = f"{trial[0] if trial else job.role}: {job.training.steps:,} steps of {job.training.batch_rows} rows"
        key = run.digest if is_known else f"{trial} trained"
        if is_known and is_complete(run.address):
            self._note(Item(self.part, what, kind, group, True), key)
            return
        if passed:
            self._note(Item(self.part, f"{what}, on the way of a longer run", "report", group, True), key)
            return
        resources = self.real.resources
        found = run_forecast(job, corpus, bool(resources.gpus_per_worker), resources.num_workers, self.device)
        tokens = float(job.training.rows * corpus.row_tokens)
        shape = self._shape_of(job, corpus, job.training.batch_rows // resources.num_workers)
        item = Item(self.part, what, kind, group, False, tokens, found.flops, found.memory_bytes, found.model_bytes, beside=beside, shape=shape)
        self._note(item, key)

    def _model(self, corpus: TokenCorpus, job: TrainJob) -> TrainedModel:
        """The model of a job as it is, or a placeholder."""
        run = self.real.places.run(job, corpus)
        if job.training.steps == 0 or is_complete(run.address):
            (model,) = self.real.train_many(corpus, [job])
            return model
        details = (
            {key: job.start.details[key] for key in ("architecture", "linear_maps", "context")}
            if job.start
            else {"training": job.training.model_dump(mode="json")}
        )
        return TrainedModel(run.address, run.digest, dict(job.weights), corpus.vocab_size, corpus.tokenizer_sha256, Cost(), details)

    def _swarm_item(self, corpus: TokenCorpus, missing: Sequence[TrainJob], split: str, tokens_per_domain: int, what: str) -> Item:
        from chameleon_ray.training.forecast import run_forecast

        if not missing:
            return Item(self.part, what, "swarm", self._next(), True)
        job, n = missing[0], len(missing)
        found = run_forecast(job, corpus, bool(self.real.resources.gpus_per_worker), 1, self.device)
        measured = sum(min(rows, corpus.rows_in(tokens_per_domain)) for rows in corpus.rows(split).values()) * corpus.row_tokens
        trained = job.training.rows * corpus.row_tokens
        flops = found.flops + Architecture.of(job, corpus).forward_flops(corpus.row_tokens) * measured
        shape = replace(self._shape_of(job, corpus, job.training.batch_rows), threads=1)
        return Item(self.part, what, "swarm", self._next(), False, float(n * (trained + measured)), n * flops, found.memory_bytes, count=n, shape=shape)

    def _shape_of(self, job: TrainJob, corpus: TokenCorpus, batch_rows: int) -> Shape:
        heads = None if job.start else job.training.model.shape[1]
        return self._of(Architecture.of(job, corpus), heads, corpus.vocab_size, corpus.row_tokens, batch_rows, job.training.precision)

    def _shape(self, model: TrainedModel, row_tokens: int, layers: int | None, precision: Precision) -> Shape:
        """Of forward passes, through some layers."""
        architecture = Architecture.of_trained(model, row_tokens)
        heads = None if "architecture" in model.details else ModelConfig(**model.details["training"]["model"]).shape[1]
        found = self._of(architecture, heads, model.vocab_size, row_tokens, 0, precision)
        return found if layers is None else replace(found, layers=layers)

    def _forward_bytes(self, model: TrainedModel, row_tokens: int, layers: int | None, precision: Precision) -> int:
        from chameleon_ray.training.forecast import forward_bytes

        architecture = Architecture.of_trained(model, row_tokens)
        return forward_bytes(architecture, row_tokens, layers, bool(self.real.resources.gpus_per_worker), precision, self.device)

    def _of(self, architecture: Architecture, heads: int | None, vocab_size: int, row_tokens: int, batch_rows: int, precision: Precision) -> Shape:
        resources = self.real.resources
        return Shape(
            layers=architecture.layers,
            heads=heads or math.gcd(architecture.width, max(1, architecture.width // 64)),
            width=architecture.width,
            vocab_size=vocab_size,
            row_tokens=row_tokens,
            batch_rows=batch_rows,
            threads=resources.cpus_per_worker,
            use_gpu=bool(resources.gpus_per_worker),
            precision=precision,
        )

    def _note(self, item: Item, digest: str) -> None:
        """Once, whoever asks for it first."""
        if digest not in self._seen:
            self._seen.add(digest)
            self.items.append(item)

    def _next(self) -> int:
        self._group += 1
        return self._group


def _vocabulary(config: CorpusConfig) -> tuple[int, str]:
    """Tokens of the corpus's tokenizer, and its identity where it is known."""
    if config.tokenizer.train is not None:
        return config.tokenizer.train.vocab_size, ""
    from chameleon_ray.corpus.tokenizer import load_tokenizer, tokenizer_sha256

    assert config.tokenizer.pretrained is not None
    tokenizer, end = load_tokenizer(config.tokenizer.pretrained)
    return tokenizer.get_vocab_size(with_added_tokens=True), tokenizer_sha256(tokenizer, end)
