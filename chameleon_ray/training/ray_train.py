"""Training runs on Ray Train V2: a group of DeepSpeed workers per run, restarted from the last checkpoint when one dies."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from chameleon_ray import storage
from chameleon_ray.config import Resources
from chameleon_ray.errors import UserError
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_progress import Line, Pulse, shown
from chameleon_ray.ray_session import fits, require
from chameleon_ray.training.run import Run

# Whenever memory runs out the workers start again with half as many rows at a time.
OUT_OF_MEMORY_RESTARTS = 6


def train_runs(runs: Sequence[Run], checkpoints: str, resources: Resources, reporter: Reporter, title: str) -> None:
    """Train every run, as many at a time as the cluster holds worker groups.

    Args:
        checkpoints: address of the folder for what is unfinished.
    Raises:
        UserError: a request that cannot be met, a job that cannot be trained, or a loss that is not finite. The other runs are finished first.
    """
    from chameleon_ray.training.loop import check_job

    failed: list[Exception] = []
    possible = []
    for run in runs:
        try:
            check_job(run.job, run.corpus, resources.num_workers)
            possible.append(run)
        except UserError as error:
            failed.append(error)
    if possible:
        require(resources)
        with reporter.phase(title) as phase, shown(phase) as line:
            failed += _in_turns(possible, checkpoints, resources, line, fits(resources))
    if failed:
        raise failed[0]


def _in_turns(runs: Sequence[Run], checkpoints: str, resources: Resources, line: Line, at_once: int) -> list[Exception]:
    """Every run in a process of its own; the only one of a trial in the trial's."""
    if len(runs) == 1 and ray.get_runtime_context().get_actor_id():
        return _outcome(runs[0], checkpoints, lambda: _fit(runs[0], checkpoints, resources, line))
    failed: dict[int, list[Exception]] = {}
    waiting = list(enumerate(runs))
    busy: dict[Any, int] = {}
    while waiting or busy:
        while waiting and len(busy) < at_once:
            index, run = waiting.pop(0)
            busy[_fit_apart.remote(run, checkpoints, resources, line)] = index
        (done,), _ = ray.wait(list(busy), num_returns=1)
        index = busy.pop(done)
        failed[index] = _outcome(runs[index], checkpoints, partial(ray.get, done))
    return [error for index in sorted(failed) for error in failed[index]]


def _outcome(run: Run, checkpoints: str, fitted: Callable[[], Any]) -> list[Exception]:
    """What went wrong with a run, if anything; what is unfinished of it goes when nothing did."""
    try:
        if found := fitted():
            return [UserError(found["user_error"])]
        storage.remove(storage.join(checkpoints, run.name))
    except ray.exceptions.RayTaskError as error:
        return [error.as_instanceof_cause()]
    except Exception as error:  # a process that was killed, a node that is gone, a disk that is full: the other runs go on
        return [error]
    return []


def _fit(run: Run, checkpoints: str, resources: Resources, line: Line) -> dict[str, Any]:
    """One Ray Train run."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    poll_often()
    gpus = {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    body: Any = _body
    trainer = TorchTrainer(
        body,
        train_loop_config={"run": run, "checkpoints": storage.join(checkpoints, run.name), "resources": resources, "line": line},
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker={"CPU": resources.cpus_per_worker, **gpus},
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=checkpoints,
            failure_config=FailureConfig(max_failures=resources.max_failures + OUT_OF_MEMORY_RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    result: Any = trainer.fit()
    outcome: dict[str, Any] = result.return_value
    return outcome


_fit_apart = ray.remote(num_cpus=0, max_retries=0)(_fit)


def poll_often() -> None:
    """Let Ray Train ask its workers four times a second, not every other, how they are: only then it notes a checkpoint down, and the next one waits for it.

    To be called in the process that starts a run, before it does.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")


def _body(config: dict[str, Any]) -> dict[str, Any]:
    """The body of one worker. What the user can mend is returned, not raised: trying again would not help."""
    import torch
    import torch.distributed as dist

    from chameleon_ray.models.hardware import detect
    from chameleon_ray.training.worker import train_run

    run, resources = config["run"], config["resources"]
    torch.set_num_threads(resources.cpus_per_worker)
    hardware = detect(bool(resources.gpus_per_worker), run.job.training.precision)
    pulse = Pulse(config["line"] if dist.get_rank() == 0 else None, run.label, run.job.training.steps)

    def on_step(step: int, loss: float) -> None:
        pulse(step, hardware.precision if math.isnan(loss) else f"loss {loss:.3f}, {hardware.precision}")

    try:
        train_run(run, hardware, RayCheckpoints(config["checkpoints"]), on_step)
    except UserError as error:
        return {"user_error": str(error)}
    return {}


class RayCheckpoints:
    """Checkpoints as Ray Train keeps them."""

    def __init__(self, address: str) -> None:
        self.address = address

    @contextmanager
    def latest(self) -> Iterator[str | None]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield folder

    def keep(self, folder: str, step: int) -> None:
        written = any(path.is_file() for path in Path(folder).rglob("*"))
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder) if written else None)
