"""Live progress of long phases on a terminal, and plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 20.0


class Phase:
    """One long phase: bars by name on a terminal; elsewhere a line when it starts, one every 20 seconds, and one when it ends."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._console = console
        self._live = console.is_terminal and not console.quiet
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self._last_line = self._started = time.monotonic()

    def update(self, name: str, done: float, total: float | None, note: str = "") -> None:
        """Set how far the part called `name` has come."""
        if self._live:
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, total=total, note=note)
            self._progress.update(self._bars[name], completed=done, total=total, note=note)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            _line(self._console, f"{self._title}: {name} {done:,.0f}{f' of {total:,.0f}' if total else ''} {note}".rstrip())

    def __enter__(self) -> Phase:
        if self._live:
            self._progress.start()
        else:
            _line(self._console, f"{self._title} …")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._live:
            self._progress.stop()
        outcome = "stopped" if kind else "done"
        _line(self._console, f"{self._title}: {outcome} in {time.monotonic() - self._started:.0f} s")


class Reporter:
    """Where phases say how far they are. `Reporter.silent()` says nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    @classmethod
    def silent(cls) -> Reporter:
        return cls(Console(quiet=True))

    def say(self, text: str) -> None:
        """One line, for a person."""
        _line(self.console, text)

    @contextmanager
    def phase(self, title: str) -> Iterator[Phase]:
        """Announce a phase and time it."""
        with Phase(title, self.console) as phase:
            yield phase


def _line(console: Console, text: str) -> None:
    """One line, whatever the width, and nothing in it taken for markup."""
    console.print(text, soft_wrap=True, markup=False, emoji=False, highlight=False)
