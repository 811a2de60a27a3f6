"""Proxies per minute of a RegMix swarm on Ray, over training them one at a time in one process that may use all cores.

Both sides run the same training function on the same machine, in turns; Ray's worker processes are warm.
"""

from __future__ import annotations

import os
import statistics
import tempfile

from analysis.benchmarks import synthetic
from analysis.benchmarks.measure import Outcome, interleaved, main, rate, ratios
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import ModelConfig, Resources, TrainingConfig
from chameleon_ray.mixing.swarm import draw_mixtures
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_session import cluster_cpus, start_ray
from chameleon_ray.training.ray_swarm import Proxy, train_swarm

BOUND = 1.3
NUM_DOMAINS = 5
REPETITIONS = 3
VALID_TOKENS = 1 << 17


def run(quick: bool) -> Outcome:
    """A small swarm and a few single proxies in turns; the median of the ratios of neighbours."""
    start_ray()
    threads = cluster_cpus()
    preset, steps, swarm_size = ("cpu-tiny", 2, threads) if quick else ("cpu-tiny", 40, 4 * threads)
    batch_rows, row_tokens = 8, 128
    training = TrainingConfig(model=ModelConfig(preset=preset), steps=steps, batch_rows=batch_rows)
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic.make_corpus(f"{folder}/corpus", NUM_DOMAINS, 64, row_tokens)
        weights = draw_mixtures(dict.fromkeys(corpus.names, 1 / NUM_DOMAINS), swarm_size, seed=0)
        jobs = [TrainJob("swarm", training, dict(zip(corpus.names, row.tolist(), strict=True)), 0) for row in weights]
        alone = jobs[: max(1, len(jobs) // 2)]
        counter = iter(range(1_000_000))

        def swarm() -> float:
            proxies = [Proxy(job, "benchmark", f"{folder}/proxy-{next(counter)}") for job in jobs]
            return 60 * rate(lambda: train_swarm(proxies, corpus, "valid", VALID_TOKENS, Resources(), Reporter.silent()), len(jobs))

        def one_by_one() -> float:
            return 60 * rate(lambda: _train_alone(alone, corpus, threads), len(alone))

        sides = {"swarm": swarm, "alone": one_by_one}
        for side in sides.values():
            side()
        found = interleaved(sides, 1 if quick else REPETITIONS)
    each = ratios(found["swarm"], found["alone"])
    ratio = statistics.median(each)
    fields = {
        "model": {"preset": preset, "parameters_dtype": "fp32"},
        "batch": {"rows": batch_rows, "row_tokens": row_tokens, "steps": steps},
        "threads": os.cpu_count(),
        "swarm_proxies_per_minute": statistics.median(found["swarm"]),
        "alone_proxies_per_minute": statistics.median(found["alone"]),
        "ratios": each,
    }
    return Outcome(ratio, BOUND, ratio >= BOUND, fields)


def _train_alone(jobs: list[TrainJob], corpus: TokenCorpus, threads: int) -> None:
    import torch

    from chameleon_ray.models.hardware import Hardware
    from chameleon_ray.training.worker import train_proxy

    torch.set_num_threads(threads)
    for job in jobs:
        train_proxy(job, corpus, "valid", VALID_TOKENS, "digest", Hardware(torch.device("cpu"), torch.float32, "fp32 on a CPU"))


if __name__ == "__main__":
    main("regmix_swarm", run)
