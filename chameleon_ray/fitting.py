"""From methods to mixtures: one at a time, all of a comparison, and every point of a sweep. What is fitted is kept, and not fitted again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from chameleon_ray import storage
from chameleon_ray.artifacts import TokenCorpus, TrainedModel
from chameleon_ray.backend import Backend, FitContext, Transfer, start_of
from chameleon_ray.discovery import read_corpus, transferred_from
from chameleon_ray.errors import UserError, as_user_error
from chameleon_ray.experiment import Experiment, describe
from chameleon_ray.identity import mixture_digest
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.question import Question, estimated
from chameleon_ray.mixture import Mixture
from chameleon_ray.records import is_complete, once


@dataclass(frozen=True)
class MixtureJob:
    """A mixture to find with a seed: of a method as the experiment has it (`point` is empty), or at a point of its sweep."""

    method: str
    point: str
    experiment: Experiment
    corpus: TokenCorpus
    seed: int
    start: TrainedModel | None = None
    transfer: Transfer | None = None

    @classmethod
    def of(cls, method: str, point: str, experiment: Experiment, corpus: TokenCorpus, backend: Backend, transfer: Transfer | None = None) -> MixtureJob:
        """With the experiment's first seed; `transfer` matters to methods that embed alone."""
        sections = experiment.mixer(method).sections
        start = start_of(experiment.proxy, corpus, backend, "proxy") if "proxy" in sections else None
        return cls(method, point, experiment, corpus, experiment.seeds[0], start, transfer if "embedding" in sections else None)

    @property
    def label(self) -> str:
        """What the report calls it."""
        return f"{self.method} at {self.point}" if self.point else self.method

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.label}, fitted with seed {self.seed}" if len(self.experiment.fit_seeds) > 1 else self.label

    @property
    def mixer(self) -> Method:
        """The method with its settings."""
        return self.experiment.mixer(self.method)

    @property
    def digest(self) -> str:
        """Of the mixture: covers what the method says that it needs."""
        sections = {name: getattr(self.experiment, name) for name in sorted(self.mixer.sections)}
        sections["question"] = self.experiment.question
        return mixture_digest(self.method, self.mixer, sections, self.corpus, self.seed, self.start, self.transfer)

    @cached_property
    def question(self) -> Question:
        """What its weights must keep to; raises `UserError` for what cannot be."""
        return Question.of(self.experiment.question, self.corpus.names, self.corpus.tokens(), estimates=estimated(self.corpus))

    def address(self, backend: Backend) -> str:
        """Where the mixture is kept."""
        return storage.join(backend.root, "mixtures", f"{self.method}-{self.digest}")

    def context(self, backend: Backend) -> FitContext:
        """What the method gets to work with."""
        experiment = self.experiment
        return FitContext(self.method, self.corpus, backend, experiment.proxy, experiment.embedding, self.seed, self.start, self.transfer, self.question.limits)


def check_settings(experiment: Experiment, labels: Iterable[str]) -> None:
    """Raise `UserError` for methods that cannot be fitted with their settings, before anything is read."""
    for label in labels:
        experiment.mixer(label).check_settings(label, experiment.proxy)


def mixture_jobs(experiment: Experiment, corpus: TokenCorpus, backend: Backend) -> tuple[list[MixtureJob], list[MixtureJob]]:
    """The experiment's methods; and every method that its sweep changes, at every point (one key at a time: at the points that change it). All with the first
    seed: `refits` has the others."""
    jobs = _jobs_at(experiment, experiment, "", corpus, backend)
    sweep = experiment.sweep
    if sweep is None:
        return jobs, []
    plain = {job.method: job.digest for job in jobs}
    points = _points(experiment, backend)
    moved = [
        job for job in points if _changed(job, experiment).digest != plain.get(job.method) or (sweep.train_base and job.experiment.base != experiment.base)
    ]
    if sweep.each:
        return jobs, moved
    changed = {job.method for job in moved}
    return jobs, [job for job in points if job.method in changed]


def _changed(job: MixtureJob, experiment: Experiment) -> MixtureJob:
    """A point's job but for a seed that its method has no use for: where nothing is trained (a proxy may be taken as it is) the fit is the same with each."""
    trains = any(training.steps for training in job.mixer.trainings(job.experiment.proxy))
    return job if trains else replace(job, seed=experiment.seeds[0])


