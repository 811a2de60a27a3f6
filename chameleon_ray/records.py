"""Records and tables beside artifacts. `record.json` is written last: an artifact is complete exactly when it is there."""

from __future__ import annotations

import io
import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chameleon_ray import storage
from chameleon_ray.errors import UserError


def once(address: str, kind: str, digest: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What the record of the artifact at an address holds: of the finished one, or else of what is made now.

    Args:
        make: writes everything but the record to the address and returns what the record is to hold.
    """
    if not is_complete(address):
        write_record(address, kind, digest, make())
    content: dict[str, Any] = read_record(address)["content"]
    return content


def done_once(address: str, task: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What a task came to, as JSON at an address: of the one that is done, or else of the one that is done now. Written last, as records are."""
    if storage.exists(address):
        found = storage.read_bytes(address)
    else:
        found = json.dumps(task(), ensure_ascii=False, allow_nan=False).encode()
        storage.write_bytes(address, found)
    return dict(json.loads(found))


def write_record(address: str, kind: str, digest: str, content: Mapping[str, Any]) -> None:
    """Write `record.json`, the last file of an artifact."""
    record = {"kind": kind, "digest": digest, "written": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions(), "content": content}
    storage.write_bytes(storage.join(address, "record.json"), json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False).encode())


def read_record(address: str) -> dict[str, Any]:
    """The record of a finished artifact.

    Raises:
        UserError: there is no finished artifact at the address.
    """
    path = storage.join(address, "record.json")
    if not storage.exists(path):
        raise UserError(f"{address}: no record.json, so nothing finished lies here; give the folder of a finished artifact")
    record: dict[str, Any] = json.loads(storage.read_bytes(path))
    return record


def is_complete(address: str) -> bool:
    """Whether the artifact at the address is finished."""
    return storage.exists(storage.join(address, "record.json"))


def write_table(address: str, table: pa.Table) -> None:
    """Write a Parquet file atomically."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(address, buffer.getvalue())


def read_table(address: str) -> pa.Table:
    """Read a Parquet file."""
    return pq.read_table(io.BytesIO(storage.read_bytes(address)))


@cache
def versions() -> dict[str, str]:
    """Versions of what computes, and the git commit of a checkout, for records."""
    found = {"python": platform.python_version()}
    for package in ("chameleon_ray", "ray", "torch", "transformers", "deepspeed", "tokenizers", "tiktoken", "numpy", "pyarrow", "datasets"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / ".git").exists():
        done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found["commit"] = done.stdout.strip()
    return found
