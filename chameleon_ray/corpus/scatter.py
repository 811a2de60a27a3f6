"""Second pass: buckets of text into token rows, by the tasks that will shuffle them.

Every function is one task: it reads files, writes files under its own name, and returns counts. A task that is done is not done again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from chameleon_ray import storage
from chameleon_ray.corpus.buckets import Contents, read_bucket
from chameleon_ray.corpus.heldout import Border
from chameleon_ray.corpus.layout import Lanes
from chameleon_ray.corpus.packing import pack
from chameleon_ray.corpus.pieces import PieceWriter
from chameleon_ray.corpus.rows import token_dtype
from chameleon_ray.corpus.tokenizer import encode

Counts = dict[str, dict[str, Any]]


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

    def tokens_address(self, bucket: int) -> str:
        """The pieces of a tokenized bucket: a slot for every lane of its slice, then one for every rest."""
        return storage.join(self.scratch, f"tokens-{bucket:07d}.pieces")

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
        Counts by domain: train documents, tokens and bytes, held-out ones, duplicates, held-out documents that are not used.
    """
    total: dict[str, dict[str, NDArray[np.int64]]] = {kind: {} for kind in ("train", "heldout", "duplicates", "unused")}
    for bucket in buckets:
        for kind, found in _tokenize(spec, bucket).items():
            for name, sizes in found.items():
                total[kind][name] = total[kind].get(name, 0) + np.array(sizes, np.int64)
    return {kind: {name: sizes.tolist() for name, sizes in found.items()} for kind, found in total.items()}


def _tokenize(spec: TokenizeSpec, bucket: int) -> Counts:
    """Write a bucket's rows by lane, and what is shorter than a row, and held-out documents, by rest."""
    address = spec.tokens_address(bucket)
    done = f"{address}.json"
    if storage.exists(done):
        return dict(json.loads(storage.read_bytes(done)))
    found = read_bucket(spec.contents, bucket, spec.borders)
    tokenizer = _tokenizer(spec.address, spec.tokenizer_sha256)
    documents: dict[tuple[str, bool], list[tuple[NDArray[Any], int]]] = defaultdict(list)
    end = np.array([spec.end_of_document], np.uint32)
    for (_, domain, heldout, text), tokens in zip(found, encode(tokenizer, (text for *_, text in found)), strict=True):
        documents[domain, heldout].append((np.concatenate([tokens, end]).astype(token_dtype(spec.vocab_size)), len(text.encode())))
    counts: Counts = {"train": {}, "heldout": {}, "duplicates": found.duplicates, "unused": found.unused}
    for (name, held), mine in documents.items():
        counts["heldout" if held else "train"][name] = [len(mine), sum(len(tokens) for tokens, _ in mine), sum(size for _, size in mine)]
    del found  # its text is not held beside the rows
    _write(spec, bucket, documents)
    storage.write_bytes(done, json.dumps(counts).encode())
    return counts


def _write(spec: TokenizeSpec, bucket: int, documents: dict[tuple[str, bool], list[tuple[NDArray[Any], int]]]) -> None:
    """Write a bucket's rows and rests; documents are taken out as they are packed, so that no token is held twice."""
    lanes = spec.lanes
    rows: dict[int, list[tuple[NDArray[Any], ...]]] = defaultdict(list)
    rests: dict[int, list[tuple[int, bool, int, int, NDArray[Any]]]] = defaultdict(list)
    for index, name in enumerate(spec.names):
        train, heldout = (documents.pop((name, held), []) for held in (False, True))
        if not train and not heldout:
            continue
        numbers = (bucket << 32) + np.arange(len(train) + len(heldout), dtype=np.int64)
        full, left = pack([tokens for tokens, _ in train], numbers[: len(train)], spec.row_tokens, spec.vocab_size)
        shards = np.random.default_rng([spec.seed, bucket, *name.encode()]).integers(max(1, lanes.shards[index]), size=len(full)) + lanes.first_slot[index]
        for lane in np.unique(lanes.lane_of[shards]):
            mine = lanes.lane_of[shards] == lane
            rows[int(lane)].append((shards[mine], full.document[mine], full.tokens[mine]))
        pieces = [(index, False, document, 0, tokens) for document, tokens in left]
        pieces += [(index, True, int(number), size, tokens) for number, (tokens, size) in zip(numbers[len(train) :], heldout, strict=True)]
        rests[int(lanes.rest_of[index])] += pieces
    with PieceWriter(spec.tokens_address(bucket)) as writer:
        for lane, parts in sorted(rows.items()):
            shards, owners, tokens = (np.concatenate(part) for part in zip(*parts, strict=True))
            values = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), spec.row_tokens)
            writer.add(lane, pa.record_batch([pa.array(shards, pa.int32()), pa.array(owners), values], schema=spec.row_schema))
        for rest, pieces in sorted(rests.items()):
            writer.add(lanes.num_lanes + rest, rest_batch(spec, pieces))


def rest_batch(spec: TokenizeSpec, pieces: Iterable[tuple[int, bool, int, int, NDArray[Any]]]) -> pa.RecordBatch:
    """Pieces of documents (domain, held out, document, bytes, tokens) as a batch."""
    *columns, tokens = zip(*pieces, strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in tokens])])
    values = pa.array(np.concatenate(tokens).astype(token_dtype(spec.vocab_size)))
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, spec.rest_schema, strict=False)]
    return pa.record_batch([*arrays, pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)], schema=spec.rest_schema)


@lru_cache(maxsize=1)
def _tokenizer(address: str, sha256: str) -> Tokenizer:
    """One per process and content: `tokenizers` never gives back all that loading one takes (4 MB)."""
    return Tokenizer.from_file(storage.local_file(storage.join(address, "tokenizer", "tokenizer.json")))
