"""The production backend: what a method asks for, done on Ray, and never done twice.

Every result is an artifact named by a digest of what determines it. A call first looks for the finished artifact; Ray is started only when
something is missing, so that repeating a finished experiment takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from chameleon_ray import storage
from chameleon_ray.artifacts import Clusters, Cost, Embeddings, SplitLosses, TokenCorpus, TrainedModel
from chameleon_ray.backend import Key, Outcome, ProxyLosses, Reads, TrainJob, past_measuring
from chameleon_ray.cache import check_cache
from chameleon_ray.config import EmbeddingConfig, Resources
from chameleon_ray.corpus.heldout import refuse_unmeasured
from chameleon_ray.corpus.sources import plan_documents, plan_sources
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.errors import UserError, naming
from chameleon_ray.evaluation.losses import mean_bits_per_byte, mean_nats, mean_of_tokens, mean_perplexity
from chameleon_ray.evaluation.measurements import document_table, losses_by_document
from chameleon_ray.identity import family_digest
from chameleon_ray.mixing.budget import read_over
from chameleon_ray.models.adapters import base_of
from chameleon_ray.models.architecture import measuring
from chameleon_ray.models.pretrained import check_context, described, open_pretrained
from chameleon_ray.places import Places, layer_of
from chameleon_ray.progress import Reporter
from chameleon_ray.records import is_complete, once, read_record, read_table, write_record, write_table
from chameleon_ray.training.run import Run


class RayBackend:
    """Compute on Ray, artifacts under one storage address."""

    def __init__(self, storage_address: str, resources: Resources, reporter: Reporter | None = None, pool_actors: int | None = None) -> None:
        """Args:
        pool_actors: how many actors may hold a model for embedding or evaluation; as many as there is room for by default.
        """
        self._pool_actors = pool_actors
        self.root = storage.absolute(storage_address)
        self.places = Places(self.root)
        self.resources = resources
        self.reporter = reporter or Reporter()
        self._found: dict[tuple[str, bool], TrainedModel] = {}

    def find_clusters(self, config: CorpusConfig, model: TrainedModel, layer: Literal["middle"] | int, seed: int, reads: Reads | None) -> Clusters:
        """Domains found among documents; raises what reading and embedding them raises."""
        sources = plan_documents(config, reads)
        number, per_token = layer_of(model, config.row_tokens, layer)
        place = self.places.clusters(config, sources, model, number, seed, reads)

        def make() -> dict[str, Any]:
            from chameleon_ray.embedding.ray_clusters import find_clusters

            self._start()
            return find_clusters(config, sources, model, number, seed, place.address, self.resources, self.reporter, per_token, self._pool_actors)

        once(place.address, "clusters", place.digest, make)
        storage.remove(storage.join(place.address, "scratch"))
        return Clusters.load(place.address)

    def tokenize(self, config: CorpusConfig, seed: int, reads: Reads | None = None, clusters: Clusters | None = None) -> TokenCorpus:
        """The corpus of an experiment; raises what reading it raises."""
        with naming("storage"):
            if not storage.is_folder(self.root):  # it will be written to; that it cannot be is better known before any text is read
                storage.check_folder(self.root)
        sources = plan_sources(config, reads, clusters)
        place = self.places.corpus(config, sources, seed, reads)

        def make() -> dict[str, Any]:
            from chameleon_ray.corpus.ray_tokenize import tokenize

            self._start()
            return tokenize(config, sources, seed, place.address, self.reporter, clusters)

        once(place.address, "corpus", place.digest, make)
        storage.remove(storage.join(place.address, "scratch"))
        corpus = replace(TokenCorpus.load(place.address), measured_tokens=config.measured_tokens)
        if clusters is not None:
            corpus = replace(corpus, clusters=clusters.address, domains=clusters.estimated(corpus.domains))
        if config.require_heldout:
            refuse_unmeasured(corpus.unmeasured)
        return corpus

    def check(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> None:
        """Raise the `UserError` with which training one of the jobs would begin; nothing is started."""
        for job in jobs:
            if job.training.steps and not is_complete(self.places.run(job, corpus).address):
                from chameleon_ray.training.loop import check_job

                check_job(job, job.corpus or corpus, self.resources.num_workers)

    def train_many(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> list[TrainedModel]:
        """Train what is not trained yet: equal jobs once, and of jobs that differ only in their steps on one schedule the longest, which passes
        through the others. A job of no steps is done with the model that it starts from."""
        wanted = [self.places.run(job, corpus) for job in jobs if job.training.steps]
        # A long run that goes on from a checkpoint may have passed the end of a shorter one that was asked for later: then there is another turn.
        while missing := {run.address: run for run in wanted if not is_complete(run.address)}:
            from chameleon_ray.training.ray_train import train_runs

            self._start()
            runs = longest(list(missing.values()))
            roles = " and ".join(sorted({run.job.role for run in runs}))
            self._say_read_over(corpus, [run.job for run in runs])
            title = f"training {len(runs)} {roles} model{'s' if len(runs) > 1 else ''}"
            train_runs(runs, storage.join(self.root, "unfinished"), self.resources, self.reporter, title)
        return [_trained(self.places.run(job, corpus)) for job in jobs]

    def _say_read_over(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> None:
        for told in read_over(corpus, ((job.weights, job.training.rows) for job in jobs if job.role == "base")):
            self.reporter.say(told)

    def train_swarm(self, corpus: TokenCorpus, jobs: Sequence[TrainJob], split: str, tokens_per_domain: int) -> list[ProxyLosses]:
        """Train and measure the proxies that are missing, equal ones once."""
        from chameleon_ray.training.ray_swarm import read_losses, train_swarm

        runs = [self.places.proxy(job, corpus, split, tokens_per_domain) for job in jobs]
        missing = {run.address: run for run in runs if not is_complete(run.address)}
        if missing:
            self._start()
            train_swarm(list(missing.values()), corpus, split, tokens_per_domain, self.resources, self.reporter)
        return [read_losses(run.address) for run in runs]

    def embed(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> Embeddings:
        """Embeddings of every domain's train rows from a model with the same tokenizer, or of those of some domains, or of some targets' valid rows."""
        check_tokenizer(model, corpus)
        layer, per_token = layer_of(model, corpus.row_tokens, spec.layer)
        place = self.places.embeddings(model.digest, corpus, layer, spec, names)

        def make() -> dict[str, Any]:
            from chameleon_ray.embedding.ray_embed import embed

            self._start()
            found = embed(model, layer, corpus, spec, self.resources, self.reporter, per_token, place.digest, self._pool_actors, names)
            return found.save(place.address)

        once(place.address, "embeddings", place.digest, make)
        return Embeddings.load(place.address)

    def has_embedded(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> bool:
        """Whether `embed` has nothing left to do."""
        layer, _ = layer_of(model, corpus.row_tokens, spec.layer)
        return self.places.embeddings(model.digest, corpus, layer, spec, names).is_complete

    def evaluate(self, models: Sequence[TrainedModel], corpus: TokenCorpus, splits: Sequence[str]) -> list[SplitLosses]:
        """Held-out losses of every model on every domain of some splits."""
        for model in models:
            check_tokenizer(model, corpus)
        places = {model.address: self.places.losses(model.digest, corpus, splits, corpus.measured_at_most) for model in models}
        missing = list({model.address: model for model in models if not places[model.address].is_complete}.values())
        if missing:
            title = f"evaluating {len(missing)} model{'s' if len(missing) > 1 else ''} on {' and '.join(splits)}"
            for model, losses in zip(missing, self._measure(missing, corpus, splits, corpus.measured_at_most, title), strict=True):
                place = places[model.address]
                write_table(storage.join(place.address, "documents.parquet"), document_table(losses))
                write_record(place.address, "losses", place.digest, {"model": model.address, "corpus": corpus.digest, "splits": list(splits)})
        return [losses_by_document(read_table(storage.join(places[model.address].address, "documents.parquet"))) for model in models]

    def glance(self, model: TrainedModel, corpus: TokenCorpus, tokens_per_domain: int) -> ProxyLosses:
        """Losses of a model on some rows of the valid split of everything measured; what they took counts in full, and not in the paper's convention."""
        check_tokenizer(model, corpus)
        rows_per_domain = corpus.rows_in(tokens_per_domain)
        place = self.places.glance(model.digest, corpus, rows_per_domain)
        if not corpus.heldout:
            return ProxyLosses(place.digest, {}, Cost())

        def make() -> dict[str, Any]:
            self._start()
            started = time.perf_counter()
            tokens, flops = measuring(model, corpus, ("valid",), rows_per_domain)
            (found,) = self._measure([model], corpus, ("valid",), rows_per_domain, "looking at the proxy's losses")
            losses = {name: loss.mean_nats for name, loss in found["valid"].items()}
            if odd := past_measuring(losses):
                raise UserError(f"proxy: {odd}: it has diverged, or its weights are broken; lower proxy.learning_rate, or take another pretrained one")
            return {"model": model.address, "losses": losses, "cost": asdict(Cost(tokens, flops, time.perf_counter() - started))}

        content = once(place.address, "glance", place.digest, make)
        return ProxyLosses(place.digest, content["losses"], Cost(**content["cost"]))

    def _measure(self, models: Sequence[TrainedModel], corpus: TokenCorpus, splits: Sequence[str], rows_at_most: int | None, title: str) -> list[SplitLosses]:
        from chameleon_ray.evaluation.ray_evaluate import evaluate

        self._start()
        trusted = frozenset(model.address for model in models if model.allow_remote_code)
        flops = sum(measuring(model, corpus, splits, rows_at_most)[1] for model in models)
        with self.reporter.phase(title) as phase:
            return evaluate([model.address for model in models], corpus, splits, self.resources, phase, flops, self._pool_actors, trusted, rows_at_most)

    def run_trials(self, name: str, corpus: TokenCorpus, jobs: Mapping[Key, TrainJob], splits: Sequence[str]) -> dict[Key, Outcome]:
        """Train and measure base models as a Ray Tune experiment, those that are missing; equal jobs once."""
        runs = {key: self.places.run(job, corpus) for key, job in jobs.items()}
        missing: dict[str, tuple[str, TrainJob]] = {}
        for key, run in runs.items():
            if not self.places.is_measured(run, splits):
                missing.setdefault(run.digest, (_trial_name(key), run.job))
        failed: dict[str, str] = {}
        if missing:
            from chameleon_ray.ray_trials import run_trials

            self._start()
            self._say_read_over(corpus, [job for _, job in missing.values()])
            failed = run_trials(
                name, self.root, dict(missing.values()), _Measure(self.root, self.resources, corpus, tuple(splits)), self.resources, self.reporter
            )
        told = {digest: failed[trial] for digest, (trial, _) in missing.items() if trial in failed}
        done = {key: _trained(run) for key, run in runs.items() if run.digest not in told}
        losses = dict(zip(done, self.evaluate(list(done.values()), corpus, splits), strict=True))
        told |= {runs[key].digest: odd for key in done if (odd := runs[key].job.divergence(mean_of_tokens(losses[key])))}
        return {key: Outcome(failure=told[run.digest]) if run.digest in told else Outcome(done[key], losses[key]) for key, run in runs.items()}

    def find_model(self, name: str, row_tokens: int, where: str, allow_remote_code: bool = False) -> TrainedModel:
        """A trained model: a folder of ours, or any Hugging Face causal LM, by folder, GGUF file or hub name.

        Args:
            row_tokens: of the rows that it is to read.
            where: the setting that names it, for errors.
        Raises:
            UserError: no model there, one that cannot be used, or one that reads less than a row.
        """
        if (name, allow_remote_code) not in self._found:
            self._found[name, allow_remote_code] = self._find(name, where, allow_remote_code)
        model = self._found[name, allow_remote_code]
        check_context(model, row_tokens, where)
        return model

    def open_model(self, name: str, corpus: TokenCorpus, where: str = "model", allow_remote_code: bool = False) -> TrainedModel:
        """A trained model, as `find_model` finds it, that has the corpus's tokenizer."""
        model = self.find_model(name, corpus.row_tokens, where, allow_remote_code)
        check_tokenizer(model, corpus)
        return model

    def _find(self, name: str, where: str, allow_remote_code: bool) -> TrainedModel:
        place = storage.absolute(name)
        if not is_complete(place) or (kind := read_record(place)["kind"]) == "pretrained":
            return open_pretrained(name, self.root, where, allow_remote_code)
        if kind != "model":
            raise UserError(f"{where}: {name} holds finished {kind}, not a model; give the folder that `chameleon train` printed")
        found = described(replace(TrainedModel.load(place), allow_remote_code=allow_remote_code), where)
        base = base_of(storage.local_directory(place)) if "adapters_of" in found.details else None  # the file says it: people may correct the place there
        if base is not None and self._find(base, where, allow_remote_code).digest != found.details["start"]:
            told = " (code lies beside it: whether that was run then, --allow-remote-code, counts too)" if storage.glob(storage.join(base, "*.py")) else ""
            raise UserError(
                f"{where}: {base} is not what it was when the adapters in {name} were trained beside it{told}; put that model back, or train them again"
            )
        return found

    def _start(self) -> None:
        """Before work: make sure that what comes out of it can be kept, then start Ray."""
        with naming("storage"):
            storage.check_folder(self.root)
        if storage.is_remote(self.root):
            check_cache()
        if self._ray.start_ray() and (told := self._ray.idle_gpus(self.resources)):
            self.reporter.say(told)

    @cached_property
    def _ray(self) -> Any:
        from chameleon_ray import ray_session

        return ray_session


