"""The first pass: copies meet in one bucket, held-out text never becomes train text, and unreadable input stops with one line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from chameleon_ray import storage
from chameleon_ray.config import CorpusConfig
from chameleon_ray.corpus.documents import document_hash
from chameleon_ray.corpus.partition import MAX_SKIPPED, DomainStats, check_skipped, heldout_borders, num_buckets, partition, read_bucket
from chameleon_ray.corpus.rows import Rows, write_shard
from chameleon_ray.corpus.sources import Part, plan_parts
from chameleon_ray.errors import UserError, as_user_error, from_outcome
from chameleon_ray.errors import as_outcome as run_task
from chameleon_ray.records import write_table

RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
Kept = list[tuple[bytes, str, bool, str]]


def json_lines(texts: Sequence[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def plan(files: Mapping[str, Sequence[Path]], heldout: Mapping[str, Sequence[Path]] | None = None) -> list[Part]:
    held = heldout or {}
    domains = {name: {"files": [str(path) for path in paths], "heldout": [str(path) for path in held.get(name, ())]} for name, paths in files.items()}
    return plan_parts(CorpusConfig.model_validate({"domains": domains}))


def plan_one(folder: Path, name: str, data: bytes) -> list[Part]:
    (folder / name).write_bytes(data)
    return plan({"web": [folder / name]})


@dataclass(frozen=True)
class World:
    """Texts by domain: those of files (one file each list) and those declared held out."""

    files: dict[str, list[list[str]]]
    heldout: dict[str, list[str]]

    def all_texts(self) -> set[str]:
        return {text for lists in (*self.files.values(), self.heldout.values()) for texts in lists for text in texts}

    def parts(self, folder: Path) -> list[Part]:
        """One part per file, as large files have it."""
        paths: dict[str, list[Path]] = {}
        held: dict[str, list[Path]] = {}
        for name, lists in self.files.items():
            for i, texts in enumerate(lists):
                paths.setdefault(name, []).append(folder / f"{name}-{i}.jsonl")
                paths[name][-1].write_bytes(json_lines(texts))
            if self.heldout[name]:
                held[name] = [folder / f"{name}-heldout.jsonl"]
                held[name][0].write_bytes(json_lines(self.heldout[name]))
        whole = plan(paths, held)
        split = [replace(part, sources=(source,)) for part in whole for source in part.sources]
        return [replace(part, index=index) for index, part in enumerate(split)]


TEXT = st.sampled_from([f"text {i}" for i in range(12)])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Two or three domains with many copies among them; each has three documents of its own, so that all can be split."""
    names = ["a", "b", "c"][: draw(st.integers(2, 3))]
    files = {name: [[f"{name} only {i}" for i in range(3)], *draw(st.lists(st.lists(TEXT, max_size=6), max_size=3))] for name in names}
    heldout = {name: draw(st.lists(TEXT, max_size=4)) for name in names}
    return World(files, heldout)


def keep(parts: Sequence[Part], names: Sequence[str], num_groups: int, buckets: int, folder: Path) -> tuple[Kept, dict[str, str], dict[str, int]]:
    """All documents that are kept, the borders, and the copies left out, with parts dealt to groups and documents to buckets."""
    groups = [list(parts[i::num_groups]) for i in range(num_groups)]
    stats: dict[str, DomainStats] = {}
    for i, group in enumerate(groups):
        for name, found in partition(str(i), group, "text", str(folder), buckets).items():
            stats[name] = stats.get(name, DomainStats()).merge(DomainStats(**found))
    borders = heldout_borders({name: stats[name] for name in names}, 0.2)
    kept: Kept = []
    copies: dict[str, int] = {}
    for bucket in range(buckets):
        found_here = read_bucket(str(folder), [str(i) for i in range(num_groups)], bucket, names, borders)
        kept += list(found_here)
        for name, count in found_here.duplicates.items():
            copies[name] = copies.get(name, 0) + count
    return kept, borders, copies


