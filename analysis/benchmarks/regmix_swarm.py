"""Proxies per minute of a RegMix swarm on Ray, over the faster of two ways without it: one process at a time with every thread, and a pool of processes
with one thread each that may use every core.

All sides run the same training function on the same proxies and the same machine, in turns; every process is warm.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from analysis.benchmarks import synthetic
from analysis.benchmarks.measure import Outcome, interleaved, main, rate, ratios
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import ModelConfig, Resources, TrainingConfig
from chameleon_ray.mixing.swarm import draw_mixtures
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_session import cluster_cpus, start_ray
from chameleon_ray.training.ray_swarm import train_swarm
from chameleon_ray.training.run import Run

BOUND = 0.9
NUM_DOMAINS = 5
REPETITIONS = 4
VALID_TOKENS = 1 << 17


def run(quick: bool) -> Outcome:
    """A small swarm trained in three ways, in turns; the median over rounds of the ratio to the faster other."""
    start_ray()
    threads = cluster_cpus()
    preset, steps, swarm_size = ("cpu-tiny", 2, threads) if quick else ("cpu-tiny", 40, 4 * threads)
    batch_rows, row_tokens = 8, 128
    training = TrainingConfig(model=ModelConfig(preset=preset), steps=steps, batch_rows=batch_rows, precision="fp32")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(threads, spawn) as pool:
        corpus = synthetic.make_corpus(f"{folder}/corpus", NUM_DOMAINS, 64, row_tokens)
        weights = draw_mixtures(dict.fromkeys(corpus.names, 1 / NUM_DOMAINS), swarm_size, seed=0)
        jobs = [TrainJob("swarm", training, dict(zip(corpus.names, row.tolist(), strict=True)), 0) for row in weights]
        alone = jobs[: max(1, len(jobs) // 4)]
        counter = iter(range(1_000_000))

        def swarm() -> float:
            runs = [Run(job, corpus, "benchmark", f"{folder}/proxy-{next(counter)}") for job in jobs]
            return 60 * rate(lambda: train_swarm(runs, corpus, "valid", VALID_TOKENS, Resources(), Reporter.silent()), len(jobs))

        def in_pool() -> float:
            return 60 * rate(lambda: list(pool.map(partial(_train, corpus=corpus, threads=1), jobs)), len(jobs))

        def one_by_one() -> float:
            return 60 * rate(lambda: list(map(partial(_train, corpus=corpus, threads=threads), alone)), len(alone))

        sides = {"swarm": swarm, "pool": in_pool, "alone": one_by_one}
        for side in sides.values():
            side()
        found = interleaved(sides, 1 if quick else REPETITIONS)
    each = ratios(found["swarm"], [max(others) for others in zip(found["pool"], found["alone"], strict=True)])
    ratio = statistics.median(each)
    fields = {
        "model": {"preset": preset, "parameters_dtype": "fp32"},
        "batch": {"rows": batch_rows, "row_tokens": row_tokens, "steps": steps},
        "threads": os.cpu_count(),
        **{f"{name}_proxies_per_minute": statistics.median(values) for name, values in found.items()},
        "ratios": each,
    }
    return Outcome(ratio, BOUND, ratio >= BOUND, fields)


def _train(job: TrainJob, corpus: TokenCorpus, threads: int) -> None:
    import torch

    from chameleon_ray.models.hardware import Hardware
    from chameleon_ray.training.worker import train_proxy

    torch.set_num_threads(threads)
    train_proxy(job, corpus, "valid", VALID_TOKENS, "digest", Hardware(torch.device("cpu"), torch.float32, "fp32 on a CPU"))


if __name__ == "__main__":
    main("regmix_swarm", run)
