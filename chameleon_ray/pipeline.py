"""The spine, read first: what each command does, one call per step, no detail.

Algorithm 1 of the paper: line 3 is `backend.train_many` of the proxy, line 5 `backend.embed`, lines 6 to 12 `Chameleon.weigh`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from chameleon_ray import storage
from chameleon_ray.artifacts import Cost, Embeddings, Mixture, TokenCorpus, TrainedModel, digest_of, is_complete, read_record, write_record
from chameleon_ray.backend import Backend, FitContext, TrainJob, Trial
from chameleon_ray.config import CorpusChanges, CorpusConfig, Experiment
from chameleon_ray.errors import UserError, as_user_error
from chameleon_ray.evaluation.losses import SplitLosses
from chameleon_ray.evaluation.scores import perplexity_scores
from chameleon_ray.mixing.budget import cap_repetition
from chameleon_ray.mixing.chameleon import Chameleon, proxy_embeddings
from chameleon_ray.mixing.swarm import Swarm, write_swarm
from chameleon_ray.report.data import ReportData
from chameleon_ray.settings import validate

SPLITS = ("valid", "test")


class FullBackend(Backend, Protocol):
    """A backend as the spine needs it: beside what methods ask for, it reads text and measures models."""

    root: str

    def tokenize(self, config: CorpusConfig, seed: int) -> TokenCorpus: ...

    def run_trials(self, name: str, corpus: TokenCorpus, trials: Sequence[Trial], splits: Sequence[str]) -> dict[str, str]: ...

    def evaluate(self, models: Sequence[TrainedModel], corpus: TokenCorpus, splits: Sequence[str]) -> list[SplitLosses]: ...

    def open_model(self, address: str, corpus: TokenCorpus) -> TrainedModel: ...


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: everything the report is made of, the base models by (method, seed), and the report's address."""

    data: ReportData
    models: Mapping[tuple[str, int], TrainedModel]
    report: str


def compare(experiment: Experiment, backend: FullBackend) -> Comparison:
    """Fit every method, train and measure one base model per mixture and seed, write the report.

    What fails, a method or a base model, is tried once more and then reported without losing the others.

    Raises:
        UserError: no base model could be trained and measured; says why the first was not.
    """
    corpus = backend.tokenize(experiment.corpus, experiment.seeds[0])
    mixtures, failures = _fit_all(experiment, corpus, backend)
    trials = [Trial(label, seed, base_job(experiment, corpus, mixtures[label], seed)) for seed in experiment.seeds for label in mixtures]
    failures |= backend.run_trials(experiment.name, corpus, trials, SPLITS)
    done = [trial for trial in trials if trial.name not in failures]
    if not done:
        raise UserError(next(iter(failures.values())))
    trained = backend.train_many(corpus, [trial.job for trial in done])
    models = {(trial.label, trial.seed): model for trial, model in zip(done, trained, strict=True)}
    losses = dict(zip(models, backend.evaluate(trained, corpus, SPLITS), strict=True))
    data = ReportData(
        experiment,
        corpus,
        mixtures,
        _scores(losses),
        _curves(models),
        _embeddings(experiment, corpus, backend, mixtures),
        _seconds(corpus, mixtures, models),
        losses,
        _histories(mixtures),
        failures,
    )
    return Comparison(data, models, _report(data, models, backend))


def mix(experiment: Experiment, label: str, backend: FullBackend) -> Mixture:
    """Only the weights of one method."""
    return fit(experiment, label, backend.tokenize(experiment.corpus, experiment.seeds[0]), backend)


def train(experiment: Experiment, mixture: Mixture, backend: FullBackend, seeds: Sequence[int] | None = None) -> list[TrainedModel]:
    """Base models on a mixture, one per seed.

    Raises:
        UserError: the mixture's domains are not the corpus's.
    """
    corpus = backend.tokenize(experiment.corpus, experiment.seeds[0])
    return backend.train_many(corpus, [base_job(experiment, corpus, mixture, seed) for seed in seeds or experiment.seeds])


