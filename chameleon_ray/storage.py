"""Where bytes lie: local paths, s3:// and gs:// addresses, through pyarrow's file systems.

Everything else passes addresses (`str`) around, or takes a local copy for libraries that want files. A write is atomic: a reader sees the whole file or
none of it. Text is also read from the Hugging Face hub (hf:// addresses), where nothing is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, wraps
from glob import escape as glob_escape
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import fsspec
import pyarrow.fs as pafs

from chameleon_ray.cache import local_copy
from chameleon_ray.errors import Unavailable, UserError

_CREDENTIALS = (
    "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login",
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
)
_REMOTE = ("s3://", "gs://", "gcs://")
_HUB = "hf://"
HUB_BLOCK_BYTES = 1 << 20  # read at once from the hub, where nothing is kept between reads
_NO_BUCKET = "there is no bucket {bucket!r}; create it or correct the address"
QUICK_SECONDS = 10
P = ParamSpec("P")
R = TypeVar("R")

# What pyarrow, botocore, s3fs, gcsfs and google.auth say when an object store refuses, and what that means for the user.
_REFUSALS: tuple[tuple[str, type[Exception], str], ...] = (
    (r"NoCredentials|PartialCredentials|DefaultCredentials|Anonymous caller|create a OAuth2 access token", UserError, "no credentials found; {credentials}"),
    (r"NO_?SUCH_?BUCKET|bucket does not exist|Bucket '.*' not found", UserError, _NO_BUCKET),
    (
        r"ACCESS_?DENIED|PERMISSION_?DENIED|Forbidden|UNAUTHENTICATED|Invalid.?(Access.?Key|Credentials)|SIGNATURE_?DOES_?NOT_?MATCH|EXPIRED_?TOKEN",
        UserError,
        "access denied; check the credentials and what they allow in bucket {bucket!r}",
    ),
    (
        r"NETWORK_CONNECTION|EndpointConnection|ConnectTimeout|ReadTimeout|(Could not|Cannot) (connect|resolve)|UNAVAILABLE|Retry policy exhausted|timed? ?out",
        Unavailable,
        "{endpoint} does not answer; check {settings}",
    ),
)


def _told(function: Callable[P, R]) -> Callable[P, R]:
    """Say in the user's words what an object store refuses; the library's own words stay as the cause."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with telling(next((value for value in args if isinstance(value, str) and is_remote(value)), "")):
            return function(*args, **kwargs)

    return call


@contextmanager
def telling(address: str) -> Iterator[None]:
    """Say of what goes wrong at an address what the store means by it."""
    try:
        yield
    except (UserError, Unavailable, FileNotFoundError):
        raise
    except Exception as error:
        if is_remote(address) and (found := _refusal(address, error)):
            raise found from error
        raise


def _refusal(address: str, error: BaseException) -> Exception | None:
    scheme, path = address.split("://", 1)
    told: str = ""
    seen: BaseException | None = error
    while seen is not None:
        told, seen = f"{told}{type(seen).__name__}: {seen}\n", seen.__cause__ or seen.__context__
    for pattern, kind, meaning in _REFUSALS:
        if re.search(pattern, told, re.IGNORECASE):
            endpoint = os.environ.get("AWS_ENDPOINT_URL") if scheme == "s3" else None
            words = {
                "bucket": path.split("/")[0],
                "endpoint": endpoint or ("Amazon S3" if scheme == "s3" else "Google Cloud Storage"),
                "settings": "AWS_ENDPOINT_URL and the network" if endpoint else "the network",
                "credentials": _CREDENTIALS[scheme == "s3"],
            }
            return kind(f"{address}: {meaning.format(**words)}")
    return None


@dataclass(frozen=True)
class Stored:
    """A file as a listing shows it: `tag` changes with its content (an object's ETag, or when a local file was changed)."""

    address: str
    size_bytes: int
    tag: str


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
    if is_remote(address) and not address.split("/")[2]:
        raise UserError(f"storage: address {address!r} names no bucket; give one, as in {address.split('/')[0]}//bucket/folder")
    return address if is_remote(address) else str(Path(address).expanduser().resolve())


