"""Second pass: buckets of text into token rows, by the tasks that will shuffle them.

Every function is one task: it reads files, writes files under its own name, and returns counts. A task that is done is not done again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

from chameleon_ray import storage
from chameleon_ray.corpus.buckets import Contents, read_bucket
from chameleon_ray.corpus.heldout import Border
from chameleon_ray.corpus.layout import Lanes
from chameleon_ray.corpus.packing import pack
from chameleon_ray.corpus.pieces import GIVEN_BACK_BYTES, PieceWriter, give_back, write_pieces
from chameleon_ray.corpus.rows import Rows, token_dtype
from chameleon_ray.corpus.tokenizer import Encoder
from chameleon_ray.records import done_once

_PIECE_BYTES = 1 << 21

Counts = dict[str, Any]


@dataclass(frozen=True)
class TokenizeSpec:
    """What every task of one corpus knows. Of the domains in `trained_whole` nothing is measured, because nothing would be left to train on: what was held
    out of them is trained on after all."""

    address: str
    contents: Contents
    borders: Mapping[str, Border]
    lanes: Lanes
    row_tokens: int
    heldout_tokens: int
    vocab_size: int
    end_of_document: int
    tokenizer_sha256: str
    seed: int
    trained_whole: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.contents.names

    @property
    def scratch(self) -> str:
        return storage.join(self.address, "scratch")

    @cached_property
    def rows_folder(self) -> str:
        """Where rows lie on their way. Those of another tokenizer, or that are dealt to other tasks, which an interrupted run of an older version of a package
        may have left, lie elsewhere."""
        lanes = b"".join(each.tobytes() for each in (self.lanes.shards, self.lanes.lane_of, self.lanes.rest_of))
        return storage.join(self.scratch, f"rows-{hashlib.sha256(lanes + self.tokenizer_sha256.encode()).hexdigest()[:8]}")

    def tokens_address(self, bucket: int) -> str:
        """The pieces of a tokenized bucket: a slot for every lane of its slice, then one for every rest."""
        return storage.join(self.rows_folder, f"tokens-{bucket:07d}.pieces")

    @property
    def row_schema(self) -> pa.Schema:
        """Full rows of a lane: which of the slice's shards they go to, the document of their first token, and their tokens."""
        return pa.schema([("shard", pa.int32()), ("document", pa.int64()), ("tokens", pa.list_(self._token, self.row_tokens))])

    @property
    def rest_schema(self) -> pa.Schema:
        """Pieces of documents: the domain's place, whether held out, the document, its bytes where all of it is there, and tokens."""
        fields = [("domain", pa.int32()), ("heldout", pa.bool_()), ("document", pa.int64()), ("bytes", pa.int64()), ("tokens", pa.large_list(self._token))]
        return pa.schema(fields)

    @property
    def _token(self) -> pa.DataType:
        return pa.from_numpy_dtype(token_dtype(self.vocab_size))


def tokenize_buckets(spec: TokenizeSpec, buckets: range) -> Counts:
    """Tokenize some buckets, one after the other.

    Returns:
        Counts by domain: train documents, tokens and bytes, held-out ones, duplicates, held-out documents that are not used. And `rows`: the numbers of the
        slice's shards that got any, and how many each got.
    """
    total: dict[str, dict[str, NDArray[np.int64]]] = {kind: {} for kind in ("train", "heldout", "duplicates", "unused")}
    rows: Counter[int] = Counter()
    for bucket in buckets:
        counts = done_once(f"{spec.tokens_address(bucket)}.json", partial(_tokenize, spec, bucket))
        rows.update(dict(zip(*counts["rows"], strict=True)))
        for kind, sums in total.items():
            for name, sizes in counts[kind].items():
                sums[name] = sums.get(name, 0) + np.array(sizes, np.int64)
    return {**{kind: {name: sizes.tolist() for name, sizes in sums.items()} for kind, sums in total.items()}, "rows": [list(rows), list(rows.values())]}


def _tokenize(spec: TokenizeSpec, bucket: int) -> Counts:
    """Write a bucket's rows by lane, and what is shorter than a row, and held-out documents, by rest."""
    found = read_bucket(spec.contents, bucket, spec.borders)
    counts: Counts = {"train": {}, "heldout": {}, "duplicates": found.duplicates, "unused": found.unused}
    documents: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for number, (_, domain, heldout, _) in enumerate(found.documents):
        documents[domain, heldout].append(number)
    places, texts = [place for *_, place in found.documents], found.texts.chunks
    del found  # nothing but the list holds text, so that it can be let go of
    encoded = _encode(spec, places, texts)
    for (name, held), mine in documents.items():
        counts["heldout" if held else "train"][name] = [len(mine), int(encoded.sizes[mine].sum()), int(encoded.text_bytes[mine].sum())]
    rows = _write(spec, bucket, documents, encoded)
    return {**counts, "rows": [list(rows), list(rows.values())]}


@dataclass(frozen=True)
class _Encoded:
    """Tokens of n documents in one array, each document's with its end, in the order in which their texts lay; [n] where those of each begin, how many they
    are, and the bytes of its text."""

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    text_bytes: NDArray[np.int64]

    def of(self, document: int) -> NDArray[Any]:
        return self.tokens[self.starts[document] : self.starts[document] + self.sizes[document]]


