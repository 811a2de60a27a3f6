"""From documents to rows: nothing is lost in packing, long documents are cut where no token is, and the passes run here without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from chameleon_ray import storage
from chameleon_ray.artifacts import SPLITS, TokenCorpus
from chameleon_ray.config import Resources
from chameleon_ray.corpus import gather, scatter, tokenizer
from chameleon_ray.corpus.buckets import Contents
from chameleon_ray.corpus.byte_pairs import byte_pairs
from chameleon_ray.corpus.layout import Lanes, Layout
from chameleon_ray.corpus.packing import deal, pack, pack_all
from chameleon_ray.corpus.pieces import read_pieces, write_pieces
from chameleon_ray.corpus.rows import RowReader, Rows
from chameleon_ray.corpus.scatter import TokenizeSpec
from chameleon_ray.corpus.tokenizer import END_OF_DOCUMENT, Encoder, train_tokenizer
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend

SENTENCE = "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which you"
WORDS = SENTENCE.split()
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
Fragments = list[list[int]]
FRAGMENTS = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=30), max_size=12)


@RELAXED
@given(FRAGMENTS, st.integers(1, 16))
def test_packing_loses_no_token_and_keeps_the_order(fragments: Fragments, row_tokens: int) -> None:
    arrays, numbers = [np.array(fragment) for fragment in fragments], [7 * i for i in range(len(fragments))]
    stream = [token for fragment in fragments for token in fragment]
    owner = [number for number, fragment in zip(numbers, fragments, strict=True) for _ in fragment]
    rows, left = pack(arrays, numbers, row_tokens, 300)
    rest = [token for _, tokens in left for token in tokens]
    assert rows.tokens.ravel().tolist() + rest == stream
    assert len(rest) < row_tokens
    assert rows.length.tolist() == [row_tokens] * len(rows)
    assert rows.document.tolist() == owner[: len(rows) * row_tokens : row_tokens]
    assert [number for number, tokens in left for _ in tokens] == owner[len(rows) * row_tokens :]


@RELAXED
@given(FRAGMENTS, st.integers(1, 16))
def test_packing_all_pads_the_last_row_only(fragments: Fragments, row_tokens: int) -> None:
    stream = [token for fragment in fragments for token in fragment]
    rows = pack_all([np.array(fragment) for fragment in fragments], range(len(fragments)), row_tokens, 300, padding=299)
    assert [token for row, length in zip(rows.tokens, rows.length, strict=True) for token in row[:length]] == stream
    assert (rows.length[:-1] == row_tokens).all()
    assert all((row[length:] == 299).all() for row, length in zip(rows.tokens, rows.length, strict=True))
    assert len(rows) == -(-len(stream) // row_tokens)


@RELAXED
@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(2, 4000))
def test_dealing_gives_two_halves_within_one_document_and_under_the_bound(tokens: list[int], bound: int) -> None:
    documents = [np.full(count, i) for i, count in enumerate(tokens)]
    plain, bounded = ([[part for _, part in half] for half in deal(given, most)] for given, most in ((documents, 40_000), (iter(documents), bound)))
    assert all(place == part[0] for half in deal(documents, bound) for place, part in half)
    halves = [sum(map(len, half)) for half in plain]
    assert abs(halves[0] - halves[1]) <= max(tokens, default=0)
    assert sum(halves) == sum(tokens)
    for found in (plain, bounded):
        assert len(tokens) < 2 or all(found)
        owners = [[int(part[0]) for part in half] for half in found]
        assert sorted(owners[0] + owners[1]) == list(range(sum(map(len, owners)))), "in the order given, each to one half"
    taken = [sum(map(len, half)) for half in bounded]
    assert max(taken) <= bound
    cut = [half[-1] for half in bounded if half and len(half[-1]) < tokens[int(half[-1][0])]]
    assert sum(map(len, cut)) + sum(len(part) for half in bounded for part in half if len(part) == tokens[int(part[0])]) == sum(taken)
    assert taken == [bound, bound] or sum(map(len, bounded)) == len(tokens), "what is left out is left out because both are full"


@pytest.fixture(scope="module", params=["plain", "of the library"])
def bpe(request: pytest.FixtureRequest) -> Tokenizer:
    made = train_tokenizer(400, {"words": [" ".join(WORDS)], "code": ["def f(x):\n    return x + 12\n"], "other": ["漢字 e\u0301 don't ..."]})
    if request.param != "plain":
        made.normalizer = normalizers.Replace("no such text", "")
    assert (byte_pairs(made) is not None) is (request.param == "plain")
    return made


def whole(bpe: Tokenizer, text: str) -> list[int]:
    bpe.encode_special_tokens = True
    return list(bpe.encode(text, add_special_tokens=False).ids)


WRITTEN = ["the", " the", "don't", "'ll", "12", "...", " .", "漢字", "e\u0301", END_OF_DOCUMENT]
WHITE = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u180e", "\x1c", "\x85"]


@RELAXED
@given(st.lists(st.lists(st.sampled_from(WRITTEN + WHITE), max_size=40).map("".join), max_size=6), st.integers(6, 24))
def test_cutting_long_documents_changes_no_token(bpe: Tokenizer, texts: list[str], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "PIECE_CHARACTERS", piece)
        patch.setattr(tokenizer, "BATCH_CHARACTERS", 3 * piece)
        found = list(Encoder(bpe).encode(texts))
        pieces = [list(tokenizer._pieces(text)) for text in texts]
    assert len(found) == len(texts)
    for text, tokens, parts in zip(texts, found, pieces, strict=True):
        assert "".join(parts) == text
        assert bpe.decode(tokens.tolist()) == text
        if all(after[0] in " \t\r\n" and not before[-1].isspace() for before, after in pairwise(parts)):
            assert tokens.tolist() == whole(bpe, text)


@pytest.mark.parametrize("separator", [" ", "\n", "\n\n    "])
def test_a_long_document_has_the_tokens_of_the_whole(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    monkeypatch.setattr(tokenizer, "PIECE_CHARACTERS", 101)
    text = separator.join(WORDS * 50)
    (tokens,) = Encoder(bpe).encode([text])
    assert tokens.tolist() == whole(bpe, text)


def test_a_document_without_any_space_keeps_its_text(bpe: Tokenizer) -> None:
    text = "漢字" * (tokenizer.PIECE_CHARACTERS + 7)
    (tokens,) = Encoder(bpe).encode([text])
    assert bpe.decode(tokens.tolist()) == text


def test_text_that_spells_a_special_token_stays_text(bpe: Tokenizer) -> None:
    (tokens,) = Encoder(bpe).encode([f"before{END_OF_DOCUMENT} after"])
    assert bpe.token_to_id(END_OF_DOCUMENT) not in tokens
    assert bpe.decode(tokens.tolist()) == f"before{END_OF_DOCUMENT} after"


@pytest.mark.long
@pytest.mark.parametrize("normalizer", ["None", "normalizers.Replace('no such text', '')"], ids=["plain", "of the library"])
@pytest.mark.parametrize("line", ["' '.join(WORDS * 500_000)[:50_000_000]", "'YmFzZTY0'*6_250_000"])
def test_a_line_of_50_mb_is_tokenized_in_bounded_memory(line: str, normalizer: str) -> None:
    code = f"""
