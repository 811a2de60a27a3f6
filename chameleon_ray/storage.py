"""The only code that knows where bytes lie: local paths, s3:// and gs:// addresses, through pyarrow's file systems.

Everything else passes addresses (`str`) around. A write is atomic: a reader sees the whole file or none of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import IO

import fsspec
import pyarrow.fs as pafs

from chameleon_ray.errors import UserError

_REMOTE = ("s3://", "gs://", "gcs://")


def is_remote(address: str) -> bool:
    """Whether the address is in object storage."""
    return address.startswith(_REMOTE)


def join(address: str, *parts: str) -> str:
    """Append path parts to an address."""
    return "/".join([address.rstrip("/"), *parts])


def absolute(address: str) -> str:
    """The address as every process on every machine may use it: local paths become absolute."""
    if "://" in address and not is_remote(address):
        raise UserError(f"storage: address {address!r} is not supported; use a local path, s3://… or gs://…")
    return address if is_remote(address) else str(Path(address).expanduser().resolve())


def resolve(address: str) -> tuple[pafs.FileSystem, str]:
    """File system and path of an address. Credentials and AWS_ENDPOINT_URL come from the environment."""
    if not is_remote(address):
        return pafs.LocalFileSystem(), str(Path(address).expanduser().absolute())
    scheme, path = address.split("://", 1)
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if scheme == "s3" and endpoint:
        return pafs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=False), path
    return pafs.FileSystem.from_uri(address)


def exists(address: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = resolve(address)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def is_file(address: str) -> bool:
    """Whether a file, and not a folder, is there."""
    filesystem, path = resolve(address)
    return bool(filesystem.get_file_info(path).type == pafs.FileType.File)


def open_input(address: str) -> IO[bytes]:
    """A binary stream for reading."""
    filesystem, path = resolve(address)
    return filesystem.open_input_file(path)


def read_bytes(address: str) -> bytes:
    """The whole file."""
    with open_input(address) as stream:
        return stream.read()


def write_bytes(address: str, data: bytes | memoryview) -> None:
    """Write a file atomically."""
    filesystem, path = resolve(address)
    if is_remote(address):
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        Path(temporary).write_bytes(data)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def publish(local_folder: str | Path, address: str) -> None:
    """Copy the files of a local folder to an address, replacing files of the same name."""
    source = Path(local_folder)
    filesystem, target = resolve(address)
    filesystem.create_dir(target, recursive=True)
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        destination = f"{target}/{file.relative_to(source).as_posix()}"
        filesystem.create_dir(os.path.dirname(destination), recursive=True)
        pafs.copy_files(str(file), destination, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)


def remove(address: str) -> None:
    """Delete a folder and what is in it; nothing happens when it is not there."""
    filesystem, path = resolve(address)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)


def local_file(address: str) -> str:
    """A local path with the file's content: the file itself, or a copy fetched once per machine."""
    if not is_remote(address):
        return address
    cached = _cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:24] / Path(address).name
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        filesystem, path = resolve(address)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as temporary, filesystem.open_input_stream(path, compression=None) as stream:
            shutil.copyfileobj(stream, temporary)
        os.replace(temporary.name, cached)
    return str(cached)


def local_directory(address: str) -> str:
    """A local folder with the files of `address`: the folder itself, or a copy fetched once per machine."""
    if not is_remote(address):
        return address
    filesystem, root = resolve(address)
    copy = _cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:24] / "folder"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        fetched = tempfile.mkdtemp(dir=copy.parent)
        pafs.copy_files(root, fetched, source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem())
        try:
            os.rename(fetched, copy)
        except OSError:  # another process was faster
            if not copy.exists():
                raise
            shutil.rmtree(fetched)
    return str(copy)


def glob(pattern: str) -> list[str]:
    """The files a pattern matches (`*`, `?`, `**`), sorted; an address without a wildcard is its own match if it exists."""
    if is_remote(pattern):
        options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]} if "AWS_ENDPOINT_URL" in os.environ and pattern.startswith("s3") else {}
        scheme = pattern.split("://", 1)[0]
        filesystem = fsspec.filesystem("s3" if scheme == "s3" else "gcs", **options)
        return sorted(f"{scheme}://{path}" for path in filesystem.glob(pattern))
    local = fsspec.filesystem("file")
    return sorted(path for path in local.glob(str(Path(pattern).expanduser().absolute())) if os.path.isfile(path))


def fingerprint(address: str) -> str:
    """What tells one content from another without the path: sha256 up to 64 MiB; beyond, size, time of change and both ends."""
    filesystem, path = resolve(address)
    info = filesystem.get_file_info(path)
    hasher = hashlib.sha256(str(info.size).encode())
    if info.size <= 64 << 20:
        at_once = 1 << (20 if is_remote(address) else 17)  # a remote read is a request; small blocks are given back once freed
        with filesystem.open_input_file(path) as file:
            while chunk := file.read(at_once):
                hasher.update(chunk)
    else:
        with filesystem.open_input_file(path) as file:
            hasher.update(file.read(1 << 20))
            hasher.update(file.read_at(1 << 20, info.size - (1 << 20)))
        hasher.update(str(info.mtime_ns).encode())
    return hasher.hexdigest()


def size_bytes(address: str) -> int:
    """Size of a file in bytes."""
    filesystem, path = resolve(address)
    return int(filesystem.get_file_info(path).size)


def _cache_folder() -> Path:
    base = os.environ.get("CHAMELEON_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "chameleon_ray")
    return Path(base)
