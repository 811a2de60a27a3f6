"""A sample of a source: bounded stretches, spread, nested, the same for everyone; and what it says of the whole."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from chameleon_ray.backend import Reads
from chameleon_ray.corpus import sampling, stretches
from chameleon_ray.corpus.documents import Document, DomainStats
from chameleon_ray.corpus.sampling import Found, SourceSample, Stretches
from chameleon_ray.corpus.sources import File, Origin, Source, Wanted
from chameleon_ray.corpus.stretches import StretchReading, spread
from chameleon_ray.errors import UserError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


def write_file(path: Path, texts: Sequence[str]) -> File:
    """Texts in the format of the name, and the file as a listing shows it."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=50)
    else:
        data = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
        path.write_bytes(COMPRESS["" if path.suffix == ".jsonl" else path.suffix](data))
    return File(str(path), path.stat().st_size, f"tag of {path.name}", path.name)


def texts_of(seed: int, count: int = 400) -> list[str]:
    chance = Random(seed)
    return [f"{seed} {i} " + "x" * chance.randint(1, 400) for i in range(count)]


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of a few documents."""
    monkeypatch.setattr(stretches, "STRETCH_BYTES", 2048)
    monkeypatch.setattr(stretches, "PAGE_BYTES", 2048)
    monkeypatch.setattr(sampling, "STRETCH_BYTES", 2048)
    monkeypatch.setattr(sampling, "PAGE_BYTES", 2048)


def read_on(file: File, borders: Sequence[int]) -> list[tuple[int, str]]:
    """The documents of a file with their stretches, read in several goes."""
    found = []
    for first, stop in itertools.pairwise(borders):
        found += [(stretch, item.text) for stretch, item in StretchReading(Origin("web"), file, first, stop, "text") if isinstance(item, Document)]
    return found


@pytest.mark.parametrize("extension", FORMATS)
def test_the_stretches_of_a_file_are_its_documents_each_once_however_they_are_read(tmp_path: Path, extension: str) -> None:
    texts = texts_of(1)
    file = write_file(tmp_path / f"a{extension}", texts)
    at_once = read_on(file, (0, 400))
    assert sorted(text for _, text in at_once) == sorted(texts)
    assert sorted(read_on(file, (0, 1, 4, 11, 60, 400))) == sorted(at_once)
    sizes = np.bincount([stretch for stretch, _ in at_once], [len(text) for _, text in at_once])
    assert sizes.max() < 2048 + 500


@pytest.mark.parametrize("extension", FORMATS)
def test_a_reading_says_how_much_there_is(tmp_path: Path, extension: str) -> None:
    texts = texts_of(2)
    file = write_file(tmp_path / f"a{extension}", texts)
    whole = len(texts) if extension == ".parquet" else sum(len(json.dumps({"text": text})) + 1 for text in texts)
    some = StretchReading(Origin("web"), file, 0, 10, "text")
    read = [item for _, item in some]
    assert 0 < len(read) < len(texts)
    assert not some.exhausted
    assert sum(some.extent.values()) <= 10 * (2048 + 450)
    assert some.whole == pytest.approx(whole, rel=0.1)
    everything = StretchReading(Origin("web"), file, 0, 1000, "text")
    assert len(list(everything)) == len(texts)
    assert everything.exhausted
    assert sum(everything.extent.values()) == whole


@pytest.mark.parametrize("extension", [".jsonl", ".parquet"])
def test_what_can_be_reached_is_spread_over_the_file(tmp_path: Path, extension: str) -> None:
    texts = texts_of(3, 2000)
    file = write_file(tmp_path / f"a{extension}", texts)
    places = [texts.index(text) / len(texts) for _, text in read_on(file, (0, 10))]
    assert min(places) < 0.2
    assert max(places) > 0.8
    assert max(b - a for a, b in itertools.pairwise(sorted(places))) < 0.3


@pytest.mark.parametrize("count", [1, 2, 3, 10, 16, 97, 1000])
def test_spread_comes_by_every_place_once(count: int) -> None:
    assert sorted(spread("name", turn, count) for turn in range(count)) == list(range(count))


def test_a_truncated_stream_matters_only_where_it_is_read(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.jsonl.gz", texts_of(4))
    (tmp_path / "a.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[: file.size_bytes // 2])
    cut = File(file.address, file.size_bytes // 2, "", file.name)
    assert read_on(cut, (0, 5))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: truncated or corrupt \(ends before the end"):
        read_on(cut, (0, 400))
    short = write_file(tmp_path / "a.parquet", texts_of(4))
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a\.parquet: not readable as Parquet, truncated or corrupt"):
        read_on(short, (0, 1))


def source_of(files: Sequence[File], text_bytes: int, domain: str | None = "web", column: str | None = None) -> Source:
    """A source of which so many bytes are wanted of every domain."""
    return Source(0, Origin(domain, domain_column=column), tuple(files), Wanted(Reads(0), 0, 0, text_bytes, 1))


def take(source: Source, waves: list[list[Stretches]] | None = None) -> SourceSample:
    """A sample, taken wave by wave."""
    sample = SourceSample(source, {}, 4.0)
    while work := sample.next_wave():
        if waves is not None:
            waves.append(work)
        for each in work:
            reading = StretchReading(each.origin, each.file, each.first, each.stop, "text")
            stats: dict[int, dict[str, DomainStats]] = {}
            for stretch, item in reading:
                stats.setdefault(stretch, {}).setdefault(item.domain, DomainStats()).add(item)
            sample.note(Found(0, each.rank, dict(reading.extent), stats, reading.whole, reading.exhausted, reading.other_bytes))
    return sample


@pytest.fixture
def files(tmp_path: Path) -> list[File]:
    """Twelve files in all formats, of unequal size."""
    return [write_file(tmp_path / f"{i:02d}{FORMATS[i % 4]}", texts_of(i, 200 + 40 * i)) for i in range(12)]


def test_a_larger_sample_holds_the_smaller(files: list[File]) -> None:
    before: set[tuple[int, int]] = set()
    for wanted in (1, 3000, 3001, 10_000, 50_000, 200_000, 10**9):
        sample = take(source_of(files, wanted))
        limit = sample.limits().get("web", math.inf)
        kept = {place for place in sample._seen if sampling.order_of(*place) < limit}
        text = sample.stats()["web"].text_bytes
        assert kept >= before
        assert text >= min(wanted, sum(len(text) for i in range(12) for text in texts_of(i, 200 + 40 * i)))
        assert text < wanted + 2600 or wanted == 10**9
        before = kept
    assert len(take(source_of(files, 30_000)).files_read()) == 12, "one stretch of every file comes before the second of any"


def test_the_sample_depends_on_names_alone(files: list[File], tmp_path: Path) -> None:
    waves: list[list[Stretches]] = []
    first = take(source_of(files, 20_000), waves)
    assert len(waves) <= 3, "little is asked for twice"
    moved = tmp_path / "moved"
    moved.mkdir()
    copies = [File(str(Path(file.address).rename(moved / file.name)), file.size_bytes, "another tag", file.name) for file in files]
    second = take(source_of(list(reversed(copies)), 20_000))
    assert first._seen == second._seen
    assert first.limits() == second.limits()


def test_what_was_read_beyond_the_end_does_not_count(files: list[File]) -> None:
    sample = take(source_of(files, 20_000))
    more = SourceSample(sample.source, {}, 4.0)
    more._seen, more._extent, more._wholes = dict(sample._seen), dict(sample._extent), dict(sample._wholes)
    more.note(Found(0, 11, {7: 2048}, {7: {"web": DomainStats(5, 2000)}}, 10**6, False))
    assert more.limits() == sample.limits()
    assert more.stats() == sample.stats()


def test_a_small_source_is_used_up(files: list[File]) -> None:
    sample = take(source_of(files, 10**9))
    whole = sum(len(text) for i in range(12) for text in texts_of(i, 200 + 40 * i))
    estimate = sample.estimates()["web"]
    assert sample.limits() == {}
    assert (estimate.text_bytes, estimate.stderr_bytes, estimate.read_bytes) == (whole, 0.0, whole)


@pytest.mark.parametrize("extension", FORMATS)
def test_estimates_cover_the_truth(tmp_path: Path, extension: str) -> None:
    """Forty sources of twenty files, whose documents grow longer from file to file, a tenth of each read: errors are of the size that is told."""
    errors, told = [], []
    for seed in range(40):
        chance = Random(seed)
        lists = [["x" * chance.randint(1, 100 + 50 * i) + f" {seed} {i} {j}" for j in range(chance.randint(100, 200))] for i in range(20)]
        (tmp_path / str(seed)).mkdir()
        listed = [write_file(tmp_path / str(seed) / f"{i}{extension}", texts) for i, texts in enumerate(lists)]
        listed = [File(file.address, file.size_bytes, "", f"{seed} {file.name}") for file in listed]
        truth = sum(len(text) for texts in lists for text in texts)
        estimate = take(source_of(listed, truth // 10)).estimates()["web"]
        assert estimate.text_bytes is not None
        errors.append(estimate.text_bytes / truth - 1)
        told.append(estimate.stderr_bytes / truth)
    scores = np.array(errors) / np.array(told)
    assert abs(np.mean(errors)) < 0.03, "nearly unbiased"
    assert np.mean(np.abs(scores) < 2) > 0.78
    assert np.mean(told) < 0.2


def test_domains_that_a_column_names(tmp_path: Path) -> None:
    chance = Random(0)
    common = [{"text": "c" * chance.randint(10, 100), "of": "common" if chance.random() < 0.995 else "rare"} for _ in range(20_000)]
    listed = []
    for i in range(10):
        path = tmp_path / f"{i}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in common[i::10]))
        listed.append(File(str(path), path.stat().st_size, "", path.name))
    source = Source(0, Origin(None, domain_column="of"), tuple(listed), Wanted(Reads(0), 0, 0, 10_000, None))
    sample = take(source)
    stats, limits = sample.stats(), sample.limits()
    assert sample.names == ("common", "rare")
    assert 10_000 <= stats["common"].text_bytes < 13_000
    assert stats["rare"].text_bytes < 10_000, "looked for in four times what both want, and no further"
    assert list(limits) == ["common"]
    share = sum(len(record["text"]) for record in common if record["of"] == "rare")
    estimate = sample.estimates()["rare"]
    assert estimate.text_bytes == pytest.approx(share, abs=3 * estimate.stderr_bytes)


def test_wanted_domains_are_looked_for_among_others_and_not_for_ever(tmp_path: Path) -> None:
    """Of domains that are asked for by name the others count too when it is decided to look no further."""
    chance = Random(1)
    listed = []
    for i in range(20):
        names = ["common" if chance.random() < 0.999 else "rare" for _ in range(1500)]
        path = tmp_path / f"{i}.jsonl"
        path.write_text("".join(json.dumps({"text": "c" * chance.randint(10, 100), "of": name}) + "\n" for name in names))
        listed.append(File(str(path), path.stat().st_size, "", path.name))
    source = Source(0, Origin(None, domain_column="of", only=("rare",)), tuple(listed), Wanted(Reads(0), 0, 0, 20_000, 1))
    sample = take(source)
    assert sample.names == ("rare",)
    assert sample._other_bytes > 20_000, "nothing of it at the beginning is no end"
    assert sample._other_bytes < 2 * sampling.SEARCH * 20_000


def test_a_beginning_of_empty_documents_does_not_ask_for_everything(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n' * 2000 + "".join(json.dumps({"text": text}) + "\n" for text in texts_of(1)))
    sample = SourceSample(source_of([File(str(path), 10**12, "", path.name)], 10**8), {}, 4.0)
    first = sample.next_wave()
    sample.note(Found(0, 0, dict.fromkeys(range(first[0].stop), 2048), {}, 1e12, False))
    assert sum(each.stop - each.first for each in sample.next_wave()) < 17 * 10**8 / 2048
