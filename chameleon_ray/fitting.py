"""From methods to mixtures: one at a time, all of a comparison, and every point of a sweep. What is fitted is kept, and not fitted again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa

from chameleon_ray import storage
from chameleon_ray.artifacts import Mixture, TokenCorpus, is_complete, write_record
from chameleon_ray.backend import Backend, FitContext, TrainJob
from chameleon_ray.errors import UserError, as_user_error
from chameleon_ray.experiment import Experiment, describe
from chameleon_ray.identity import mixture_digest
from chameleon_ray.mixing.swarm import Swarm, write_swarm

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


@dataclass(frozen=True)
class Entry:
    """A method of a comparison: as the experiment has it (`point` is empty), or at a point of its sweep."""

    method: str
    point: str
    experiment: Experiment
    corpus: TokenCorpus

    @property
    def label(self) -> str:
        """What the report calls it."""
        return f"{self.method} at {self.point}" if self.point else self.method


def context(experiment: Experiment, corpus: TokenCorpus, backend: Backend) -> FitContext:
    """What a method of the experiment gets to work with."""
    return FitContext(corpus, backend, experiment.proxy, experiment.embedding, experiment.seeds[0])


def sweep_entries(experiment: Experiment, corpus: TokenCorpus, corpora: Mapping[str, TokenCorpus]) -> list[Entry]:
    """Every method that the sweep changes, at every point; `corpora` by `describe(point)`."""
    points = [(describe(point), experiment.at(point)) for point in (experiment.sweep.points() if experiment.sweep else ())]
    found = [Entry(label, point, at, corpora[point]) for point, at in points for label in at.methods]
    plain = {label: _digest(experiment, label, corpus) for label in experiment.methods}
    changed = {e.method for e in found if _digest(e.experiment, e.method, e.corpus) != plain.get(e.method)}
    if experiment.sweep and experiment.sweep.train_base and any(_base(e.experiment) != _base(experiment) for e in found):
        changed = set(experiment.methods)
    return [entry for entry in found if entry.method in changed]


def fit(experiment: Experiment, label: str, corpus: TokenCorpus, backend: Backend, root: str) -> Mixture:
    """The mixture of one method, under its label; kept under `root`, since a method may have trained for it."""
    digest = _digest(experiment, label, corpus)
    address = storage.join(root, "mixtures", f"{label}-{digest}")
    path = storage.join(address, "mixture.json")
    if not is_complete(address):
        found = experiment.mixer(label).fit(context(experiment, corpus, backend))
        if "swarm" in found.details:
            swarm = Swarm.from_lists(found.details["swarm"])
            write_swarm(swarm, storage.join(address, "ratios.csv"), storage.join(address, "metrics.csv"))
        replace(found, method=label, provenance={**found.provenance, "corpus": corpus.digest, "seed": experiment.seeds[0]}).save(path)
        write_record(address, "mixture", digest, {"label": label})
    return Mixture.load(path)


def fit_all(entries: Sequence[Entry], backend: Backend, root: str) -> tuple[dict[str, Mixture], dict[str, str]]:
    """Mixtures by label, and for each method that failed twice what went wrong.

    The runs that need nothing of each other are started together first; a method whose run failed there tries again alone.
    """
    for corpus in {entry.corpus.digest: entry.corpus for entry in entries}.values():
        mine = [entry for entry in entries if entry.corpus.digest == corpus.digest]
        jobs: list[TrainJob] = []
        for entry in mine:
            with suppress(UserError):  # the method meets it again below, as with what fails in training
                jobs += entry.experiment.mixer(entry.method).jobs(context(entry.experiment, corpus, backend))
        with suppress(Exception):
            backend.train_many(corpus, jobs)
    mixtures, failures = {}, {}
    for entry in entries:
        try:
            mixtures[entry.label] = fit(entry.experiment, entry.method, entry.corpus, backend, root)
        except Exception as error:
            found = as_user_error(error)
            if found is None:
                logging.getLogger(__name__).exception("%s failed", entry.label)
            failures[entry.label] = str(found or f"{type(error).__name__}: {error}")
    return mixtures, failures


def sweep_table(entries: Sequence[Entry], mixtures: Mapping[str, Mixture]) -> pa.Table | None:
    """Weights at every point."""
    rows = []
    for entry, mixture in ((entry, mixtures[entry.label]) for entry in entries if entry.label in mixtures):
        cost = {"tokens": mixture.cost.tokens, "flops": mixture.cost.flops, "seconds": mixture.cost.seconds}
        for domain, weight in mixture.weights.items():
            stderr = (mixture.weights_stderr or {}).get(domain)
            rows.append({"point": entry.point, "label": entry.method, "domain": domain, "weight": weight, "stderr": stderr, **cost})
    return pa.Table.from_pylist(rows, schema=SWEEP) if rows else None


def _base(experiment: Experiment) -> tuple[object, ...]:
    """What a base model's run depends on beside its mixture."""
    return experiment.base, experiment.corpus.max_repetition


def _digest(experiment: Experiment, label: str, corpus: TokenCorpus) -> str:
    method = experiment.mixer(label)
    sections = {} if method.name in ("uniform", "proportional", "fixed") else {"proxy": experiment.proxy, "embedding": experiment.embedding}
    return mixture_digest(label, method, sections, corpus, experiment.seeds[0])