def _encode(spec: TokenizeSpec, places: Sequence[int], texts: list[pa.Array]) -> _Encoded:
    """Tokenize documents in the order in which their texts lie, and let go of text as it is read.

    Args:
        places: [n] where the text of each lies in all of `texts`, which is empty afterwards.
    """
    order = np.argsort(places)
    ordered = np.array(places, np.int64)[order]
    starts, sizes, text_bytes = np.zeros((3, len(places)), np.int64)

    def read() -> Iterator[str]:
        first = start = freed = 0
        texts.reverse()
        while texts:
            chunk = texts.pop()
            stop = int(np.searchsorted(ordered, first + len(chunk)))
            mine = ordered[start:stop] - first
            text_bytes[order[start:stop]] = pc.binary_length(chunk).to_numpy()[mine]
            for place in mine.tolist():
                yield chunk[place].as_py()
            first, start, freed = first + len(chunk), stop, freed + chunk.nbytes
            if freed > GIVEN_BACK_BYTES:
                give_back()
                freed = 0

    tokens = np.empty(sum(chunk.nbytes for chunk in texts) // 2, token_dtype(spec.vocab_size))  # memory that nothing is written to is not taken
    filled = 0
    for document, found in zip(order.tolist(), _encoder(spec.address, spec.tokenizer_sha256).encode(read()), strict=True):
        starts[document], sizes[document] = filled, len(found) + 1
        filled += len(found) + 1
        if filled > len(tokens):
            grown = np.empty(2 * filled, tokens.dtype)
            grown[: len(tokens)] = tokens
            tokens = grown
        tokens[filled - len(found) - 1 : filled - 1] = found
        tokens[filled - 1] = spec.end_of_document
    give_back()
    return _Encoded(tokens[:filled], starts, sizes, text_bytes)


def _write(spec: TokenizeSpec, bucket: int, documents: Mapping[tuple[str, bool], Sequence[int]], encoded: _Encoded) -> Counter[int]:
    """Write a bucket's rows, lane by lane, and its rests; how many rows each of the slice's shards got.

    Args:
        documents: by domain and whether held out, which of those encoded are its documents.
    """
    lanes = spec.lanes
    rows: Counter[int] = Counter()
    rests: dict[int, list[tuple[int, bool, int, int, NDArray[Any]]]] = defaultdict(list)
    with write_pieces(spec.tokens_address(bucket)) as writer:
        pending = _PendingRows(spec, writer)
        for index, name in enumerate(spec.names):
            train, heldout = (documents.get((name, held), ()) for held in (False, True))
            if not train and not heldout:
                continue
            numbers = (bucket << 32) + np.arange(len(train) + len(heldout), dtype=np.int64)
            full, left = pack([encoded.of(each) for each in train], numbers[: len(train)], spec.row_tokens, spec.vocab_size)
            shards = np.random.default_rng([spec.seed, bucket, *name.encode()]).integers(max(1, lanes.shards[index]), size=len(full)) + lanes.first_shard[index]
            rows.update(shards.tolist())
            for lane in np.unique(lanes.lane_of[shards]).tolist():
                pending.add(lane, np.flatnonzero(lanes.lane_of[shards] == lane), shards, full)
            del full
            rest = rests[int(lanes.rest_of[index])]
            rest += [(index, False, document, 0, fragment) for document, fragment in left]
            held_out = zip(numbers[len(train) :].tolist(), heldout, strict=True)
            rest += [(index, True, number, int(encoded.text_bytes[each]), encoded.of(each)) for number, each in held_out]
        pending.flush()
        for number, rest in sorted((number, rest) for number, rest in rests.items() if rest):
            writer.add(lanes.num_lanes + number, rest_batch(spec, rest))
    return rows


class _PendingRows:
    """Rows on their way to a lane's pieces, which are small enough to be made, compressed and read without being noticed and large enough to be few."""

    def __init__(self, spec: TokenizeSpec, writer: PieceWriter) -> None:
        self._spec, self._writer = spec, writer
        self._lane, self._bytes = -1, 0
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def add(self, lane: int, mine: NDArray[np.int64], shards: NDArray[np.int64], rows: Rows) -> None:
        """Some more rows of this lane, or of a later one.

        Args:
            mine: which of the rows.
            shards: of each row its shard.
        """
        step = max(1, _PIECE_BYTES // rows.tokens[0].nbytes)
        for some in np.split(mine, range(step, len(mine), step)):
            part = shards[some], rows.document[some], rows.tokens[some]
            if lane != self._lane or self._bytes + part[-1].nbytes > _PIECE_BYTES:
                self.flush()
            self._lane = lane
            self._bytes += part[-1].nbytes
            self._parts.append(part)

    def flush(self) -> None:
        """Write what there is."""
        if self._parts:
            shards, documents, tokens = map(np.concatenate, zip(*self._parts, strict=True)) if len(self._parts) > 1 else self._parts[0]
            values = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), self._spec.row_tokens)
            arrays = [pa.array(shards, pa.int32()), pa.array(documents), values]
            self._writer.add(self._lane, pa.record_batch(arrays, schema=self._spec.row_schema))
        self._parts, self._bytes = [], 0


def rest_batch(spec: TokenizeSpec, pieces: Iterable[tuple[int, bool, int, int, NDArray[Any]]]) -> pa.RecordBatch:
    """Pieces of documents (domain, held out, document, bytes, tokens) as a batch."""
    *columns, tokens = zip(*pieces, strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in tokens])])
    values = pa.array(np.concatenate(tokens).astype(token_dtype(spec.vocab_size)))
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, spec.rest_schema, strict=False)]
    return pa.record_batch([*arrays, pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)], schema=spec.rest_schema)


@lru_cache(maxsize=1)
def _encoder(address: str, sha256: str) -> Encoder:
    """One per process and content: `tokenizers` never gives back all that loading one takes (4 MB)."""
    return Encoder(Tokenizer.from_file(storage.local_file(storage.join(address, "tokenizer", "tokenizer.json"))))
