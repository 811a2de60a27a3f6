"""What tests of several parts share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chameleon_ray.cli import main
from chameleon_ray.ray_backend import RayBackend
from tests.experiments import Refused, document

RAY = "tests/ray/"


def pytest_configure() -> None:
    """Processes side by side share the cores, and models of tests are too small for several threads."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what shares the Ray session: of several processes one has it to do, and it takes longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(RAY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: the tests of a file run in one process, and so do all that share the Ray session."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return RAY if nodeid.startswith(RAY) else str(super()._split_scope(nodeid))

    return ByFile(config, log)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; skips where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # lazy: the exception that a test keeps may hold files open


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder of a read-only file system; skips where none can be mounted. Permissions alone would not hold against root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("a read-only file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An address on an S3 server of our own on the loopback interface, with credentials for it in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="chameleon-test")
        yield "s3://chameleon-test/runs"
    server.stop()


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail as the contract says, before Ray starts; returns the message."""
    monkeypatch.setattr(RayBackend, "_ray", property(lambda self: pytest.fail("Ray was reached: the mistake was not found before")))

    def run(command: str, *arguments: str, content: Any = None, text: str | None = None) -> str:
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(document(tmp_path) if content is None else content, sort_keys=False) if text is None else text)
        with pytest.raises(SystemExit) as exit_:
            main([command, str(file), *arguments])
        captured = capsys.readouterr()
        assert exit_.value.code == 2
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert not list(tmp_path.rglob("record.json"))
        return captured.err.removeprefix("error: ").strip()

    return run
