"""Third pass: rows of tokenized buckets gathered, shuffled and written as shards, and what buckets left over.

The train shards of a domain are, slice after slice, those of its lanes and, where there are several slices, one of what the slice's buckets left over; last
comes one of what is left over then.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chameleon_ray import storage
from chameleon_ray.corpus.packing import deal, pack, pack_all
from chameleon_ray.corpus.pieces import GIVEN_BACK_BYTES, give_back, read_pieces, write_pieces
from chameleon_ray.corpus.rows import Rows, token_dtype, write_shard
from chameleon_ray.corpus.scatter import TokenizeSpec, rest_batch
from chameleon_ray.corpus.unigrams import entropy_nats, histogram
from chameleon_ray.counts import SplitCounts
from chameleon_ray.records import done_once

UNIGRAMS = pa.schema([("token", pa.int64()), ("count", pa.int64())])  # a slot for every domain
Piece = tuple[bool, int, int, NDArray[Any]]  # held out, document, bytes, tokens


def gather_lane(spec: TokenizeSpec, slice_number: int, lane: int, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Write the shuffled train shards of a lane, and how often each token is in them.

    Every row goes from the piece that it is read in straight to its place in its shard, so that little more is held than the lane's rows. Done before: return
    at once.

    Args:
        rows: of each of the lane's shards.
    """
    address = _unigrams_address(spec, slice_number, lane)
    return done_once(f"{address}.json", lambda: _gather_lane(spec, slice_number, lane, rows, address))


def _gather_lane(spec: TokenizeSpec, slice_number: int, lane: int, rows: NDArray[np.int64], address: str) -> dict[str, Any]:
    shards = {}
    for shard, count in zip(spec.lanes.shards_of_lane(lane), rows.tolist(), strict=True):
        if count:
            domain = int(np.searchsorted(spec.lanes.first_shard, shard, side="right")) - 1
            number = slice_number * shards_of_slice(spec, domain) + shard - int(spec.lanes.first_shard[domain])
            shards[shard] = _TrainShard(spec, domain, number, count)
    read = 0
    for bucket in _buckets(spec, slice_number) if shards else ():
        for _, batch in read_pieces(spec.tokens_address(bucket), spec.row_schema, range(lane, lane + 1)):
            _place_rows(batch, shards)
            read += batch.nbytes
        if read > GIVEN_BACK_BYTES:
            give_back()
            read = 0
    _write_unigrams(address, _written(spec, shards))
    return {}