@dataclass(frozen=True)
class _Measure:
    """Trains and measures a job in a trial's process. Its numbers are those of the first split (valid): choices are made on it."""

    root: str
    resources: Resources
    corpus: TokenCorpus
    splits: tuple[str, ...]

    def __call__(self, job: TrainJob, reporter: Reporter) -> dict[str, float]:
        backend = RayBackend(self.root, self.resources, reporter, pool_actors=self.resources.num_workers)
        (model,) = backend.train_many(self.corpus, [job])
        (losses,) = backend.evaluate([model], self.corpus, self.splits)
        if odd := job.divergence(mean_of_tokens(losses)):
            raise UserError(odd)
        found = losses[self.splits[0]]
        each = {f"perplexity/{domain}": loss.perplexity for domain, loss in found.items()}
        of_domains = {name: found[name] for name in self.corpus.measured}
        bits = mean_bits_per_byte(of_domains, self.corpus, self.splits[0])
        return {"mean_perplexity": mean_perplexity(of_domains), "mean_loss_nats": mean_nats(of_domains), "mean_bits_per_byte": bits, **each}


def _trained(run: Run) -> TrainedModel:
    """The model of a finished run. What one may run of a model's own code, one may of what was trained from it."""
    start = run.job.start
    if run.job.training.steps == 0:
        assert start is not None, "the configuration lets no job without a start have no steps"
        story = {key: value for key, value in start.details.items() if key not in ("rule", "snapshot_of")}
        return replace(start, cost=Cost(), details=story)  # what its training took and told, where that was ours, is of other weights than these
    return replace(TrainedModel.load(run.address), allow_remote_code=start is not None and start.allow_remote_code)


