"""The first pass: copies meet in one bucket, held-out text never becomes train text, and unreadable input stops with one line."""

from __future__ import annotations

import io
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
from chameleon_ray.backend import Reads
from chameleon_ray.corpus.buckets import Contents, count, read_bucket, read_counts
from chameleon_ray.corpus.documents import DomainStats, document_hash
from chameleon_ray.corpus.heldout import BYTES_PER_TOKEN, heldout_borders
from chameleon_ray.corpus.layout import Layout
from chameleon_ray.corpus.partition import MAX_SKIPPED, check_skipped, partition, split, text_bytes_of
from chameleon_ray.corpus.rows import Rows, write_shard
from chameleon_ray.corpus.sources import File, Origin, Part, Source, Wanted, parts_of, plan_sources
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.errors import UserError, as_user_error, from_outcome
from chameleon_ray.errors import as_outcome as run_task
from chameleon_ray.records import write_table

RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
Kept = list[tuple[bytes, str, bool, str]]
ONE = Layout(1, 1)


def json_lines(texts: Sequence[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def plan(files: Mapping[str, Sequence[Path]], heldout: Mapping[str, Sequence[Path]] | None = None) -> list[Part]:
    held = heldout or {}
    domains = {name: {"files": [str(path) for path in paths], "heldout": [str(path) for path in held.get(name, ())]} for name, paths in files.items()}
    return parts_of(plan_sources(CorpusConfig.model_validate({"domains": domains})))


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
        split = [replace(part, files=(file,)) for part in whole for file in part.files]
        return [replace(part, index=index) for index, part in enumerate(split)]


TEXT = st.sampled_from([f"text {i}" for i in range(12)])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Two or three domains with many copies among them; each has a few documents of its own, sometimes too few to be split."""
    names = ["a", "b", "c"][: draw(st.integers(2, 3))]
    files = {name: [[f"{name} only {i}" for i in range(draw(st.integers(1, 6)))], *draw(st.lists(st.lists(TEXT, max_size=6), max_size=3))] for name in names}
    heldout = {name: draw(st.lists(TEXT, max_size=4)) for name in names}
    return World(files, heldout)


def contents_of(folder: Path, names: Sequence[str] = ("web",), groups: Sequence[str] = ("0",), layout: Layout = ONE) -> Contents:
    return Contents(str(folder), layout, tuple(groups), tuple(names), {})


def keep(
    parts: Sequence[Part], names: Sequence[str], num_groups: int, layout: Layout, split_tokens: int, folder: Path
) -> tuple[Kept, set[str], dict[str, int], dict[str, int]]:
    """Documents that are kept, the domains that can be measured, copies left out and held-out documents not used, with parts dealt to groups and
    documents to buckets."""
    groups = [str(i) for i in range(num_groups)]
    stats: dict[str, DomainStats] = {}
    for i, group in enumerate(groups):
        for name, found in partition(group, list(parts[i::num_groups]), "text", str(folder), layout)["stats"].items():
            stats[name] = stats.get(name, DomainStats()).merge(DomainStats(**found))
    contents = contents_of(folder, names, groups, layout)
    for place in contents.all_splits():
        split(contents, *place)
    totals = {name: np.zeros((2, 2), np.int64) for name in names}
    runs = [layout.buckets_of(each) for each in range(layout.slices)]
    for run in runs:
        for name, counted in count(contents, run).items():
            totals[name] += counted
    declared = {name for name in names if stats[name].heldout_documents}
    borders = heldout_borders(names, totals, (read_counts(contents, run) for run in runs), declared, FRACTION, split_tokens, {})
    kept: Kept = []
    copies, unused = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for bucket in range(layout.buckets):
        found_here = read_bucket(contents, bucket, borders)
        kept += list(found_here)
        for total, here in ((copies, found_here.duplicates), (unused, found_here.unused)):
            for name, number in here.items():
                total[name] += number
    return kept, set(borders), copies, unused


FRACTION = 0.2


def chosen(sizes: Sequence[int], wanted: float, at_most: int) -> int:
    """How many of the documents are held out, counted one by one; 0 where two cannot be."""
    if at_most < 2:
        return 0
    count = 0
    while count < at_most and (count < 2 or sum(sizes[:count]) < wanted):
        count += 1
    return count


def expected(world: World, split_tokens: int) -> tuple[dict[str, tuple[str, bool]], dict[str, int]]:
    """Text -> domain and whether held out, and the declared documents not used, from the rules as they are told, without buckets."""
    most_bytes = 2 * split_tokens * BYTES_PER_TOKEN
    owner: dict[str, tuple[str, bool]] = {}
    for declared, lists in ((True, {name: [texts] for name, texts in world.heldout.items()}), (False, world.files)):
        for name, files in lists.items():
            for text in (text for texts in files for text in texts):
                owner.setdefault(text, (name, declared))
    found: dict[str, tuple[str, bool]] = {}
    unused = dict.fromkeys(world.files, 0)
    for name in world.files:
        declared, plain = (sorted((t for t, place in owner.items() if place == (name, kind)), key=document_hash) for kind in (True, False))
        if world.heldout[name]:
            count = chosen([len(text.encode()) for text in declared], most_bytes, len(declared)) or len(declared)
            unused[name] = len(declared) - count
            found |= dict.fromkeys(declared[:count], (name, True)) | dict.fromkeys(plain, (name, False))
        else:
            sizes = [len(text.encode()) for text in plain]
            count = chosen(sizes, min(most_bytes, FRACTION * sum(sizes)), len(plain) - 1)
            found |= {text: (name, i < count) for i, text in enumerate(plain)}
    return found, unused


@RELAXED
@given(worlds(), st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.sampled_from([1, 2, 1 << 20]))
def test_copies_never_straddle_splits_however_the_work_is_cut(world: World, num_groups: int, buckets: int, slices: int, split_tokens: int) -> None:
    names = list(world.files)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        parts = world.parts(folder)
        layout = Layout(slices, buckets)
        found = keep(parts, names, num_groups, layout, split_tokens, folder / "many")
        assert found == keep(parts, names, 1, ONE, split_tokens, folder / "one")
        assert found == keep(Random(buckets).sample(parts, len(parts)), names, num_groups, layout, split_tokens, folder / "shuffled")
    kept, measured, copies, unused = found
    oracle, oracle_unused = expected(world, split_tokens)
    assert {text: (domain, held) for _, domain, held, text in kept} == oracle
    assert unused == oracle_unused
    texts = [text for *_, text in kept]
    assert len(set(texts)) == len(texts), "no text is in two places, so that none of the held-out ones is trained on"
    assert [key for key, *_ in kept] == sorted(map(document_hash, texts))
    read = sum(len(texts) for lists in world.files.values() for texts in lists) + sum(map(len, world.heldout.values()))
    assert sum(copies.values()) == read - len(world.all_texts())
    assert sum(unused.values()) == len(world.all_texts()) - len(kept)
    train = {text for _, _, held, text in kept if not held}
    assert not train & {text for texts in world.heldout.values() for text in texts}, "declared held-out text is never trained on, used or not"
    for name in names:
        held = sum(domain == name and is_held for _, domain, is_held, _ in kept)
        assert (held >= 2) == (name in measured)
        assert name not in measured or world.heldout[name] or held < sum(domain == name for _, domain, *_ in kept)


@settings(RELAXED, max_examples=12)
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_the_domains_decides_whose_a_copy_is_and_nothing_else(world: World, random: Random) -> None:
    alone = World({name: [[f"{name}: {text}" for text in texts] for texts in lists] for name, lists in world.files.items()}, {name: [] for name in world.files})
    for either, copies_cross in ((alone, False), (world, True)):
        names = list(either.files)
        turned = random.sample(names, len(names))
        with tempfile.TemporaryDirectory() as home:
            parts = either.parts(Path(home))
            first, second = (keep(parts, order, 2, Layout(1, 3), 1 << 20, Path(home) / str(i)) for i, order in enumerate((names, turned)))
        if copies_cross:
            assert [text for *_, text in first[0]] == [text for *_, text in second[0]]
        else:
            assert first == second


@RELAXED
@given(st.integers(3, 300), st.floats(0.01, 0.5), st.integers(1, 7))
def test_held_out_documents_leave_some_to_train_on(count: int, fraction: float, buckets: int) -> None:
    documents = np.bincount(np.random.default_rng(count).integers(buckets, size=count), minlength=buckets)
    counted = [np.array([[bucket, 0, 0, number, 10 * number]]) for bucket, number in enumerate(documents) if number]
    border = heldout_borders(["web"], {"web": [[count, 10 * count], [0, 0]]}, counted, (), fraction, 1 << 20, {})["web"]
    held = sum(border.count(bucket, np.full(number, 10)) for bucket, number in enumerate(documents))
    assert 2 <= held < count
    assert held == 2 or held == count - 1 or held - 1 <= fraction * count <= held + 1


def test_copies_do_not_change_how_much_is_held_out(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(100)]
    found = []
    for copies in (1, 20):
        parts = plan_one(tmp_path, f"{copies}.jsonl", json_lines(texts * copies))
        kept, *_ = keep(parts, ["web"], 1, Layout(1, 2), 1 << 20, tmp_path / str(copies))
        found.append([text for *_, held, text in kept if held])
    assert found[0] == found[1]
    assert 2 < len(found[0]) < 30


@pytest.mark.parametrize("distinct", [0, 1, 2])
def test_fewer_than_three_documents_are_not_split(distinct: int) -> None:
    assert heldout_borders(["web"], {"web": [[distinct, 10 * distinct], [0, 0]]}, [np.array([[0, 0, 0, distinct, 10 * distinct]])], (), 0.1, 1 << 20, {}) == {}


def test_copies_in_other_domains_leave_each_of_1000_small_domains_enough_to_be_measured(tmp_path: Path) -> None:
    """Neighbours share what would be held out first. Held out before copies were dropped, every second domain ended without any."""
    chance = Random(0)
    files = {}
    for pair in range(500):
        texts = sorted((f"{pair} {chance.random()}" for _ in range(15)), key=document_hash)
        for side in range(2):
            path = tmp_path / f"{pair}-{side}.jsonl"
            path.write_bytes(json_lines([*texts[:3], *texts[3 + side :: 2]]))
            files[path.stem] = [path]
    kept, measured, copies, _ = keep(plan(files), list(files), 3, Layout(2, 2), 1 << 20, tmp_path / "pieces")
    assert measured == set(files)
    assert sum(copies.values()) == 500 * 3
    held = [domain for _, domain, is_held, _ in kept if is_held]
    assert all(held.count(name) == 2 for name in files)
    assert len({text for *_, text in kept}) == len(kept) == 500 * 15


def test_what_is_counted_is_not_counted_again_and_the_text_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = Random(0)
    texts = ["".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(4000)) for _ in range(100)]
    partition("0", plan_one(tmp_path, "a.jsonl", json_lines(texts)), "text", str(tmp_path / "pieces"), ONE)
    stored = (tmp_path / "pieces" / "group-0.pieces").stat().st_size
    files: list[CountingFile] = []

    def opened(address: str) -> pa.PythonFile:
        files.append(CountingFile(address))
        return pa.PythonFile(files[-1], "r")

    monkeypatch.setattr(storage, "open_input", opened)
    first = count(contents_of(tmp_path / "pieces"), range(1))
    assert first == {"web": [[100, sum(len(text.encode()) for text in texts)], [0, 0]]}
    assert sum(file.num_bytes for file in files) < stored / 20
    monkeypatch.undo()
    (tmp_path / "pieces" / "group-0.pieces").unlink()
    assert count(contents_of(tmp_path / "pieces"), range(1)) == first


class CountingFile(io.FileIO):
    """A file that adds up what is read of it."""

    num_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self.num_bytes += len(data)
        return data


def test_the_bucket_count_follows_the_size() -> None:
    def source(name: str, size: int, wanted: Wanted | None = None) -> Source:
        return Source(0, Origin("web"), (File(name, size, ""),), wanted)

    def buckets(*sources: Source) -> int:
        return Layout.of(text_bytes_of(sources)).buckets

    assert buckets(source("a.jsonl", 1)) == 1
    assert buckets(source("a.jsonl", 40 << 20)) == 3
    assert buckets(source("a.jsonl.gz", 40 << 20)) == 10
    assert buckets(source("a.jsonl", 40 << 20), source("b.jsonl", 40 << 20)) == 5
    assert buckets(source("a.jsonl", 1 << 40, Wanted(Reads(0), 0, 0, 40 << 20, None))) == 3, "of a sampled source what is wanted"


def test_a_finished_group_is_not_read_again(tmp_path: Path) -> None:
    parts = plan_one(tmp_path, "a.jsonl", json_lines(["one", "two", "two", "three"]))
    first = partition("0", parts, "text", str(tmp_path / "pieces"), Layout(1, 3))
    (tmp_path / "a.jsonl").unlink()
    assert partition("0", parts, "text", str(tmp_path / "pieces"), Layout(1, 3)) == first
    assert first["stats"]["web"]["documents"] == 4


@pytest.mark.parametrize(("bad", "refused"), [(1, False), (2, True)])
def test_one_percent_of_unusable_documents_is_the_limit(tmp_path: Path, bad: int, refused: bool) -> None:
    good = json_lines([f"text {i}" for i in range(100 - bad)])
    data = good + b'{"text": "\xff"}\n' + b'{"text": "a\x00b"}\n' * (bad - 1) + b'{"text": ""}\n' * 50
    (found,) = partition("0", plan_one(tmp_path, "a.jsonl", data), "text", str(tmp_path / "pieces"), ONE)["stats"].values()
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
        from_outcome(run_task(partition, 0, parts, "text", str(tmp_path / "pieces"), Layout(1, 2)))
    assert str(refusal.value).startswith(str(tmp_path / name))
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("group-*.json"))


def test_a_repaired_file_is_read_afresh(tmp_path: Path) -> None:
    texts = [f"some text, number {i}" for i in range(500)]
    whole = zstandard.ZstdCompressor().compress(json_lines(texts))
    parts = plan_one(tmp_path, "a.jsonl.zst", whole[:-20])
    with pytest.raises(UserError):
        partition("0", parts, "text", str(tmp_path / "pieces"), Layout(1, 2))
    (tmp_path / "a.jsonl.zst").write_bytes(whole)
    partition("0", parts, "text", str(tmp_path / "pieces"), Layout(1, 2))
    found = [text for bucket in range(2) for *_, text in read_bucket(contents_of(tmp_path / "pieces", layout=Layout(1, 2)), bucket, {})]
    assert sorted(found) == sorted(texts)


def test_a_full_disk_is_told_and_leaves_the_group_unfinished(tmp_path: Path, small_disk: Path) -> None:
    random = Random(0)
    texts = ["".join(chr(random.randrange(0x4E00, 0x9FA5)) for _ in range(2000)) for _ in range(400)]
    parts = plan_one(tmp_path, "a.jsonl", json_lines(texts))
    with pytest.raises(UserError, match=r"^storage: no space left on device .*; free some space or set storage to another place"):
        from_outcome(run_task(partition, 0, parts, "text", str(small_disk), Layout(1, 2)))
    assert not list(small_disk.rglob("group-*.json"))


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
