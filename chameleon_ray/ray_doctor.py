"""What `chameleon doctor` looks at: this installation, this machine, and the Ray cluster that a command would join. Nothing is started."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PACKAGE = "chameleon_ray"
SHOWN = ("torch", "ray", "deepspeed", "transformers", "tokenizers", "tiktoken", "datasets", "numpy", "scipy", "pyarrow", "pydantic")
MIN_FREE_MEMORY = 4 << 30
MIN_FREE_DISK = 5 << 30
MIN_SHARED_MEMORY = 1 << 30
SPILLING_ENDS = 0.95
CLUSTER_SECONDS = 10.0
_PROBE = f"import sys; from {PACKAGE}.ray_doctor import probe; probe(sys.argv[1])"
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        facts: name -> what was seen, in the order to show.
        problems: what is wrong and how to mend it, one line each.
        advice: what works but is worth knowing, one line each.
    """

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


def examine(storage_folder: Path) -> Examination:
    """Everything that decides whether a command can run here, and how fast.

    Args:
        storage_folder: where artifacts would go; it need not exist yet.
    Cost: importing torch, and at most `CLUSTER_SECONDS` where there is a cluster to ask. No Ray is started.
    """
    parts = [
        python(tuple(map(int, platform.python_version_tuple()[:2])), metadata_of(PACKAGE)),
        packages(metadata_of(PACKAGE), metadata_of),
        machine(*_memory()),
        devices(),
        cluster(os.environ),
        disk(storage_folder),
        shared_memory(Path("/dev/shm")),
    ]
    return Examination(
        {name: fact for part in parts for name, fact in part.facts.items()},
        [problem for part in parts for problem in part.problems],
        [advice for part in parts for advice in part.advice],
    )


@dataclass(frozen=True)
class Distribution:
    """An installed package's version and what it asks for (`Requires-Dist`, `Requires-Python`)."""

    version: str
    requires: tuple[str, ...] = ()
    requires_python: str = ""


def metadata_of(name: str) -> Distribution | None:
    """The metadata of an installed package, None when it is not installed."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    return Distribution(found.version, tuple(found.requires or ()), str(found.metadata.json.get("requires_python", "")))


def python(version: tuple[int, ...], package: Distribution | None) -> Examination:
    """Whether this Python is one that the package supports."""
    shown = ".".join(map(str, version))
    supported = package.requires_python if package else ""
    old = supported and not SpecifierSet(supported).contains(shown)
    remedy = "make the environment with another one, for instance make PYTHON=python3.11"
    problems = [f"Python {shown} is not supported ({supported} is): {remedy}"] if old else []
    return Examination({"python": f"{platform.python_version()} ({sys.executable})"}, problems)


def packages(package: Distribution | None, find: Callable[[str], Distribution | None]) -> Examination:
    """Installed versions against what the package's own metadata pins.

    Args:
        package: None when it is not installed, as in a bare checkout.
        find: looks up an installed package.
    """
    if package is None:
        return Examination(problems=[f"{PACKAGE} is not installed, so its requirements cannot be checked: run pip install -c constraints.txt -e ."])
    versions = {name: found.version if (found := find(name)) else "not installed" for name in SHOWN}
    wanted = [Requirement(text) for text in package.requires]
    return Examination({PACKAGE: package.version, **versions}, list(_mismatches([need for need in wanted if _applies(need)], find)))


def _mismatches(wanted: Iterable[Requirement], find: Callable[[str], Distribution | None]) -> Iterator[str]:
    for need in wanted:
        found = find(need.name)
        if found is None:
            yield f"{need.name} is not installed: run pip install '{need}'"
        elif not need.specifier.contains(found.version, prereleases=True):
            yield f"{need.name} {found.version} is installed where {need.specifier} is needed: run pip install '{need}'"
        else:
            parts = [Requirement(text) for text in found.requires]
            of_extras = {part.name for part in parts for extra in need.extras if _applies(part, extra) and not _applies(part)}
            if missing := sorted(name for name in of_extras if find(name) is None):
                yield f"{need.name} is installed without {', '.join(missing)}: run pip install '{need}'"


def _applies(need: Requirement, extra: str = "") -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def machine(total_bytes: int, free_bytes: int) -> Examination:
    """Cores and memory; in a container, what the container may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    problems = []
    if free_bytes < MIN_FREE_MEMORY:
        found, needed = gigabytes(free_bytes), gigabytes(MIN_FREE_MEMORY)
        problems.append(f"only {found} of memory are free, {needed} are needed: close other programs or take a larger machine")
    return Examination({"cores": str(cores), "memory": f"{gigabytes(total_bytes)}, {gigabytes(free_bytes)} free"}, problems)


