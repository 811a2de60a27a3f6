"""How much of what matrix products alone reach, the training loop reaches with a small model: operations per second of both, in the CPU's number format.

The model is of the size that comparisons on a laptop are made with (4 layers of 128, vocabulary 4,096, rows of 256): its matrix products are small, and
what is computed on single logits weighs heavily. `usual` is a plain loop whose loss is taken from logits in fp32.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace

import torch
import torch.distributed as dist

from analysis.benchmarks import synthetic
from analysis.benchmarks.measure import Outcome, interleaved, main, rate, ratios
from analysis.benchmarks.plain_loop import PlainLoop
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import ModelConfig, TrainingConfig
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.models.hardware import detect
from chameleon_ray.training import loop
from chameleon_ray.training.plan import MixturePlan
from chameleon_ray.training.worker import make_plain_engine, place

BOUND = 0.37
NUM_DOMAINS = 5
STEPS = 4
WARM_STEPS = 1
REPETITIONS = 9
SQUARE = 2048


def run(quick: bool) -> Outcome:
    """Production loop, plain loop and matrix products in turns, in one process with every thread."""
    batch_rows, row_tokens, square = (4, 32, 128) if quick else (32, 256, SQUARE)
    hardware = detect(use_gpu=False)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    training = TrainingConfig(model=ModelConfig(layers=4, heads=4, width=128), steps=WARM_STEPS + STEPS, batch_rows=batch_rows, warmup_steps=0)
    with tempfile.TemporaryDirectory() as folder:
        made = synthetic.make_corpus(f"{folder}/corpus", NUM_DOMAINS, batch_rows, row_tokens)
        corpus = replace(made, vocab_size=4096)
        worker = place(TrainJob("proxy", training, dict.fromkeys(corpus.names, 1 / NUM_DOMAINS), 0), corpus, hardware)
        flops = worker.architecture.training_flops(STEPS * batch_rows * row_tokens, row_tokens)
        plain = PlainLoop(training, corpus, 0, worker.micro_batch.rows, hardware.dtype, usual_loss=True)
        plan = MixturePlan(worker.job.weights, corpus.rows(), 0)
        planned, _ = plan.take(plan.start(), batch_rows)
        batch = torch.from_numpy(RowReader(corpus).read_mixed(plan.names, planned.domain, planned.row).tokens.astype("int64"))
        matrix = torch.randn(square, square).to(hardware.dtype)

        def production() -> float:
            engine = make_plain_engine(worker)
            began = 0.0

            def on_step(step: int, _: float) -> None:
                nonlocal began
                if step == WARM_STEPS:
                    began = time.perf_counter()

            loop.train(engine, worker, loop.Progress(), lambda _: None, on_step)
            return flops / (time.perf_counter() - began)

        sides = {
            "production": production,
            "usual": lambda: rate(lambda: plain.run([batch] * STEPS), flops),
            "products": lambda: rate(lambda: [matrix @ matrix for _ in range(10)], 20.0 * square**3),
        }
        for side in sides.values():
            side()
        found = interleaved(sides, 1 if quick else REPETITIONS)
    threads = torch.get_num_threads()
    each = ratios(found["production"], found["products"])
    ratio = statistics.median(each)
    fields = {
        "model": {"layers": 4, "width": 128, "vocab_size": 4096, "number_format": hardware.precision},
        "batch": {"rows": batch_rows, "row_tokens": row_tokens, "micro_batch_rows": worker.micro_batch.rows},
        "threads": threads,
        **{f"{name}_gflops_per_thread": statistics.median(values) / threads / 1e9 for name, values in found.items()},
        "over_usual": statistics.median(ratios(found["production"], found["usual"])),
        "ratios": each,
    }
    return Outcome(ratio, BOUND, ratio >= BOUND, fields)


if __name__ == "__main__":
    main("small_model", run)
