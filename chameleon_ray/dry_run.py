"""What a command would do, without doing it: what is done already, and of the rest tokens, operations, memory, disk and hours.

Every command is planned by the code that carries it out, with a backend that only notes things down (`dry_backend.py`); how long that takes: `pace.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import Backend, TrainJob, Work, start_of
from chameleon_ray.config import ConstraintsConfig
from chameleon_ray.corpus_config import CorpusChanges
from chameleon_ray.discovery import transferred_from
from chameleon_ray.dry_backend import DryBackend, Item
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment
from chameleon_ray.fitting import MixtureJob, check, check_settings, compared, mixture_jobs, refits
from chameleon_ray.mixing.question import Question
from chameleon_ray.mixing.static import uniform_mixture
from chameleon_ray.mixture import Mixture
from chameleon_ray.pace import Pace
from chameleon_ray.pipeline import SPLITS, base_job, check_points, checked_corpus, common_start, model_to_evaluate, open_corpus, weigher_of
from chameleon_ray.records import is_complete
from chameleon_ray.results import failures_of, models_of, report_address
from chameleon_ray.transfer import changed_embeddings


@dataclass(frozen=True)
class Step:
    """A line of the plan: an item, and how long it takes; of items side by side each its share."""

    item: Item
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """A command's plan. `seconds` is more than the sum of its steps by what starts and ends it; `how` says what rates it is reckoned by."""

    steps: tuple[Step, ...]
    seconds: float
    how: str

    @property
    def missing(self) -> list[Item]:
        """What is not done."""
        return [step.item for step in self.steps if not step.item.is_done]

    @property
    def memory_bytes(self) -> int:
        """The most that a worker needs."""
        return max((item.memory_bytes for item in self.missing), default=0)


def plan_compare(experiment: Experiment, dry: DryBackend) -> None:
    """Note down what `compare` does; a base model whose mixture is not known yet is one to be trained."""
    experiment, corpus = _opened(experiment, dry, checked_corpus)
    jobs, swept = mixture_jobs(experiment, corpus, dry)
    check_points(jobs, swept, corpus, dry)
    with_bases = compared(jobs, swept)
    fits = refits([*jobs, *swept])
    dry.parts += [dry.part, *(job.name for job in fits)]
    dry.part = "base models"
    if (start := common_start([job.experiment for job in with_bases], corpus, dry)) is not None:
        dry.evaluate([start], corpus, SPLITS)
    possible = [job for job in fits if _is_possible(job, dry)]
    for each in {job.corpus.digest: job.corpus for job in possible}.values():
        mine = [job for job in possible if job.corpus.digest == each.digest and not is_complete(job.address(dry))]
        dry.train_ahead(each, [(job.name, run) for job in mine for run in _jobs(job, dry) if run.ahead])
    mixtures = {(job.label, job.seed): _plan_method(job, dry) for job in possible}
    dry.part = "base models"
    trained = [(job, seed) for job in with_bases for seed in experiment.seeds if (job.label, job.experiment.fit_seed(seed)) in mixtures]
    bases = {}
    for job, seed in trained:
        mixture = mixtures[job.label, job.experiment.fit_seed(seed)]
        known = replace(mixture or uniform_mixture(corpus), label=job.label)
        start = start_of(job.experiment.base, corpus, dry, "base")
        bases[job.label, seed] = base_job(job.experiment, corpus, known, seed, start), mixture is not None
    runs = dry.note_trials(corpus, bases, SPLITS)
    is_known = all(known for _, known in bases.values()) and len(possible) == len(fits)
    dry.note_report(report_address(experiment, fits, models_of(runs), failures_of(runs), dry) if is_known else None)


def plan_mix(experiment: Experiment, label: str, dry: DryBackend) -> None:
    """Note down what `mix` does."""
    check_settings(experiment, [label])
    experiment, corpus = _opened(experiment, dry, open_corpus)
    job = MixtureJob.of(label, "", experiment, corpus, dry, transferred_from(experiment, dry))
    if not dry.guessed:
        check(job, dry)
    _plan_method(job, dry)


