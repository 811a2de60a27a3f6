"""What a run notes while it trains: the same table whatever is saved and read back meanwhile, for ten thousand domains too."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chameleon_ray.training.checkpoint import load_tree, save_tree
from chameleon_ray.training.history import History
from chameleon_ray.training.loop import Progress
from chameleon_ray.training.plan import MixturePlan


def saved_and_read(progress: Progress, path: Path) -> Progress:
    save_tree({"progress": progress.to_dict(1, "ZeRO 0")}, str(path))
    return Progress.from_dict(load_tree(str(path))["progress"], 1, "ZeRO 0")


def test_the_table_is_that_of_the_entries(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    plan = MixturePlan({"a": 0.5, "b": 0.5}, {"a": 3, "b": 4}, 0)
    progress = Progress(plan=plan.take(plan.start(), 5)[1])
    entries: list[dict[str, Any]] = []
    for step in range(1, 7):
        domains = ["all", "b", "a"] if step % 2 else ["all", "c"]
        losses, tokens = random.random(len(domains)), random.integers(1, 1 << 40, len(domains))
        progress.curve.add(step, domains, loss=losses, tokens=tokens, learning_rate=step / 3)
        numbers = zip(domains, losses.tolist(), tokens.tolist(), strict=True)
        entries += [{"step": step, "domain": name, "loss": loss, "tokens": count, "learning_rate": step / 3} for name, loss, count in numbers]
        if step in (2, 3, 5):
            progress = saved_and_read(progress, tmp_path / "state")
    assert progress.curve.table().equals(pa.Table.from_pylist(entries))
    assert len(progress.curve) == len(entries) and len(progress.weights) == 0 == progress.weights.table().num_rows


def test_what_is_added_is_copied() -> None:
    history, weight = History(), np.zeros(2)
    history.add(1, ("a", "b"), weight=weight)
    weight += 1
    assert history.columns()["weight"].tolist() == [0, 0]


def test_ten_thousand_domains_at_ten_thousand_steps_are_saved_and_read(tmp_path: Path) -> None:
    names = tuple(f"domain-{i}" for i in range(10_000))
    plan = MixturePlan(dict.fromkeys(names, 1e-4), dict.fromkeys(names, 50), 0)
    progress, random = Progress(10_000, plan.take(plan.start(), 20_000)[1]), np.random.default_rng(0)
    started = time.process_time()
    for step in range(100, 10_001, 100):
        loss, tokens = random.random(10_001), random.integers(1, 1 << 40, 10_001)
        progress.curve.add(step, ("all", *names), loss=loss, tokens=tokens, learning_rate=1e-4)
        progress.weights.add(step, names, weight=random.random(10_000), mean=random.random(10_000))
    read = saved_and_read(progress, tmp_path / "state")
    assert time.process_time() - started < 20
    assert (tmp_path / "state").stat().st_size < 70e6
    assert read.plan == progress.plan
    assert len(read.curve) == 1_000_100
    for part in ("curve", "weights"):
        assert getattr(read, part).table().equals(getattr(progress, part).table())
