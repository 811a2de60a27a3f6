"""First pass over the text: documents into buckets by hash, so that copies of a document meet and memory stays flat.

Bucket b of B holds the documents whose hash lies in the b-th of B equal ranges, of all domains and splits. Reading the buckets in order
therefore reads the documents in the order of their hashes, an order that nothing about the files can influence.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from chameleon_ray import storage
from chameleon_ray.corpus.documents import Document, document_hash
from chameleon_ray.corpus.readers import read_part
from chameleon_ray.corpus.sources import Part
from chameleon_ray.errors import UserError

BUCKET_BYTES = 16 << 20
MAX_BUCKETS = 1024
UNKNOWN_BYTES = 16 << 20
PLAIN = (".jsonl", ".txt", ".py", ".pyi", ".h", ".hpp")
FLUSH_BYTES = 1 << 19
BUFFER_BYTES = 12 << 20
SKETCH_DOCUMENTS = 4096
MAX_SKIPPED = 0.01
SCHEMA = pa.schema([("hash", pa.binary(16)), ("domain", pa.string()), ("heldout", pa.bool_()), ("order", pa.int64()), ("text", pa.large_string())])


@dataclass
class DomainStats:
    """What reading found of one domain. `lowest` maps the lowest hashes of documents that are not declared held-out to their bytes."""

    documents: int = 0
    text_bytes: int = 0
    heldout_documents: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    lowest: dict[str, int] = field(default_factory=dict)

    def merge(self, other: DomainStats) -> DomainStats:
        """The statistics of both."""
        reasons = {reason: self.skipped.get(reason, 0) + other.skipped.get(reason, 0) for reason in {**self.skipped, **other.skipped}}
        lowest = dict(sorted({**self.lowest, **other.lowest}.items())[:SKETCH_DOCUMENTS])
        return DomainStats(
            self.documents + other.documents, self.text_bytes + other.text_bytes, self.heldout_documents + other.heldout_documents, reasons, lowest
        )


def num_buckets(parts: Sequence[Part]) -> int:
    """Buckets of about 16 MB of text; beyond 16 GB of text the buckets grow instead. Compressed files count fourfold, unknown sizes as 64 MB."""
    text_bytes = sum((source.size_bytes or UNKNOWN_BYTES) * (1 if source.address.endswith(PLAIN) else 4) for part in parts for source in part.sources)
    return max(1, min(MAX_BUCKETS, -(-text_bytes // BUCKET_BYTES)))


def partition(group: str, parts: Sequence[Part], text_column: str, folder: str, buckets: int) -> dict[str, Any]:
    """Read some parts and write their documents to `{folder}/group-…/bucket-….arrow`; done before: return at once.

    Returns:
        `DomainStats` by domain name, as a JSON object.
    """
    home = storage.join(folder, f"group-{group}")
    done = storage.join(home, "stats.json")
    if storage.exists(done):
        return dict(json.loads(storage.read_bytes(done)))
    stats: dict[str, DomainStats] = defaultdict(DomainStats)
    with _BucketWriters(home, buckets) as writers:
        for part in parts:
            order = part.index << 40
            for found in read_part(part, text_column):
                domain = stats[found.domain]
                if not isinstance(found, Document):
                    domain.skipped[str(found.reason)] = domain.skipped.get(str(found.reason), 0) + 1
                    continue
                digest = document_hash(found.text)
                size = writers.add(digest, found, order)
                order += 1
                domain.documents += 1
                domain.text_bytes += size
                domain.heldout_documents += found.heldout
                if not found.heldout:
                    domain.lowest[digest.hex()] = size
                    if len(domain.lowest) > 4 * SKETCH_DOCUMENTS:
                        domain.lowest = dict(sorted(domain.lowest.items())[:SKETCH_DOCUMENTS])
    result = {name: vars(DomainStats().merge(found)) for name, found in stats.items()}
    storage.write_bytes(done, json.dumps(result).encode())
    return result


def check_skipped(stats: Mapping[str, DomainStats]) -> None:
    """Raise `UserError` when more than 1 % of a domain's documents cannot be used; empty ones do not count."""
    for name, found in stats.items():
        bad = {reason: count for reason, count in found.skipped.items() if reason != "empty"}
        total = found.documents + sum(bad.values())
        if sum(bad.values()) > MAX_SKIPPED * total:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(bad.items()))
            raise UserError(
                f"corpus.domains.{name}: {sum(bad.values()):,} of {total:,} documents cannot be used ({reasons}), more than 1 %; repair or re-export the files"
            )


@dataclass(frozen=True)
class BucketDocuments:
    """The distinct documents of one bucket in the order of their hashes: hash, domain, whether held out, place of the text in `texts`;
    copies left out by domain."""

    documents: list[tuple[bytes, str, bool, int]]
    texts: pa.ChunkedArray
    duplicates: dict[str, int]

    def __iter__(self) -> Iterator[tuple[bytes, str, bool, str]]:
        for key, domain, heldout, place in self.documents:
            yield key, domain, heldout, self.texts[place].as_py()


