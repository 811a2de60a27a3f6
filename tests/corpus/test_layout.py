"""However large a corpus is, no task, list or folder grows with it beyond its share; and a corpus cut into slices is the corpus."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from chameleon_ray import storage
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import Resources
from chameleon_ray.corpus import buckets, gather, layout, ray_tokenize
from chameleon_ray.corpus.buckets import SPLITS_OF_A_SLICE, Contents
from chameleon_ray.corpus.layout import LANE_BYTES, MAX_OPEN, MAX_RUNS, REST_BYTES, SHARD_BYTES, Lanes, Layout
from chameleon_ray.corpus.pieces import PieceWriter, read_pieces, write_pieces
from chameleon_ray.corpus.ray_read import MAX_GROUPS, MOST_GROUP_BYTES
from chameleon_ray.corpus.ray_tasks import WAVE_TASKS
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.corpus.tokenizer import load_tokenizer
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend

TERA = 10**12


def words(seed: int, count: int) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(300, size=count))


def write_corpus(folder: Path, domains: int, documents: int, length: int) -> dict[str, Any]:
    """Documents that begin with a number of their own, as files of domains."""
    folder.mkdir()
    for domain in range(domains):
        lines = [json.dumps({"text": f"doc{domain:03d}{i:05d} {words(1000 * domain + i, length)}"}) for i in range(documents)]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    return {f"d{domain}": {"files": [str(folder / f"{domain}.jsonl")]} for domain in range(domains)}


def tokenized(folder: Path, domains: dict[str, Any]) -> TokenCorpus:
    content = {"domains": domains, "tokenizer": {"train": {"vocab_size": 400, "bytes_per_domain": 2000}}, "row_tokens": 16, "heldout_tokens": 300}
    return RayBackend(str(folder), Resources(), Reporter.silent()).tokenize(CorpusConfig.model_validate(content), 0)


def tokens_of(corpus: TokenCorpus, split: str, name: str) -> Counter[int]:
    """How often each token is in a split."""
    rows = RowReader(corpus, split).read(name, np.arange(corpus.rows(split)[name]))
    return Counter(np.concatenate([row[:length] for row, length in zip(rows.tokens, rows.length, strict=True)]).tolist() if len(rows) else [])


def test_slices_change_nothing_but_the_order_of_the_rows(tmp_path: Path, in_process: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    domains = write_corpus(tmp_path / "texts", 3, 120, 60)
    domains["small"] = {"files": [str(tmp_path / "small.jsonl")]}
    (tmp_path / "small.jsonl").write_text("".join(json.dumps({"text": f"small {i} {words(i, 12)}"}) + "\n" for i in range(9)))
    one = tokenized(tmp_path / "one", domains)
    monkeypatch.setattr(layout, "BUCKET_BYTES", 4 << 10)
    monkeypatch.setattr(layout, "MAX_OPEN", 5)
    monkeypatch.setattr(layout, "SHARD_BYTES", 2 << 10)
    monkeypatch.setattr(layout, "LANE_BYTES", 5 << 10)
    monkeypatch.setattr(layout, "REST_BYTES", 8 << 10)
    many = tokenized(tmp_path / "many", domains)
    cut = Layout.of(sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl")))
    assert cut.slices > 3
    assert len(many.domains["d0"].train.shard_rows) > 2 * cut.slices
    for name in one.names:
        first, second = one.domains[name], many.domains[name]
        assert (first.train.documents, first.train.tokens, first.duplicates) == (second.train.documents, second.train.tokens, second.duplicates)
        for split in ("valid", "test"):
            assert first.split(split) == second.split(split)
            assert tokens_of(one, split, name) == tokens_of(many, split, name)
        assert 0 <= first.train.tokens - 16 * first.train.rows < 16
        assert 0 <= second.train.tokens - 16 * second.train.rows < 16, "less than a row is lost, whatever the slices"
        assert second.unigram_entropy_nats == pytest.approx(first.unigram_entropy_nats, abs=0.01)
        assert not (tokens_of(many, "train", name) - tokens_of(one, "train", name)).total() > 16


@pytest.mark.parametrize("where", ["tokenize_buckets", "condense_rest", "gather_lane", "gather_rest", "measure_quality"])
def test_an_interrupted_corpus_goes_on_with_what_is_missing(
    where: str, tmp_path: Path, in_process: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("BUCKET_BYTES", 4 << 10), ("MAX_OPEN", 5), ("SHARD_BYTES", 2 << 10), ("LANE_BYTES", 5 << 10), ("REST_BYTES", 8 << 10)):
        monkeypatch.setattr(layout, name, value)
    domains = write_corpus(tmp_path / "texts", 2, 120, 60)
    whole = tokenized(tmp_path / "whole", domains)
    task, calls = getattr(ray_tokenize, where), itertools.count()

    def cut_off(*arguments: Any) -> Any:
        if next(calls) == (where not in ("gather_rest", "measure_quality")):  # after one of many, or before
            raise KeyboardInterrupt
        return task(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ray_tokenize, where, cut_off)
        tokenized(tmp_path / "cut", domains)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").rglob("scratch/**/*.json")}
    assert done
    remove = storage.remove
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", lambda address: None if address.endswith("scratch") else remove(address))
        again = tokenized(tmp_path / "cut", domains)
    assert all(path.stat().st_mtime_ns == written for path, written in done.items()), "what was done is not done again"
    assert_equal(again, whole)


@pytest.mark.parametrize(
    ("what", "call"),
    [((buckets, "write_tensors"), 0), ((PieceWriter, "add"), 0), ((PieceWriter, "add"), 40), ((gather, "write_shard"), 1), ((gather, "write_shard"), 9)],
)
def test_a_task_that_is_interrupted_is_done_again(
    what: tuple[Any, str], call: int, tmp_path: Path, in_process: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("BUCKET_BYTES", 4 << 10), ("MAX_OPEN", 5), ("SHARD_BYTES", 2 << 10), ("LANE_BYTES", 5 << 10), ("REST_BYTES", 8 << 10)):
        monkeypatch.setattr(layout, name, value)
    domains = write_corpus(tmp_path / "texts", 2, 120, 60)
    whole = tokenized(tmp_path / "whole", domains)
    write, calls = getattr(*what), itertools.count()

    def cut_off(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return write(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*what, cut_off)
        tokenized(tmp_path / "cut", domains)
    assert not list((tmp_path / "cut").rglob("*.tmp"))
    assert_equal(tokenized(tmp_path / "cut", domains), whole)


def assert_equal(found: TokenCorpus, expected: TokenCorpus) -> None:
    assert found.domains == expected.domains
    for name in expected.names:
        rows = RowReader(expected).read(name, np.arange(expected.rows()[name])).tokens
        assert np.array_equal(RowReader(found).read(name, np.arange(found.rows()[name])).tokens, rows)


def test_rows_of_several_shards_and_rests_are_all_of_the_text(tmp_path: Path, in_process: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "BUCKET_BYTES", 8 << 10)
    monkeypatch.setattr(layout, "SHARD_BYTES", 4 << 10)
    monkeypatch.setattr(layout, "LANE_BYTES", 6 << 10)
    corpus = tokenized(tmp_path / "runs", write_corpus(tmp_path / "texts", 2, 150, 80))
    tokenizer, _ = load_tokenizer(corpus.tokenizer_address)
    found: Counter[str] = Counter()
    for split in ("train", "valid", "test"):
        for name in corpus.names:
            rows = RowReader(corpus, split).read(name, np.arange(corpus.rows(split)[name]))
            text = " ".join(tokenizer.decode(row.tolist()) for row in rows.tokens)
            found.update(re.findall(r"doc\d{8}", text))
    assert set(found.values()) == {1}
    assert len(found) > 0.4 * 300, "but for those whose number lies on the border of two rows"
    documents = RowReader(corpus, "train").read("d0", np.arange(corpus.rows()["d0"])).document
    assert len(np.unique(documents)) > 0.9 * corpus.domains["d0"].train.documents
    first = documents[: len(documents) // 4]
    assert len(np.unique(first)) > 0.4 * len(np.unique(documents)), "the first rows are those of many documents"


@pytest.mark.parametrize(("text_bytes", "domains"), [(TERA, 7), (TERA, 1000), (10 * TERA, 7), (10 * TERA, 1000)])
def test_the_plan_for_terabytes(text_bytes: int, domains: int) -> None:
    """Tasks, objects, bytes of a task, open files, and what the driver holds."""
    cut = Layout.of(text_bytes)
    groups = max(-(-text_bytes // MOST_GROUP_BYTES), MAX_GROUPS)
    names = {f"d{i}": text_bytes // domains for i in range(domains)}
    lanes = Lanes.of(cut, names, [True] * domains, 512, 12 << 20)
    contents = Contents("", cut, tuple(map(str, range(groups))), tuple(names), {})
    assert text_bytes / cut.buckets <= layout.BUCKET_BYTES
    assert max(cut.slices, cut.per_slice) <= MAX_OPEN, "slots that a task sorts into, and files that a slice's tasks read"
    assert contents.splits <= SPLITS_OF_A_SLICE
    split_bytes = text_bytes / cut.slices / contents.splits
    assert split_bytes < 600 << 20
    assert len(contents.files(0)) <= SPLITS_OF_A_SLICE
    runs = cut.runs()
    assert len(runs) <= MAX_RUNS + cut.slices
    assert sorted(bucket for run in runs for bucket in run) == list(range(cut.buckets))
    lane_bytes = np.bincount(lanes.lane_of, np.repeat(lanes.text_bytes / (cut.slices * lanes.shards), lanes.shards))
    assert lane_bytes.max() <= LANE_BYTES
    slots = lanes.num_lanes + lanes.num_rests
    assert slots < 1500, "pieces of a tokenized bucket"
    rest_bytes = np.bincount(lanes.rest_of, lanes.rest_bytes)
    assert rest_bytes.max() <= REST_BYTES
    tasks = groups + len(contents.all_splits()) + 2 * len(runs) + cut.slices * (lanes.num_lanes + lanes.num_rests) + lanes.num_rests
    objects = 2 * groups + 2 * len(contents.all_splits()) + 4 * cut.buckets + cut.slices * (slots + lanes.num_rests) + cut.slices * int(lanes.first_shard[-1])
    assert tasks < text_bytes / (12 << 20)
    assert objects < 10 * text_bytes / (16 << 20)
    shards = int(lanes.first_shard[-1])
    driver_bytes = 8 * cut.slices * (shards + domains) + 200 * len(runs) + 400 * groups + 2000 * domains + 300 * cut.slices * lanes.num_lanes
    waiting_bytes = WAVE_TASKS * (2 * 8 * shards + 200 * domains)  # what tasks that are ahead of a slow one came to
    assert driver_bytes < 200e6
    assert waiting_bytes < 600e6


def test_lanes_hold_every_shard_once() -> None:
    lanes = Lanes.of(Layout(2, 1000), {"a": 10**9, "target": 5, "b": 4 * 10**9, "tiny": 100}, [True, False, True, True], 512, 10**6)
    assert lanes.shards.tolist() == [15, 0, 60, 1]
    assert lanes.first_shard.tolist() == [0, 15, 15, 75, 76]
    assert len(lanes.lane_of) == 76
    assert (np.diff(lanes.lane_of) >= 0).all()
    assert set(lanes.lane_of.tolist()) == set(range(lanes.num_lanes))
    assert [slot for domain in range(4) for slot in range(lanes.first_shard[domain], lanes.first_shard[domain + 1])] == list(range(76))
    assert [slot for lane in range(lanes.num_lanes) for slot in lanes.shards_of_lane(lane)] == list(range(76))
    assert lanes.lanes_of_domain(1) == range(0)
    assert {lane for domain in range(4) for lane in lanes.lanes_of_domain(domain)} == set(range(lanes.num_lanes))


@pytest.mark.parametrize("gigabytes", [0.05, 0.5, 7, 10, 15, 100, 1000, 10_000])
def test_what_a_lane_reads_of_a_bucket_is_worth_a_request(gigabytes: float) -> None:
    cut = Layout.of(int(gigabytes * 1e9))
    lanes = Lanes.of(cut, {f"d{i}": int(gigabytes * 1e9) // 7 for i in range(7)}, [True] * 7, 512, 12 << 20)
    lane_bytes = np.bincount(lanes.lane_of, np.repeat(lanes.text_bytes / (cut.slices * np.maximum(1, lanes.shards)), lanes.shards))
    assert lane_bytes.max() <= (SHARD_BYTES if gigabytes < 8 else LANE_BYTES)
    assert np.median(lane_bytes) / cut.per_slice > 50 << 10
    assert gigabytes < 8 or np.median(np.bincount(lanes.lane_of)) == 2


def test_what_is_larger_than_a_lane_has_one_to_itself() -> None:
    assert layout._cut(np.array([1.0, 5.0, 1.0, 3.0, 1.0, 9.0, 4.0]), 4).tolist() == [0, 1, 2, 2, 3, 4, 5]


def test_pieces_come_back_by_slot_in_the_order_they_were_written(tmp_path: Path) -> None:
    schema = pa.schema([("number", pa.int64())])
    with write_pieces(str(tmp_path / "a.pieces")) as writer:
        for i in range(3000):
            writer.add(i * 7 % 11, pa.record_batch([pa.array([i])], schema=schema))
    found = [(slot, batch["number"].to_pylist()[0]) for slot, batch in read_pieces(str(tmp_path / "a.pieces"), schema, range(3, 6))]
    assert found == sorted((i * 7 % 11, i) for i in range(3000) if i * 7 % 11 in (3, 4, 5))


def test_the_work_for_many_domains_grows_as_they_do(tmp_path: Path, in_process: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files read by the last passes, for twice as many domains."""
    reads = []
    for domains in (100, 200):
        calls = [0]

        def counted(*args: Any, calls: list[int] = calls) -> Any:
            calls[0] += 1
            return read_pieces(*args)

        monkeypatch.setattr(gather, "read_pieces", counted)
        corpus = tokenized(tmp_path / f"runs-{domains}", write_corpus(tmp_path / f"texts-{domains}", domains, 12, 30))
        assert len(corpus.names) == domains
        reads.append(calls[0])
    assert reads[1] < 2.2 * reads[0]
