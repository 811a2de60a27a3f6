"""The spine, read first: what each command does, one call per step, no detail.

Algorithm 1 of the paper: line 3 is `backend.train_many` of the proxy, line 5 `backend.embed`, lines 6 to 12 `Chameleon.weigh`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from chameleon_ray import storage
from chameleon_ray.artifacts import Cost, Embeddings, Mixture, TokenCorpus, TrainedModel, is_complete, read_record, write_record
from chameleon_ray.backend import Backend, TrainJob, Trial
from chameleon_ray.config import CorpusChanges, CorpusConfig
from chameleon_ray.errors import UserError
from chameleon_ray.evaluation.losses import SplitLosses
from chameleon_ray.evaluation.scores import perplexity_scores
from chameleon_ray.experiment import Experiment, describe
from chameleon_ray.fitting import Entry, context, fit, fit_all, sweep_entries, sweep_table
from chameleon_ray.identity import report_digest
from chameleon_ray.mixing.budget import cap_repetition
from chameleon_ray.mixing.chameleon import Chameleon, proxy_embeddings
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
    entries = [Entry(label, "", experiment, corpus) for label in experiment.methods]
    swept = sweep_entries(experiment, corpus, _corpora(experiment, backend))
    mixtures, failures = fit_all([*entries, *swept], backend, backend.root)
    compared = [entry for entry in _compared(experiment, entries, swept) if entry.label in mixtures]
    trials = [
        Trial(entry.label, seed, base_job(entry.experiment, entry.corpus, mixtures[entry.label], seed)) for seed in experiment.seeds for entry in compared
    ]
    failures |= backend.run_trials(experiment.name, corpus, trials, SPLITS)
    done = [trial for trial in trials if trial.name not in failures]
    if not done:
        raise UserError(next(iter(failures.values())))
    trained = backend.train_many(corpus, [trial.job for trial in done])
    models = {(trial.label, trial.seed): model for trial, model in zip(done, trained, strict=True)}
    losses = dict(zip(models, backend.evaluate(trained, corpus, SPLITS), strict=True))
    chosen = {entry.label: mixtures[entry.label] for entry in compared}
    data = ReportData(
        experiment,
        corpus,
        chosen,
        _scores(losses),
        _curves(models),
        _embeddings(experiment, corpus, backend, chosen),
        _seconds(corpus, chosen, models),
        losses,
        _histories(chosen),
        failures,
        sweep_table(swept, mixtures),
    )
    return Comparison(data, models, _report(data, models, backend))


def mix(experiment: Experiment, label: str, backend: FullBackend) -> Mixture:
    """Only the weights of one method."""
    return fit(experiment, label, backend.tokenize(experiment.corpus, experiment.seeds[0]), backend, backend.root)


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


def _corpora(experiment: Experiment, backend: FullBackend) -> dict[str, TokenCorpus]:
    """The corpus of every point of the sweep; most points share one."""
    found: dict[str, TokenCorpus] = {}
    known: dict[str, TokenCorpus] = {}
    for point in experiment.sweep.points() if experiment.sweep else ():
        at = experiment.at(point)
        key = at.corpus.model_dump_json()
        known[key] = known.get(key) or backend.tokenize(at.corpus, experiment.seeds[0])
        found[describe(point)] = known[key]
    return found


def _compared(experiment: Experiment, entries: Sequence[Entry], swept: Sequence[Entry]) -> list[Entry]:
    """What base models are trained for: the methods, and with `sweep.train_base` the points that read the same text."""
    if experiment.sweep is None or not experiment.sweep.train_base:
        return list(entries)
    return [*entries, *(entry for entry in swept if entry.corpus.digest == entries[0].corpus.digest)]


def _scores(losses: Mapping[tuple[str, int], SplitLosses]) -> pa.Table:
    return pa.concat_tables(perplexity_scores(label, seed, found) for (label, seed), found in losses.items())


def _histories(mixtures: Mapping[str, Mixture]) -> pa.Table | None:
    """Weights while a proxy trained: of the methods that learn them step by step, and of a proxy that was watched to stop early."""
    tables = []
    for label, mixture in mixtures.items():
        if "updates" in mixture.details or "proxy_stopped_at_step" in mixture.provenance:
            history = TrainedModel.load(mixture.provenance["proxy_address"]).weight_history().select(["step", "domain", "weight", "mean"])
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
    if not any(isinstance(experiment.mixer(label), Chameleon) for label in mixtures if label in experiment.methods):
        return None
    return proxy_embeddings(context(experiment, corpus, backend))[1]


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

    compared = [f"{label}/{seed}/{model.digest}" for (label, seed), model in models.items()]
    digest = report_digest(compared, data.experiment.model_dump(mode="json", exclude={"resources", "storage"}), data.failures)
    address = storage.join(backend.root, "reports", f"{data.experiment.name}-{digest}")
    if not is_complete(address):
        page = write_report(data, address)
        write_record(address, "report", digest, {"page": page})
    return storage.join(address, "report.html")
