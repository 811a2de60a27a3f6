"""What is in a bucket: its documents, each once, in the order of their hashes, and which of them are held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chameleon_ray import storage
from chameleon_ray.corpus.heldout import Border
from chameleon_ray.corpus.layout import Layout
from chameleon_ray.corpus.pieces import read_pieces
from chameleon_ray.corpus.sources import combined
from chameleon_ray.records import done_once
from chameleon_ray.tensors import read_tensors, write_tensors

SPLITS_OF_A_SLICE = 32  # tasks that sort a slice's documents into its buckets
KEYS = pa.schema([("hash", pa.binary(16)), ("domain", pa.string()), ("heldout", pa.bool_()), ("order", pa.int64()), ("bytes", pa.int64())])
TEXTS = pa.schema([("text", pa.large_string())])


def slots_of(place: int) -> tuple[range, range]:
    """The slots of a bucket (or slice) in a file of pieces: what is known of its documents, and their texts."""
    return range(2 * place, 2 * place + 1), range(2 * place + 1, 2 * place + 2)


@dataclass(frozen=True)
class Contents:
    """What buckets hold: pieces in `folder`, written by `groups` in the order of the plan, of the domains and targets `names`. `limits` has the (name, held
    out) whose documents count only before some place in the order of their source."""

    folder: str
    layout: Layout
    groups: tuple[str, ...]
    names: tuple[str, ...]
    limits: Mapping[tuple[str, bool], int]

    def group_address(self, group: str) -> str:
        return storage.join(self.folder, f"group-{group}.pieces")

    def split_address(self, slice_number: int, number: int) -> str:
        content = combined(self.groups_of(number))  # other groups than an interrupted run had are other splits
        return storage.join(self.folder, f"split-{slice_number:05d}-{number:02d}-{content[:12]}.pieces")

    @property
    def splits(self) -> int:
        """Tasks that sort a slice into its buckets; none where there is one slice, whose buckets the groups have written."""
        return min(SPLITS_OF_A_SLICE, len(self.groups)) if self.layout.slices > 1 else 0

    def all_splits(self) -> list[tuple[int, int]]:
        """(slice, number) of every one."""
        return [(each, number) for each in range(self.layout.slices) for number in range(self.splits)]

    def groups_of(self, number: int) -> tuple[str, ...]:
        """The groups whose documents a split sorts."""
        return self.groups[number :: self.splits]

    def files(self, bucket: int) -> list[str]:
        """Where a bucket's pieces lie."""
        mine = bucket // self.layout.per_slice
        return [self.split_address(mine, number) for number in range(self.splits)] or [self.group_address(group) for group in self.groups]

    def kept(self, table: pa.Table, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which documents of a table count; `ranks` are their domains, -1 of those that are none."""
        most = np.full((len(self.names), 2), np.iinfo(np.int64).max)
        place = {name: i for i, name in enumerate(self.names)} if self.limits else {}
        for (name, heldout), limit in self.limits.items():
            if name in place:
                most[place[name], int(heldout)] = limit
        return (ranks >= 0) & (table["order"].to_numpy() < most[ranks, table["heldout"].to_numpy().astype(np.int64)])


@dataclass(frozen=True)
class BucketDocuments:
    """The distinct documents of one bucket in the order of their hashes: hash, domain, whether held out, place of the text in `texts`;
    by domain the copies that were left out, and the declared held-out documents that are used for nothing."""

    documents: list[tuple[bytes, str, bool, int]]
    texts: pa.ChunkedArray
    duplicates: dict[str, int]
    unused: dict[str, int]

    def part(self, number: int, count: int) -> BucketDocuments:
        """One of so many equal parts of the documents."""
        n = len(self.documents)
        return replace(self, documents=self.documents[number * n // count : (number + 1) * n // count])

    def __iter__(self) -> Iterator[tuple[bytes, str, bool, str]]:
        for key, domain, heldout, place in self.documents:
            yield key, domain, heldout, self.texts[place].as_py()


def count(contents: Contents, buckets: range) -> dict[str, list[list[int]]]:
    """What is in some buckets without copies, as an array of `COUNTS` in a file of its own; reads everything but the text. Done before: return at once.

    Returns:
        Domain -> [[documents, bytes] that are not declared held-out, [documents, bytes] that are], of all these buckets; domains without documents are
        left out.
    """
    address = counts_address(contents, buckets)
    return done_once(f"{address}.json", lambda: _count_all(address, contents, buckets))


def _count_all(address: str, contents: Contents, buckets: range) -> dict[str, list[list[int]]]:
    rows = np.concatenate([_count(contents, bucket) for bucket in buckets])
    write_tensors(address, {"counts": rows})
    ranks, index = np.unique(rows[:, 1], return_inverse=True)
    totals = np.zeros((len(ranks), 2, 2), np.int64)
    np.add.at(totals, (index, rows[:, 2]), rows[:, 3:])
    return {contents.names[rank]: total for rank, total in zip(ranks.tolist(), totals.tolist(), strict=True)}


def counts_address(contents: Contents, buckets: range) -> str:
    """Where the counts of some buckets lie."""
    return storage.join(contents.folder, f"counts-{buckets.start:07d}")


def read_counts(contents: Contents, buckets: range) -> NDArray[np.int64]:
    """[n, 5] the counts of some buckets, by bucket."""
    return read_tensors(counts_address(contents, buckets))["counts"]


def _count(contents: Contents, bucket: int) -> NDArray[np.int64]:
    table = _read_bucket(contents, bucket, KEYS)
    kept, _ = _distinct(table, contents)
    declared, sizes = table["heldout"].to_numpy()[kept.places], table["bytes"].to_numpy()[kept.places]
    kinds, index = np.unique(2 * kept.ranks + declared, return_inverse=True)
    documents, text_bytes = np.bincount(index, minlength=len(kinds)), np.bincount(index, sizes, len(kinds)).astype(np.int64)
    return np.stack([np.full(len(kinds), bucket), kinds // 2, kinds % 2, documents, text_bytes], axis=1).astype(np.int64)


def read_bucket(contents: Contents, bucket: int, borders: Mapping[str, Border]) -> BucketDocuments:
    """The documents of a bucket, each once.

    Of several copies a declared held-out one is kept, so that no copy of it can be trained on; among equals the first domain's. Which of those that
    are kept are held out is decided after that, by the borders; without a border, those that are declared.
    """
    names = contents.names
    table = _read_bucket(contents, bucket, KEYS, TEXTS)
    kept, copies = _distinct(table, contents)
    declared, sizes = table["heldout"].to_numpy()[kept.places], table["bytes"].to_numpy()[kept.places]
    heldout, used = declared.copy(), np.ones(len(declared), bool)
    for rank, mine in _by_rank(kept.ranks):
        if (border := borders.get(names[rank])) is not None:
            mine = mine[declared[mine] == border.declared]
            held = border.count(bucket, sizes[mine])
            heldout[mine] = np.arange(len(mine)) < held
            used[mine[held:]] = not border.declared
    keys = table["hash"].to_pylist()
    documents = [
        (keys[place], names[rank], held, place)
        for place, rank, held in zip(kept.places[used].tolist(), kept.ranks[used].tolist(), heldout[used].tolist(), strict=True)
    ]
    return BucketDocuments(documents, table["text"], _by_name(copies, names), _by_name(kept.ranks[~used], names))


def _by_rank(ranks: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Every rank that is there, and where, in order."""
    order = np.argsort(ranks, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(ranks[order])) + 1):
        if len(mine):
            yield int(ranks[mine[0]]), mine


