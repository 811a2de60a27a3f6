"""`doctor`: every finding from injected facts, and the real examination of this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from chameleon_ray.ray_doctor import Distribution, Examination, cluster, cluster_address, disk, gpu_use, machine, packages, python, shared_memory
from chameleon_ray.ray_doctor import token_authentication as authentication

RAY_META = Distribution("2.60.0", ("click>=7", 'pandas>=1.3; extra == "data"', 'gymnasium; extra == "rllib"'))
OURS = Distribution("0.1.0", ("torch>=2.13", "ray[data]==2.60.0", 'pytest>=9; extra == "dev"', 'tomli; python_version < "3.0"'))


def finder(**versions: str | Distribution) -> Callable[[str], Distribution | None]:
    found = {name: value if isinstance(value, Distribution) else Distribution(value) for name, value in versions.items()}
    return found.get


def test_the_pinned_versions_are_no_problem() -> None:
    found = packages(OURS, finder(torch="2.13.0+cpu", ray=RAY_META, pandas="2.0"))
    assert found.problems == []
    assert (found.facts["torch"], found.facts["ray"], found.facts["deepspeed"]) == ("2.13.0+cpu", "2.60.0", "not installed")


@pytest.mark.parametrize(
    ("installed", "problem"),
    [
        (finder(torch="2.13.0", ray=Distribution("2.59.0")), "ray 2.59.0 is installed where ==2.60.0 is needed: run pip install 'ray[data]==2.60.0'"),
        (finder(torch="2.12.1+cpu", ray=RAY_META, pandas="2"), "torch 2.12.1+cpu is installed where >=2.13 is needed: run pip install 'torch>=2.13'"),
        (finder(ray=RAY_META, pandas="2"), "torch is not installed: run pip install 'torch>=2.13'"),
        (finder(torch="2.13.0", ray=RAY_META), "ray is installed without pandas: run pip install 'ray[data]==2.60.0'"),
    ],
)
def test_another_version_or_a_missing_package_is_named_with_its_remedy(installed: Callable[[str], Distribution | None], problem: str) -> None:
    assert packages(OURS, installed).problems == [problem]


def test_a_bare_checkout_is_told_to_install() -> None:
    assert "pip install" in packages(None, finder()).problems[0]


def test_an_old_python_is_named() -> None:
    supported = Distribution("0.1.0", requires_python=">=3.11")
    assert python((3, 11), supported).problems == []
    assert python((3, 10), supported).problems[0].startswith("Python 3.10 is not supported (>=3.11 is)")


def test_little_memory_is_a_problem() -> None:
    assert machine(8 << 30, 4 << 30).problems == []
    (problem,) = machine(8 << 30, 3 << 30).problems
    assert problem.startswith("only 3.0 GB of memory are free, 4.0 GB are needed")


@pytest.mark.parametrize(
    ("build", "visible", "present", "chosen", "problem", "advice"),
    [
        ("12.8", 1, 1, None, "", "resources.gpus_per_worker=1"),
        (None, 0, 0, None, "", ""),
        (None, 0, 2, None, "2 GPU(s) are here but torch is a CPU build: install a CUDA build", ""),
        ("12.8", 0, 1, None, "torch for CUDA 12.8 sees none (driver too old): update the GPU driver", ""),
        ("12.8", 0, 1, "", "", "CUDA_VISIBLE_DEVICES= hides them: unset it"),
        ("12.8", 0, 0, None, "", "built for CUDA 12.8 and no GPU is here"),
    ],
)
def test_torch_build_against_gpus(build: str | None, visible: int, present: int, chosen: str | None, problem: str, advice: str) -> None:
    found = gpu_use(build, visible, present, chosen, "driver too old")
    assert problem in "".join(found.problems)
    assert advice in "".join(found.advice)
    assert (len(found.problems), len(found.advice)) == (bool(problem), bool(advice))


def test_storage_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    found = disk(tmp_path / "runs" / "first")
    assert found.facts["disk"].endswith(f"at {tmp_path}")
    assert not any("written" in problem for problem in found.problems)
    assert not (tmp_path / "runs").exists()


def test_storage_that_cannot_be_written_is_a_problem() -> None:
    assert any(problem.startswith("/proc: cannot be written") for problem in disk(Path("/proc/runs")).problems)


def test_little_disk_and_little_shared_memory_are_problems(small_disk: Path) -> None:
    (problem,) = disk(small_disk).problems
    assert problem.startswith(f"{small_disk}: only 0.0 GB of disk are free, 5.0 GB are needed")
    (problem,) = shared_memory(small_disk).problems
    assert "Ray's object store needs 1.0 GB" in problem
    assert "--shm-size" in problem


def test_a_system_without_shared_memory_is_fine(tmp_path: Path) -> None:
    assert shared_memory(tmp_path / "none") == Examination()


@pytest.mark.parametrize(
    ("given", "address"),
    [(None, None), ("", None), ("local", None), ("auto", "auto"), ("head:6379", "head:6379"), ("ray://head:10001", "ray://head:10001")],
)
def test_the_cluster_is_looked_for_where_ray_looks(tmp_path: Path, given: str | None, address: str | None) -> None:
    environ = {} if given is None else {"RAY_ADDRESS": given}
    assert cluster_address({"RAY_TMPDIR": str(tmp_path), **environ}) == address


def test_a_cluster_that_ray_start_left_is_seen(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.7:6379\n")
    assert cluster_address({"RAY_TMPDIR": str(tmp_path)}) == cluster_address({"RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": "auto"}) == "10.0.0.7:6379"
    assert cluster_address({"RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": "local"}) is None


def test_without_a_cluster_nothing_is_asked(tmp_path: Path) -> None:
    found = cluster({"RAY_TMPDIR": str(tmp_path)})
    assert found.facts["ray cluster"] == "none: a local one is started"
    assert found.problems == []


def test_addresses_that_cannot_be_reached_are_problems(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = f"127.0.0.1:{unused.getsockname()[1]}"
    for address, reason in ((refused, "refused"), ("head", "is not HOST:PORT")):
        (problem,) = cluster({**os.environ, "RAY_ADDRESS": address}, seconds=60).problems
        assert problem.startswith(f"RAY_ADDRESS: the Ray cluster at {address} cannot be joined")
        assert reason in problem
        assert problem.endswith("start it, or correct or unset RAY_ADDRESS")


def test_a_stale_file_of_ray_start_is_named(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    left = tmp_path / "ray" / "ray_current_cluster"
    left.write_text("127.0.0.1:9")
    environ = {**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, "RAY_TMPDIR": str(tmp_path)}
    (problem,) = cluster(environ, seconds=60).problems
    assert problem.startswith(f"{left}: the Ray cluster at 127.0.0.1:9 cannot be joined")
    assert "RAY_ADDRESS=local" in problem


def test_an_address_that_accepts_and_never_answers_does_not_hang() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        found = cluster({**os.environ, "RAY_ADDRESS": address}, seconds=3)
    assert time.monotonic() - started < 15
    assert found.facts["ray cluster"] == f"{address}: not reached"
    assert f"{address} cannot be joined" in found.problems[0]


@pytest.mark.ray
def test_a_running_cluster_is_described() -> None:
    import ray

    from chameleon_ray.ray_session import start_ray

    start_ray()
    address = ray.get_runtime_context().gcs_address
    found = cluster({**os.environ, "RAY_ADDRESS": address}, seconds=60)
    assert found.problems == []
    assert found.facts["ray cluster"].startswith(f"{address}: 1 node(s), {ray.cluster_resources()['CPU']:g} CPU")


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({}, "on, Ray's default for a local cluster"),
        ({"RAY_ADDRESS": "head:6379"}, "off (RAY_AUTH_MODE is not set"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}, "on (RAY_AUTH_MODE=token, token in RAY_AUTH_TOKEN)"),
        ({"RAY_AUTH_MODE": "disabled"}, "off (RAY_AUTH_MODE=disabled)"),
    ],
)
def test_token_authentication_is_shown_without_the_token(environ: Mapping[str, str], shown: str) -> None:
    found = authentication(environ)
    assert found.startswith(shown)
    assert "secret" not in found


def test_the_command_examines_this_machine_and_starts_no_ray(tmp_path: Path) -> None:
    environ = {**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, "RAY_TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "chameleon_ray", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == bool(found["problems"]), done.stderr
    shown = ["python", "torch", "ray", "deepspeed", "cores", "memory", "GPUs", "attention", "disk"]
    assert {*shown, "number format", "ray cluster", "token authentication"} <= set(found["facts"])
    assert not any("installed" in problem for problem in found["problems"])
    assert not any(tmp_path.iterdir())
