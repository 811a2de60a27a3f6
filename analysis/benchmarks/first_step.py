"""A step of training that can be taken again and again: what its time is measured on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.training.learner import Learner
from chameleon_ray.training.plan import MixturePlan
from chameleon_ray.training.signals import make_step
from chameleon_ray.training.steps import Worker


def first_step(worker: Worker, engine: Any) -> Callable[[], None]:
    """A function that takes a step on the run's first batch, whatever was done before."""
    job, corpus = worker.job, worker.corpus
    engine.train()
    learner = Learner(job, None) if job.rule else None
    step = make_step(worker, learner)
    plan = MixturePlan(job.weights, corpus.rows(), job.seed)
    planned, _ = plan.take(plan.start(), job.training.batch_rows)
    mine = step.mine(planned.domain)
    rows = RowReader(corpus).read_mixed(plan.names, planned.domain[mine], planned.row[mine])
    domains: Any = np.ascontiguousarray(planned.domain[mine])

    def take() -> None:
        if learner:
            learner.begin(1, 1e-4)
        step(engine, rows, domains)

    return take
