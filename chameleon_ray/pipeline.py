"""The spine, read first: what each command does, one call per step, no detail.

Algorithm 1 of the paper: line 3 is `backend.train_many` of the proxy, line 5 `backend.embed`, both called from `Chameleon.embed`; lines 6 to 13 are
`Chameleon.weigh`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from chameleon_ray.artifacts import SplitLosses, TokenCorpus, TrainedModel
from chameleon_ray.backend import Backend, TrainJob, past_measuring, start_of
from chameleon_ray.corpus.tokenizer import check_reads
from chameleon_ray.corpus_config import CorpusChanges
from chameleon_ray.discovery import read_corpus, transferred_from
from chameleon_ray.errors import UserError, naming
from chameleon_ray.evaluation.losses import mean_of_tokens
from chameleon_ray.experiment import Experiment, describe
from chameleon_ray.fitting import MixtureJob, check_settings, compared, fit, fit_all, mixture_jobs, refits
from chameleon_ray.mixing.methods import Weigher
from chameleon_ray.mixing.question import Question
from chameleon_ray.mixing.static import uniform_mixture
from chameleon_ray.mixture import Mixture
from chameleon_ray.models.adapters import adapted_maps
from chameleon_ray.report import ReportData
from chameleon_ray.results import failures_of, gather, measurement_table, models_of, report_of
from chameleon_ray.transfer import changed_embeddings

SPLITS = ("valid", "test")


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: everything the report is made of, the mixtures by (label, seed that they were fitted with), the base models by (label, seed), and
    the report's address."""

    data: ReportData
    fits: Mapping[tuple[str, int], Mixture]
    models: Mapping[tuple[str, int], TrainedModel]
    report: str


def compare(experiment: Experiment, backend: Backend) -> Comparison:
    """Fit every method, train and measure one base model per mixture and seed, write the report.

    What fails, a method or a base model, is tried once more and then reported without losing the others.

    Raises:
        UserError: what can be known before anything is trained, or that no base model could be trained and measured, with why the first was not.
    """
    corpus = checked_corpus(experiment, backend)
    jobs, swept = mixture_jobs(experiment, corpus, backend)
    check_points(jobs, swept, corpus, backend)
    with_bases = compared(jobs, swept)
    before = losses_before([job.experiment for job in with_bases], corpus, backend)
    wanted = refits([*jobs, *swept])
    fits, failures = fit_all(wanted, backend)
    trained = [(job, seed) for seed in experiment.seeds for job in with_bases if (job.label, job.experiment.fit_seed(seed)) in fits]
    bases = {
        (job.label, seed): base_job(
            job.experiment, corpus, fits[job.label, job.experiment.fit_seed(seed)], seed, start_of(job.experiment.base, corpus, backend, "base")
        )
        for job, seed in trained
    }
    runs = backend.run_trials(experiment.name, corpus, bases, SPLITS)
    models = models_of(runs)
    if not models:
        raise UserError(next(iter({**failures, **failures_of(runs)}.values())))
    data = gather(jobs=with_bases, swept=swept, fits=fits, failures=failures, runs=runs, before=before, backend=backend)
    return Comparison(data, fits, models, report_of(data, wanted, models, backend))


def finetune(experiment: Experiment, backend: Backend) -> Comparison:
    """Finetune the pretrained base model under every mixture and compare what comes out with each other and with the model before (section 4.3 of the paper).

    The domains are embedded with that model itself; without `methods` uniform weights, those by the scores and those by their inverse are compared.

    Raises:
        UserError: an experiment of another stage, or what `compare` raises.
    """
    if experiment.stage != "finetune":
        raise UserError(f"stage: {experiment.stage}, and finetuning is asked for; set stage: finetune")
    return compare(experiment, backend)


def losses_before(experiments: Sequence[Experiment], corpus: TokenCorpus, backend: Backend) -> SplitLosses | None:
    """Held-out losses of the model that all base models go on from, where they go on from one; raises `UserError` for one that cannot be measured."""
    start = common_start(experiments, corpus, backend)
    if start is None:
        if any(each.base.model.pretrained for each in experiments):
            logging.getLogger(__name__).warning(
                "base.model.pretrained: base models go on from several models, so that none is measured as it was before training"
            )
        return None
    (losses,) = backend.evaluate([start], corpus, SPLITS)
    if odd := past_measuring(mean_of_tokens(losses)):
        raise UserError(f"base.model.pretrained: {odd}: its weights are broken; take another model")
    return losses


