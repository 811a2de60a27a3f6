"""Time of a step that learns weights, over a plain step of the same model, batch and micro-batches: what DoReMi's and DoGE's benchmarks share.

Both sides are the production strategies on DeepSpeed engines of their own in one process, on the same rows, in turns.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

from analysis.benchmarks import synthetic
from analysis.benchmarks.measure import Outcome, interleaved, ratios
from chameleon_ray.artifacts import Cost, TokenCorpus, TrainedModel
from chameleon_ray.backend import Rule, TrainJob
from chameleon_ray.config import ModelConfig, TrainingConfig

ROWS_PER_DOMAIN = 4
REPETITIONS = 8


def run(rule: Rule, num_domains: int, bound: float, quick: bool, micro_batches: Sequence[int] = (1,)) -> Outcome:
    """Steps of both kinds in turns, for each number of micro-batches; the largest of the medians of the ratios of neighbours."""
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
        sides = {(name, number): _side(job, corpus, batch_rows // number) for number in micro_batches for name, job in jobs.items()}
        for side in sides.values():
            side()
        seconds = interleaved(sides, repetitions)
    each = {number: ratios(seconds["rule", number], seconds["plain", number]) for number in micro_batches}
    found = {number: statistics.median(values) for number, values in each.items()}
    ratio = max(found.values())
    fields = {
        "model": {"preset": preset, "parameters_dtype": "fp32"},
        "batch": {"rows": batch_rows, "row_tokens": row_tokens, "domains": num_domains},
        "threads": torch.get_num_threads(),
        "plain_seconds": {number: statistics.median(seconds["plain", number]) for number in micro_batches},
        "rule_seconds": {number: statistics.median(seconds["rule", number]) for number in micro_batches},
        "ratio_by_micro_batches": found,
        "ratios": each,
    }
    return Outcome(ratio, bound, ratio <= bound, fields)


def _side(job: TrainJob, corpus: TokenCorpus, micro_batch_rows: int) -> Callable[[], float]:
    """Seconds of one step on the run's first batch, with a DeepSpeed engine."""
    import torch

    from analysis.benchmarks.first_step import first_step
    from chameleon_ray.models.hardware import Hardware
    from chameleon_ray.training.engine import build_engine
    from chameleon_ray.training.micro_batch import MicroBatch
    from chameleon_ray.training.signals import engine_micro_batch
    from chameleon_ray.training.steps import Worker
    from chameleon_ray.training.worker import make_model

    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"})
    hardware = Hardware(torch.device("cpu"), torch.float32, "fp32 on a CPU")
    worker = Worker(job, corpus, hardware, MicroBatch(micro_batch_rows))
    step = first_step(worker, build_engine(make_model(worker), job.training, hardware, engine_micro_batch(worker), 1))

    def seconds() -> float:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    return seconds
