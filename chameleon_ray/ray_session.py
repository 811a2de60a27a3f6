"""Ray's start, what the cluster offers, and whether a request can ever be met."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from chameleon_ray.config import Resources
from chameleon_ray.errors import UserError

# What an actor could compute in the time that another one takes to start; to the power of ten.
CPU_FLOPS_OF_A_START, GPU_FLOPS_OF_A_START = 2e11, 1e14


def start_ray() -> bool:
    """Join the cluster of RAY_ADDRESS (set for submitted jobs), or start Ray on this machine: loopback only, no dashboard, quiet logs. Whether it had not
    been started before."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ side tells every driver with an actor pool that its actors' arguments are in the object store; failures come as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # As many workers may start at once as a few side-by-side training runs need; Ray warns of each beyond four times the CPUs otherwise.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(8, os.cpu_count() or 1)))
    # torch takes large blocks in huge pages then; on CPUs page faults were a tenth of a training step.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Without its dashboard nobody reads Ray's own metrics and history of tasks, which would grow by 20 MB in a few minutes.
    os.environ.setdefault("RAY_enable_metrics_collection", "false")
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    # Arrow's own allocators keep what they have freed: a worker that streams text would hold a quarter more than it needs.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\..*")
    remote = os.environ.get("RAY_ADDRESS", "local") not in ("", "local")
    if not remote:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away, and each run would start a process to look
    local: dict[str, Any] = {} if remote else {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    with _without_stderr():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
    quiet_data()
    return True


def idle_gpus(resources: Resources) -> str | None:
    """A sentence about GPUs that nothing asks for; None where there are none, or they are asked for."""
    there = ray.cluster_resources().get("GPU", 0)
    if not there or resources.gpus_per_worker:
        return None
    return f"{there:g} GPU{'s' if there != 1 else ''} here and resources.gpus_per_worker is 0, so that all is computed on CPUs; set resources.gpus_per_worker=1"


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's C++ side announces its log level on standard error while it starts; what goes wrong there comes as an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def quiet_data() -> None:
    """Turn off Ray Data's own bars and log lines: our phases report for it. Needed in every process that runs a data set."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def require(resources: Resources) -> None:
    """Make sure that one training run's workers can be placed.

    On an autoscaling cluster the workers are asked for and waited for, up to `resources.wait_seconds`.

    Raises:
        UserError: the cluster cannot satisfy the request; says what was asked and what exists.
    """
    deadline = time.monotonic() + resources.wait_seconds
    if fits(resources) >= 1:
        return
    if resources.wait_seconds:
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[_bundle(resources)] * resources.num_workers)
    while time.monotonic() < deadline:
        if fits(resources) >= 1:
            return
        time.sleep(2)
    total = ray.cluster_resources()
    waited = f" after {resources.wait_seconds:.0f} s" if resources.wait_seconds else ""
    raise UserError(
        f"resources: asked for {resources.num_workers} workers of {resources.cpus_per_worker} CPU and {resources.gpus_per_worker:g} GPU each; "
        f"the cluster has {total.get('CPU', 0):g} CPU and {total.get('GPU', 0):g} GPU on {_num_nodes()} nodes{waited}; "
        "lower resources.num_workers or what each takes, add nodes, or set resources.wait_seconds on a cluster that scales"
    )


def fits(resources: Resources) -> int:
    """How many groups of `num_workers` workers the cluster holds at once, node by node."""
    slots = 0
    for node in ray.nodes():
        if node["Alive"]:
            offered = node["Resources"]
            slots += min(int(offered.get(kind, 0) / amount) for kind, amount in _bundle(resources).items())
    return slots // resources.num_workers


def pool_size(resources: Resources) -> int:
    """Actors that hold a model for embedding or evaluation: as many as the cluster has room for."""
    require(resources)
    return max(1, fits(resources.model_copy(update={"num_workers": 1})))


def worth(flops: float, resources: Resources) -> int:
    """For how many actors some work is enough: each takes some ten seconds to start, on cores that the others could use."""
    each = GPU_FLOPS_OF_A_START if resources.gpus_per_worker else CPU_FLOPS_OF_A_START * resources.cpus_per_worker
    return 1 + int(min(flops / each, 1_000_000))


def cluster_cpus() -> int:
    """CPUs of the whole cluster."""
    return max(1, math.floor(ray.cluster_resources().get("CPU", 1)))


def _bundle(resources: Resources) -> dict[str, float]:
    gpus = {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    return {"CPU": float(resources.cpus_per_worker), **gpus}


def _num_nodes() -> int:
    return sum(1 for node in ray.nodes() if node["Alive"])
