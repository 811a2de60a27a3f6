"""A swarm of proxies on Ray: one task per proxy, one CPU or a part of a GPU each. A finished one is never run again; a lost one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray

from chameleon_ray.artifacts import Cost, TokenCorpus, is_complete, read_record, write_record
from chameleon_ray.backend import ProxyLosses, TrainJob
from chameleon_ray.config import Resources
from chameleon_ray.errors import as_outcome, from_outcome
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_session import require


@dataclass(frozen=True)
class Proxy:
    """A job with the place of its result."""

    job: TrainJob
    digest: str
    address: str


def train_swarm(proxies: Sequence[Proxy], corpus: TokenCorpus, split: str, resources: Resources, reporter: Reporter) -> None:
    """Train and measure every proxy that is not finished, as many at a time as there are CPUs, or `resources.proxies_per_gpu` to a GPU.

    Raises:
        UserError: the first mistake of a proxy; the others are cancelled.
    """
    from chameleon_ray.training.loop import check_job

    for proxy in proxies:
        check_job(proxy.job, corpus, 1)
    require(resources.model_copy(update={"num_workers": 1}))
    gpus = resources.gpus_per_worker and 1 / resources.proxies_per_gpu
    shared = ray.put(corpus)
    with reporter.stage(f"training {len(proxies)} proxies of a swarm") as stage:
        task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3, max_calls=1 if gpus else 0)(_train)  # a process that ends frees its GPU
        waiting = [task.remote(proxy, shared, split, bool(gpus)) for proxy in proxies]
        done = 0
        while waiting:
            finished, waiting = ray.wait(waiting, num_returns=1)
            for result in finished:
                _get(result, waiting)
                done += 1
            stage.update("proxies", done, len(proxies))


def load_losses(address: str) -> ProxyLosses:
    """Read a finished proxy's losses."""
    content = read_record(address)["content"]
    return ProxyLosses(content["losses"], Cost(**content["cost"]))


def _get(result: Any, others: Sequence[Any]) -> None:
    try:
        from_outcome(ray.get(result))
    except Exception:
        for other in others:
            ray.cancel(other)
        ray.wait(list(others), num_returns=len(others), timeout=60)
        raise


def _train(proxy: Proxy, corpus: TokenCorpus, split: str, use_gpu: bool) -> str:
    return as_outcome(_finish, proxy, corpus, split, use_gpu)


def _finish(proxy: Proxy, corpus: TokenCorpus, split: str, use_gpu: bool) -> dict[str, Any]:
    import torch

    from chameleon_ray.models.hardware import detect
    from chameleon_ray.training.swarm import train_proxy

    torch.set_num_threads(1)
    if not is_complete(proxy.address):
        found = train_proxy(proxy.job, corpus, split, detect(use_gpu))
        content = {"weights": dict(proxy.job.weights), "split": split, "losses": dict(found.losses), "cost": asdict(found.cost), "corpus": corpus.digest}
        write_record(proxy.address, "proxy", proxy.digest, content)
    return {}
