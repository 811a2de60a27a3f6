"""Places that cannot be used: storage, --out, files and the cache. One line that names the setting, exit status 2, nothing left behind."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from chameleon_ray import storage
from chameleon_ray.cli import main
from tests.experiments import Refused, document, edited


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No credentials anywhere: none in the environment, no home, no instance metadata."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        if name != "AWS_ENDPOINT_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    return monkeypatch


NO_BUCKET = "there is no bucket 'nowhere-bucket'; create it or correct the address"
NO_CREDENTIALS = "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
NO_ANSWER = "http://127.0.0.1:9 does not answer; check AWS_ENDPOINT_URL and the network"


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*")) - {folder / "experiment.yaml"}


def refused_for_a_place(refused: Refused, folder: Path, place: str, address: str) -> str:
    """Compare with a bad address at a place of the experiment file, or --out; checks that nothing is left behind."""
    content = document(folder)
    arguments = ["mix", "--out", address, "--method", "uniform"] if place == "--out" else ["compare"]
    if place != "--out":
        edited(content, place, [address] if place.endswith("files") else address)
    before = tree(folder)
    message = refused(*arguments, content=content)
    assert tree(folder) == before
    return message


PLACES = [("storage", "storage: s3://{}/runs"), ("--out", "--out: s3://{}"), ("corpus/domains/web/files", "corpus.domains.web.files[0]: s3://{}")]


@pytest.mark.parametrize(("place", "start"), PLACES)
@pytest.mark.parametrize(
    ("name", "endpoint", "expected"),
    [
        ("nowhere-bucket", None, NO_BUCKET),
        ("chameleon-test", "http://127.0.0.1:9", NO_ANSWER),
    ],
    ids=["bucket", "endpoint"],
)
def test_object_storage_that_refuses(
    refused: Refused,
    tmp_path: Path,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    start: str,
    name: str,
    endpoint: str | None,
    expected: str,
) -> None:
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    message = refused_for_a_place(refused, tmp_path, place, f"s3://{name}/runs" if place == "storage" else f"s3://{name}/file.jsonl")
    assert message.startswith(start.format(name))
    assert message.endswith(expected)


@pytest.mark.parametrize(("place", "start"), PLACES)
def test_object_storage_without_credentials(refused: Refused, tmp_path: Path, bucket: str, stranger: pytest.MonkeyPatch, place: str, start: str) -> None:
    address = "s3://chameleon-test/runs" if place == "storage" else "s3://chameleon-test/file.jsonl"
    message = refused_for_a_place(refused, tmp_path, place, address)
    assert message.startswith(start.format("chameleon-test"))
    assert message.endswith(NO_CREDENTIALS)


def test_instance_metadata_that_never_answers_costs_seconds(refused: Refused, tmp_path: Path, bucket: str, stranger: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stranger.delenv("AWS_EC2_METADATA_DISABLED")
        stranger.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert NO_CREDENTIALS in refused_for_a_place(refused, tmp_path, "storage", "s3://chameleon-test/runs")
        assert time.monotonic() - started < 20


def test_nothing_is_left_in_a_bucket_by_the_checks(refused: Refused, tmp_path: Path, bucket: str) -> None:
    content = edited(document(tmp_path), "corpus/domains/web/files", ["nowhere/*.jsonl"])
    before = storage.glob("s3://chameleon-test/**")
    refused("mix", "--method", "uniform", "--out", "s3://chameleon-test/mixture.json", content=content)
    assert storage.glob("s3://chameleon-test/**") == before


@pytest.mark.parametrize("place", ["storage", "--out"])
@pytest.mark.parametrize("under", ["", "/some/where"])
def test_a_file_is_no_folder(refused: Refused, tmp_path: Path, place: str, under: str) -> None:
    (tmp_path / "taken").write_text("a file")
    address = f"{tmp_path}/taken{under}" if place == "storage" else f"{tmp_path}/taken{under}/mixture.json"
    message = refused_for_a_place(refused, tmp_path, place, address)
    assert message.startswith(f"{place}: {tmp_path}/taken")
    assert message.endswith(f"{tmp_path}/taken is no folder, so nothing can be written under it; move it away or give another place")


@pytest.mark.parametrize("place", ["storage", "--out"])
@pytest.mark.parametrize("under", ["", "/some/where"])
def test_a_place_that_cannot_be_written_to(refused: Refused, tmp_path: Path, read_only: Path, place: str, under: str) -> None:
    message = refused_for_a_place(refused, tmp_path, place, f"{read_only}{under}" if place == "storage" else f"{read_only}{under}/mixture.json")
    assert message.startswith(f"{place}: {read_only}")
    assert message.endswith(f"{read_only} cannot be written to (Read-only file system); give another place, or mend its permissions")


@pytest.mark.parametrize("command", [["mix"], ["extend", "--proxy", "nowhere", "--corpus", "nowhere.yaml"]])
def test_out_that_is_a_folder(refused: Refused, tmp_path: Path, command: list[str]) -> None:
    assert refused(*command, "--out", str(tmp_path)) == f"--out: {tmp_path}: names a folder; give the name of a file in it"


def test_out_is_checked_before_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["regmix", "fit", "--ratios", "nowhere.csv", "--metrics", "nowhere.csv", "--target", "a", "--out", str(tmp_path)])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"error: --out: {tmp_path}: names a folder; give the name of a file in it\n"


def test_a_read_only_cache_is_found_before_work(refused: Refused, bucket: str, tmp_path: Path, read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_CACHE", str(read_only / "cache"))
    message = refused("compare", content=edited(document(tmp_path), "storage", f"{bucket}/cache"))
    assert message.startswith(f"CHAMELEON_CACHE: {read_only}/cache cannot be used for what is kept on this machine (Read-only file system)")