@RELAXED
@given(worlds(), st.integers(1, 4), st.integers(1, 9))
def test_copies_never_straddle_splits_however_the_work_is_cut(world: World, num_groups: int, buckets: int) -> None:
    names = list(world.files)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        parts = world.parts(folder)
        kept, borders, copies = keep(parts, names, num_groups, buckets, folder / "many")
        assert (kept, borders, copies) == keep(parts, names, 1, 1, folder / "one")
    texts = [text for *_, text in kept]
    assert sorted(texts) == sorted(world.all_texts())
    assert [key for key, *_ in kept] == sorted(document_hash(text) for text in texts)
    read = sum(len(texts) for lists in world.files.values() for texts in lists) + sum(map(len, world.heldout.values()))
    assert sum(copies.values()) == read - len(kept)
    for key, domain, is_heldout, text in kept:
        declared = {name for name in names if text in world.heldout[name]}
        split_off = {name for name in borders if any(text in texts for texts in world.files[name]) and key.hex() <= borders[name]}
        assert is_heldout == bool(declared | split_off), text
        assert not is_heldout or domain in declared | split_off
        assert is_heldout or domain == next(name for name in names if any(text in texts for texts in world.files[name]))


@RELAXED
@given(st.integers(3, 300), st.floats(0.01, 0.5))
def test_held_out_documents_leave_some_to_train_on(count: int, fraction: float) -> None:
    keys = sorted(document_hash(f"{i}").hex() for i in range(count))
    stats = DomainStats(documents=count, text_bytes=10 * count, lowest=dict.fromkeys(keys, 10))
    border = heldout_borders({"web": stats}, fraction)["web"]
    held = sum(key <= border for key in keys)
    assert 2 <= held < count
    assert held == 2 or held == count - 1 or held - 1 <= fraction * count <= held + 1


def test_copies_do_not_change_how_much_is_held_out(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(100)]
    borders = []
    for copies in (1, 20):
        parts = plan_one(tmp_path, f"{copies}.jsonl", json_lines(texts * copies))
        stats = {name: DomainStats(**found) for name, found in partition("0", parts, "text", str(tmp_path / str(copies)), 2).items()}
        borders.append(heldout_borders(stats, 0.1))
    assert borders[0] == borders[1]


def test_declared_held_out_documents_are_the_only_ones() -> None:
    assert heldout_borders({"web": DomainStats(documents=9, heldout_documents=2, lowest={"00": 1})}, 0.1) == {}


@pytest.mark.parametrize("distinct", [0, 1, 2])
def test_fewer_than_three_documents_cannot_be_split(distinct: int) -> None:
    stats = DomainStats(documents=9, text_bytes=9, lowest={f"{i:032x}": 1 for i in range(distinct)})
    with pytest.raises(UserError, match=rf"^corpus.domains.web: {distinct} distinct documents; .*at least 3.*add documents, or give heldout files$"):
        heldout_borders({"web": stats}, 0.1)


def test_the_bucket_count_follows_the_size() -> None:
    (part,) = [Part(0, "web", False, "files", ())]
    assert num_buckets([part]) == 1


def test_a_finished_group_is_not_read_again(tmp_path: Path) -> None:
    parts = plan_one(tmp_path, "a.jsonl", json_lines(["one", "two", "two", "three"]))
    first = partition("0", parts, "text", str(tmp_path / "pieces"), 3)
    (tmp_path / "a.jsonl").unlink()
    assert partition("0", parts, "text", str(tmp_path / "pieces"), 3) == first
    assert first["web"]["documents"] == 4


@pytest.mark.parametrize(("bad", "refused"), [(1, False), (2, True)])
def test_one_percent_of_unusable_documents_is_the_limit(tmp_path: Path, bad: int, refused: bool) -> None:
    good = json_lines([f"text {i}" for i in range(100 - bad)])
    data = good + b'{"text": "\xff"}\n' + b'{"text": "a\x00b"}\n' * (bad - 1) + b'{"text": ""}\n' * 50
    (found,) = partition("0", plan_one(tmp_path, "a.jsonl", data), "text", str(tmp_path / "pieces"), 1).values()
    stats = DomainStats(**found)
    assert (stats.documents, stats.skipped["empty"], stats.skipped["invalid_utf8"]) == (100 - bad, 50, 1)
    assert MAX_SKIPPED == 0.01
    if refused:
        with pytest.raises(UserError, match=r"^corpus.domains.web: 2 of 100 documents cannot be used \(invalid_utf8 1, nul 1\), more than 1 %"):
            check_skipped({"web": stats})
    else:
        check_skipped({"web": stats})


