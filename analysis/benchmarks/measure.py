"""What every benchmark needs: both sides in turns, medians, the memory of a tree of processes, and one line of JSON."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found: `met` says whether `ratio` is on the right side of `bound`; `fields` name model, batch, threads and both sides."""

    ratio: float
    bound: float
    met: bool
    fields: Mapping[str, Any] = field(default_factory=dict)


def main(name: str, run: Callable[[bool], Outcome]) -> None:
    """Run one benchmark and print its line; exit with status 1 when it falls short of its bound.

    Everything else that anything prints meanwhile, C libraries and child processes included, goes to stderr.
    """
    parser = argparse.ArgumentParser(prog=f"python -m analysis.benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; the numbers mean nothing and no bound holds")
    quick = parser.parse_args().quick
    stdout = os.dup(1)
    os.dup2(2, 1)
    started = time.monotonic()
    outcome = run(quick)
    verdict = {"ratio": outcome.ratio, "bound": outcome.bound, "met": None if quick else outcome.met}
    line = {"benchmark": name, **verdict, "quick": quick, **outcome.fields, "took_seconds": time.monotonic() - started}
    os.write(stdout, f"{json.dumps(_short(line))}\n".encode())
    sys.exit(0 if quick or outcome.met else 1)


def interleaved(sides: Mapping[Name, Callable[[], float]], repetitions: int) -> dict[Name, list[float]]:
    """Measure every side in turns, A B A B …, so that what changes on the machine meanwhile meets all of them."""
    found: dict[Name, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            found[name].append(side())
    return found


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """One ratio per pair of neighbours in time; their median is what counts."""
    return [numerator / denominator for numerator, denominator in zip(numerators, denominators, strict=True)]


def rate(work: Callable[[], Any], amount: float) -> float:
    """`amount` per second of calling `work` once."""
    started = time.perf_counter()
    work()
    return amount / (time.perf_counter() - started)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a new process, which shares nothing with this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def status_bytes(key: str) -> int:
    """A field of /proc/self/status: VmRSS is what this process holds, VmHWM the most it ever held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    process = psutil.Process(root)
    return [root, *(child.pid for child in process.children(recursive=True))]


def tree_bytes(root: int) -> int:
    """Physical memory of a tree of processes, nothing counted twice (Linux).

    Proportional set sizes share a page among the processes that map it, so that their sum counts it once. Pages of shared-memory files are
    left out of that sum (`Pss_Shmem`) and counted by what the files occupy: the object store is such a file, and holds objects that
    no living process maps.
    """
    private, files = 0, {}
    for pid in tree(root):
        try:
            sizes = _rollup(pid)
            files.update(_shared_files(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended since it was listed, and holds nothing any more.
        private += sizes["Pss"] - sizes["Pss_Shmem"]
    return private + sum(files.values())


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time that some processes have used; those that have ended count nothing."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


class PeakMemory:
    """While the block runs, a thread takes `tree_bytes` of this process and its descendants; `bytes` is the most that was seen."""

    def __init__(self, interval_seconds: float = 0.5) -> None:
        self.bytes = self.samples = 0
        self._interval = interval_seconds
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, tree_bytes(os.getpid()))
            self.samples += 1
            if self._finished.wait(self._interval):
                return


def _rollup(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(value.split()[0]) << 10 for name, value in (line.split(":") for line in lines)}


def _shared_files(pid: int) -> dict[tuple[int, int], int]:
    """Shared-memory files that a process holds open, by device and inode: the bytes each occupies."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(link).startswith("/dev/shm/"):
                info = os.stat(link)
                found[info.st_dev, info.st_ino] = info.st_blocks * 512
        except FileNotFoundError:
            continue  # Closed since it was listed.
    return found


def _short(value: Any) -> Any:
    """Numbers with four significant digits, for people."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, (list, tuple)) else value
