"""Training tokens per second through Ray Train and DeepSpeed, over those of a plain PyTorch loop, after warm-up; what Ray takes beside is charged.

Both sides live in the one worker of a Ray Train run and take turns, a block of steps each, with the same threads: the production loop runs
from beginning to end as it is, mixture plan, reading, logging, progress and checkpoints as often as by default included, and whenever it has done a
block, the plain loop does one on batches that are ready. Number format fp32 on both sides: mixed precision would compare two ways of keeping master
weights. A block has one checkpoint: as many steps as there are by default between two.

Ray's other processes run beside both sides and slow both. `ray_cpus` says how many CPUs they were busy with while the production loop ran, and all of
that is charged to the production side: the ratio is of tokens per second and CPU.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any

from analysis.benchmarks import synthetic
from analysis.benchmarks.measure import Outcome, cpu_seconds, main, ratios, tree
from analysis.benchmarks.ray_local import in_train_worker
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import ModelConfig, TrainingConfig
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_progress import Pulse, shown
from chameleon_ray.ray_session import cluster_cpus, start_ray
from chameleon_ray.training.run import Run

BOUND = 0.90
BLOCK_STEPS = 50
BLOCKS = 5
NUM_DOMAINS = 5


def in_turns(config: dict[str, Any]) -> dict[str, Any]:
    """In the worker: seconds of every block of both sides but the first, which warms up."""
    import torch

    from analysis.benchmarks.plain_loop import PlainLoop
    from chameleon_ray.corpus.rows import RowReader
    from chameleon_ray.models.hardware import Hardware
    from chameleon_ray.training.micro_batch import choose_micro_batch
    from chameleon_ray.training.plan import MixturePlan
    from chameleon_ray.training.ray_train import RayCheckpoints
    from chameleon_ray.training.worker import train_run

    run, threads, block_steps = config["run"], config["threads"], config["block_steps"]
    job, corpus = run.job, run.corpus
    torch.set_num_threads(threads)
    hardware = Hardware(torch.device("cpu"), torch.float32, "fp32 on a CPU")
    micro = choose_micro_batch(job, corpus, hardware, 1).rows
    plain = PlainLoop(job.training, corpus, job.seed, micro)
    plan = MixturePlan(job.weights, corpus.rows(), job.seed)
    planned, _ = plan.take(plan.start(), block_steps * job.training.batch_rows)
    rows = RowReader(corpus).read_mixed(plan.names, planned.domain, planned.row)
    ready = torch.from_numpy(rows.tokens.astype("int64")).split(job.training.batch_rows)
    pulse = Pulse(config["board"], "benchmark", job.training.steps)
    others = [pid for pid in tree(config["driver"]) if pid != os.getpid()]
    production_seconds, plain_seconds, ray_cpus = [], [], []
    began, cpu_before = time.perf_counter(), cpu_seconds(others)

    def on_step(step: int, loss: float) -> None:
        nonlocal began, cpu_before
        pulse(step, f"loss {loss:.3f}")
        if step % block_steps:
            return
        production_seconds.append(time.perf_counter() - began)
        ray_cpus.append((cpu_seconds(others) - cpu_before) / production_seconds[-1])
        began = time.perf_counter()
        plain.run(ready)
        plain_seconds.append(time.perf_counter() - began)
        began, cpu_before = time.perf_counter(), cpu_seconds(others)

    train_run(run, hardware, RayCheckpoints(config["checkpoints"]), on_step)
    return {"production": production_seconds[1:], "plain": plain_seconds[1:], "ray_cpus": ray_cpus[1:], "micro_batch_rows": micro}


def run(quick: bool) -> Outcome:
    """One Ray Train run; blocks in turns."""
    start_ray()
    threads = cluster_cpus()
    preset, batch_rows, row_tokens = ("cpu-tiny", 4, 64) if quick else ("cpu-small", 8, 256)
    blocks, block_steps = (2, 2) if quick else (BLOCKS, BLOCK_STEPS)
    steps = blocks * block_steps
    training = TrainingConfig(model=ModelConfig(preset=preset), steps=steps, batch_rows=batch_rows)
    with tempfile.TemporaryDirectory() as folder, Reporter.silent().phase("") as phase, shown(phase) as board:
        corpus = synthetic.make_corpus(f"{folder}/corpus", NUM_DOMAINS, max(batch_rows, steps * batch_rows // NUM_DOMAINS), row_tokens)
        job = TrainJob("proxy", training, dict.fromkeys(corpus.names, 1 / NUM_DOMAINS), seed=0)
        run = Run(job, corpus, "benchmark", f"{folder}/model")
        config = {"run": run, "threads": threads, "block_steps": block_steps, "board": board, "driver": os.getpid(), "checkpoints": f"{folder}/runs"}
        found = in_train_worker(in_turns, config, threads, f"{folder}/runs")
    each = ratios(found["plain"], found["production"])
    uncharged, ray_cpus = statistics.median(each), statistics.median(found["ray_cpus"])
    ratio = uncharged * (1 - ray_cpus / threads)
    tokens = block_steps * batch_rows * row_tokens
    fields = {
        "model": {"preset": preset, "parameters_dtype": "fp32"},
        "batch": {"rows": batch_rows, "row_tokens": row_tokens, "micro_batch_rows": found["micro_batch_rows"]},
        "threads": threads,
        "production_tokens_per_second": tokens / statistics.median(found["production"]),
        "plain_tokens_per_second": tokens / statistics.median(found["plain"]),
        "ray_cpus": ray_cpus,
        "ratio_uncharged": uncharged,
        "ratios": each,
    }
    return Outcome(ratio, BOUND, ratio >= BOUND, fields)


if __name__ == "__main__":
    main("train_vs_plain", run)
