"""What a rule can be shown while a model trains: one file each, and one line in `SIGNALS`.

A signal is taken in one of two ways. From **within** every step, for rules that change the loss of that very step: it then brings a `step`. Or at **looks**
between steps, for rules that change nothing in them: it brings a `look`, which leaves parameters, optimizer, generators and gradients as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.training.learner import Learner
from chameleon_ray.training.signals import embeddings, excess_losses, gradients
from chameleon_ray.training.steps import PlainStep, Step, Worker

Look = Callable[[Any], dict[str, NDArray[np.float64]]]


@dataclass(frozen=True)
class Signal:
    """How a signal is taken.

    Attributes:
        check: refuses what it cannot be had for, before anything starts: job, corpus, number of workers -> UserError.
        flops: operations of its matrix products beyond plain training in so many steps.
        step: a strategy that shows the learner its signal within every step.
        look: a function from the model to the arrays that the rule sees. A collective: every worker calls it.
        whole_batch: whether a worker's step hands the engine the gradient of a whole batch at once, whatever the micro-batches.
        kept_bytes: what it keeps on a worker's device beside the model: job, corpus, number of workers.
    """

    check: Callable[[TrainJob, TokenCorpus, int], None]
    flops: Callable[[Worker, int], float]
    step: Callable[[Worker, Learner], Step] | None = None
    look: Callable[[Worker], Look] | None = None
    whole_batch: Callable[[Worker], bool] = lambda worker: False
    kept_bytes: Callable[[TrainJob, TokenCorpus, int], int] = lambda job, corpus, world_size: 0


SIGNALS: dict[str, Signal] = {
    "excess_losses": Signal(
        excess_losses.check,
        excess_losses.flops,
        step=excess_losses.ExcessLossStep,
        whole_batch=excess_losses.by_domain,
        kept_bytes=excess_losses.kept_bytes,
    ),
    "gradients": Signal(gradients.check, gradients.flops, step=gradients.GradientStep, whole_batch=lambda worker: True, kept_bytes=gradients.kept_bytes),
    "embeddings": Signal(embeddings.check, embeddings.flops, look=embeddings.EmbeddingLook),
}


def signal_of(job: TrainJob) -> Signal | None:
    """The signal that a job's rule asks for."""
    return SIGNALS[job.rule.signal] if job.rule is not None else None


def make_step(worker: Worker, learner: Learner | None) -> Step:
    """The strategy of a worker's job: the plain one, or that of its rule's signal."""
    signal = signal_of(worker.job)
    if signal is None or signal.step is None:
        return PlainStep(worker)
    assert learner is not None
    return signal.step(worker, learner)


def engine_micro_batch(worker: Worker) -> int:
    """Rows between two calls of the engine's `step`."""
    signal = signal_of(worker.job)
    return worker.job.training.batch_rows // worker.world_size if signal is not None and signal.whole_batch(worker) else worker.micro_batch.rows