def _written(spec: TokenizeSpec, shards: dict[int, _TrainShard]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Write shards, and let go of them; how often each token is in those of each domain, one domain at a time."""
    for domain, mine in itertools.groupby(list(shards), lambda shard: shards[shard].domain):
        counts = np.zeros(spec.vocab_size, np.int64)
        for shard in mine:
            counts += shards.pop(shard).write()
        yield domain, _occurring(counts)


def condense_rest(spec: TokenizeSpec, slice_number: int, rest: int) -> dict[str, Any]:
    """Where there are several slices: full rows of what a slice's buckets left over, as a shard for each domain; what is left over then, and held-out
    documents, are kept for `gather_rest`. Done before: return at once.

    Returns:
        `rows`: domain -> rows.
    """
    address = _condensed_address(spec, slice_number, rest)
    return done_once(f"{address}.json", lambda: _condense_rest(spec, slice_number, rest, address))


def _condense_rest(spec: TokenizeSpec, slice_number: int, rest: int, address: str) -> dict[str, Any]:
    kept: list[tuple[int, bool, int, int, NDArray[Any]]] = []
    rows, unigrams = {}, []
    for domain, pieces in _by_domain(spec, (spec.tokens_address(bucket) for bucket in _buckets(spec, slice_number)), spec.lanes.num_lanes + rest):
        tails = [piece for piece in pieces if not piece[0]]
        full, left = pack([piece[3] for piece in tails], [piece[1] for piece in tails], spec.row_tokens, spec.vocab_size)
        if len(full):
            shards = shards_of_slice(spec, domain)
            unigrams.append((domain, _occurring(_write_train(spec, domain, slice_number * shards + shards - 1, full))))
            rows[spec.names[domain]] = len(full)
        kept += [(domain, False, document, 0, tokens) for document, tokens in left]
        kept += [(domain, *piece) for piece in pieces if piece[0]]
    _write_unigrams(_unigrams_address(spec, slice_number, f"rest-{rest}"), unigrams)
    with write_pieces(address) as writer:
        if kept:
            writer.add(rest, rest_batch(spec, kept))
    return {"rows": rows}


def gather_rest(spec: TokenizeSpec, rest: int) -> dict[str, Any]:
    """The last train shard of some domains, and their held-out documents, in the order of their hashes, dealt to valid and test, `heldout_tokens` each at
    most. With fewer than two documents neither split gets any: the domain is not measured. Done before: return at once.

    Returns:
        By domain `rows` of the shard, `entropy` of all train tokens, and the counts of `valid` and `test`.
    """
    return done_once(storage.join(spec.rows_folder, f"last-{rest}.json"), lambda: _gather_rest(spec, rest))


def _gather_rest(spec: TokenizeSpec, rest: int) -> dict[str, Any]:
    layout = spec.lanes.layout
    one = layout.slices == 1
    files = (spec.tokens_address(bucket) for bucket in range(layout.buckets)) if one else (_condensed_address(spec, s, rest) for s in range(layout.slices))
    found = dict(_by_domain(spec, files, spec.lanes.num_lanes + rest if one else rest))
    return {spec.names[domain]: _finish(spec, domain, rest, found.get(domain, [])) for domain in np.flatnonzero(spec.lanes.rest_of == rest).tolist()}


def shards_of_slice(spec: TokenizeSpec, domain: int) -> int:
    """How many shards of a domain come from one slice."""
    return int(spec.lanes.shards[domain]) + (spec.lanes.layout.slices > 1)


def _finish(spec: TokenizeSpec, domain: int, rest: int, pieces: Sequence[Piece]) -> dict[str, Any]:
    whole = spec.names[domain] in spec.trained_whole
    tails = [piece for piece in pieces if whole or not piece[0]]
    full, _ = pack([piece[3] for piece in tails], [piece[1] for piece in tails], spec.row_tokens, spec.vocab_size)
    unigrams = np.zeros(spec.vocab_size, np.int64)
    if len(full):
        number = spec.lanes.layout.slices * shards_of_slice(spec, domain)
        unigrams = _write_train(spec, domain, number, full)
    heldout = [] if whole else [piece for piece in pieces if piece[0]]
    return {"rows": len(full), "entropy": _entropy(spec, domain, rest, unigrams), **_heldout(spec, spec.names[domain], heldout)}


def _heldout(spec: TokenizeSpec, name: str, pieces: Sequence[Piece]) -> dict[str, Any]:
    halves = deal((tokens for *_, tokens in pieces), spec.heldout_tokens)
    result = {}
    for split, mine in zip(("valid", "test"), halves if all(halves) else ([], []), strict=True):
        shard_rows: tuple[int, ...] = ()
        if mine:
            rows = pack_all([tokens for _, tokens in mine], range(len(mine)), spec.row_tokens, spec.vocab_size, spec.end_of_document)
            write_shard(storage.join(spec.address, split, quote(name, safe=""), "shard-00000.arrow"), name, rows)
            shard_rows = (len(rows),)
        text_bytes = round(sum(pieces[place][2] / len(pieces[place][3]) * len(tokens) for place, tokens in mine))
        result[split] = asdict(SplitCounts(len(mine), int(sum(len(tokens) for _, tokens in mine)), text_bytes, shard_rows))
    return result


def _place_rows(batch: pa.RecordBatch, shards: Mapping[int, _TrainShard]) -> None:
    numbers, tokens, documents = batch["shard"].to_numpy(), batch["tokens"].flatten().to_numpy().reshape(len(batch), -1), batch["document"].to_numpy()
    for shard in np.unique(numbers).tolist():
        mine = np.flatnonzero(numbers == shard)
        shards[shard].add(tokens[mine], documents[mine])


class _TrainShard:
    """Train rows of one domain in random order, as many as are announced."""

    def __init__(self, spec: TokenizeSpec, domain: int, number: int, count: int) -> None:
        self.domain = domain
        self._spec, self._name = spec, spec.names[domain]
        self._address = storage.join(spec.address, "train", quote(self._name, safe=""), f"shard-{number:05d}.arrow")
        order = np.random.default_rng([spec.seed, number, *self._name.encode()]).permutation(count)
        self._place = np.empty(count, np.int64)
        self._place[order] = np.arange(count)
        tokens = np.empty((count, spec.row_tokens), token_dtype(spec.vocab_size))
        self._rows = Rows(tokens, np.full(count, spec.row_tokens, np.int32), np.empty(count, np.int64))
        self._filled = 0

    def add(self, tokens: NDArray[Any], documents: NDArray[np.int64]) -> None:
        """The next rows: [n, row_tokens], and the document of each one's first token."""
        assert self._filled + len(tokens) <= len(self._rows), f"{self._address}: more than {len(self._rows)} rows"
        mine = self._place[self._filled : self._filled + len(tokens)]
        self._rows.tokens[mine], self._rows.document[mine] = tokens, documents
        self._filled += len(tokens)

    def write(self) -> NDArray[np.int64]:
        """Write them; how often each token is in them."""
        assert self._filled == len(self._rows), f"{self._address}: {self._filled} of {len(self._rows)} rows"
        write_shard(self._address, self._name, self._rows)
        return histogram(self._rows.tokens, self._spec.vocab_size)


def _write_train(spec: TokenizeSpec, domain: int, number: int, rows: Rows) -> NDArray[np.int64]:
    shard = _TrainShard(spec, domain, number, len(rows))
    shard.add(rows.tokens, rows.document)
    return shard.write()


def _entropy(spec: TokenizeSpec, domain: int, rest: int, unigrams: NDArray[np.int64]) -> float:
    """Of all train tokens of a domain: those of its shards as they were counted, and `unigrams`, of its last rows."""
    counts = unigrams.copy()
    slices = range(spec.lanes.layout.slices)
    files = [_unigrams_address(spec, each, lane) for each in slices for lane in spec.lanes.lanes_of_domain(domain)]
    if len(slices) > 1:
        files += [_unigrams_address(spec, each, f"rest-{rest}") for each in slices]
    for address in files:
        for _, batch in read_pieces(address, UNIGRAMS, range(domain, domain + 1)):
            counts[batch["token"].to_numpy()] += batch["count"].to_numpy()
    return entropy_nats(counts)


def _write_unigrams(address: str, unigrams: Iterable[tuple[int, pa.RecordBatch]]) -> None:
    """How often each token is in shards of some domains."""
    with write_pieces(address) as writer:
        for domain, counts in unigrams:
            writer.add(domain, counts)


def _occurring(counts: NDArray[np.int64]) -> pa.RecordBatch:
    """The tokens that occur, and how often."""
    tokens = np.flatnonzero(counts)
    return pa.record_batch([pa.array(tokens), pa.array(counts[tokens])], schema=UNIGRAMS)


def _by_domain(spec: TokenizeSpec, files: Iterable[str], slot: int) -> Iterator[tuple[int, list[Piece]]]:
    """What the files have of a rest, domain by domain, in their order."""
    found: dict[int, list[Piece]] = defaultdict(list)
    for address in files:
        for _, batch in read_pieces(address, spec.rest_schema, range(slot, slot + 1)):
            offsets, values = batch["tokens"].offsets.to_numpy(), batch["tokens"].values.to_numpy()
            columns = (batch[name].to_pylist() for name in ("domain", "heldout", "document", "bytes"))
            for i, (domain, *fields) in enumerate(zip(*columns, strict=True)):
                found[domain].append((*fields, values[offsets[i] : offsets[i + 1]]))
    yield from sorted(found.items())


def _buckets(spec: TokenizeSpec, slice_number: int) -> range:
    return spec.lanes.layout.buckets_of(slice_number)


def _unigrams_address(spec: TokenizeSpec, slice_number: int, lane: int | str) -> str:
    return storage.join(spec.rows_folder, f"unigrams-{slice_number:05d}-{lane}.pieces")


def _condensed_address(spec: TokenizeSpec, slice_number: int, rest: int) -> str:
    return storage.join(spec.rows_folder, f"rest-{slice_number:05d}-{rest}.pieces")
