"""`python -m analysis.gpu --tiny` where nothing is installed but what it says it needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "transformers", "tokenizers", "tiktoken", "safetensors", "numpy", "pyarrow", "pydantic")


def with_dependencies(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """Installed distributions, and what they cannot do without."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found[name] = metadata.distribution(name)
            needs = [Requirement(line) for line in found[name].requires or ()]
            waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def bare_machine(folder: Path) -> None:
    """Links to the packages of some distributions, and to no others."""
    for distribution in with_dependencies(NEEDED).values():
        for top in {Path(str(file)).parts[0] for file in distribution.files or () if ".." not in str(file)} - {"__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))


def test_it_runs_without_ray_and_deepspeed(tmp_path: Path) -> None:
    (packages := tmp_path / "packages").mkdir()
    bare_machine(packages)
    assert not any((packages / name).exists() for name in ("ray", "deepspeed", "scipy", "zstandard", "datasets"))
    environment = {**os.environ, "PYTHONPATH": f"{packages}:{REPOSITORY}", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-S", "-m", "analysis.gpu", "--tiny"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = {line["measurement"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(lines)[:2] == ["machine", "agreement"]
    ratios = {"embedding": ("over_forward", "over_published"), "training": ("over_eager",), "doge": ("over_plain",), "doremi": ("over_plain",)}
    for name, line in list(lines.items())[2:]:
        assert all(line[key] > 0 for key in ratios[name.split()[0]]), name
    assert len(lines) == 8 and lines["agreement"]["training_steps"] == 20


def test_without_a_gpu_it_says_so() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", "analysis.gpu"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and "there is no GPU; --tiny runs everything at tiny size on a CPU" in done.stderr
