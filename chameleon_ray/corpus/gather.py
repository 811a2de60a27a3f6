"""Third pass: rows of tokenized buckets gathered, shuffled and written as shards, and what buckets left over.

The train shards of a domain are, slice after slice, those of its lanes and, where there are several slices, one of what the slice's buckets left over; last
comes one of what is left over then.
"""

from __future__ import annotations

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
from chameleon_ray.corpus.pieces import PieceWriter, read_pieces
from chameleon_ray.corpus.rows import Rows, token_dtype, write_shard
from chameleon_ray.corpus.scatter import TokenizeSpec, rest_batch
from chameleon_ray.corpus.unigrams import entropy_nats, histogram
from chameleon_ray.counts import SplitCounts

UNIGRAMS = pa.schema([("token", pa.int64()), ("count", pa.int64())])  # a slot for every domain
Piece = tuple[bool, int, int, NDArray[Any]]  # held out, document, bytes, tokens


def gather_lane(spec: TokenizeSpec, slice_number: int, lane: int) -> dict[str, Any]:
    """Write the shuffled train shards of a lane, and how often each token is in them.

    Returns:
        `rows` of the lane's shards, in their order.
    """
    parts = [batch for bucket in _buckets(spec, slice_number) for _, batch in read_pieces(spec.tokens_address(bucket), spec.row_schema, range(lane, lane + 1))]
    starts = np.concatenate([[0], np.cumsum([len(batch) for batch in parts])])
    slots = np.flatnonzero(spec.lanes.lane_of == lane)
    shards = np.concatenate([batch["shard"].to_numpy() for batch in parts] or [np.empty(0, np.int32)])
    order = np.argsort(shards, kind="stable")
    borders = np.searchsorted(shards[order], [*slots, slots[-1] + 1])
    unigrams: dict[int, NDArray[np.int64]] = defaultdict(lambda: np.zeros(spec.vocab_size, np.int64))
    counts = []
    for slot, start, stop in zip(slots.tolist(), borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        counts.append(stop - start)
        if stop > start:
            domain = int(np.searchsorted(spec.lanes.first_slot, slot, side="right")) - 1
            number = slice_number * shards_of_slice(spec, domain) + slot - int(spec.lanes.first_slot[domain])
            unigrams[domain] += _write_train(spec, domain, number, stop - start, _picked(parts, starts, order[start:stop]))
    _write_unigrams(_unigrams_address(spec, slice_number, lane), unigrams)
    return {"rows": counts}


def condense_rest(spec: TokenizeSpec, slice_number: int, rest: int) -> dict[str, Any]:
    """Where there are several slices: full rows of what a slice's buckets left over, as a shard for each domain; what is left over then, and held-out
    documents, are kept for `gather_rest`.

    Returns:
        `rows`: domain -> rows.
    """
    kept: list[tuple[int, bool, int, int, NDArray[Any]]] = []
    rows, unigrams = {}, {}
    for domain, pieces in _by_domain(spec, (spec.tokens_address(bucket) for bucket in _buckets(spec, slice_number)), spec.lanes.num_lanes + rest):
        tails = [piece for piece in pieces if not piece[0]]
        full, left = pack([piece[3] for piece in tails], [piece[1] for piece in tails], spec.row_tokens, spec.vocab_size)
        if len(full):
            shards = shards_of_slice(spec, domain)
            found = [(full.tokens, full.document)]
            unigrams[domain] = _write_train(spec, domain, slice_number * shards + shards - 1, len(full), found)
            rows[spec.names[domain]] = len(full)
        kept += [(domain, False, document, 0, tokens) for document, tokens in left]
        kept += [(domain, *piece) for piece in pieces if piece[0]]
    _write_unigrams(_unigrams_address(spec, slice_number, f"rest-{rest}"), unigrams)
    with PieceWriter(_condensed_address(spec, slice_number, rest)) as writer:
        if kept:
            writer.add(rest, rest_batch(spec, kept))
    return {"rows": rows}


def gather_rest(spec: TokenizeSpec, rest: int) -> dict[str, Any]:
    """The last train shard of some domains, and their held-out documents, in the order of their hashes, dealt to valid and test, `heldout_tokens` each at
    most. With fewer than two documents neither split gets any: the domain is not measured.

    Returns:
        By domain `rows` of the shard, `entropy` of all train tokens, and the counts of `valid` and `test`.
    """
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
        unigrams = _write_train(spec, domain, number, len(full), [(full.tokens, full.document)])
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


def _picked(parts: Sequence[pa.RecordBatch], starts: NDArray[np.int64], mine: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Tokens and documents of some rows, part by part; `mine` numbers rows through all parts, ascending, and `starts` says where each part begins."""
    part_of = np.searchsorted(starts, mine, side="right") - 1
    borders = np.flatnonzero(np.diff(part_of, prepend=-1))
    for part, rows in zip(part_of[borders].tolist(), np.split(mine, borders[1:]), strict=True):
        tokens, inside = parts[part]["tokens"], rows - starts[part]
        yield tokens.flatten().to_numpy().reshape(len(tokens), -1)[inside], parts[part]["document"].to_numpy()[inside]


def _write_train(spec: TokenizeSpec, domain: int, number: int, count: int, parts: Iterable[tuple[NDArray[Any], NDArray[np.int64]]]) -> NDArray[np.int64]:
    """Write `count` rows in random order, tokens and documents as they come; how often each token is in them. Every row goes straight to its place, so that
    no more than one copy of a shard is held."""
    name = spec.names[domain]
    order = np.random.default_rng([spec.seed, number, *name.encode()]).permutation(count)
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    rows = Rows(np.empty((count, spec.row_tokens), token_dtype(spec.vocab_size)), np.full(count, spec.row_tokens, np.int32), np.empty(count, np.int64))
    start = 0
    for tokens, documents in parts:
        mine = place[start : start + len(tokens)]
        rows.tokens[mine], rows.document[mine] = tokens, documents
        start += len(tokens)
    write_shard(storage.join(spec.address, "train", quote(name, safe=""), f"shard-{number:05d}.arrow"), name, rows)
    return histogram(rows.tokens, spec.vocab_size)


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


def _write_unigrams(address: str, unigrams: Mapping[int, NDArray[np.int64]]) -> None:
    """How often each token is in shards of some domains."""
    with PieceWriter(address) as writer:
        for domain, counts in unigrams.items():
            tokens = np.flatnonzero(counts)
            writer.add(domain, pa.record_batch([pa.array(tokens), pa.array(counts[tokens])], schema=UNIGRAMS))


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
    return storage.join(spec.scratch, f"unigrams-{slice_number:05d}-{lane}.pieces")


def _condensed_address(spec: TokenizeSpec, slice_number: int, rest: int) -> str:
    return storage.join(spec.scratch, f"rest-{slice_number:05d}-{rest}.pieces")