import resource, sys, time
WORDS = {WORDS}
from tokenizers import normalizers
from chameleon_ray.corpus.tokenizer import Encoder, train_tokenizer
bpe = train_tokenizer(400, {{"words": [" ".join(WORDS)]}})
bpe.normalizer = {normalizer}
text = {line}
assert len(text) == 50_000_000
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
(tokens,) = Encoder(bpe).encode([text])
print(len(tokens), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - started)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    num_tokens, kilobytes, seconds = map(float, done.stdout.split())
    assert num_tokens > 5_000_000
    assert kilobytes < 500_000 + 12 * num_tokens / 1000
    assert seconds < 300


def lines(texts: Sequence[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def prose(name: str, count: int = 40) -> list[str]:
    generator = np.random.default_rng(list(name.encode()))
    return [f"{name} {i} " + " ".join(generator.choice(WORDS, 30)) for i in range(count)]


def section(folder: Path, domains: Mapping[str, Mapping[str, bytes]], row_tokens: int = 16) -> dict[str, Any]:
    """A corpus section; for every domain the content of a file under `files` and perhaps one under `heldout`, named by extension."""
    listed: dict[str, dict[str, list[str]]] = {}
    for i, (name, contents) in enumerate(domains.items()):
        listed[name] = {}
        for kind, data in contents.items():
            key, _, extension = kind.partition(".")
            path = folder / f"{i}-{key}.{extension or 'jsonl'}"
            path.write_bytes(data)
            listed[name][key] = [str(path)]
    return {"domains": listed, "tokenizer": {"train": {"vocab_size": 400}}, "row_tokens": row_tokens, "heldout_fraction": 0.2}


def tokenized(folder: Path, content: dict[str, Any]) -> TokenCorpus:
    return RayBackend(str(folder), Resources(), Reporter.silent()).tokenize(CorpusConfig.model_validate(content), seed=0)


def read_all(corpus: TokenCorpus, split: str, name: str) -> np.ndarray:
    return RowReader(corpus, split).read(name, np.arange(corpus.rows(split)[name])).tokens


def decoded(corpus: TokenCorpus, split: str, name: str) -> str:
    bpe = Tokenizer.from_file(storage.join(corpus.tokenizer_address, "tokenizer.json"))
    return bpe.decode(read_all(corpus, split, name).ravel().tolist(), skip_special_tokens=False)


ODD_NAMES = ["code/c++ headers", "a b", "Ünï — 漢字", "x%2Fy", "x/y", "漢" * 20]


def test_any_domain_name_works(in_process: Callable[[int], None], tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    corpus = tokenized(tmp_path / "runs", section(tmp_path / "text", {name: {"files": lines(prose(name))} for name in ODD_NAMES}))
    assert list(corpus.names) == ODD_NAMES
    for name in ODD_NAMES:
        assert f"{name} " in decoded(corpus, "train", name)
        assert all(len(read_all(corpus, split, name)) for split in SPLITS)
    assert {path.name for path in Path(corpus.address).iterdir()} == {*SPLITS, "tokenizer", "record.json"}


def test_the_splits_share_no_document_and_lose_no_token(in_process: Callable[[int], None], tmp_path: Path) -> None:
    shared = prose("shared")
    domains = {
        "split": {"files": lines(prose("split") + shared)},
        "given": {"files": lines(prose("given") + shared), "heldout": lines(prose("held", 9) + shared[:5])},
    }
    corpus = tokenized(tmp_path / "runs", section(tmp_path, domains, row_tokens=256))
    marks = {split: {name: decoded(corpus, split, name) for name in corpus.names} for split in SPLITS}
    train = "".join(marks["train"].values())
    for text in [*prose("held", 9), *shared[:5]]:
        assert text[:40] not in train
    for name in corpus.names:
        counts = corpus.domains[name]
        assert 0 <= counts.train.tokens - counts.train.rows * corpus.row_tokens < corpus.row_tokens
        for split in ("valid", "test"):
            assert counts.split(split).documents == marks[split][name].rstrip(END_OF_DOCUMENT).count(END_OF_DOCUMENT) + 1
    assert sum(counts.duplicates for counts in corpus.domains.values()) == len(shared) + 5


def test_the_rows_do_not_depend_on_the_cluster(in_process: Callable[[int], None], tmp_path: Path) -> None:
    content = section(tmp_path, {"web": {"files": lines(prose("web") + prose("both"))}, "code": {"files": lines(prose("code") + prose("both"))}})
    found = []
    for cpus in (1, 5):
        in_process(cpus)
        corpus = tokenized(tmp_path / f"runs-{cpus}", content)
        found.append((corpus.digest, [read_all(corpus, split, name).tolist() for split in SPLITS for name in corpus.names]))
    assert found[0] == found[1]


Refused = Callable[..., str]
GOOD = {"files": lines(prose("good"))}


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"files": lines(["", "  "])}, "corpus.domains.bad: no train documents (2 empty ones skipped)"),
        ({"files": lines(["a", "b", "c", "d"])}, "corpus.domains.bad: no rows in split 'train'"),
        ({"files": lines(prose("good"))}, "corpus.domains.bad: no rows in split"),
        ({"files": lines(prose("bad")).replace(b"text", b"body")}, "0-files.jsonl:1: no 'text', found body; set corpus.text_column to one of them"),
        ({"files.jsonl.zst": zstandard.ZstdCompressor().compress(lines(prose("bad")))[:-9]}, "0-files.jsonl.zst: truncated or corrupt"),
        ({"files.parquet": b"PAR1 and no more"}, "0-files.parquet: not readable as Parquet, truncated or corrupt"),
        ({"files": lines(prose("bad")) + b'{"text": "\xff"}\n'}, "1 of 41 documents cannot be used (invalid_utf8 1), more than 1 %"),
        ({"files": b'{"text": "a\x00b"}\n' * 9}, "9 of 9 documents cannot be used (nul 9), more than 1 %"),
    ],
)
def test_what_is_wrong_with_the_text(refused: Refused, tmp_path: Path, bad: dict[str, bytes], expected: str) -> None:
    message = refused(section(tmp_path, {"good": GOOD, "bad": bad} if bad == GOOD else {"bad": bad, "good": GOOD}))
    assert expected in message


