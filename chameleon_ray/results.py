"""Gathers what a comparison has finished into the data of its report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from chameleon_ray import storage
from chameleon_ray.artifacts import Clusters, Embeddings, SplitLosses, TokenCorpus, TrainedModel
from chameleon_ray.backend import Backend, Outcome
from chameleon_ray.evaluation.measurements import perplexity_measurements
from chameleon_ray.experiment import Experiment
from chameleon_ray.fitting import MixtureJob
from chameleon_ray.identity import report_digest
from chameleon_ray.mixing.methods import Weigher
from chameleon_ray.mixture import Mixture, Trajectory, averaged, total_cost
from chameleon_ray.records import once, read_record
from chameleon_ray.report import BEFORE, ReportData, write_report

SWEEP = pa.schema(
    [
        ("point", pa.string()),
        ("label", pa.string()),
        ("domain", pa.string()),
        ("weight", pa.float64()),
        ("stderr", pa.float64()),
        ("tokens", pa.int64()),
        ("flops", pa.float64()),
        ("seconds", pa.float64()),
    ]
)

Runs = Mapping[tuple[str, int], Outcome]  # (label, seed) -> what became of the base model


def gather(
    *,
    jobs: Sequence[MixtureJob],
    swept: Sequence[MixtureJob],
    fits: Mapping[tuple[str, int], Mixture],
    failures: Mapping[str, str],
    runs: Runs,
    before: SplitLosses | None,
    backend: Backend,
) -> ReportData:
    """Everything that the report is made of.

    Args:
        jobs: the mixtures that base models were trained for, the experiment's own first. swept: those of its sweep.
        fits: mixtures by label and seed. failures: of methods, by name.
        before: losses of the model that base models went on from.
    """
    experiment, corpus = jobs[0].experiment, jobs[0].corpus
    mixtures = {label: averaged([mixture for (other, _), mixture in fits.items() if other == label]) for label, _ in fits}
    models = models_of(runs)
    losses = {key: outcome.losses for key, outcome in runs.items() if outcome.losses is not None}
    chosen = {job.label: mixtures[job.label] for job in jobs if job.label in mixtures}
    return ReportData(
        experiment=experiment,
        corpus=corpus,
        mixtures=chosen,
        measurements=measurement_table(losses, corpus),
        before=perplexity_measurements(BEFORE, experiment.seeds[0], before, corpus) if before else None,
        before_losses=before,
        curves=_curves(models),
        embeddings=_embeddings(jobs, fits, backend),
        seconds=_seconds(corpus, chosen, models.values()),
        losses=losses,
        histories=_histories(chosen),
        failures={**failures, **failures_of(runs)},
        sweep=_sweep(swept, mixtures),
        clusters=Clusters.load(corpus.clusters).table() if corpus.clusters else None,
        addresses={key: model.address for key, model in models.items()},
        bases={job.label: job.experiment.base for job in jobs},
        precisions={key: model.details["precision"] for key, model in models.items()},
    )


def report_of(data: ReportData, fits: Sequence[MixtureJob], models: Mapping[tuple[str, int], TrainedModel], backend: Backend) -> str:
    """The address of the report's page, written unless it is there already."""
    address = report_address(data.experiment, fits, models, data.failures, backend)
    once(address, "report", address.rpartition("-")[2], lambda: {"page": write_report(data, address)})
    return storage.join(address, "report.html")


def report_address(
    experiment: Experiment, fits: Sequence[MixtureJob], models: Mapping[tuple[str, int], TrainedModel], failures: Mapping[str, str], backend: Backend
) -> str:
    """The folder of the report of some mixtures and base models, these by (label, seed), and of what failed."""
    mixtures = [f"{job.label}/{job.seed}/{job.digest}" for job in fits]
    named = [f"{label}/{seed}/{model.digest}" for (label, seed), model in models.items()]
    digest = report_digest(mixtures, named, experiment.model_dump(mode="json", exclude={"resources", "storage"}), failures)
    return storage.join(backend.root, "reports", f"{experiment.name}-{digest}")


def models_of(runs: Runs) -> dict[tuple[str, int], TrainedModel]:
    """The base models that were trained and measured, by (label, seed)."""
    return {key: outcome.model for key, outcome in runs.items() if outcome.model is not None}


def failures_of(runs: Runs) -> dict[str, str]:
    """What went wrong, by the name of the run."""
    return {f"{label}, seed {seed}": outcome.failure for (label, seed), outcome in runs.items() if outcome.failure is not None}


def measurement_table(losses: Mapping[tuple[str, int], SplitLosses], corpus: TokenCorpus) -> pa.Table:
    """Perplexities of every (label, seed) in long form."""
    return pa.concat_tables(perplexity_measurements(label, seed, found, corpus) for (label, seed), found in losses.items())


def _curves(models: Mapping[tuple[str, int], TrainedModel]) -> pa.Table:
    tables = []
    for (label, seed), model in models.items():
        curve = model.metrics().select(["step", "domain", "loss"])
        tables.append(curve.append_column("method", pa.array([label] * len(curve))).append_column("seed", pa.array([seed] * len(curve))))
    return pa.concat_tables(tables)


def _embeddings(jobs: Sequence[MixtureJob], fits: Iterable[tuple[str, int]], backend: Backend) -> Embeddings | None:
    """What the proxy was embedded with, where a method needed it: a finished artifact by now. Of several fits that of the first that there is."""
    fitted = (replace(job, seed=seed) for job in jobs if not job.point for label, seed in fits if label == job.label)
    return next((mixer.embed(job.context(backend)).embeddings for job in fitted if isinstance(mixer := job.mixer, Weigher)), None)


def _seconds(corpus: TokenCorpus, mixtures: Mapping[str, Mixture], models: Iterable[TrainedModel]) -> dict[str, float]:
    """Recorded wall seconds of the phases, whether they ran now or before; shared work counted once."""
    found = {"domains found among documents": Clusters.load(corpus.clusters).cost.seconds} if corpus.clusters else {}
    return {
        **found,
        "corpus": float(read_record(corpus.address)["content"]["seconds"]),
        "mixtures": total_cost(mixture.ledger for mixture in mixtures.values()).seconds,
        "base models (sum over runs)": total_cost({model.run: model.cost} for model in models).seconds,
    }


def _histories(mixtures: Mapping[str, Mixture]) -> pa.Table | None:
    """Weights while a proxy trained, of the methods whose rule watched it."""
    tables = [_history(label, mixture.trajectory) for label, mixture in mixtures.items() if mixture.trajectory is not None]
    return pa.concat_tables(tables) if tables else None


def _history(label: str, trajectory: Trajectory) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"step": step, "domain": name, "weight": trajectory.weights[name][i], "mean": trajectory.answer[name][i], "method": label}
        for i, step in enumerate(trajectory.steps)
        for name in trajectory.weights
    ]
    return pa.Table.from_pylist(rows)


def _sweep(jobs: Sequence[MixtureJob], mixtures: Mapping[str, Mixture]) -> pa.Table | None:
    """Weights at every point."""
    rows = []
    for job, mixture in ((job, mixtures[job.label]) for job in jobs if job.label in mixtures):
        cost = {"tokens": mixture.cost.tokens, "flops": mixture.cost.flops, "seconds": mixture.cost.seconds}
        for domain, weight in mixture.weights.items():
            stderr = (mixture.weights_stderr or {}).get(domain)
            rows.append({"point": job.point, "label": job.method, "domain": domain, "weight": weight, "stderr": stderr, **cost})
    return pa.Table.from_pylist(rows, schema=SWEEP) if rows else None
