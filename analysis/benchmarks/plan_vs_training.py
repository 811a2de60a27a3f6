"""Rows per second of the mixture stream alone (plan and reading), over the rows per second that training consumes.

Training is the plain PyTorch loop on the smallest model that is used for results, with every thread: the fastest consumer there is on a CPU.
"""

from __future__ import annotations

import statistics
import tempfile

import torch

from analysis.benchmarks import synthetic
from analysis.benchmarks.measure import Outcome, interleaved, main, rate, ratios
from analysis.benchmarks.plain_loop import PlainLoop
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import ModelConfig, TrainingConfig
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.training.plan import MixturePlan

BOUND = 10.0
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


def run(quick: bool) -> Outcome:
    """Stream and training in turns, in one process."""
    preset, row_tokens, rows_per_domain = ("cpu-tiny", 64, 100) if quick else ("cpu-small", 512, 1000)
    repetitions, num_batches = (2, 2) if quick else (REPETITIONS, STREAM_BATCHES)
    training = TrainingConfig(model=ModelConfig(preset=preset), steps=100, batch_rows=TRAINING_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic.make_corpus(folder, len(WEIGHTS), rows_per_domain, row_tokens)
        stream, plain = Stream(corpus), PlainLoop(training, corpus, 0, TRAINING_ROWS)
        batch = stream.read(1, TRAINING_ROWS)
        plain.run([batch])
        sides = {
            "stream": lambda: rate(lambda: stream.read(num_batches, BATCH_ROWS), num_batches * BATCH_ROWS),
            "training": lambda: rate(lambda: plain.run([batch, batch]), 2 * TRAINING_ROWS),
        }
        found = interleaved(sides, repetitions)
    each = ratios(found["stream"], found["training"])
    ratio = statistics.median(each)
    fields = {
        "model": {"preset": preset},
        "batch": {"stream_rows": BATCH_ROWS, "training_rows": TRAINING_ROWS, "row_tokens": row_tokens, "domains": len(WEIGHTS)},
        "threads": torch.get_num_threads(),
        "stream_rows_per_second": statistics.median(found["stream"]),
        "training_rows_per_second": statistics.median(found["training"]),
        "ratios": each,
    }
    return Outcome(ratio, BOUND, ratio >= BOUND, fields)


if __name__ == "__main__":
    main("plan_vs_training", run)