def test_storage_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refused(section(tmp_path, {"good": GOOD}), storage_address=tmp_path / "file" / "runs")
    assert message.startswith("storage: ")


def test_a_mended_corpus_goes_through_after_a_refusal(refused: Refused, tmp_path: Path) -> None:
    packed = zstandard.ZstdCompressor().compress(lines(prose("web")))
    content = section(tmp_path, {"web": {"files.jsonl.zst": packed[:-9]}, "good": GOOD})
    refused(content)
    (tmp_path / "0-files.jsonl.zst").write_bytes(packed)
    corpus = tokenized(tmp_path / "runs", content)
    assert corpus.domains["web"].train.documents + corpus.domains["web"].valid.documents + corpus.domains["web"].test.documents == 40


def test_text_is_let_go_of_as_it_is_encoded_whatever_order_is_asked_for(bpe: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    bpe.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    spec = TokenizeSpec(str(tmp_path), Contents("", Layout(1, 1), (), (), {}), {}, Lanes.of(Layout(1, 1), {"a": 1}, [True], 8, 0), 8, 0, 400, 0, "x", 0)
    documents = ["zq\x01\x02" * 400 * (i % 3) + " ".join(WORDS[i:]) + "é" * i for i in range(12)]
    texts = [pa.array(documents[:5], pa.large_string()), pa.array([], pa.large_string()), pa.array(documents[5:], pa.large_string())]
    room = sum(chunk.nbytes for chunk in texts) // 2
    places = [11, 8, 7, 4, 5, 2]  # the others are copies, or not used
    encoded = scatter._encode(spec, places, texts)
    assert texts == []
    assert len(encoded.tokens) > room, "more tokens than there was room for at first"
    for number, place in enumerate(places):
        assert encoded.of(number).tolist() == [*whole(bpe, documents[place]), 0]
    assert encoded.text_bytes.tolist() == [len(documents[place].encode()) for place in places]


def test_rows_on_their_way_to_a_lane_are_cut_into_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scatter, "_PIECE_BYTES", 100)
    layout = Layout(1, 1)
    spec = TokenizeSpec(str(tmp_path), Contents("", layout, (), (), {}), {}, Lanes.of(layout, {"a": 1}, [True], 8, 0), 8, 0, 300, 0, "x", 0)
    rows = np.arange(40 * 8, dtype=np.uint16).reshape(40, 8)
    with write_pieces(str(tmp_path / "x.pieces")) as writer:
        pending = scatter._PendingRows(spec, writer)
        for lane, part in ((0, slice(0, 2)), (0, slice(2, 15)), (1, slice(15, 16)), (2, slice(16, 40))):
            pending.add(lane, np.arange(40)[part], np.full(40, 7), Rows(rows, np.full(40, 8, np.int32), np.arange(40)))
        pending.flush()
    found = list(read_pieces(str(tmp_path / "x.pieces"), spec.row_schema, range(3)))
    assert all(0 < batch["tokens"].flatten().nbytes <= 100 for _, batch in found)
    assert [(lane, number) for lane, batch in found for number in batch["document"].to_pylist()] == [
        (0 if i < 15 else 1 if i < 16 else 2, i) for i in range(40)
    ]
    assert np.concatenate([batch["tokens"].flatten().to_numpy() for _, batch in found]).tolist() == rows.reshape(-1).tolist()