def parquet(folder: Path) -> bytes:
    pq.write_table(pa.table({"text": [f"some text, number {i}" for i in range(2000)]}), folder / "whole.parquet")
    return (folder / "whole.parquet").read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cut.jsonl.zst", "truncated or corrupt"),
        ("cut.parquet", "truncated or corrupt"),
        ("column.jsonl", "no 'text', found body; set corpus.text_column to one of them"),
        ("column.parquet", "no 'text', found body; set corpus.text_column to one of them"),
        ("broken.jsonl", "not JSON"),
    ],
)
def test_unreadable_input_is_one_line_and_leaves_the_group_unfinished(tmp_path: Path, name: str, expected: str) -> None:
    whole = json_lines([f"some text, number {i}" for i in range(2000)])
    column = pa.BufferOutputStream()
    pq.write_table(pa.table({"body": ["words"]}), column)
    data = {
        "cut.jsonl.zst": zstandard.ZstdCompressor().compress(whole)[:-20],
        "cut.parquet": parquet(tmp_path)[:-200],
        "column.jsonl": b'{"body": "words"}\n',
        "column.parquet": column.getvalue().to_pybytes(),
        "broken.jsonl": whole[:-5],
    }[name]
    parts = plan_one(tmp_path, name, data)
    with pytest.raises(UserError) as refusal:
        from_outcome(run_task(partition, 0, parts, "text", str(tmp_path / "pieces"), 2))
    assert str(refusal.value).startswith(str(tmp_path / name))
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("stats.json"))


def test_a_repaired_file_is_read_afresh(tmp_path: Path) -> None:
    texts = [f"some text, number {i}" for i in range(500)]
    whole = zstandard.ZstdCompressor().compress(json_lines(texts))
    parts = plan_one(tmp_path, "a.jsonl.zst", whole[:-20])
    with pytest.raises(UserError):
        partition("0", parts, "text", str(tmp_path / "pieces"), 2)
    (tmp_path / "a.jsonl.zst").write_bytes(whole)
    partition("0", parts, "text", str(tmp_path / "pieces"), 2)
    found = [text for bucket in range(2) for *_, text in read_bucket(str(tmp_path / "pieces"), ["0"], bucket, ["web"], {})]
    assert sorted(found) == sorted(texts)


def test_a_full_disk_is_told_and_leaves_the_group_unfinished(tmp_path: Path, small_disk: Path) -> None:
    random = Random(0)
    texts = ["".join(chr(random.randrange(0x4E00, 0x9FA5)) for _ in range(2000)) for _ in range(400)]
    parts = plan_one(tmp_path, "a.jsonl", json_lines(texts))
    with pytest.raises(UserError, match=r"^storage: no space left on device .*; free some space or set storage to another place"):
        from_outcome(run_task(partition, 0, parts, "text", str(small_disk), 2))
    assert not list(small_disk.rglob("stats.json"))


WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda folder: storage.write_bytes(str(folder / "a"), bytes(2 << 20)),
    "published folder": lambda folder: storage.publish(folder.parent / "big", str(folder / "published")),
    "shard": lambda folder: write_shard(str(folder / "a"), "web", Rows(np.zeros((4096, 256), np.uint16), *np.zeros((2, 4096), np.int64))),
    "table": lambda folder: write_table(str(folder / "a"), pa.table({"loss": np.random.default_rng(0).random(1 << 18)})),
    "safetensors": lambda folder: save_file({"weights": np.zeros(1 << 18)}, folder / "a"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_kind_of_file_tells_a_full_disk(small_disk: Path, writer: str) -> None:
    (small_disk.parent / "big").mkdir()
    (small_disk.parent / "big" / "file").write_bytes(bytes(2 << 20))
    with pytest.raises(Exception) as failure:
        WRITERS[writer](small_disk)
    assert str(as_user_error(failure.value)).startswith("storage: no space left on device")
    assert not list(small_disk.rglob("*.tmp"))
