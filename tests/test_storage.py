"""Addresses: local and S3 behave alike. The S3 server is moto's, on this machine."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from chameleon_ray import storage
from chameleon_ray.artifacts import Cost, Embeddings
from chameleon_ray.corpus.readers import read_part
from chameleon_ray.corpus.rows import Rows, open_shard, write_shard
from chameleon_ray.corpus.sources import parts_of, plan_sources
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.errors import UserError
from chameleon_ray.mixture import Mixture
from chameleon_ray.records import is_complete, once, read_record


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        return str(tmp_path / "runs")
    return storage.join(request.getfixturevalue("bucket"), tmp_path.name)


def test_files_and_folders(root: str, tmp_path: Path) -> None:
    (tmp_path / "made" / "inner").mkdir(parents=True)
    (tmp_path / "made" / "inner" / "file.txt").write_text("text")
    address = storage.join(root, "folder")
    assert not storage.exists(address)
    storage.publish(tmp_path / "made", address)
    assert storage.read_bytes(storage.join(address, "inner", "file.txt")) == b"text"
    assert (Path(storage.local_directory(address)) / "inner" / "file.txt").read_text() == "text"
    assert Path(storage.local_file(storage.join(address, "inner", "file.txt"))).read_text() == "text"
    assert [name.rsplit("/", 1)[1] for name in storage.glob(storage.join(address, "**", "*.txt"))] == ["file.txt"]
    (found,) = storage.listing(storage.join(address, "inner", "file.txt"))
    assert (found.size_bytes, bool(found.tag)) == (4, True)
    storage.remove(address)
    assert not storage.exists(storage.join(address, "inner", "file.txt"))


def test_artifacts_are_complete_when_their_record_is_there(root: str) -> None:
    sums, counts = np.random.default_rng(0).normal(size=(2, 32, 5)), np.ones((2, 32), np.int64)
    made = Embeddings(("a", "b"), sums, counts, 1, {"x": Cost(3, 4.0, 5.0)})
    address = storage.join(root, "embeddings", "x")
    assert not is_complete(address)
    with pytest.raises(UserError, match=r"no record\.json"):
        read_record(address)
    content = once(address, "embeddings", "x", lambda: made.save(address))
    assert is_complete(address)
    assert once(address, "embeddings", "x", lambda: pytest.fail("made twice")) == content
    found = Embeddings.load(address)
    assert np.array_equal(found.group_sums, sums)
    assert found.ledger == made.ledger
    mixture = Mixture("fixed", {"a": 0.25, "b": 0.75})
    mixture.save(storage.join(root, "mixture.json"))
    assert Mixture.load(storage.join(root, "mixture.json")) == mixture


def test_shards_come_back_bit_by_bit(root: str) -> None:
    tokens = np.random.default_rng(1).integers(0, 60000, (7, 16)).astype(np.uint16)
    rows = Rows(tokens, np.full(7, 16, np.int32), np.arange(7) * 3)
    address = storage.join(root, "train", "a%20b", "shard-00000.arrow")
    write_shard(address, "a b", rows)
    found = open_shard(address)
    assert np.array_equal(found.tokens, tokens)
    assert np.array_equal(found.document, rows.document)


def test_text_is_read_from_anywhere(root: str) -> None:
    lines = "\n".join(json.dumps({"text": f"document {i}"}) for i in range(5)) + "\n"
    storage.write_bytes(storage.join(root, "text", "part-0.jsonl.gz"), gzip.compress(lines.encode()))
    config = CorpusConfig.model_validate({"domains": {"a": {"files": [storage.join(root, "text", "*.jsonl.gz")]}}})
    (part,) = parts_of(plan_sources(config))
    assert [getattr(found, "text", found) for found in read_part(part, "text")] == [f"document {i}" for i in range(5)]


def test_fingerprint_tells_content_not_place(root: str) -> None:
    for name, data in (("a", b"same"), ("b", b"same"), ("c", b"other")):
        storage.write_bytes(storage.join(root, name), data)
    first, second, third = (storage.fingerprint(storage.join(root, name)) for name in "abc")
    assert first == second != third


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder" / "file"
    storage.write_bytes(str(target), b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(str(target), "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_what_is_interrupted_on_the_way_is_not_there(root: str) -> None:
    address = f"{root}/half/file"
    with pytest.raises(KeyboardInterrupt), storage.open_output(address) as file:
        file.write(bytes(12 << 20))
        raise KeyboardInterrupt
    assert not storage.exists(address)
    with storage.open_output(address) as file:
        file.write(b"whole")
    assert storage.read_bytes(address) == b"whole"


def test_what_is_refused_while_it_is_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def writelines(self, parts: object) -> None:
            raise OSError("When uploading part: AWS Error ACCESS_DENIED during UploadPart operation: Access Denied")

        def close(self) -> None:
            pass

    filesystem = SimpleNamespace(open_output_stream=lambda *_, **__: Refusing(), delete_file=lambda _: None)
    monkeypatch.setattr(storage, "resolve", lambda address: (filesystem, "bucket/file"))
    with pytest.raises(UserError, match=r"s3://bucket/file: access denied"):
        storage.write_bytes("s3://bucket/file", b"x")


def test_addresses_that_are_not_supported() -> None:
    with pytest.raises(UserError, match=r"storage: address 'hdfs://x' is not supported"):
        storage.absolute("hdfs://x")
    for address in ("s3://", "s3:///runs", "gs://"):
        with pytest.raises(UserError, match=rf"storage: address '{address}' names no bucket; give one, as in {address[:2]}://bucket/folder"):
            storage.absolute(address)


def test_a_file_that_is_not_there_is_told_from_a_bucket_that_is_not(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not storage.is_file(storage.join(bucket, "nothing"))
    with pytest.raises(UserError, match=r"^s3://nowhere-bucket/nothing: there is no bucket 'nowhere-bucket'"):
        storage.is_file("s3://nowhere-bucket/nothing")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"nothing: no credentials found; set AWS_ACCESS_KEY_ID"):
        storage.is_file(storage.join(bucket, "nothing"))


def test_the_words_of_the_library_stay_as_the_cause(bucket: str) -> None:
    with pytest.raises(UserError) as refusal:
        storage.write_bytes("s3://nowhere-bucket/file", b"text")
    assert str(refusal.value) == "s3://nowhere-bucket/file: there is no bucket 'nowhere-bucket'; create it or correct the address"
    assert "NO_SUCH_BUCKET" in str(refusal.value.__cause__)