def common_start(experiments: Sequence[Experiment], corpus: TokenCorpus, backend: Backend) -> TrainedModel | None:
    """The pretrained model that all base models go on from, which is measured too; None where some start from scratch, or from another."""
    starts = {start and start.digest: start for each in experiments for start in [start_of(each.base, corpus, backend, "base")]}
    return next(iter(starts.values())) if len(starts) == 1 else None


def check_points(jobs: Sequence[MixtureJob], swept: Sequence[MixtureJob], corpus: TokenCorpus, backend: Backend) -> None:
    """Raise `UserError` for a sweep that changes nothing, and what training the base model at one of its points would begin with; say which have none."""
    if jobs[0].experiment.sweep and not swept:
        raise UserError("sweep: no point changes the weights of any method; set sweep.train_base: true to train base models at every point, or remove sweep")
    trained = {job.point: job.experiment for job in compared(jobs, swept) if job.point}
    for at in trained.values():
        _check_bases(at, corpus, backend)
    if jobs[0].experiment.sweep and jobs[0].experiment.sweep.train_base:
        for point in dict.fromkeys(job.point for job in swept if job.point not in trained):
            logging.getLogger(__name__).warning(
                "sweep at %s: other text, or other tokens of it, on which base models cannot be compared; its weights only", point
            )


def checked_corpus(experiment: Experiment, backend: Backend) -> TokenCorpus:
    """What `compare` begins with: the corpus, once everything is checked that can be known before anything is trained."""
    check_settings(experiment, experiment.methods)
    corpus = open_corpus(experiment, backend)
    corpus.check_measured()
    _check_bases(experiment, corpus, backend)
    Question.of(experiment.question, corpus.names, corpus.tokens())
    return corpus


def _check_bases(experiment: Experiment, corpus: TokenCorpus, backend: Backend) -> None:
    start = start_of(experiment.base, corpus, backend, "base")
    backend.check(corpus, [base_job(experiment, corpus, uniform_mixture(corpus), seed, start) for seed in experiment.seeds])


def mix(experiment: Experiment, label: str, backend: Backend) -> Mixture:
    """Only the weights of one method."""
    check_settings(experiment, [label])
    return fit(MixtureJob.of(label, "", experiment, open_corpus(experiment, backend), backend, transferred_from(experiment, backend)), backend)


def train(experiment: Experiment, mixture: Mixture, backend: Backend, seeds: Sequence[int] | None = None) -> list[TrainedModel]:
    """Base models on a mixture, one per seed.

    Raises:
        UserError: the mixture's domains are not the corpus's, or its weights do not keep to the experiment's limits.
    """
    corpus = open_corpus(experiment, backend)
    Question.of(experiment.question, corpus.names, corpus.tokens()).check(mixture)
    if mixture.tokenizer_sha256 not in (None, corpus.tokenizer_sha256):
        logging.getLogger(__name__).warning(
            "mixture %r was found with another tokenizer than the corpus has: its weights are fractions of other tokens, and not quite the same mixture here; "
            "weigh the domains with this tokenizer",
            mixture.label,
        )
    start = start_of(experiment.base, corpus, backend, "base")
    return backend.train_many(corpus, [base_job(experiment, corpus, mixture, seed, start) for seed in seeds or experiment.seeds])


def evaluate(experiment: Experiment, model: str, backend: Backend, allow_remote_code: bool = False) -> pa.Table:
    """Losses, perplexities and bits per byte on valid and test of one model, by its folder; code beside it is run only where that is allowed."""
    found, corpus = model_to_evaluate(experiment, model, backend, allow_remote_code)
    (losses,) = backend.evaluate([found], corpus, SPLITS)
    if odd := past_measuring(mean_of_tokens(losses)):
        raise UserError(f"--model: {odd}: it has diverged, or its weights are broken")
    return measurement_table({("model", experiment.seeds[0]): losses}, corpus)


def model_to_evaluate(experiment: Experiment, model: str, backend: Backend, allow_remote_code: bool) -> tuple[TrainedModel, TokenCorpus]:
    """The model in a folder, and the corpus that it is to be measured on."""
    check_reads(backend.find_model(model, experiment.corpus.row_tokens, "--model", allow_remote_code), experiment.corpus.tokenizer, "--model")
    corpus = open_corpus(experiment, backend)
    corpus.check_measured()
    return backend.open_model(model, corpus, "--model", allow_remote_code), corpus


