"""Progress from workers to the driver: a small actor keeps the latest word of every task, and a thread shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.actor import ActorHandle

from chameleon_ray.progress import Phase, Reporter


class Board:
    """The latest (done, total, note) of every task by name."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, float, str]] = {}

    def update(self, name: str, done: float, total: float, note: str) -> None:
        self._latest[name] = (done, total, note)

    def latest(self) -> dict[str, tuple[float, float, str]]:
        return self._latest


@dataclass(frozen=True)
class Line:
    """A way to a board. With a `name` everything said on it is said of that."""

    board: ActorHandle[Any]
    name: str | None = None


class Pulse:
    """A worker's end: sends at most two words a second and never waits."""

    def __init__(self, line: Line | None, name: str, total: float) -> None:
        self._line, self._name, self._total = line, name, total
        self._last = 0.0

    def __call__(self, done: float, note: str = "", total: float | None = None) -> None:
        now, total = time.monotonic(), total or self._total
        if self._line is not None and (now - self._last > 0.5 or done >= total):
            self._last = now
            self._line.board.update.remote(self._line.name or self._name, done, total, note)


@contextmanager
def shown(phase: Phase) -> Iterator[Line]:
    """A way to a board whose latest words appear in the phase until the block ends; to that of the process that started this one, where the phase is its."""
    if isinstance(phase, BoardPhase):
        yield phase.line
        return
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    finished = threading.Event()

    def poll() -> None:
        known: dict[str, tuple[float, float, str]] = {}
        while not finished.wait(0.5):
            latest = ray.get(board.latest.remote())
            for name, (done, total, note) in latest.items():
                if known.get(name) != (done, total, note):
                    phase.update(name, done, total, note)
            known = latest

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield Line(board)
    finally:
        finished.set()
        thread.join()
        ray.kill(board)


class BoardPhase(Phase):
    """A phase of another process: its words go to a board, under one name."""

    def __init__(self, line: Line, pulse: Pulse) -> None:
        self.line, self._pulse = line, pulse

    def update(self, name: str, done: float, total: float | None, note: str = "") -> None:
        self._pulse(done, note, total)

    def __enter__(self) -> BoardPhase:
        return self

    def __exit__(self, *_: object) -> None: ...


class BoardReporter(Reporter):
    """What a trial reports to: the board of the process that started it."""

    def __init__(self, line: Line, name: str, total: float) -> None:
        super().__init__(Reporter.silent().console)
        self._line = replace(line, name=name)
        self._pulse = Pulse(self._line, name, total)

    @contextmanager
    def phase(self, title: str) -> Iterator[Phase]:
        with BoardPhase(self._line, self._pulse) as phase:
            yield phase