def test_documents_that_fill_their_rows_leave_nothing_over(tmp_path: Path) -> None:
    layout = Layout(1, 1)
    spec = TokenizeSpec(str(tmp_path), Contents("", layout, (), ("a",), {}), {}, Lanes.of(layout, {"a": 1}, [True], 8, 0), 8, 0, 300, 0, "x", 0)
    encoded = scatter._Encoded(np.arange(16, dtype=np.uint16), np.array([0, 11]), np.array([11, 5]), np.array([20, 9]))
    assert scatter._write(spec, 0, {("a", False): [0, 1]}, encoded) == {0: 2}
    (batch,) = [batch for _, batch in read_pieces(spec.tokens_address(0), spec.row_schema, range(1))]
    assert batch["tokens"].flatten().to_pylist() == list(range(16))
    assert not list(read_pieces(spec.tokens_address(0), spec.rest_schema, range(1, 2)))


def test_a_shard_has_the_rows_that_were_counted(tmp_path: Path) -> None:
    layout = Layout(1, 1)
    spec = TokenizeSpec(str(tmp_path), Contents("", layout, (), ("a",), {}), {}, Lanes.of(layout, {"a": 1}, [True], 8, 0), 8, 0, 300, 0, "x", 0)
    shard = gather._TrainShard(spec, 0, 0, 3)
    shard.add(np.zeros((2, 8), np.uint16), np.arange(2))
    with pytest.raises(AssertionError, match="2 of 3 rows"):
        shard.write()
    with pytest.raises(AssertionError, match="more than 3 rows"):
        shard.add(np.zeros((2, 8), np.uint16), np.arange(2))