def plan_train(experiment: Experiment, mixture: Mixture, dry: DryBackend) -> None:
    """Note down what `train` does."""
    experiment, corpus = _opened(experiment, dry, open_corpus)
    dry.part = "base models"
    if dry.guessed:
        mixture = uniform_mixture(corpus)
    else:
        Question.of(experiment.question, corpus.names, corpus.tokens()).check(mixture)
    start = start_of(experiment.base, corpus, dry, "base")
    dry.train_many(corpus, [base_job(experiment, corpus, mixture, seed, start) for seed in experiment.seeds])


def plan_evaluate(experiment: Experiment, model: str, dry: DryBackend, allow_remote_code: bool = False) -> None:
    """Note down what `evaluate` does."""
    found, corpus = model_to_evaluate(experiment, model, dry, allow_remote_code)
    dry.part = "model"
    dry.evaluate([found], corpus, SPLITS)


def plan_extend(
    experiment: Experiment, proxy: str, changes: Sequence[CorpusChanges], label: str, dry: DryBackend, only: bool = False, allow_remote_code: bool = False
) -> None:
    """Note down what `extend` does."""
    method = weigher_of(experiment, label)
    changed_embeddings(experiment, proxy, changes, dry, only, method.looked_at(experiment.corpus.targets), allow_remote_code)


def _opened(experiment: Experiment, dry: DryBackend, opened: Callable[[Experiment, Backend], TokenCorpus]) -> tuple[Experiment, TokenCorpus]:
    """The corpus; where its domains are not known yet, what their weights must keep to cannot be looked at."""
    try:
        corpus = opened(experiment, dry)
    except UserError:
        if not dry.guessed:
            raise
    else:
        if not dry.guessed:
            return experiment, corpus
    budget = experiment.budget and experiment.budget.model_copy(update={"domain_tokens": "estimated"})
    free = experiment.model_copy(update={"constraints": ConstraintsConfig(), "budget": budget})
    return free, opened(free, dry)


def _jobs(job: MixtureJob, dry: DryBackend) -> list[TrainJob]:
    """What a method trains; nothing where that cannot be said before its domains are known."""
    try:
        return job.mixer.jobs(job.context(dry))
    except UserError:
        if not dry.guessed:
            raise
        return []


def _is_possible(job: MixtureJob, dry: DryBackend) -> bool:
    """Whether a method can be fitted, as far as is known before anything is trained; what cannot is noted down as left out."""
    try:
        check(job, dry)
    except UserError as error:
        if dry.guessed:
            return True
        dry.part = job.name
        dry.note_failure(f"left out: {error}", job.name)
        return False
    return True


def _plan_method(job: MixtureJob, dry: DryBackend) -> Mixture | None:
    """Note down what fitting a method takes; its mixture, where that is finished or takes nothing."""
    dry.part = job.name
    address = job.address(dry)
    if is_complete(address):
        dry.note_done("mixture", address)
        return Mixture.load(f"{address}/mixture.json")
    try:
        work = job.mixer.work(job.context(dry))
        if work == Work():
            return job.question.answer(job.mixer.fit(job.context(dry)), job.mixer.by_size)
    except UserError as error:
        if not dry.guessed:
            raise
        dry.note_failure(f"not planned before its domains are known ({error})", job.name)
        return None
    models = {id(run): model for run in work.trains for model in dry.train_many(job.corpus, [run])}
    if work.embeds is not None:
        model = models[id(work.embeds)]
        for text in work.texts:
            dry.embed(model, text.corpus, job.experiment.embedding, text.names)
        if work.glance_tokens:
            dry.glance(model, job.corpus, work.glance_tokens)
    if work.swarm:
        dry.train_swarm(job.corpus, work.swarm, "valid", work.valid_tokens)
    return None


def forecast(dry: DryBackend, pace: Pace) -> Forecast:
    """How long everything takes that was noted down."""
    steps, total = [], 0.0
    for _, group in groupby(dry.items, key=lambda item: item.group):
        items = list(group)
        alone = [pace.seconds(item) for item in items]
        wall = max(*alone, sum(alone) / pace.side_by_side(items)) if len(items) > 1 else alone[0]
        steps += [Step(item, wall * seconds / (sum(alone) or 1.0)) for item, seconds in zip(items, alone, strict=True)]
        total += wall
    parts = list(dict.fromkeys([*dry.parts, *(item.part for item in dry.items)]))
    steps.sort(key=lambda step: parts.index(step.item.part))
    return Forecast(tuple(steps), total + (pace.session_seconds if total else 0.0), pace.how)
