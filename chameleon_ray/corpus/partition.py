"""First pass over the text: documents into buckets by hash, so that copies of a document meet and memory stays flat.

Bucket b of B holds the documents whose hash lies in the b-th of B equal ranges, of all domains and splits. Reading the buckets in order
therefore reads the documents in the order of their hashes, an order that nothing about the files can influence.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chameleon_ray import storage
from chameleon_ray.corpus.documents import Document, DomainStats, Skip, document_hash
from chameleon_ray.corpus.heldout import BYTES_PER_TOKEN, Border
from chameleon_ray.corpus.readers import read_part
from chameleon_ray.corpus.sampling import Found, Stretches, order_of
from chameleon_ray.corpus.sources import Part, Source
from chameleon_ray.corpus.stretches import StretchReading
from chameleon_ray.errors import UserError

BUCKET_BYTES = 16 << 20
MAX_BUCKETS = 1024
UNKNOWN_BYTES = 16 << 20
FLUSH_BYTES = 1 << 17
BUFFER_BYTES = 12 << 20
MAX_SKIPPED = 0.01
SCHEMA = pa.schema(
    [
        ("hash", pa.binary(16)),
        ("domain", pa.string()),
        ("heldout", pa.bool_()),
        ("order", pa.int64()),
        ("bytes", pa.int64()),
        ("text", pa.large_string()),
    ]
)
KEYS = tuple(name for name in SCHEMA.names if name != "text")


def num_buckets(sources: Sequence[Source]) -> int:
    """Buckets of about 16 MB of text; beyond 16 GB of text the buckets grow instead. Compressed files count fourfold, unknown sizes as 64 MB."""
    text_bytes = sum(_text_bytes(source) for source in sources)
    return max(1, min(MAX_BUCKETS, -(-text_bytes // BUCKET_BYTES)))


def _text_bytes(source: Source) -> int:
    """How much text of a source is read, about."""
    there = source.likely_text_bytes or len(source.files) * UNKNOWN_BYTES
    if source.wanted is None:
        return there
    k = source.wanted.num_domains or 1
    return min(there, source.wanted.text_bytes(BYTES_PER_TOKEN, k) * (k if source.origin.domain is None else 1))


def partition(group: str, work: Sequence[Part | Stretches], text_column: str, folder: str, buckets: int) -> dict[str, Any]:
    """Read what a task is given and write the documents to `{folder}/group-…/bucket-….arrow`; done before: return at once.

    Returns:
        As a JSON object `stats`, of whole parts by domain, and `stretches`, a `Found` for every file that stretches were read of.
    """
    home = storage.join(folder, f"group-{group}")
    done = storage.join(home, "stats.json")
    if storage.exists(done):
        return dict(json.loads(storage.read_bytes(done)))
    stats: dict[str, DomainStats] = defaultdict(DomainStats)
    stretches = []
    with _BucketWriters(home, buckets) as writers:
        for each in work:
            if isinstance(each, Stretches):
                stretches.append(asdict(_partition_stretches(each, text_column, writers)))
                continue
            for number, found in enumerate(read_part(each, text_column)):
                stats[found.domain].add(found)
                writers.add(found, each.index << 40 | number)
    result = {"stats": {name: vars(found) for name, found in stats.items()}, "stretches": stretches}
    storage.write_bytes(done, json.dumps(result).encode())
    return result


def _partition_stretches(work: Stretches, text_column: str, writers: _BucketWriters) -> Found:
    reading = StretchReading(work.origin, work.file, work.first, work.stop, text_column)
    stats: dict[int, dict[str, DomainStats]] = defaultdict(lambda: defaultdict(DomainStats))
    numbers: dict[int, Iterator[int]] = defaultdict(itertools.count)
    for stretch, found in reading:
        stats[stretch][found.domain].add(found)
        writers.add(found, order_of(stretch, work.rank, next(numbers[stretch])))
    plain = {stretch: dict(found) for stretch, found in stats.items()}
    return Found(work.source, work.rank, dict(reading.extent), plain, reading.whole, reading.exhausted)


def check_skipped(stats: Mapping[str, DomainStats], targets: Collection[str] = ()) -> None:
    """Raise `UserError` when more than 1 % of a domain's or target's documents cannot be used; empty ones do not count."""
    for name, found in stats.items():
        bad = {reason: count for reason, count in found.skipped.items() if reason != "empty"}
        total = found.documents + sum(bad.values())
        if sum(bad.values()) > MAX_SKIPPED * total:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(bad.items()))
            where = f"corpus.{'targets' if name in targets else 'domains'}.{name}"
            raise UserError(f"{where}: {sum(bad.values()):,} of {total:,} documents cannot be used ({reasons}), more than 1 %; repair or re-export the files")


@dataclass(frozen=True)
class BucketDocuments:
    """The distinct documents of one bucket in the order of their hashes: hash, domain, whether held out, place of the text in `texts`;
    by domain the copies that were left out, and the declared held-out documents that are used for nothing."""

    documents: list[tuple[bytes, str, bool, int]]
    texts: pa.ChunkedArray
    duplicates: dict[str, int]
    unused: dict[str, int]

    def __iter__(self) -> Iterator[tuple[bytes, str, bool, str]]:
        for key, domain, heldout, place in self.documents:
            yield key, domain, heldout, self.texts[place].as_py()


@dataclass(frozen=True)
class Contents:
    """What buckets hold: pieces in `folder`, written by `groups` in the order of the plan, of the domains and targets `names`. `limits` has the (name, held
    out) whose documents count only before some place in the order of their source."""

    folder: str
    groups: tuple[str, ...]
    names: tuple[str, ...]
    limits: Mapping[tuple[str, bool], int]

    def kept(self, table: pa.Table, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which documents of a table count; `ranks` are their domains, -1 of those that are none."""
        most = np.full((len(self.names), 2), np.iinfo(np.int64).max)
        place = {name: i for i, name in enumerate(self.names)} if self.limits else {}
        for (name, heldout), limit in self.limits.items():
            if name in place:
                most[place[name], int(heldout)] = limit
        return (ranks >= 0) & (table["order"].to_numpy() < most[ranks, table["heldout"].to_numpy().astype(np.int64)])


