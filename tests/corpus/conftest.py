"""The passes over a corpus in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from chameleon_ray.cli import main
from chameleon_ray.corpus import ray_read, ray_tokenize
from chameleon_ray.corpus.ray_tasks import Task
from chameleon_ray.errors import as_outcome, from_outcome
from chameleon_ray.ray_backend import RayBackend

Refused = Callable[..., str]


def run_in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on tasks run one after the other in this process instead of on Ray; what is returned changes how many CPUs the cluster has."""

    def run_tasks(tasks: Sequence[Task], *_: Any) -> Iterator[dict[str, Any]]:
        return (from_outcome(as_outcome(task.function, *task.arguments)) for task in tasks)

    def set_cpus(count: int) -> None:
        monkeypatch.setattr(ray_read, "cluster_cpus", lambda: count)

    for module in (ray_read, ray_tokenize):
        monkeypatch.setattr(module, "run_tasks", run_tasks)
    monkeypatch.setattr(RayBackend, "_ray", property(lambda self: SimpleNamespace(start_ray=lambda: False)))
    set_cpus(2)
    return set_cpus


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Runs the tasks in this process, for one test."""
    return run_in_process(monkeypatch)


@pytest.fixture
def refused(in_process: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `mix` on a corpus that must be refused as the contract says; returns the message."""

    def run(content: dict[str, Any], storage_address: Path = tmp_path / "runs") -> str:
        training = {"model": {"preset": "cpu-tiny"}, "steps": 2, "batch_rows": 2}
        experiment = {"name": "bad", "storage": str(storage_address), "corpus": content, "proxy": training, "base": training}
        (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
        with pytest.raises(SystemExit) as exit_:
            main(["mix", str(tmp_path / "experiment.yaml"), "--method", "uniform", "--json"])
        captured = capsys.readouterr()
        assert exit_.value.code == 2, captured
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert not list(tmp_path.rglob("record.json"))
        return captured.err.removeprefix("error: ").strip()

    return run
