"""How long things take: operations over a rate, and what it takes to start them.

A rate is stated, as a share of a GPU's peak, or that of a few real steps on this machine (`training/pace.py`), with as many processes at once as would be at
work. Starting things is reckoned in units of what importing torch and DeepSpeed takes here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chameleon_ray.config import Resources
from chameleon_ray.dry_backend import Item, Kind
from chameleon_ray.errors import UserError
from chameleon_ray.models.devices import Device
from chameleon_ray.training.pace import Shape

# What starting takes beside the work itself, in units of importing what a worker imports, as the phases of the quickstart show it.
STARTS: dict[Kind, float] = {"read": 3.0, "train": 7.0, "trial": 19.0, "swarm": 4.0, "forward": 3.5, "measure": 3.5, "report": 7.0}
SESSION_STARTS = 8.0
DEEPSPEED = 1.07  # a step by it over one by the plain engine
TEXT_BYTES_PER_SECOND = 2.5e6  # read, sorted, tokenized and written, by one CPU
TYPICAL_START_SECONDS = 3.0


@dataclass(frozen=True)
class Pace:
    """How fast things go.

    Attributes:
        how: in words.
        rates: operations per second of one worker, by shape and how many are at work at once.
        at_once: training runs side by side.
        workers: of one run.
        cpus: that read text.
        start_seconds: of importing what a worker imports.
    """

    how: str
    rates: Mapping[tuple[Shape, int], float]
    at_once: int
    workers: int
    cpus: int
    start_seconds: float

    @property
    def session_seconds(self) -> float:
        """Of starting and ending the command and Ray."""
        return SESSION_STARTS * self.start_seconds

    def side_by_side(self, items: Sequence[Item]) -> int:
        """How many of a group go on at once."""
        return min(self.at_once, len(items))

    def seconds(self, item: Item) -> float:
        """Of an item by itself; of a swarm, of all its proxies."""
        if item.is_done:
            return 0.0
        start = STARTS[item.kind] * self.start_seconds + item.text_bytes / (TEXT_BYTES_PER_SECOND * self.cpus)
        if item.shape is None:
            return start
        processes = processes_of(item, self.at_once, self.workers)
        of_one = self.rates[item.shape, processes]
        if item.kind in ("train", "trial"):
            return start + DEEPSPEED * item.flops / (of_one * self.workers)
        return start + item.flops / (of_one * (self.workers if item.kind == "measure" else processes))


def processes_of(item: Item, at_once: int, workers: int) -> int:
    """Processes at work while an item is."""
    if item.kind in ("train", "trial", "measure"):
        return min(at_once, item.beside) * workers
    return min(at_once * workers, item.count) if item.kind == "swarm" else at_once * workers


def stated_pace(items: Sequence[Item], resources: Resources, mfu: float, device: Device) -> Pace:
    """By a share of a device's peak in the number format of each item: one run at a time, on as many devices as it has workers."""
    workers = resources.num_workers
    shaped = [(item, item.shape) for item in items if item.shape is not None]
    rates = {(shape, processes_of(item, 1, workers)): mfu * device.peak_flops(shape.precision) for item, shape in shaped}
    how = f"{mfu:g} of the peak of {workers} {device.name}"
    return Pace(how, rates, 1, workers, resources.cpus_per_worker * workers, TYPICAL_START_SECONDS)


def measured_pace(items: Sequence[Item], resources: Resources) -> Pace:
    """By real steps on this machine.

    Raises:
        UserError: GPUs are asked for and there are none here, or fewer CPUs or GPUs than one run takes.
    Cost: some ten seconds, and two for every shape.
    """
    at_once, workers, cpus = check_room(resources), resources.num_workers, _cpus()
    missing = [item for item in items if not item.is_done and item.shape is not None]
    wanted: dict[int, list[Shape]] = {}
    for item in missing:
        shapes = wanted.setdefault(processes_of(item, at_once, workers), [])
        assert item.shape is not None
        if item.shape not in shapes:
            shapes.append(item.shape)
    rates: dict[tuple[Shape, int], float] = {}
    start = TYPICAL_START_SECONDS
    for processes, shapes in wanted.items():
        start, found = _measure(shapes, processes)
        rates |= {(shape, processes): rate for shape, rate in zip(shapes, found, strict=True)}
    return Pace("the rates of a few steps on this machine", rates, at_once, workers, cpus, start)


def check_room(resources: Resources) -> int:
    """Training runs that this machine holds side by side.

    Raises:
        UserError: not even one.
    """
    if resources.gpus_per_worker:
        import torch

        there, each, what = torch.cuda.device_count() if torch.cuda.is_available() else 0, resources.gpus_per_worker, "GPU"
    else:
        there, each, what = _cpus(), float(resources.cpus_per_worker), "CPU"
    found = int(there / (each * resources.num_workers))
    if not found:
        asked = each * resources.num_workers
        raise UserError(
            f"--dry-run: one run takes {asked:g} {what}{'s' if asked != 1 else ''} and this machine has {there}, so that no rate can be measured; "
            "state one with --mfu 0.4 --device H100"
        )
    return found


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure(shapes: Sequence[Shape], processes: int) -> tuple[float, list[float]]:
    """Seconds of importing, and operations per second of one process, by several at once."""
    command = [sys.executable, "-m", "chameleon_ray.training.pace"]
    asked = json.dumps([asdict(shape) for shape in shapes])
    running: list[subprocess.Popen[str]] = []
    try:
        for number in range(processes):
            place = {"OMP_NUM_THREADS": str(shapes[0].threads), **({"CUDA_VISIBLE_DEVICES": _gpu(number)} if shapes[0].use_gpu else {})}
            running.append(_started(command, place, asked))
        found = [_told(process) for process in running]
    finally:
        for process in running:
            process.kill()
    rates = [sum(each["flops_per_second"][i] for each in found) / processes for i in range(len(shapes))]
    return min(each["import_seconds"] for each in found), rates


def _gpu(number: int) -> str:
    """The GPU of one of several processes; they share where there are more of them."""
    import torch

    shown = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    known = shown or [str(each) for each in range(torch.cuda.device_count())]
    return known[number % len(known)]


def _started(command: Sequence[str], environment: Mapping[str, str], asked: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **environment})
    assert process.stdin is not None
    process.stdin.write(asked)
    process.stdin.close()
    return process


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    lines = process.stdout.read().strip().splitlines()
    if process.wait() or not lines:
        raise UserError("--dry-run: no rate could be measured here (chameleon doctor says what is wrong); state one with --mfu 0.4 --device H100")
    found: dict[str, Any] = json.loads(lines[-1])
    return found