def count_bucket(contents: Contents, bucket: int) -> dict[str, list[list[int]]]:
    """What is in a bucket without copies; reads everything but the text. Done before: return at once.

    Returns:
        Domain -> [[documents, bytes] that are not declared held-out, [documents, bytes] that are]; domains without documents are left out.
    """
    done = storage.join(contents.folder, f"counts-{bucket:05d}.json")
    if storage.exists(done):
        return dict(json.loads(storage.read_bytes(done)))
    table = _read_bucket(contents, bucket, KEYS)
    kept, _ = _distinct(table, contents)
    declared, sizes = table["heldout"].to_numpy()[kept.places], table["bytes"].to_numpy()[kept.places]
    found = {}
    for rank in np.unique(kept.ranks):
        kinds = [(kept.ranks == rank) & (declared == kind) for kind in (False, True)]
        found[contents.names[rank]] = [[int(mine.sum()), int(sizes[mine].sum())] for mine in kinds]
    storage.write_bytes(done, json.dumps(found).encode())
    return found


def read_bucket(contents: Contents, bucket: int, borders: Mapping[str, Border]) -> BucketDocuments:
    """The documents of a bucket, each once.

    Of several copies a declared held-out one is kept, so that no copy of it can be trained on; among equals the first domain's. Which of those that
    are kept are held out is decided after that, by the borders; without a border, those that are declared.
    """
    names = contents.names
    table = _read_bucket(contents, bucket, SCHEMA.names)
    kept, copies = _distinct(table, contents)
    declared, sizes = table["heldout"].to_numpy()[kept.places], table["bytes"].to_numpy()[kept.places]
    heldout, used = declared.copy(), np.ones(len(declared), bool)
    for rank, name in enumerate(names):
        if (border := borders.get(name)) is not None:
            mine = np.flatnonzero((kept.ranks == rank) & (declared == border.declared))
            count = border.count(bucket, sizes[mine])
            heldout[mine] = np.arange(len(mine)) < count
            used[mine[count:]] = not border.declared
    keys = table["hash"].to_pylist()
    documents = [
        (keys[place], names[rank], held, place)
        for place, rank, held in zip(kept.places[used].tolist(), kept.ranks[used].tolist(), heldout[used].tolist(), strict=True)
    ]
    return BucketDocuments(documents, table["text"], _by_name(copies, names), _by_name(kept.ranks[~used], names))


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


def _read_bucket(contents: Contents, bucket: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of a bucket; the others stay where they are."""
    options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=[SCHEMA.get_field_index(name) for name in columns])
    pieces = [SCHEMA.empty_table().select(columns)]
    for group in contents.groups:
        address = storage.join(contents.folder, f"group-{group}", f"bucket-{bucket:05d}.arrow")
        if storage.exists(address):
            with storage.open_input(address) as source:
                pieces.append(pa.ipc.open_file(source, options=options).read_all())
    return pa.concat_tables(pieces)


class _BucketWriters:
    """One Arrow file per bucket, opened when first needed; small buffers, so that many buckets do not need much memory."""

    def __init__(self, home: str, buckets: int) -> None:
        self._home, self._buckets = home, buckets
        self._rows: dict[int, list[tuple[bytes, str, bool, int, int, str]]] = defaultdict(list)
        self._sizes: dict[int, int] = defaultdict(int)
        self._buffered = 0
        self._streams: dict[int, tuple[Any, pa.RecordBatchWriter]] = {}

    def add(self, document: Document | Skip, order: int) -> None:
        """Buffer a document; what cannot be one is not kept."""
        if isinstance(document, Skip):
            return
        key, size = document_hash(document.text), len(document.text.encode())
        bucket = int.from_bytes(key[:8]) * self._buckets >> 64
        self._rows[bucket].append((key, document.domain, document.heldout, order, size, document.text))
        self._sizes[bucket] += size
        self._buffered += size
        if self._sizes[bucket] > FLUSH_BYTES:
            self._flush(bucket)
        elif self._buffered > BUFFER_BYTES:
            self._flush(max(self._sizes, key=self._sizes.__getitem__))

    def _flush(self, bucket: int) -> None:
        if bucket not in self._streams:
            filesystem, path = storage.resolve(storage.join(self._home, f"bucket-{bucket:05d}.arrow"))
            filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
            sink = filesystem.open_output_stream(path)
            self._streams[bucket] = sink, pa.ipc.new_file(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        columns = zip(*self._rows.pop(bucket), strict=True)
        self._streams[bucket][1].write_batch(
            pa.record_batch([pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        )
        self._buffered -= self._sizes.pop(bucket)

    def __enter__(self) -> _BucketWriters:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for bucket in sorted(self._rows):
                self._flush(bucket)
        for sink, writer in self._streams.values():
            writer.close()
            sink.close()
