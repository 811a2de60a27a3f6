"""Time of a step that learns weights, over a plain step of the same model and batch without accumulation: what DoReMi's and DoGE's benchmarks share.

Both sides are the production strategies on DeepSpeed engines of their own in one process, on the same rows, in turns.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from analysis.benchmarks import synthetic
from analysis.benchmarks.measure import Outcome, interleaved, ratios
from chameleon_ray.artifacts import Cost, TokenCorpus, TrainedModel
from chameleon_ray.backend import Rule, TrainJob
from chameleon_ray.config import ModelConfig, TrainingConfig
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.training.plan import MixturePlan

ROWS_PER_DOMAIN = 4
REPETITIONS = 8


def run(rule: Rule, num_domains: int, bound: float, quick: bool) -> Outcome:
    """Steps of both kinds in turns; the median of the ratios of neighbours."""
    import torch

    preset, row_tokens, repetitions = ("cpu-tiny", 32, 2) if quick else ("cpu-small", 256, REPETITIONS)
    batch_rows = ROWS_PER_DOMAIN * num_domains
    training = TrainingConfig(model=ModelConfig(preset=preset), steps=100, batch_rows=batch_rows)
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic.make_corpus(f"{folder}/corpus", num_domains, 2 * ROWS_PER_DOMAIN, row_tokens)
        synthetic.make_model(f"{folder}/reference", training.model, corpus)
        weights = dict.fromkeys(corpus.names, 1 / num_domains)
        reference = TrainedModel(f"{folder}/reference", "reference", weights, corpus.vocab_size, corpus.tokenizer_sha256, Cost())
        jobs = {"plain": TrainJob("proxy", training, weights, 0), "rule": TrainJob("proxy", training, weights, 0, rule, reference)}
        sides = {name: _side(job, corpus) for name, job in jobs.items()}
        for side in sides.values():
            side()
        seconds = interleaved(sides, repetitions)
    each = ratios(seconds["rule"], seconds["plain"])
    ratio = statistics.median(each)
    fields = {
        "model": {"preset": preset, "parameters_dtype": "fp32"},
        "batch": {"rows": batch_rows, "row_tokens": row_tokens, "domains": num_domains},
        "threads": torch.get_num_threads(),
        "plain_seconds": statistics.median(seconds["plain"]),
        "rule_seconds": statistics.median(seconds["rule"]),
        "ratios": each,
    }
    return Outcome(ratio, bound, ratio <= bound, fields)


def _side(job: TrainJob, corpus: TokenCorpus) -> Callable[[], float]:
    """Seconds of one step on the run's first batch."""
    import torch

    from chameleon_ray.models.build import build_model
    from chameleon_ray.models.hardware import Hardware
    from chameleon_ray.models.head import TokenLosses
    from chameleon_ray.training.engine import build_engine
    from chameleon_ray.training.learner import Learner
    from chameleon_ray.training.micro_batch import MicroBatch
    from chameleon_ray.training.signals import make_step
    from chameleon_ray.training.steps import Worker

    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"})
    hardware = Hardware(torch.device("cpu"), torch.float32, "fp32 on a CPU")
    training = job.training
    model = TokenLosses(build_model(training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, job.seed))
    engine = build_engine(model, training, hardware, training.batch_rows, 1)
    engine.train()
    learner = Learner(job, None) if job.rule else None
    step = make_step(Worker(job, corpus, hardware, MicroBatch(training.batch_rows)), learner)
    plan = MixturePlan(job.weights, corpus.rows(), job.seed)
    planned, _ = plan.take(plan.start(), training.batch_rows)
    mine = step.mine(planned.domain)
    rows = RowReader(corpus).read_mixed(plan.names, planned.domain[mine], planned.row[mine])
    domains: Any = np.ascontiguousarray(planned.domain[mine])

    def seconds() -> float:
        started = time.perf_counter()
        if learner:
            learner.begin(1, 1e-4)
        step(engine, rows, domains)
        return time.perf_counter() - started

    return seconds
