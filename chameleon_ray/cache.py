"""Copies of remote files, and what else need not be found out twice on this machine, shared by all its processes, and bounded.

A copy lies in a folder named by the address and the content's tag (`key`) and its size, so that a replaced file is another copy. It is fetched under
another name and renamed when complete: what ends in `.partial` and that no process is fetching is rubbish, and the next fetch of anything removes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chameleon_ray.errors import Unavailable, UserError

SHARE_OF_DISK = 0.25
ROOM = 0.1
GRACE_SECONDS = 600.0
HASHED_EACH_TIME_BYTES = 64 << 20
_COPY = re.compile(r"(?P<key>[0-9a-f]{24})-(?P<size>\d+)(?P<partial>\.\w+\.partial)?")


def local_copy(key: str, name: str, size_bytes: int, fetch: Callable[[str], None]) -> str:
    """The path of a copy, fetched if it is not there.

    Args:
        key: 24 hexadecimal digits of address and content.
        name: of the file or folder.
        size_bytes: of the file, or of all files in the folder; what has another size is damaged and fetched again.
        fetch: writes the content to the path it is given. One process at a time is asked for the same copy.
    Raises:
        UserError: the cache cannot be written to or is full.
        Unavailable: the content changed while it was fetched.
    Cost: a lock and one `stat` per file when it is there. When the bound is passed, the copies that were used longest ago go first; those used in the
    last ten minutes stay, since a process may be about to open them. A file that is open or mapped stays readable, and on the disk, until it is closed.
    """
    cache = _usable()
    copy = cache / f"{key}-{size_bytes}"
    if _use(cache, copy, size_bytes):
        return str(copy / name)
    _make_room(cache, size_bytes)
    with _locked(cache, key[:2]):
        if not _use(cache, copy, size_bytes):  # else another process was faster
            partial = Path(tempfile.mkdtemp(dir=cache, prefix=f"{copy.name}.", suffix=".partial"))
            try:
                fetch(str(partial / name))
                _keep(cache, partial, copy, size_bytes)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise UserError(f"CHAMELEON_CACHE: no space left in {cache} for {size_bytes:,} bytes; free some, or set CHAMELEON_CACHE elsewhere") from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return str(copy / name)


def content_hash(path: str) -> str:
    """sha256 of all that is in a file on this machine: the same for a copy of it anywhere.

    Cost: some seconds per GB, once: that of a file beyond 64 MiB is kept in the cache of this machine until the file is written or replaced.
    """
    state = os.stat(path)

    def hashed() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def keep(target: str) -> None:
        Path(target).write_text(hashed())

    if state.st_size <= HASHED_EACH_TIME_BYTES:
        return hashed()
    what = ["sha256", os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
    return Path(local_copy(key, "sha256", 64, keep)).read_text()


def check_cache() -> None:
    """Raise `UserError` unless copies can be made on this machine."""
    cache = _usable()
    _bound_bytes(cache)


def _usable() -> Path:
    """The folder of the copies, made if need be."""
    base = os.environ.get("CHAMELEON_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "chameleon_ray")
    cache = Path(base).absolute()
    try:
        (cache / "locks").mkdir(parents=True, exist_ok=True)
        with _locked(cache, "all"):
            return cache
    except OSError as error:
        found = f"{cache} cannot be used for what is kept on this machine ({error.strerror})"
        raise UserError(f"CHAMELEON_CACHE: {found}; set it to a folder on this machine that can be written to") from error


def _bound_bytes(cache: Path) -> int:
    given = os.environ.get("CHAMELEON_CACHE_BYTES", "")
    if not given:
        return int(SHARE_OF_DISK * shutil.disk_usage(cache).total)
    if not given.isascii() or not given.isdigit():
        raise UserError(f"CHAMELEON_CACHE_BYTES: {given!r} is no number of bytes; give one such as 20000000000, or unset it for a quarter of the disk")
    return int(given)


@contextmanager
def _locked(cache: Path, name: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold one of a few lock files, which are never removed: `all` while copies appear, are used or go, two digits while a key with them is fetched.

    The system gives a lock back when its process dies.
    """
    descriptor = os.open(cache / "locks" / name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, kind)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing would not, while a forked child has the descriptor too
    finally:
        os.close(descriptor)


def _use(cache: Path, copy: Path, size_bytes: int) -> bool:
    """Whether the copy is there and whole; if so it counts as used now."""
    with _locked(cache, "all", fcntl.LOCK_SH):
        if not copy.is_dir() or _size_bytes(copy) != size_bytes:
            return False
        os.utime(copy)
        return True


def _keep(cache: Path, partial: Path, copy: Path, size_bytes: int) -> None:
    """Give a fetched copy its name, in the place of a damaged one."""
    if _size_bytes(partial) != size_bytes:
        (content,) = partial.iterdir()
        raise Unavailable(f"{content.name}: other than {size_bytes:,} bytes were fetched, so it is being replaced or a transfer broke; try again")
    with _locked(cache, "all"):
        if copy.exists():
            shutil.rmtree(copy)
        os.rename(partial, copy)


def _make_room(cache: Path, size_bytes: int) -> None:
    """Remove what killed processes left, and, when `size_bytes` more would pass the bound, what was used longest ago."""
    bound = _bound_bytes(cache)
    doomed = []
    with _locked(cache, "all"):
        found = [match for name in os.listdir(cache) if (match := _COPY.fullmatch(name))]
        rubbish = {match[0] for match in found if match["partial"] and _is_left_over(cache, match["key"])}
        total = size_bytes + sum(int(match["size"]) for match in found if match[0] not in rubbish)
        if total > bound:
            used = sorted(((cache / match[0]).stat().st_mtime, match[0], int(match["size"])) for match in found if not match["partial"])
            for last_use, name, size in used:
                if total <= (1 - ROOM) * bound or last_use > time.time() - GRACE_SECONDS:
                    break
                doomed.append((cache / name).rename(cache / f"{name}.{uuid.uuid4().hex}.partial"))
                total -= size
    for path in (*(cache / name for name in rubbish), *doomed):
        shutil.rmtree(path, ignore_errors=True)


def _is_left_over(cache: Path, key: str) -> bool:
    """Whether no process is fetching a key."""
    with suppress(BlockingIOError), _locked(cache, key[:2], fcntl.LOCK_EX | fcntl.LOCK_NB):
        return True
    return False


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
