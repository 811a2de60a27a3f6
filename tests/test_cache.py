"""The cache of remote files: replaced content is seen, the size is bounded, and processes, also killed ones, do not harm each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chameleon_ray import cache, storage
from chameleon_ray.cache import check_cache, local_copy
from chameleon_ray.errors import Unavailable, UserError, as_user_error

KEYS = [f"{i:02x}" * 12 for i in range(8)]
REPOSITORY = Path(__file__).resolve().parents[1]

# Fetches one copy of 5 bytes; writes a line to `fetches` when it is asked to, and waits in the middle of it while the file `wait` is there.
FETCH = """
import os, sys, time
from pathlib import Path
from chameleon_ray.cache import local_copy

key, folder = sys.argv[1], Path(sys.argv[2])

def fetch(target):
    with open(folder / "fetches", "a") as log:
        log.write(f"{os.getpid()}\\n")
    with open(target, "wb") as file:
        file.write(b"he")
        file.flush()
        while (folder / "wait").exists():
            time.sleep(0.01)
        file.write(b"llo")

assert Path(local_copy(key, "file", 5, fetch)).read_bytes() == b"hello"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the copies."""
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def copies(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir() if path.name != "locks")


def make(key: str, content: bytes = b"0123456789") -> Path:
    return Path(local_copy(key, "file", len(content), lambda target: Path(target).write_bytes(content) and None))


def start(key: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", FETCH, key, str(folder)], cwd=REPOSITORY)


def wait_for_fetches(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not (folder / "fetches").exists() or len((folder / "fetches").read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_replaced_file_is_seen(home: Path, bucket: str) -> None:
    address = storage.join(bucket, "replaced", "file.bin")
    storage.write_bytes(address, b"old!")
    first = storage.local_file(address)
    assert storage.local_file(address) == first
    storage.write_bytes(address, b"new!")  # same size, most likely within the same second
    assert Path(storage.local_file(address)).read_bytes() == b"new!"
    assert Path(first).read_bytes() == b"old!"  # who opens the old one now finds it


def test_a_replaced_model_is_seen(home: Path, bucket: str) -> None:
    address = storage.join(bucket, "model")
    for name in ("config.json", "inner/model.safetensors"):
        storage.write_bytes(storage.join(address, name), b"one")
    first = Path(storage.local_directory(address))
    assert storage.local_directory(address) == str(first)
    storage.write_bytes(storage.join(address, "inner", "model.safetensors"), b"two")
    second = Path(storage.local_directory(address))
    assert (second / "inner" / "model.safetensors").read_bytes() == b"two"
    assert (second / "config.json").read_bytes() == b"one"
    storage.write_bytes(storage.join(address, "extra"), b"")
    assert (Path(storage.local_directory(address)) / "extra").read_bytes() == b""


def test_a_folder_without_folders(home: Path, bucket: str) -> None:
    address = storage.join(bucket, "flat")
    storage.write_bytes(storage.join(address, "tokenizer.json"), b"{}")
    assert (Path(storage.local_directory(address)) / "tokenizer.json").read_bytes() == b"{}"


def test_the_least_recently_used_goes_first_and_recent_ones_stay(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_CACHE_BYTES", "40")
    for age, key in enumerate(KEYS[:4]):
        os.utime(make(key).parent, (0, 1000 - age))
    make(KEYS[3])  # is there, and counts as used now
    assert len(copies(home)) == 4
    make(KEYS[4])
    assert copies(home) == sorted(f"{key}-10" for key in (KEYS[0], KEYS[3], KEYS[4]))  # down to nine tenths of the bound
    for key in KEYS[5:]:
        make(key)
    assert copies(home) == sorted(f"{key}-10" for key in KEYS[3:])  # over the bound: all were used within the last ten minutes
    monkeypatch.setattr(cache, "GRACE_SECONDS", -1.0)
    make(KEYS[0])
    assert len(copies(home)) == 3


def test_a_mapped_copy_outlives_its_eviction(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmap

    monkeypatch.setenv("CHAMELEON_CACHE_BYTES", "10")
    monkeypatch.setattr(cache, "GRACE_SECONDS", -1.0)
    with open(make(KEYS[0]), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        make(KEYS[1])
        assert copies(home) == [f"{KEYS[1]}-10"]
        assert mapped[:] == b"0123456789"


def test_a_damaged_copy_is_fetched_again(home: Path) -> None:
    make(KEYS[0]).write_bytes(b"0123")
    assert make(KEYS[0]).read_bytes() == b"0123456789"


def test_what_changes_while_it_is_fetched_is_not_kept(home: Path) -> None:
    with pytest.raises(Unavailable, match="file: other than 11 bytes were fetched"):
        local_copy(KEYS[0], "file", 11, lambda target: Path(target).write_bytes(b"short") and None)
    assert copies(home) == []


def test_several_processes_fetch_once(home: Path, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    processes = [start(KEYS[0], tmp_path) for _ in range(4)]
    wait_for_fetches(tmp_path, 1)
    (tmp_path / "wait").unlink()
    assert [process.wait(60) for process in processes] == [0] * 4
    assert len((tmp_path / "fetches").read_text().splitlines()) == 1
    assert copies(home) == [f"{KEYS[0]}-5"]


@pytest.mark.parametrize("next_key", [KEYS[0], "ff" * 12], ids=["the same file", "another file"])
def test_what_a_killed_fetch_left_is_removed_by_the_next(home: Path, tmp_path: Path, next_key: str) -> None:
    (tmp_path / "wait").touch()
    killed, alive = start(KEYS[0], tmp_path), start("ee" * 12, tmp_path)
    wait_for_fetches(tmp_path, 2)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    assert len(copies(home)) == 2
    make(next_key)
    assert copies(home)[-1 if next_key == KEYS[0] else 0].endswith(".partial")  # the other process goes on
    (tmp_path / "wait").unlink()
    assert alive.wait(60) == 0
    assert copies(home) == sorted([f"{next_key}-10", f"{'ee' * 12}-5"])


def test_other_files_in_the_folder_are_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    (home / "mine.partial").write_text("mine")
    (home / "0123456789").mkdir()
    monkeypatch.setenv("CHAMELEON_CACHE_BYTES", "1")
    monkeypatch.setattr(cache, "GRACE_SECONDS", -1.0)
    make(KEYS[0])
    make(KEYS[1])
    assert copies(home) == sorted(["mine.partial", "0123456789", f"{KEYS[1]}-10"])


def test_a_cache_that_cannot_be_written_to(read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHAMELEON_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(read_only))
    with pytest.raises(UserError) as refusal:
        make(KEYS[0])
    expected = f"CHAMELEON_CACHE: {read_only}/.cache/chameleon_ray cannot be used for what is kept on this machine (Read-only file system); set it to a folder"
    assert str(refusal.value).startswith(expected)


def test_a_full_cache_is_a_mistake_the_user_can_mend(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_CACHE", str(small_disk / "cache"))
    with pytest.raises(UserError, match=r"^CHAMELEON_CACHE: no space left in .* for 2,000,000 bytes; free some"):
        make(KEYS[0], bytes(2_000_000))
    assert copies(small_disk / "cache") == []


@pytest.mark.parametrize("value", ["many", "-1", "1e9", "²"])
def test_a_bound_that_is_no_number(home: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CHAMELEON_CACHE_BYTES", value)
    with pytest.raises(UserError, match=rf"^CHAMELEON_CACHE_BYTES: '{value}' is no number of bytes"):
        check_cache()


def test_what_is_unavailable_is_tried_again_by_tasks_and_told_in_the_end() -> None:
    from chameleon_ray.errors import as_outcome

    def task() -> dict[str, str]:
        raise Unavailable("s3://here: does not answer")

    with pytest.raises(Unavailable):
        as_outcome(task)
    assert str(as_user_error(Unavailable("s3://here: does not answer"))) == "s3://here: does not answer"