def resolve(address: str, quick: bool = False) -> tuple[pafs.FileSystem, str]:
    """File system and path of an address. Credentials and AWS_ENDPOINT_URL come from the environment.

    Args:
        quick: give up after seconds on a store that does not answer; work that is under way rather waits for minutes.
    """
    if address.startswith(_HUB):
        return pafs.PyFileSystem(pafs.FSSpecHandler(_hub())), address.removeprefix(_HUB)
    if not is_remote(address):
        return pafs.LocalFileSystem(), str(Path(address).expanduser().absolute())
    scheme, path = address.split("://", 1)
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if scheme == "s3" and endpoint:
        return pafs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=False), path
    if quick and scheme != "s3":
        return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=QUICK_SECONDS)), path
    return pafs.FileSystem.from_uri(address)


@_told
def exists(address: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = resolve(address)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


@_told
def is_file(address: str) -> bool:
    """Whether a file, and not a folder, is there; raises `UserError` where there is not even a bucket."""
    filesystem, path = resolve(address)
    found = filesystem.get_file_info(path).type
    if found == pafs.FileType.NotFound and is_remote(address):
        _check_bucket(address)
    return bool(found == pafs.FileType.File)


@_told
def is_folder(address: str) -> bool:
    """Whether a folder is there. The first question to a place: raises within seconds when there are no credentials, or no answer."""
    _check_credentials(address)
    filesystem, path = resolve(address, quick=True)
    return bool(filesystem.get_file_info(path).type == pafs.FileType.Directory)


@_told
def check_folder(address: str) -> None:
    """Raise `UserError` unless files can be written under a folder, which need not exist yet. Leaves nothing behind."""
    if is_remote(address):
        is_folder(address)
        filesystem, path = resolve(address, quick=True)
        probe = f"{path.rstrip('/')}/{uuid.uuid4().hex}.tmp"
        with filesystem.open_output_stream(probe, compression=None):
            pass
        filesystem.delete_file(probe)
        return
    place = folder = Path(resolve(address)[1])
    while not os.path.lexists(place):
        place = place.parent
    where = "" if place == folder else f"{folder}: "
    if not place.is_dir():
        raise UserError(f"{where}{place} is no folder, so nothing can be written under it; move it away or give another place")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"{where}{place} cannot be written to ({error.strerror}); give another place, or mend its permissions") from error


def check_file(address: str) -> None:
    """Raise `UserError` unless a file can be written at an address. Leaves nothing behind."""
    parent, _, name = address.rpartition("/")
    if not name or parent.endswith("/") or is_folder(address):
        raise UserError(f"{address}: names a folder; give the name of a file in it")
    check_folder(parent or "/")


@_told
def open_input(address: str) -> IO[bytes]:
    """A binary stream for reading."""
    filesystem, path = resolve(address)
    return filesystem.open_input_file(path)


@_told
def read_bytes(address: str) -> bytes:
    """The whole file."""
    with open_input(address) as stream:
        return stream.read()


@_told
def write_bytes(address: str, *parts: bytes | memoryview) -> None:
    """Write a file, the parts one after the other, atomically."""
    with open_output(address) as file:
        file.writelines(parts)


@contextmanager
def open_output(address: str) -> Iterator[IO[bytes]]:
    """A binary stream for writing. The file is there when the context ends without an exception, and not before; after an exception an object is removed, since
    closing its stream, which cannot be helped, publishes what was written."""
    if is_remote(address):
        with telling(address):
            filesystem, path = resolve(address)
            stream = filesystem.open_output_stream(path, compression=None)
        try:
            yield stream
        except BaseException:
            with suppress(OSError):
                stream.close()
                filesystem.delete_file(path)
            raise
        with telling(address):
            stream.close()
        return
    path = resolve(address)[1]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


@_told
def publish(local_folder: str | Path, address: str) -> None:
    """Copy the files of a local folder to an address, replacing files of the same name."""
    source = Path(local_folder)
    filesystem, target = resolve(address)
    filesystem.create_dir(target, recursive=True)
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        destination = f"{target}/{file.relative_to(source).as_posix()}"
        filesystem.create_dir(os.path.dirname(destination), recursive=True)
        pafs.copy_files(str(file), destination, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)


@_told
def remove(address: str) -> None:
    """Delete a folder and what is in it; nothing happens when it is not there."""
    filesystem, path = resolve(address)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)


@_told
def local_file(address: str) -> str:
    """A local path with the file's content: the file itself, or a copy in the cache of this machine. A replaced file is fetched anew."""
    return _local_copy(address, *resolve(address)) if is_remote(address) else address


