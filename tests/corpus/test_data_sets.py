"""Hugging Face data sets, in a local folder of the layout of the hub."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chameleon_ray.corpus.documents import Document
from chameleon_ray.corpus.sources import manifest, parts_of, plan_sources
from chameleon_ray.errors import UserError
from tests.corpus.test_sources import corpus_of, json_lines, plan, read, texts, write


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(params=["parquet", "jsonl", "csv"])
def hub_folder(request: pytest.FixtureRequest, tmp_path: Path, offline: None) -> Path:
    """Two files of five records, whose domains alternate, in the layout of the hub; CSV is for `datasets` to read."""
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    for shard in range(2):
        records = [{"text": f"text {shard}{i}", "meta": {"source": "wiki" if i % 2 else "book"}} for i in range(5)]
        path = folder / "data" / f"train-{shard:05d}-of-00002.{request.param}"
        if request.param == "parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
        elif request.param == "csv":
            path.write_text("text,meta.source\n" + "".join(f"{record['text']},{record['meta']['source']}\n" for record in records))  # type: ignore[index]
        else:
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_a_data_set_with_a_domain_column(hub_folder: Path) -> None:
    settings = {"huggingface": str(hub_folder), "domain_column": "meta.source"}
    (source,) = plan_sources(corpus_of(domains_from=settings))
    kind = "stream" if list(hub_folder.rglob("*.csv")) else "files"
    assert (source.origin.domain, source.origin.kind, len(source.files)) == (None, kind, 2)
    assert source.files[0].fingerprint != source.files[1].fingerprint
    expected = [Document("wiki" if i % 2 else "book", False, f"text {shard}{i}") for shard in range(2) for i in range(5)]
    assert read(pickle.loads(pickle.dumps(parts_of([source])))) == expected
    (only,) = plan_sources(corpus_of(domains_from={**settings, "only": ["wiki"]}))
    assert read(parts_of([only])) == [document for document in expected if document.domain == "wiki"]
    assert json.loads(json.dumps(manifest(only, only.files)))


def test_files_with_a_domain_column(hub_folder: Path) -> None:
    if list(hub_folder.rglob("*.csv")):
        pytest.skip("no format of ours")
    parts = plan(corpus_of(domains_from={"files": [f"{hub_folder}/data/*"], "domain_column": "meta.source"}))
    assert read(parts) == [Document("wiki" if i % 2 else "book", False, f"text {shard}{i}") for shard in range(2) for i in range(5)]


def test_a_data_set_per_domain(hub_folder: Path, tmp_path: Path) -> None:
    heldout = write(tmp_path / "valid.jsonl", json_lines(["held out"]))
    sources = plan_sources(corpus_of({"whole": {"huggingface": {"path": str(hub_folder)}, "heldout": [str(heldout)]}}))
    items = read(parts_of(sources))
    assert texts(items) == [f"text {shard}{i}" for shard in range(2) for i in range(5)] + ["held out"]
    assert {item.domain for item in items} == {"whole"}
    assert [item.heldout for item in items if isinstance(item, Document)] == [False] * 10 + [True]
    moved = plan_sources(corpus_of({"whole": {"huggingface": {"path": str(hub_folder.rename(tmp_path / "moved"))}}}))
    assert [source.fingerprint for source in moved] == [sources[0].fingerprint], "the fingerprint follows the content, not the path"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"split": "nope"},
            r"^corpus\.domains_from\.huggingface: .* cannot be opened \(datasets: Bad split: nope.*train.*\); correct path, name, data_dir, split",
        ),
        ({"name": "nope"}, r"cannot be opened \(datasets: BuilderConfig 'nope' not found"),
        ({"huggingface": "/no/such/folder"}, r"'/no/such/folder' cannot be opened \(datasets: Couldn't find"),
        ({"huggingface": "nobody/nothing"}, r"'nobody/nothing' cannot be opened \(datasets: "),
    ],
)
def test_a_data_set_that_cannot_be_opened(hub_folder: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(corpus_of(domains_from={"huggingface": str(hub_folder), "domain_column": "meta.source", **settings}))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"text": "a", "domain": "x"}\n{"text": "b", "domain": null}\n', r"a\.jsonl:2: 'domain' holds no domain name"),
        (b'{"text": "a", "domain": "x"}\n{"text": "b", "domain": "all"}\n', r"a\.jsonl:2: 'domain' holds 'all': 'all' names the average over domains"),
        (
            b'{"text": "a", "domain": "x"}\n{"text": "b", "domain": 3}\n',
            r"a\.jsonl:2: 'domain' holds int, not a string; set corpus\.domains_from\.domain_column",
        ),
        (b'{"text": "a", "source": "x"}\n', r"a\.jsonl:1: no 'domain', found text, source; set corpus\.domains_from\.domain_column"),
        (b'{"body": "a", "domain": "x"}\n', r"a\.jsonl:1: no 'text', found body, domain; set corpus\.text_column"),
        (b'{"text": "a", "domain": "x"}\n{"text": nope}\n', r"a\.jsonl:2: not JSON"),
    ],
)
def test_a_wrong_record_of_a_data_set_is_named(tmp_path: Path, offline: None, lines: bytes, message: str) -> None:
    write(tmp_path / "hub" / "a.jsonl", lines)
    with pytest.raises(UserError, match=message):
        read(plan(corpus_of(domains_from={"huggingface": str(tmp_path / "hub"), "domain_column": "domain"})))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("text,domain\na,x\nb,\n", r"hub, split train, shard 0 of 1, row 2: 'domain' holds no domain name"),
        ("text,source\na,x\n", r"shard 0 of 1: no 'domain', found text, source; set corpus\.domains_from\.domain_column"),
        ("body,domain\na,x\n", r"shard 0 of 1: no 'text', found body, domain; set corpus\.text_column"),
        ('text,domain\n"a,x\n', r"hub, split train, shard 0 of 1: not readable \(datasets: "),
    ],
)
def test_a_wrong_record_of_a_stream_is_named(tmp_path: Path, offline: None, rows: str, message: str) -> None:
    write(tmp_path / "hub" / "a.csv", rows.encode())
    with pytest.raises(UserError, match=message):
        read(plan(corpus_of(domains_from={"huggingface": str(tmp_path / "hub"), "domain_column": "domain"})))


@pytest.mark.parametrize("content", ['[\n{"text": "a"},\n{"text": "b"}\n]\n', '[{"text": "a"}, {"text": "b"}]'])
def test_json_that_is_no_lines_is_left_to_datasets(tmp_path: Path, offline: None, content: str) -> None:
    write(tmp_path / "hub" / "a.json", content.encode())
    (source,) = plan_sources(corpus_of({"web": {"huggingface": {"path": str(tmp_path / "hub")}}}))
    assert source.origin.kind == "stream"
    assert texts(read(parts_of([source]))) == ["a", "b"]
