"""Rows per second of the mixture stream alone (plan and reading), over the rows per second that training consumes.

Training is the plain PyTorch loop on the smallest model that is used for results, with every thread: the fastest consumer there is on a CPU.

Every rank plans the whole global batch and reads its own part of it. The same ratio is therefore taken for 64 ranks, each as fast as the
one measured: rows planned per second over the rows per second that all of them train on, for few domains and for many. Planning for
many domains may take twice as long as for few, and not more.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from analysis.benchmarks import synthetic
from analysis.benchmarks.measure import Outcome, interleaved, main, rate, ratios
from analysis.benchmarks.plain_loop import PlainLoop
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import ModelConfig, TrainingConfig
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.training.plan import MixturePlan

BOUND = 10.0
NUM_RANKS = 64
MANY_RANKS_BOUND = 10.0
NUM_DOMAINS = (7, 17, 1_000, 10_000)
MANY_DOMAINS_BOUND = 0.5
DOMAIN_ROWS = 4_000
REPETITIONS = 5
BATCH_ROWS = 128
STREAM_BATCHES = 50
TRAINING_ROWS = 16
WEIGHTS = (0.09, 0.17, 0.25, 0.20, 0.08, 0.15, 0.06)


class Stream:
    """The rows of a run in the order of its plan, batch by batch."""

    def __init__(self, corpus: TokenCorpus) -> None:
        self._plan = MixturePlan(dict(zip(corpus.names, WEIGHTS, strict=True)), corpus.rows(), seed=0)
        self._state = self._plan.start()
        self._reader = RowReader(corpus)

    def read(self, num_batches: int, batch_rows: int) -> torch.Tensor:
        """Go on by some batches; returns the tokens of the last, [rows, row_tokens] int64."""
        for _ in range(num_batches):
            planned, self._state = self._plan.take(self._state, batch_rows)
            rows = self._reader.read_mixed(self._plan.names, planned.domain, planned.row)
        return torch.from_numpy(rows.tokens.astype("int64"))


class Planner:
    """The plan alone, of unequal weights."""

    def __init__(self, num_domains: int) -> None:
        weights = np.random.default_rng(0).dirichlet(np.ones(num_domains)).tolist()
        names = [f"domain-{i}" for i in range(num_domains)]
        self._plan = MixturePlan(dict(zip(names, weights, strict=True)), dict.fromkeys(names, DOMAIN_ROWS), seed=0)
        _, self._state = self._plan.take(self._plan.start(), BATCH_ROWS)

    def take(self, num_batches: int) -> None:
        """Go on by some batches."""
        for _ in range(num_batches):
            _, self._state = self._plan.take(self._state, BATCH_ROWS)


def run(quick: bool) -> Outcome:
    """Stream, training and plans in turns, in one process."""
    preset, row_tokens, rows_per_domain = ("cpu-tiny", 64, 100) if quick else ("cpu-small", 512, 1000)
    repetitions, num_batches = (2, 2) if quick else (REPETITIONS, STREAM_BATCHES)
    training = TrainingConfig(model=ModelConfig(preset=preset), steps=100, batch_rows=TRAINING_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic.make_corpus(folder, len(WEIGHTS), rows_per_domain, row_tokens)
        stream, plain = Stream(corpus), PlainLoop(training, corpus, 0, TRAINING_ROWS)
        batch = stream.read(1, TRAINING_ROWS)
        plain.run([batch])
        sides: dict[str, Callable[[], float]] = {
            "stream": lambda: rate(lambda: stream.read(num_batches, BATCH_ROWS), num_batches * BATCH_ROWS),
            "training": lambda: rate(lambda: plain.run([batch, batch]), 2 * TRAINING_ROWS),
            **{str(k): partial(_planned, Planner(k), num_batches) for k in NUM_DOMAINS},
        }
        found = interleaved(sides, repetitions)
    each = ratios(found["stream"], found["training"])
    ratio = statistics.median(each)
    planned = {str(k): statistics.median(found[str(k)]) for k in NUM_DOMAINS}
    few, many = str(NUM_DOMAINS[0]), str(NUM_DOMAINS[-1])
    many_ranks = {k: statistics.median(ratios(found[k], found["training"])) / NUM_RANKS for k in (few, many)}
    many_domains = statistics.median(ratios(found[many], found[few]))
    met = ratio >= BOUND and min(many_ranks.values()) >= MANY_RANKS_BOUND and many_domains >= MANY_DOMAINS_BOUND
    fields = {
        "model": {"preset": preset},
        "batch": {"stream_rows": BATCH_ROWS, "training_rows": TRAINING_ROWS, "row_tokens": row_tokens, "domains": len(WEIGHTS)},
        "threads": torch.get_num_threads(),
        "stream_rows_per_second": statistics.median(found["stream"]),
        "training_rows_per_second": statistics.median(found["training"]),
        "ratios": each,
        "planned_rows_per_second": planned,
        "many_ranks": {"ranks": NUM_RANKS, "ratio_by_domains": many_ranks, "bound": MANY_RANKS_BOUND},
        "many_domains": {"ratio": many_domains, "bound": MANY_DOMAINS_BOUND},
    }
    return Outcome(ratio, BOUND, met, fields)


def _planned(planner: Planner, num_batches: int) -> float:
    return rate(lambda: planner.take(num_batches), num_batches * BATCH_ROWS)


if __name__ == "__main__":
    main("plan_vs_training", run)