@_told
def local_directory(address: str) -> str:
    """A local folder with the files of `address`: the folder itself, or a copy in the cache of this machine, fetched anew when a file has changed."""
    if not is_remote(address):
        return address
    filesystem, root = resolve(address)
    found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    return _local_copy(address, filesystem, root, *sorted(info.path for info in found if info.type == pafs.FileType.File))


def _local_copy(address: str, filesystem: pafs.FileSystem, root: str, *files: str) -> str:
    """A copy of a file, or of a folder with these files. Cost: one request for what is known of each file, and the copy once per machine."""
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda path: _state(filesystem, path), files or (root,)))
    key = hashlib.sha256(json.dumps([address, files, states]).encode()).hexdigest()[:24]

    def fetch(target: str) -> None:
        if files:
            os.mkdir(target)
        pafs.copy_files(root, target, source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem(), chunk_size=8 << 20)

    return local_copy(key, Path(address).name, sum(size for size, _ in states), fetch)


def _state(filesystem: pafs.FileSystem, path: str) -> tuple[int, str]:
    """Size, and what changes with the content: the object's ETag, or where there is none the time it was written."""
    with filesystem.open_input_file(path) as file:
        known = {name.lower(): value.decode() for name, value in file.metadata().items()}
        return file.size(), known.get("etag") or known["last-modified"]


@_told
def listing(pattern: str) -> list[Stored]:
    """The files a pattern matches (`*`, `?`, `**`), in the order of their names; an address without a wildcard is its own match if it exists.

    Cost: listings, not a request per file.
    """
    if is_remote(pattern):
        is_folder(re.split(r"[*?\[]", pattern)[0].rpartition("/")[0])  # says at once what fsspec would find out after many attempts
        scheme = pattern.split("://", 1)[0]
        endpoint = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]} if scheme == "s3" and "AWS_ENDPOINT_URL" in os.environ else {}
        filesystem = fsspec.filesystem("s3" if scheme == "s3" else "gcs", use_listings_cache=False, **endpoint)
        found = _stored(filesystem.glob(pattern, detail=True), f"{scheme}://")
        if not found:
            _check_bucket(pattern)
        return found
    if pattern.startswith(_HUB):
        return _stored(_hub().glob(pattern, detail=True), _HUB)
    return _stored(fsspec.filesystem("file").glob(str(Path(pattern).expanduser().absolute()), detail=True), "")


def stored(addresses: Sequence[str]) -> list[Stored]:
    """What a listing shows of some files, local or on the hub."""
    for folder in {address.rpartition("/")[0] for address in addresses if address.startswith(_HUB)}:
        _hub().ls(folder)  # keeps what it finds: one request for many files
    return [found for address in addresses for found in listing(glob_escape(address))]


def glob(pattern: str) -> list[str]:
    """The addresses of the files a pattern matches, as `listing` finds them."""
    return [found.address for found in listing(pattern)]


def _stored(found: dict[str, dict[str, Any]], scheme: str) -> list[Stored]:
    files = [(path, info) for path, info in sorted(found.items()) if info["type"] == "file" or (not scheme and os.path.isfile(path))]
    return [Stored(f"{scheme}{path}", int(info["size"] or 0), _tag(info)) for path, info in files]


def _tag(info: dict[str, Any]) -> str:
    """What changes with a file's content, in the words of each kind of store."""
    known = (info[name] for name in ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified") if info.get(name))
    return str(next(known, ""))


@cache
def _hub() -> Any:
    return fsspec.filesystem("hf", block_size=HUB_BLOCK_BYTES)


@_told
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


def _check_credentials(address: str) -> None:
    if address.startswith("s3://") and not _aws_credentials():
        raise UserError(f"{address}: no credentials found; {_CREDENTIALS[True]}")


def _check_bucket(address: str) -> None:
    """Raise `UserError` when nothing was found at an address because its bucket is not there, or was only looked for without credentials."""
    _check_credentials(address)
    filesystem, bucket = resolve("/".join(address.split("/")[:3]), quick=True)
    with suppress(OSError):  # who may read what is in a bucket need not be allowed to look at the bucket itself
        if filesystem.get_file_info(bucket).type == pafs.FileType.NotFound:
            raise UserError(f"{address}: {_NO_BUCKET.format(bucket=bucket)}")


def _aws_credentials() -> bool:
    """Whether there are any: pyarrow sends requests without, which a store may take for a stranger's and answer."""
    try:
        from botocore.session import get_session
    except ImportError:  # comes with the extra `cloud`; without it the store's own refusal is told
        return True
    return get_session().get_credentials() is not None