def evaluate(experiment: Experiment, model: str, backend: FullBackend) -> pa.Table:
    """Scores on valid and test of one model, by its folder."""
    corpus = backend.tokenize(experiment.corpus, experiment.seeds[0])
    (losses,) = backend.evaluate([backend.open_model(model, corpus)], corpus, SPLITS)
    return _scores({("model", experiment.seeds[0]): losses})


def extend(experiment: Experiment, proxy: str, changes: CorpusChanges, backend: FullBackend, only: bool = False, label: str = "chameleon") -> Mixture:
    """Weights for a changed set of domains, by embedding the new ones with a trained proxy: nothing is trained.

    Args:
        proxy: folder of the model.
        changes: new domains, or `name: null` to leave one of the experiment's out.
        only: take the new domains alone.
    Raises:
        UserError: a proxy with another tokenizer, a name that is there already, or one to leave out that is not.
    """
    method = experiment.mixer(label)
    if not isinstance(method, Chameleon):
        raise UserError(f"methods.{label}: weights for new domains without training need a chameleon method, found {method.name}")
    domains = changes.domains
    parts: list[Embeddings] = []
    if not only:
        known = backend.tokenize(experiment.corpus, experiment.seeds[0])
        kept = [name for name in known.names if name not in domains]
        _check_changes(domains, known.names)
        model = backend.open_model(proxy, known)
        if kept:
            parts.append(backend.embed(model, known, experiment.embedding).select(kept))
    added = {name: source.model_dump() for name, source in domains.items() if source is not None}
    if added:
        section = {**experiment.corpus.model_dump(exclude={"domains", "domains_from"}), "domains": added, "tokenizer": {"pretrained": storage.absolute(proxy)}}
        new = backend.tokenize(validate(CorpusConfig, section, "corpus file"), experiment.seeds[0])
        parts.append(backend.embed(backend.open_model(proxy, new), new, experiment.embedding))
    if not parts:
        raise UserError("corpus file: every domain is left out; keep or add at least one")
    embeddings = Embeddings.concat(parts)
    return replace(method.weigh(embeddings), method=label, cost=embeddings.cost)


def fit(experiment: Experiment, label: str, corpus: TokenCorpus, backend: FullBackend) -> Mixture:
    """The mixture of one method, under its label; kept as an artifact, since a method may have trained for it."""
    method = experiment.mixer(label)
    settings = method.model_dump(mode="json")
    content = {"method": method.name, "settings": settings, "corpus": corpus.digest, "seed": experiment.seeds[0]}
    if method.name not in ("uniform", "proportional", "fixed"):
        content["proxy"] = experiment.proxy.model_dump(mode="json")
        content["embedding"] = experiment.embedding.model_dump(mode="json")
    digest = digest_of("mixture", {**content, "label": label})
    address = storage.join(backend.root, "mixtures", f"{label}-{digest}")
    path = storage.join(address, "mixture.json")
    if not is_complete(address):
        found = method.fit(_context(experiment, corpus, backend))
        if "swarm" in found.details:
            swarm = Swarm.from_lists(found.details["swarm"])
            write_swarm(swarm, storage.join(address, "ratios.csv"), storage.join(address, "metrics.csv"))
        replace(found, method=label, provenance={**found.provenance, "corpus": corpus.digest, "seed": experiment.seeds[0]}).save(path)
        write_record(address, "mixture", digest, {"label": label})
    return Mixture.load(path)


def base_job(experiment: Experiment, corpus: TokenCorpus, mixture: Mixture, seed: int) -> TrainJob:
    """The base model's run on a mixture; `corpus.max_repetition` limits how often a domain is repeated, for every method alike."""
    odd = sorted(set(mixture.weights) ^ set(corpus.names))
    if odd:
        side = "the mixture" if odd[0] in mixture.weights else "the corpus"
        raise UserError(f"mixture {mixture.method!r}: domain {odd[0]!r} is only in {side}; the corpus has {', '.join(corpus.names)}")
    weights = {name: mixture.weights[name] for name in corpus.names}
    if experiment.corpus.max_repetition is not None:
        weights = cap_repetition(weights, corpus.rows(), experiment.base.steps * experiment.base.batch_rows, experiment.corpus.max_repetition)
    return TrainJob("base", experiment.base, weights, seed)