def _jobs_at(experiment: Experiment, at: Experiment, point: str, corpus: TokenCorpus, backend: Backend) -> list[MixtureJob]:
    """Every method at a point of the experiment's sweep, or as the experiment has it."""
    transfer = transferred_from(experiment, backend, at)
    return [MixtureJob.of(label, point, at, corpus, backend, transfer) for label in at.methods]


def compared(jobs: Sequence[MixtureJob], swept: Sequence[MixtureJob]) -> list[MixtureJob]:
    """What base models are trained for: the methods, and with `sweep.train_base` the points that read the same text."""
    sweep = jobs[0].experiment.sweep
    if sweep is None or not sweep.train_base:
        return list(jobs)
    return [*jobs, *(job for job in swept if job.corpus.digest == jobs[0].corpus.digest)]


def refits(jobs: Iterable[MixtureJob]) -> list[MixtureJob]:
    """The jobs with every seed that methods are fitted with."""
    return [replace(job, seed=seed) for job in jobs for seed in job.experiment.fit_seeds]


def fit(job: MixtureJob, backend: Backend) -> Mixture:
    """The mixture, under the label that the experiment gives its method; kept, since a method may have trained for it.

    Raises:
        UserError: as `check`, before anything is trained, or what fitting raises.
    """
    check(job, backend)
    address = job.address(backend)
    path = storage.join(address, "mixture.json")

    def make() -> dict[str, Any]:
        found = job.question.answer(job.mixer.fit(job.context(backend)), job.mixer.by_size)
        for name, content in found.files.items():
            storage.write_bytes(storage.join(address, name), content)
        provenance = {**found.provenance, "corpus": job.corpus.digest, "seed": job.seed}
        sizes = {name: size for name, size in job.corpus.sizes().items() if name in found.weights}
        replace(found, label=job.method, provenance=provenance, domains=sizes, tokenizer_sha256=job.corpus.tokenizer_sha256).save(path)
        return {"label": job.method}

    once(address, "mixture", job.digest, make)
    return Mixture.load(path)


def check(job: MixtureJob, backend: Backend) -> None:
    """Raise the `UserError` that can be known of a method before anything is trained; what is finished passed before."""
    if is_complete(job.address(backend)):
        return
    job.mixer.check(job.context(backend))
    backend.check(job.corpus, job.mixer.jobs(job.context(backend)))


def fit_all(jobs: Sequence[MixtureJob], backend: Backend) -> tuple[dict[tuple[str, int], Mixture], dict[str, str]]:
    """Mixtures by label and seed, and for each job that failed twice, by its name, what went wrong.

    Every method is checked before anything is trained; one that cannot work is left out, and said to be. The runs that need nothing of each other are
    started together; a method whose run failed there tries again alone.
    """
    mixtures: dict[tuple[str, int], Mixture] = {}
    failures: dict[str, str] = {}
    for job in jobs:
        try:
            check(job, backend)
        except UserError as error:
            failures[job.name] = str(error)
            logging.getLogger(__name__).warning("%s is left out: %s", job.name, error)
    jobs = [job for job in jobs if job.name not in failures]
    for corpus in {job.corpus.digest: job.corpus for job in jobs}.values():
        runs = [run for job in jobs if job.corpus.digest == corpus.digest for run in job.mixer.jobs(job.context(backend)) if run.ahead]
        with suppress(Exception):
            backend.train_many(corpus, runs)
    for job in jobs:
        try:
            mixtures[job.label, job.seed] = fit(job, backend)
        except Exception as error:
            found = as_user_error(error)
            if found is None:
                logging.getLogger(__name__).exception("%s failed", job.name)
            failures[job.name] = str(found or f"{type(error).__name__}: {error}")
    return mixtures, failures


def _points(experiment: Experiment, backend: Backend) -> list[MixtureJob]:
    """Every method at every point of the sweep; most points share one corpus."""
    corpora: dict[str, TokenCorpus] = {}
    found = []
    for point in experiment.sweep.points() if experiment.sweep else ():
        at = experiment.at(point)
        key = f"{at.corpus.model_dump_json()} {at.transfer.model_dump_json() if at.transfer else ''}"
        corpora[key] = corpora.get(key) or read_corpus(experiment, backend, at)
        found += _jobs_at(experiment, at, describe(point), corpora[key], backend)
    return found