def extend(
    experiment: Experiment,
    proxy: str,
    changes: CorpusChanges | Sequence[CorpusChanges],
    backend: Backend,
    only: bool = False,
    label: str = "chameleon",
    allow_remote_code: bool = False,
) -> Mixture:
    """Weights for a changed set of domains, by embedding the new ones with a trained proxy: nothing is trained, and what did not change is not embedded again.

    Args:
        proxy: folder of the model.
        changes: new domains, `name: null` to leave one of the experiment's out, and those that are renamed, merged or split; or several such, each of what
            the one before left, so that nothing is embedded again when domains change once more.
        only: take the new domains alone.
        allow_remote_code: run code that lies beside the proxy.
    Returns:
        A mixture whose `extra` cost is that of the (last) change; `provenance["embedded_rows"]` says what was embedded for it, by domain.
    Raises:
        UserError: a method that weighs no embeddings, or what `changed_embeddings` raises.
    """
    method = weigher_of(experiment, label)
    several = [changes] if isinstance(changes, CorpusChanges) else changes
    changed = changed_embeddings(experiment, proxy, several, backend, only, method.looked_at(experiment.corpus.targets), allow_remote_code)
    with naming(f"methods.{label}"):
        mixture = method.weigh(changed.embeddings, changed.tokens, changed.texts, changed.others)
    question = Question.of(experiment.question, tuple(mixture.weights), changed.tokens, is_changed=True, estimates=changed.estimates)
    mixture = question.answer(mixture, method.by_size)
    return replace(
        mixture,
        label=label,
        domains=changed.sizes,
        tokenizer_sha256=changed.tokenizer_sha256,
        ledger={**mixture.ledger, **changed.looking},
        there_before=tuple(changed.there_before),
        provenance={**mixture.provenance, "embedded_rows": dict(changed.embedded)},
        warnings=(*mixture.warnings, *changed.warnings),
    )


def weigher_of(experiment: Experiment, label: str) -> Weigher:
    """The method behind a label; raises `UserError` for one that weighs no embeddings."""
    method = experiment.mixer(label)
    if not isinstance(method, Weigher):
        raise UserError(f"methods.{label}: weights for new domains without training need a method that weighs embeddings (chameleon), found {method.name}")
    return method


def base_job(experiment: Experiment, corpus: TokenCorpus, mixture: Mixture, seed: int, start: TrainedModel | None = None) -> TrainJob:
    """The base model's run on a mixture.

    Args:
        start: the pretrained model that it goes on from, where `base.model` names one.
    """
    odd = sorted(set(mixture.weights) ^ set(corpus.names))
    if odd:
        side = "the mixture" if odd[0] in mixture.weights else "the corpus"
        raise UserError(f"mixture {mixture.label!r}: domain {odd[0]!r} is only in {side}; the corpus has {', '.join(corpus.names)}")
    weights = {name: mixture.weights[name] for name in corpus.names}
    return TrainJob("base", experiment.base, weights, seed, start=start)


def open_corpus(experiment: Experiment, backend: Backend) -> TokenCorpus:
    """The experiment's corpus; that a pretrained model cannot be used, here or at a point of a sweep, is better known before any text is read."""
    _check_pretrained(experiment, backend)
    for point in experiment.sweep.points() if experiment.sweep else ():
        at = experiment.at(point)
        with naming(f"sweep at {describe(point)}"):
            _check_pretrained(at, backend)
    return read_corpus(experiment, backend)


def _check_pretrained(experiment: Experiment, backend: Backend) -> None:
    found = {}
    for where, training in (("base.model.pretrained", experiment.base), ("proxy.model.pretrained", experiment.proxy)):
        if (name := training.model.pretrained) is not None:
            found[where] = backend.find_model(name, experiment.corpus.row_tokens, where, training.model.allow_remote_code)
            if training.model.lora is not None:
                adapted_maps(training.model.lora, found[where])
    if len({model.tokenizer_sha256 for model in found.values()}) > 1:
        told = "have different tokenizers, and both are to read the tokens of one corpus; choose two that share a tokenizer, or train the proxy"
        raise UserError(f"base.model.pretrained, proxy.model.pretrained: {experiment.base.model.pretrained} and {experiment.proxy.model.pretrained} {told}")
    for where, model in found.items():
        check_reads(model, experiment.corpus.tokenizer, where)