def _memory() -> tuple[int, int]:
    """(total, free) bytes of memory; a control group's limit counts as the total, and its page cache as free."""
    seen = psutil.virtual_memory()
    limit = _CGROUP / "memory.max"
    if not limit.exists() or not (text := limit.read_text().strip()).isdigit():
        return seen.total, seen.available
    reclaimable = re.search(r"^inactive_file (\d+)", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    used = int((_CGROUP / "memory.current").read_text()) - int(reclaimable[1] if reclaimable else 0)
    return min(seen.total, int(text)), min(seen.available, int(text) - used)


def devices() -> Examination:
    """GPUs, the number format and the attention that training will use."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            return Examination(problems=[f"torch cannot be imported ({_last_line(str(error))}): reinstall it"])
        return Examination()  # `packages` says so
    except (ImportError, OSError) as error:
        return Examination(problems=[f"torch cannot be imported ({_last_line(str(error))}): reinstall it, with the build that fits this machine"])
    from chameleon_ray.models.hardware import detect

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    described = []
    for index in range(visible):
        free, total = torch.cuda.mem_get_info(index)
        described.append(f"{torch.cuda.get_device_name(index)}, {gigabytes(total)}, {gigabytes(free)} free")
    facts = {
        "GPUs": "; ".join(described) or "none",
        "number format": detect(bool(visible)).reason + (f"; without GPUs {detect(False).reason}" if visible else ""),
        "attention": "sdpa, PyTorch's fused scaled dot-product attention",
    }
    build = torch.version.cuda or torch.version.hip
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    found = gpu_use(build, visible, present, os.environ.get("CUDA_VISIBLE_DEVICES"), _last_line(str(said[-1].message)) if said else "")
    return Examination(facts, found.problems, found.advice)


def gpu_use(build: str | None, visible: int, present: int, chosen: str | None, reason: str) -> Examination:
    """Whether torch can use the GPUs that are there.

    Args:
        build: the CUDA or ROCm version torch was built for, None for a CPU build.
        visible: GPUs that torch sees. present: GPUs that the system has. chosen: CUDA_VISIBLE_DEVICES.
        reason: why torch sees none, in its own words, if it said so.
    """
    here = f"{present} GPU(s) are here"
    if visible:
        return Examination(advice=["GPUs are used where an experiment asks for them: set resources.gpus_per_worker=1"])
    if build is None and present:
        return Examination(problems=[f"{here} but torch is a CPU build: install a CUDA build of torch (make TORCH_INDEX=…)"])
    if build is None:
        return Examination()
    if not present:
        return Examination(advice=[f"torch is built for CUDA {build} and no GPU is here: it computes on the CPU; a CPU build takes far less disk"])
    if chosen is not None:
        return Examination(advice=[f"{here} but CUDA_VISIBLE_DEVICES={chosen} hides them: unset it to use them"])
    why = f" ({reason})" if reason else ""
    return Examination(problems=[f"{here} but torch for CUDA {build} sees none{why}: update the GPU driver, or install torch for an older CUDA"])


def cluster(environ: Mapping[str, str], seconds: float = CLUSTER_SECONDS) -> Examination:
    """The cluster a command would join, asked for its resources by a process that is ended after `seconds`."""
    address = cluster_address(environ)
    facts = {"ray cluster": "none: a local one is started", "token authentication": token_authentication(environ)}
    if address is None:
        return Examination(facts)
    origin = "RAY_ADDRESS" if environ.get("RAY_ADDRESS") else str(_last_started(environ))
    try:
        command = [sys.executable, "-c", _PROBE, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=dict(environ), check=False)
        failure = _last_line(done.stderr) if done.returncode else ""
    except subprocess.TimeoutExpired:
        failure = f"no answer within {seconds:.0f} s"
    if failure:
        remedy = "correct or unset RAY_ADDRESS" if environ.get("RAY_ADDRESS") else "set RAY_ADDRESS=local for one of your own, or delete that file"
        problem = f"{origin}: the Ray cluster at {address} cannot be joined ({failure}): start it, or {remedy}"
        return Examination({**facts, "ray cluster": f"{address}: not reached"}, [problem])
    return _described(facts, address, json.loads(done.stdout.splitlines()[-1]))


def _described(facts: Mapping[str, str], address: str, offered: Mapping[str, float]) -> Examination:
    shown = f"{address}: {offered['nodes']:g} node(s), {offered['CPU']:g} CPU, {offered['GPU']:g} GPU"
    several = ["the cluster has several nodes: storage must be s3://…, gs://… or a folder that all of them share"] if offered["nodes"] > 1 else []
    return Examination({**facts, "ray cluster": shown}, advice=several)


def probe(address: str) -> None:
    """Print the resources of a running cluster as JSON; joins it as the commands do. Raises when it cannot: run it in a process of its own."""
    if address != "auto":
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"{address!r} is not HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)  # RAY_ADDRESS, where it is set, goes before "auto"
    resources = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    sys.stdout.write(json.dumps({"nodes": nodes, "CPU": resources.get("CPU", 0), "GPU": resources.get("GPU", 0)}) + "\n")


def cluster_address(environ: Mapping[str, str]) -> str | None:
    """Where a bare `ray.init()` looks: RAY_ADDRESS, else the last cluster that `ray start` left on this machine; None: it starts a local one."""
    given = environ.get("RAY_ADDRESS") or None
    if given == "local":
        return None
    if given not in (None, "auto"):
        return given
    started = _last_started(environ)
    return (started.read_text().strip() or given) if started.exists() else given


def _last_started(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"


def token_authentication(environ: Mapping[str, str]) -> str:
    """Whether Ray asks for a token: as RAY_AUTH_MODE says; unset, a local cluster does and a cluster joined by RAY_ADDRESS is asked without one."""
    mode = environ.get("RAY_AUTH_MODE")
    places = [environ.get("RAY_AUTH_TOKEN_PATH") or "", str(Path.home() / ".ray" / "auth_token")]
    known = "RAY_AUTH_TOKEN" if environ.get("RAY_AUTH_TOKEN") else next((place for place in places if place and Path(place).is_file()), None)
    token = f"token in {known}" if known else "no token yet"
    if mode is None and environ.get("RAY_ADDRESS") in (None, "", "local", "auto"):
        return f"on, Ray's default for a local cluster ({token})"
    if mode is None:
        return f"off (RAY_AUTH_MODE is not set, {token}); a cluster that wants a token needs RAY_AUTH_MODE=token"
    return f"on (RAY_AUTH_MODE={mode}, {token})" if mode.lower() == "token" else f"off (RAY_AUTH_MODE={mode})"


def disk(folder: Path) -> Examination:
    """Free space where artifacts go, and whether a file can be written there."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    usage = shutil.disk_usage(there)
    problems, advice = [], []
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
    except OSError as error:
        problems.append(f"{there}: cannot be written ({error.strerror}): change its permissions, free some space, or set storage to another place")
    if usage.free < MIN_FREE_DISK:
        found, needed = gigabytes(usage.free), gigabytes(MIN_FREE_DISK)
        problems.append(f"{there}: only {found} of disk are free, {needed} are needed: free some, or set storage to another place")
    scratch = shutil.disk_usage(tempfile.gettempdir())
    if scratch.used > SPILLING_ENDS * scratch.total:
        advice.append(f"{tempfile.gettempdir()} is over {SPILLING_ENDS:.0%} full, so Ray no longer moves objects from memory to it: free some space")
    return Examination({"disk": f"{gigabytes(usage.free)} free of {gigabytes(usage.total)} at {there}"}, problems, advice)


def shared_memory(folder: Path) -> Examination:
    """Size of the file system that holds Ray's object store; on systems without one, Ray uses files."""
    if not folder.is_dir():
        return Examination()
    total = shutil.disk_usage(folder).total
    problems = []
    if total < MIN_SHARED_MEMORY:
        needed = f"Ray's object store needs {gigabytes(MIN_SHARED_MEMORY)}"
        problems.append(f"{folder} holds only {gigabytes(total)}, {needed}: start the container with --shm-size=4g, or remount it larger")
    return Examination({str(folder): gigabytes(total)}, problems)


def gigabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / (1 << 30):.1f} GB"


def _last_line(text: str) -> str:
    return (text.strip() or "no reason given").splitlines()[-1].strip()