def _trial_name(key: Hashable) -> str:
    return f"{key[0]}, seed {key[1]}" if isinstance(key, tuple) else str(key)


def longest(runs: Sequence[Run]) -> list[Run]:
    """Of runs that are the beginning of one another the longest, which passes through the others."""
    families: dict[str, list[Run]] = {}
    for run in runs:
        families.setdefault(family_digest(run.job, run.corpus), []).append(run)
    found = []
    for family in families.values():
        *shorter, longest = sorted(family, key=lambda run: run.job.training.steps)
        found.append(replace(longest, passes=tuple(shorter)))
    return found


def check_tokenizer(model: TrainedModel, corpus: TokenCorpus) -> None:
    """Raise `UserError` when the model's vocabulary cannot read the corpus's tokens."""
    if model.vocab_size < corpus.vocab_size:
        raise UserError(
            f"{model.address}: its vocabulary has {model.vocab_size:,} tokens and the corpus needs {corpus.vocab_size:,}; "
            f"tokenize the corpus with the model's tokenizer (corpus.tokenizer.pretrained={model.address})"
        )
    if model.tokenizer_sha256 != corpus.tokenizer_sha256:
        raise UserError(
            f"{model.address}: trained with another tokenizer than the corpus; tokenize the corpus with it (corpus.tokenizer.pretrained={model.address})"
        )
