"""Task functions as a stream through Ray Data: files in, files out, and what each came to as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from chameleon_ray.corpus.pieces import give_back
from chameleon_ray.errors import as_outcome, from_outcome
from chameleon_ray.progress import Phase
from chameleon_ray.ray_session import quiet_data

WAVE_TASKS = 2048  # at a time: what Ray Data and every worker keep of them grows with their number


@dataclass(frozen=True)
class Task:
    """One call of a task function."""

    function: Callable[..., Mapping[str, Any]]
    arguments: tuple[Any, ...]


def run_tasks(tasks: Sequence[Task], phase: Phase, label: str) -> Iterator[dict[str, Any]]:
    """Stream tasks through Ray Data, one CPU each; results in the order of the tasks, as they come.

    Raises:
        UserError: as soon as a task finds something that the user must mend.
    """
    for start in range(0, len(tasks), WAVE_TASKS):
        yield from _run_wave(tasks[start : start + WAVE_TASKS], phase, label, start, len(tasks))


def _run_wave(tasks: Sequence[Task], phase: Phase, label: str, before: int, total: int) -> Iterator[dict[str, Any]]:
    quiet_data()
    shared = ray.put(list(tasks))

    def call(row: dict[str, Any]) -> dict[str, Any]:
        task = ray.get(shared)[row["id"]]
        outcome = as_outcome(task.function, *task.arguments)
        give_back()
        return {"id": row["id"], "outcome": outcome}

    results: dict[int, dict[str, Any]] = {}
    delivered = 0
    for done, row in enumerate(ray.data.range(len(tasks), override_num_blocks=len(tasks)).map(call, num_cpus=1).iter_rows(), before + 1):
        results[row["id"]] = from_outcome(row["outcome"])
        phase.update(label, done, total)
        while delivered in results:
            yield results.pop(delivered)
            delivered += 1
    give_back()