def read_bucket(folder: str, groups: Sequence[str], bucket: int, names: Sequence[str], borders: Mapping[str, str]) -> BucketDocuments:
    """The documents of a bucket, each once.

    Of several copies a held-out one is kept, so that no copy of it can be trained on; among equals the first domain's, then the first read.

    Args:
        groups: names of the groups of parts that were read, in the order of the plan.
        borders: for domains whose held-out text is split off, the highest hash (hexadecimal) that is held out.
    """
    table = pa.concat_tables([_read_piece(storage.join(folder, f"group-{group}", f"bucket-{bucket:05d}.arrow")) for group in groups])
    rank = {name: i for i, name in enumerate(names)}
    limits = {name: bytes.fromhex(border) for name, border in borders.items()}
    keys, domains = table["hash"].to_pylist(), table["domain"].to_pylist()
    declared, order = table["heldout"].to_pylist(), table["order"].to_pylist()
    heldout = [flag or (domain in limits and key <= limits[domain]) for flag, domain, key in zip(declared, domains, keys, strict=True)]
    ranked = sorted((i for i in range(len(keys)) if domains[i] in rank), key=lambda i: (keys[i], not heldout[i], rank[domains[i]], order[i]))
    kept: list[int] = []
    duplicates: dict[str, int] = {}
    for i in ranked:
        if kept and keys[kept[-1]] == keys[i]:
            duplicates[domains[i]] = duplicates.get(domains[i], 0) + 1
        else:
            kept.append(i)
    return BucketDocuments([(keys[i], domains[i], heldout[i], i) for i in kept], table["text"], duplicates)


def heldout_borders(stats: Mapping[str, DomainStats], fraction: float) -> dict[str, str]:
    """For every domain without declared held-out documents: the highest hash that is held out.

    Documents are held out in the order of their hashes until they have `fraction` of the domain's bytes, copies counted once; at least
    two, for valid and test, and at most 4,096.

    Raises:
        UserError: a domain with fewer than three distinct documents.
    """
    borders = {}
    for name, found in stats.items():
        if found.heldout_documents:
            continue
        if len(found.lowest) < 3:
            raise UserError(
                f"corpus.domains.{name}: {len(found.lowest)} distinct documents; splitting off valid and test needs at least 3: "
                "add documents, or give heldout files"
            )
        sizes = np.cumsum(list(found.lowest.values()))
        count = int(np.searchsorted(sizes, fraction * _distinct_bytes(found))) + 1
        borders[name] = list(found.lowest)[min(max(2, count), len(sizes) - 1) - 1]
    return borders


def _distinct_bytes(found: DomainStats) -> float:
    """Bytes of distinct documents: exact while all of them fit the sketch, else from the share of the hash range that the sketch covers."""
    sampled = sum(found.lowest.values())
    if len(found.lowest) < SKETCH_DOCUMENTS:
        return sampled
    return sampled / (int(list(found.lowest)[-1], 16) / 2**128)


def _read_piece(address: str) -> pa.Table:
    if not storage.exists(address):
        return SCHEMA.empty_table()
    with storage.open_input(address) as source:
        return pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()


class _BucketWriters:
    """One Arrow stream per bucket, opened when first needed; small buffers, so that many buckets do not need much memory."""

    def __init__(self, home: str, buckets: int) -> None:
        self._home, self._buckets = home, buckets
        self._rows: dict[int, list[tuple[bytes, str, bool, int, str]]] = defaultdict(list)
        self._sizes: dict[int, int] = defaultdict(int)
        self._buffered = 0
        self._streams: dict[int, tuple[Any, pa.RecordBatchWriter]] = {}

    def add(self, key: bytes, document: Document, order: int) -> int:
        """Buffer a document; returns its size in bytes."""
        size = len(document.text.encode())
        bucket = int.from_bytes(key[:8]) * self._buckets >> 64
        self._rows[bucket].append((key, document.domain, document.heldout, order, document.text))
        self._sizes[bucket] += size
        self._buffered += size
        if self._sizes[bucket] > FLUSH_BYTES:
            self._flush(bucket)
        elif self._buffered > BUFFER_BYTES:
            self._flush(max(self._sizes, key=self._sizes.__getitem__))
        return size

    def _flush(self, bucket: int) -> None:
        if bucket not in self._streams:
            filesystem, path = storage.resolve(storage.join(self._home, f"bucket-{bucket:05d}.arrow"))
            filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
            sink = filesystem.open_output_stream(path)
            self._streams[bucket] = sink, pa.ipc.new_stream(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4"))
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
