"""Planning what to read, and reading every format without losing a document silently."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from chameleon_ray.corpus.documents import Document, Skip, Skipped, document_hash, make_document, normalise
from chameleon_ray.corpus.readers import read_part
from chameleon_ray.corpus.sources import Origin, Part, manifest, parts_of, plan_sources
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.errors import UserError

TEXTS = ["one", "two\nlines", "drei Wörter hier", "四"]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def corpus_of(domains: dict[str, Any] | None = None, **settings: Any) -> CorpusConfig:
    return CorpusConfig.model_validate({"domains": domains or {}, **settings})


def plan(corpus: CorpusConfig) -> list[Part]:
    return parts_of(plan_sources(corpus))


def plan_of(*paths: Path) -> list[Part]:
    return plan(corpus_of({"web": {"files": [str(path) for path in paths]}}))


def read(parts: Sequence[Part], text_column: str = "text") -> list[Document | Skip]:
    return [item for part in parts for item in read_part(part, text_column)]


def failure(part: Part) -> str:
    """What reading the part complains about; empty when it does not."""
    try:
        read([part])
    except UserError as error:
        return str(error)
    return ""


def texts(items: Sequence[Document | Skip]) -> list[str]:
    assert all(isinstance(item, Document) for item in items), items
    return [item.text for item in items if isinstance(item, Document)]


def reasons(items: Sequence[Document | Skip]) -> list[str]:
    return [item.reason.value if isinstance(item, Skip) else item.text for item in items]


def json_lines(values: Sequence[Any]) -> bytes:
    return b"".join(json.dumps({"text": value}, ensure_ascii=False).encode() + b"\n" for value in values)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_normalise_removes_what_comes_from_storage_and_nothing_else() -> None:
    assert normalise("\ufeff a\r\nb\rc \n".removeprefix("\ufeff")) == "a\nb\nc"
    assert normalise("e\u0301") == "é"
    assert normalise("A  b\tc ﬁ \x0b.") == "A  b\tc ﬁ \x0b."
    assert document_hash("e\u0301\r\n") == document_hash("é")
    assert document_hash("a") != document_hash("A")
    assert len(document_hash("a")) == 16


@given(st.text())
def test_normalise_twice_is_normalise_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(b"\xff", Skipped.INVALID_UTF8), ("\ud800", Skipped.LONE_SURROGATE), ("a\0", Skipped.NUL), (" \r\n ", Skipped.EMPTY), (None, Skipped.EMPTY)],
)
def test_a_text_that_cannot_be_a_document_says_why(value: bytes | str | None, reason: Skipped) -> None:
    assert make_document("web", False, value) == Skip("web", reason)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (str("caf\u00e9 'x'".encode()), "caf\u00e9 'x'"),
        (str(b"it's"), "it's"),
        (repr(b"both ' and \""), "both ' and \""),
        ("b'open", "b'open"),
        ("b'a' + b'b'", "b'a' + b'b'"),
        ("b'' if x else b''", "b'' if x else b''"),
        ("plain b'x'", "plain b'x'"),
        ("b", "b"),
    ],
)
def test_text_that_is_a_literal_of_bytes_is_these_bytes(value: str, text: str) -> None:
    found = make_document("web", False, value, (("caf\u00e9", "tea"),), bytes_literals=True)
    assert isinstance(found, Document) and found.text == text.replace("caf\u00e9", "tea")
    kept = make_document("web", False, value)
    assert isinstance(kept, Document) and kept.text == value
    assert make_document("web", False, str(b"\xff"), bytes_literals=True) == Skip("web", Skipped.INVALID_UTF8)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("extension", [".jsonl", ".json"])
def test_json_lines_round_trip(tmp_path: Path, extension: str, compression: str) -> None:
    path = write(tmp_path / f"a{extension}{compression}", COMPRESS[compression](json_lines(TEXTS)))
    (part,) = plan_of(path)
    assert (part.index, part.origin, part.size_bytes) == (0, Origin("web"), path.stat().st_size)
    assert read([part]) == [Document("web", False, text) for text in TEXTS]


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_text_file_is_one_document(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / f"a.TXT{compression}", COMPRESS[compression]("\ufeffone\r\n\r\ntwo\n".encode()))
    assert texts(read(plan_of(path))) == ["one\n\ntwo"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_round_trip(tmp_path: Path, kind: pa.DataType) -> None:
    values = [*TEXTS * 20, None]
    table = pa.table({"id": range(81), "text": pa.array(values).cast(kind if not pa.types.is_dictionary(kind) else pa.string())})
    if pa.types.is_dictionary(kind):
        table = table.set_column(1, "text", table["text"].dictionary_encode())
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    items = read(plan_of(tmp_path / "a.parquet"))
    assert texts(items[:-1]) == TEXTS * 20
    assert items[-1] == Skip("web", Skipped.EMPTY)


def test_parquet_with_invalid_utf8_loses_that_value_only(tmp_path: Path) -> None:
    stored = pa.array([b"good", b"\xff\xfe", "é".encode()])
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, stored.buffers())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert reasons(read(plan_of(tmp_path / "a.parquet"))) == ["good", "invalid_utf8", "é"]


def test_parquet_is_not_held_as_a_whole(tmp_path: Path) -> None:
    values = [random.Random(i).randbytes(20_000).hex() for i in range(1000)]
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet", row_group_size=1000, write_batch_size=8, use_dictionary=False)
    (part,) = plan_of(tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_part(part, "text")]
    assert len(held) == 1000
    assert max(held) < 16 << 20, "40 MB of text lie in one row group"


def test_columns_may_be_nested(tmp_path: Path) -> None:
    record = {"data": {"body": {"text": "inner"}}, "data.title": "outer"}
    write(tmp_path / "a.jsonl", json.dumps(record).encode())
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "a.parquet")
    for path in (tmp_path / "a.jsonl", tmp_path / "a.parquet"):
        assert texts(read(plan_of(path), "data.body.text")) == ["inner"]
        assert texts(read(plan_of(path), "data.title")) == ["outer"]
        with pytest.raises(UserError, match=r"a\.(jsonl:1|parquet): no 'data.none', found data, data.title; set corpus.text_column"):
            read(plan_of(path), "data.none")


def test_lines_end_in_lf_or_crlf_and_blank_lines_are_nothing(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + json_lines(["a"]).replace(b"\n", b"\r\n") + b"\r\n  \n" + json_lines(["b"])[:-1]
    assert texts(read(plan_of(write(tmp_path / "a.jsonl", data)))) == ["a", "b"]
    assert read(plan_of(write(tmp_path / "empty.jsonl", b""))) == []


def test_unusable_documents_are_skipped_one_by_one(tmp_path: Path) -> None:
    lines = [
        b'{"text": "a"}',
        b'{"text": "\xff"}',
        b'{"text": "a\0"}',
        rb'{"text": "a\u0000"}',
        rb'{"text": "\ud800"}',
        b'{"text": " "}',
        b'{"text": null}',
    ]
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    assert reasons(read(plan_of(path))) == ["a", "invalid_utf8", "nul", "nul", "lone_surrogate", "empty", "empty"]


def cut_points(data: bytes, borders: Sequence[int]) -> list[int]:
    near = [border + shift for border in borders for shift in (-1, 0, 1)]
    return sorted({point for point in [0, 1, 5, 17, *range(0, len(data), 19997), *near, len(data) - 9, len(data) - 4, len(data) - 1] if 0 <= point < len(data)})


def zstd_block_borders(data: bytes) -> list[int]:
    """Where the blocks of the one frame in `data` end (RFC 8878, 3.1.1.2: three bytes, last block 1 bit, type 2 bits, size 21 bits)."""
    position = zstandard.frame_header_size(data)
    borders = [position]
    while True:
        header = int.from_bytes(data[position : position + 3], "little")
        position += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
        borders.append(position)
        if header & 1:
            return borders[:-1]


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_compressed_file_cut_anywhere_in_a_frame_raises(tmp_path: Path, compression: str) -> None:
    generator = random.Random(0)
    plain = json_lines([generator.randbytes(60).hex() for _ in range(3000)])
    whole = COMPRESS[compression](plain)
    borders = zstd_block_borders(whole) if compression == ".zst" else []
    assert compression == ".gz" or len(borders) >= 3
    path = tmp_path / f"a.jsonl{compression}"
    (part,) = plan_of(write(path, whole))
    assert len(read([part])) == 3000
    for cut in cut_points(whole, borders):
        path.write_bytes(whole[:cut])
        assert "truncated or corrupt" in failure(part), f"cut at {cut} of {len(whole)} bytes"


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_several_frames_are_one_file_and_each_must_be_complete(tmp_path: Path, compression: str) -> None:
    frames = [COMPRESS[compression](json_lines([f"{i}"])) for i in range(200)]
    if compression == ".zst":
        frames.insert(1, (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc")  # a skippable frame
    whole = b"".join(frames)
    path = tmp_path / f"a.jsonl{compression}"
    (part,) = plan_of(write(path, whole))
    assert texts(read([part])) == [str(i) for i in range(200)]
    borders = {sum(map(len, frames[:i])) for i in range(len(frames))} - {0}
    for cut in set(cut_points(whole, sorted(borders)[:5])) - borders:
        path.write_bytes(whole[:cut])
        assert "truncated or corrupt" in failure(part), f"cut at {cut} of {len(whole)} bytes"
    for damaged in (whole + b"junk", b"".join([*frames[:9], b"?" + frames[9][1:], *frames[10:]])):
        path.write_bytes(damaged)
        assert "truncated or corrupt" in failure(part)


def test_a_cut_or_missing_parquet_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(2000)]}), path, row_group_size=500)
    whole = path.read_bytes()
    (part,) = plan_of(path)
    for cut in [0, 3, 4, 100, len(whole) // 2, len(whole) - 8, len(whole) - 4, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        assert f"{path}: not readable as Parquet" in failure(part), f"cut at {cut} of {len(whole)} bytes"
    path.unlink()
    assert f"{path}: not found on this machine" in failure(part)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": nope}', r"a\.jsonl:2: not JSON"),
        (b'{"text": "the file was cut he', r"a\.jsonl:2: not JSON .*one JSON object per line"),
        (b"[" * 100_000, r"a\.jsonl:2: not JSON"),
        (b'["text"]', r"a\.jsonl:2: expected one JSON object per line, found list"),
        (b'{"body": "b", "url": "u"}', r"a\.jsonl:2: no 'text', found body, url; set corpus\.text_column"),
        (b"{}", r"a\.jsonl:2: no 'text', found no keys"),
        (b'{"text": 5}', r"a\.jsonl:2: 'text' holds int, not a string"),
        (b'{"text": ["a"]}', r"a\.jsonl:2: 'text' holds list, not a string"),
    ],
)
def test_a_wrong_record_names_file_line_and_remedy(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(["good"]) + line + b"\n")
    with pytest.raises(UserError, match=message):
        read(plan_of(path))


def test_a_wrong_parquet_column_names_what_there_is(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": pa.array([], pa.string()), "n": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: no 'text', found body, n; set corpus\.text_column"):
        read(plan_of(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match=r"a\.parquet: column 'n' holds int64, not strings"):
        read(plan_of(tmp_path / "a.parquet"), "n")


def test_a_line_of_50_megabytes_costs_linear_time_and_memory(tmp_path: Path) -> None:
    data = json_lines(["small", "a long line " * 4_200_000, "last"])
    (part,) = plan_of(write(tmp_path / "a.jsonl.zst", COMPRESS[".zst"](data)))
    tracemalloc.start()
    started = time.perf_counter()
    lengths = [len(item.text) for item in read_part(part, "text") if isinstance(item, Document)]
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == [5, 12 * 4_200_000 - 1, 4]
    assert seconds < 20
    assert peak < 8 * len(data), "line, decoded line, text and its normal form; not a copy per chunk"


def test_globs_follow_the_file_and_heldout_is_marked(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.jsonl", "b/deep/3.jsonl", "a.jsonl", "valid.jsonl"):
        write(tmp_path / name, json_lines([name]))
    domains = {
        "second": {"files": [f"{tmp_path}/b/**/*.jsonl", f"{tmp_path}/b/*.jsonl"]},
        "first": {"files": [f"{tmp_path}/a.jsonl"], "heldout": [f"{tmp_path}/valid.jsonl"]},
    }
    parts = plan(corpus_of(domains))
    assert [(part.index, part.origin.domain, part.origin.heldout) for part in parts] == [(0, "second", False), (1, "first", False), (2, "first", True)]
    assert texts(read(parts)) == ["b/1.jsonl", "b/2.jsonl", "b/deep/3.jsonl", "a.jsonl", "valid.jsonl"]
    assert pickle.loads(pickle.dumps(parts)) == parts
    entries = [entry for source in plan_sources(corpus_of(domains)) for entry in manifest(source, source.files)]
    assert json.loads(json.dumps(entries)) == entries
    assert [entry["address"] for entry in entries][-1] == str(tmp_path / "valid.jsonl")
    assert len({entry["fingerprint"] for entry in entries}) == 5
    (copy,) = plan_of((tmp_path / "a.jsonl").rename(tmp_path / "c.jsonl"))
    assert copy.files[0].fingerprint == parts[1].files[0].fingerprint, "it follows the content, not the path"


def test_small_files_share_a_part_and_large_ones_do_not(tmp_path: Path) -> None:
    for i in range(1001):
        write(tmp_path / f"{i:04d}.txt", b"text %d" % i)
    for name in ("x.jsonl", "y.jsonl"):
        write(tmp_path / name, json_lines(["a" * (9 << 20)]))
    parts = plan_of(tmp_path / "*.txt", tmp_path / "*.jsonl")
    assert [len(part.files) for part in parts] == [1000, 2, 1]
    assert len(read(parts)) == 1003


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ({"files": ["a.jsonl", "*.parquet"]}, r"^corpus\.domains\.web\.files\[1\]: '.*\*\.parquet' matches no file; give"),
        ({"files": ["a.jsonl"], "heldout": ["no.jsonl"]}, r"^corpus\.domains\.web\.heldout\[0\]: '.*no\.jsonl' matches no file"),
        ({"files": ["*"]}, r"^corpus\.domains\.web\.files\[0\]: '.*' matches .*b\.csv, whose format is unknown; known: \.jsonl"),
        ({"files": ["c.parquet.gz"]}, "whose format is unknown"),
        ({"files": ["*.jsonl"], "heldout": ["a.jsonl"]}, r"^corpus\.domains\.web\.heldout: .*a\.jsonl is also in files"),
    ],
)
def test_a_wrong_pattern_names_the_field(tmp_path: Path, domain: dict[str, list[str]], message: str) -> None:
    for name in ("a.jsonl", "b.csv", "c.parquet.gz"):
        write(tmp_path / name, json_lines(["a"]))
    found = {key: [f"{tmp_path}/{pattern}" for pattern in patterns] for key, patterns in domain.items()}
    with pytest.raises(UserError, match=message):
        plan(corpus_of({"web": found}))