def _check_changes(domains: Mapping[str, Any], known: Sequence[str]) -> None:
    for name, source in domains.items():
        if source is None and name not in known:
            raise UserError(f"corpus file: domains.{name} is null but the experiment has no such domain; it has {', '.join(known)}")
        if source is not None and name in known:
            raise UserError(f"corpus file: domains.{name} is in the experiment already; choose another name, or use --only to take the new domains alone")


def _fit_all(experiment: Experiment, corpus: TokenCorpus, backend: FullBackend) -> tuple[dict[str, Mixture], dict[str, str]]:
    """Mixtures by label, and for each method that failed twice what went wrong.

    The runs that need nothing of each other are started together first; a method whose run failed there tries again alone.
    """
    context = _context(experiment, corpus, backend)
    with suppress(Exception):  # each method meets its own failure again below
        backend.train_many(corpus, [job for label in experiment.methods for job in experiment.mixer(label).jobs(context)])
    mixtures, failures = {}, {}
    for label in experiment.methods:
        try:
            mixtures[label] = fit(experiment, label, corpus, backend)
        except Exception as error:
            found = as_user_error(error)
            if found is None:
                logging.getLogger(__name__).exception("%s failed", label)
            failures[label] = str(found or f"{type(error).__name__}: {error}")
    return mixtures, failures


def _context(experiment: Experiment, corpus: TokenCorpus, backend: FullBackend) -> FitContext:
    return FitContext(corpus, backend, experiment.proxy, experiment.embedding, experiment.seeds[0])


def _scores(losses: Mapping[tuple[str, int], SplitLosses]) -> pa.Table:
    return pa.concat_tables(perplexity_scores(label, seed, found) for (label, seed), found in losses.items())


def _histories(mixtures: Mapping[str, Mixture]) -> pa.Table | None:
    """Weights while a proxy trained, of the methods that learn them step by step."""
    tables = []
    for label, mixture in mixtures.items():
        if "updates" in mixture.details:
            history = TrainedModel.load(mixture.provenance["proxy_address"]).weight_history()
            tables.append(history.append_column("method", pa.array([label] * len(history))))
    return pa.concat_tables(tables) if tables else None


def _curves(models: Mapping[tuple[str, int], TrainedModel]) -> pa.Table:
    tables = []
    for (label, seed), model in models.items():
        curve = model.metrics().select(["step", "domain", "loss"])
        tables.append(curve.append_column("method", pa.array([label] * len(curve))).append_column("seed", pa.array([seed] * len(curve))))
    return pa.concat_tables(tables)


def _embeddings(experiment: Experiment, corpus: TokenCorpus, backend: FullBackend, mixtures: Mapping[str, Mixture]) -> Embeddings | None:
    """The embeddings a chameleon method used: finished artifacts by now."""
    if not any(isinstance(experiment.mixer(label), Chameleon) for label in mixtures):
        return None
    return proxy_embeddings(_context(experiment, corpus, backend))[1]


def _seconds(corpus: TokenCorpus, mixtures: Mapping[str, Mixture], models: Mapping[tuple[str, int], TrainedModel]) -> dict[str, float]:
    """Recorded wall seconds of the stages, whether they ran now or before."""
    unique = {model.address: model.cost.seconds for model in models.values()}
    return {
        "corpus": float(read_record(corpus.address)["content"]["seconds"]),
        "mixtures": sum((mixture.cost for mixture in mixtures.values()), Cost()).seconds,
        "base models (sum over runs)": sum(unique.values()),
    }


def _report(data: ReportData, models: Mapping[tuple[str, int], TrainedModel], backend: FullBackend) -> str:
    from chameleon_ray.report import write_report

    content = {
        "models": sorted(f"{label}/{seed}/{model.digest}" for (label, seed), model in models.items()),
        "experiment": data.experiment.model_dump(mode="json"),
    }
    digest = digest_of("report", content)
    address = storage.join(backend.root, "reports", f"{data.experiment.name}-{digest}")
    if not is_complete(address):
        page = write_report(data, address)
        write_record(address, "report", digest, {"page": page})
    return storage.join(address, "report.html")