@dataclass(frozen=True)
class _Kept:
    """Documents of a table without copies, in the order of their hashes: row of the table, index into the names of the domains."""

    places: NDArray[np.int64]
    ranks: NDArray[np.int64]


def _distinct(table: pa.Table, contents: Contents) -> tuple[_Kept, NDArray[np.int64]]:
    """What is kept of a bucket, and the domain of every copy that is not; documents of other domains, and those over a limit, are left out."""
    ranks = pc.fill_null(pc.index_in(table["domain"], pa.array(contents.names, pa.string())), -1).to_numpy().astype(np.int64)
    words = np.frombuffer(b"".join(table["hash"].to_pylist()), ">u8").astype(np.uint64).reshape(-1, 2)
    ordered = np.lexsort((table["order"].to_numpy(), ranks, ~table["heldout"].to_numpy(), words[:, 1], words[:, 0]))
    ordered = ordered[contents.kept(table, ranks)[ordered]]
    is_copy = np.concatenate([np.zeros(min(1, len(ordered)), bool), (words[ordered[1:]] == words[ordered[:-1]]).all(axis=1)])
    places = ordered[~is_copy]
    return _Kept(places, ranks[places]), ranks[ordered[is_copy]]


def _by_name(ranks: NDArray[np.int64], names: Sequence[str]) -> dict[str, int]:
    return {names[rank]: int(count) for rank, count in zip(*np.unique(ranks, return_counts=True), strict=True)}


def _read_bucket(contents: Contents, bucket: int, *schemas: pa.Schema) -> pa.Table:
    """What is known of a bucket's documents, and with `TEXTS` their texts."""
    parts = []
    for schema, slots in zip(schemas, slots_of(bucket), strict=False):
        batches = [batch for address in contents.files(bucket) for _, batch in read_pieces(address, schema, slots)]
        parts.append(pa.Table.from_batches(batches, schema))
    return pa.table({name: table[name] for table in parts for name in table.column_names})
