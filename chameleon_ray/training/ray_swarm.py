"""A swarm of proxies on Ray: one task per proxy, one CPU or a part of a GPU each. A finished one is never run again; a lost one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray

from chameleon_ray.artifacts import Cost, TokenCorpus
from chameleon_ray.backend import ProxyLosses
from chameleon_ray.config import Resources
from chameleon_ray.errors import UserError, as_outcome, from_outcome
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_session import require
from chameleon_ray.records import once, read_record
from chameleon_ray.training.run import Run


def train_swarm(runs: Sequence[Run], corpus: TokenCorpus, split: str, tokens_per_domain: int, resources: Resources, reporter: Reporter) -> None:
    """Train and measure every proxy that is not finished, as many at a time as there are CPUs, or `resources.proxies_per_gpu` to a GPU.

    Raises:
        UserError: the first mistake of a proxy; the others are cancelled.
    """
    from chameleon_ray.training.loop import check_job

    for run in runs:
        check_job(run.job, corpus, 1)
    require(resources.model_copy(update={"num_workers": 1}))
    gpus = resources.gpus_per_worker and 1 / resources.proxies_per_gpu
    with reporter.phase(f"training {len(runs)} proxies of a swarm") as phase:
        task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3, max_calls=1 if gpus else 0)(_train)  # a process that ends frees its GPU
        shared = ray.put(list(runs))  # their corpus is sent once
        waiting = [task.remote(shared, place, split, tokens_per_domain, bool(gpus)) for place in range(len(runs))]
        done = 0
        while waiting:
            finished, waiting = ray.wait(waiting, num_returns=1)
            for result in finished:
                _get(result, waiting)
                done += 1
            phase.update("proxies", done, len(runs))


def read_losses(address: str) -> ProxyLosses:
    """Read a finished proxy's losses."""
    record = read_record(address)
    return ProxyLosses(record["digest"], record["content"]["losses"], Cost(**record["content"]["cost"]))


def _get(result: Any, others: Sequence[Any]) -> None:
    try:
        from_outcome(ray.get(result))
    except Exception:
        for other in others:
            ray.cancel(other)
        ray.wait(list(others), num_returns=len(others), timeout=60)
        raise


def _train(runs: Sequence[Run], place: int, split: str, tokens_per_domain: int, use_gpu: bool) -> str:
    return as_outcome(_measure, runs[place], split, tokens_per_domain, use_gpu)


def _measure(run: Run, split: str, tokens_per_domain: int, use_gpu: bool) -> dict[str, Any]:
    import torch

    from chameleon_ray.models.hardware import detect
    from chameleon_ray.training.worker import train_proxy

    torch.set_num_threads(1)

    def make() -> dict[str, Any]:
        found = train_proxy(run.job, run.corpus, split, tokens_per_domain, run.digest, detect(use_gpu, run.job.training.precision))
        if odd := run.job.divergence(found.losses):
            raise UserError(odd)
        return {"weights": dict(run.job.weights), "split": split, "losses": dict(found.losses), "cost": asdict(found.cost), "corpus": run.corpus.digest}

    once(run.address, "proxy", run.digest, make)
    return {}
