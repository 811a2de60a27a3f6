"""First pass over the text: documents into buckets by hash, so that copies of a document meet and memory stays flat.

Bucket b of B holds the documents whose hash lies in the b-th of B equal ranges, of all domains and splits. Reading the buckets in order
therefore reads the documents in the order of their hashes, an order that nothing about the files can influence.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from chameleon_ray import storage
from chameleon_ray.corpus.buckets import KEYS, TEXTS, Contents, slots_of
from chameleon_ray.corpus.documents import Document, DomainStats, Skip, document_hash
from chameleon_ray.corpus.heldout import BYTES_PER_TOKEN
from chameleon_ray.corpus.layout import Layout
from chameleon_ray.corpus.pieces import PieceWriter, read_pieces, write_pieces
from chameleon_ray.corpus.readers import read_part
from chameleon_ray.corpus.sampling import Found, Stretches, order_of
from chameleon_ray.corpus.sources import UNKNOWN_BYTES, Part, Source
from chameleon_ray.corpus.stretches import StretchReading
from chameleon_ray.errors import UserError
from chameleon_ray.records import done_once

FLUSH_BYTES = 1 << 17
BUFFER_BYTES = 16 << 20
MAX_SKIPPED = 0.01
Row = tuple[bytes, str, bool, int, int, str]


def text_bytes_of(sources: Sequence[Source], num_discovered: int = 1) -> int:
    """How much text is read, about: of compressed files four times their size, of files of unknown size 64 MB.

    Args:
        num_discovered: how many domains there may be where records name them.
    """
    return sum(_text_bytes(source, num_discovered) for source in sources)


def _text_bytes(source: Source, num_discovered: int) -> int:
    there = source.likely_text_bytes or len(source.files) * UNKNOWN_BYTES
    if source.wanted is None:
        return there
    k = source.wanted.num_domains or num_discovered
    return min(there, source.wanted.text_bytes(BYTES_PER_TOKEN, k) * (k if source.origin.domain is None else 1))


def partition(group: str, work: Sequence[Part | Stretches], text_column: str, folder: str, layout: Layout) -> dict[str, Any]:
    """Read what a task is given and write the documents to `{folder}/group-….pieces`, by bucket, or by slice where there are several; done before: return
    at once.

    Returns:
        As a JSON object `stats`, of whole parts by domain, and `stretches`, a `Found` for every file that stretches were read of.
    """
    address = storage.join(folder, f"group-{group}")
    return done_once(f"{address}.json", lambda: _partition(f"{address}.pieces", work, text_column, layout))


def _partition(address: str, work: Sequence[Part | Stretches], text_column: str, layout: Layout) -> dict[str, Any]:
    stats: dict[str, DomainStats] = defaultdict(DomainStats)
    stretches = []
    with _sorted(address, layout, by_slice=layout.slices > 1) as sorter:
        for each in work:
            if isinstance(each, Stretches):
                stretches.append(asdict(_partition_stretches(each, text_column, sorter)))
                continue
            for number, found in enumerate(read_part(each, text_column)):
                stats[found.domain].add(found)
                sorter.add(found, each.index << 40 | number)
    return {"stats": {name: vars(found) for name, found in stats.items()}, "stretches": stretches}


def _partition_stretches(work: Stretches, text_column: str, sorter: _Sorter) -> Found:
    reading = StretchReading(work.origin, work.file, work.first, work.stop, text_column)
    stats: dict[int, dict[str, DomainStats]] = defaultdict(lambda: defaultdict(DomainStats))
    numbers: dict[int, Iterator[int]] = defaultdict(itertools.count)
    for stretch, found in reading:
        stats[stretch][found.domain].add(found)
        sorter.add(found, order_of(stretch, work.rank, next(numbers[stretch])))
    plain = {stretch: dict(found) for stretch, found in stats.items()}
    return Found(work.source, work.rank, dict(reading.extent), plain, reading.whole, reading.exhausted, reading.other_bytes)


def check_skipped(stats: Mapping[str, DomainStats], targets: Collection[str] = ()) -> None:
    """Raise `UserError` when more than 1 % of a domain's or target's documents cannot be used; empty ones do not count."""
    for name, found in stats.items():
        bad = {reason: count for reason, count in found.skipped.items() if reason != "empty"}
        total = found.documents + sum(bad.values())
        if sum(bad.values()) > MAX_SKIPPED * total:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(bad.items()))
            where = f"corpus.{'targets' if name in targets else 'domains'}.{name}"
            raise UserError(f"{where}: {sum(bad.values()):,} of {total:,} documents cannot be used ({reasons}), more than 1 %; repair or re-export the files")


def split(contents: Contents, slice_number: int, number: int) -> dict[str, Any]:
    """Sort some groups' documents of a slice into its buckets; done before: return at once."""
    address = contents.split_address(slice_number, number)
    return done_once(f"{address}.json", lambda: _split(address, contents, slice_number, number))


def _split(address: str, contents: Contents, slice_number: int, number: int) -> dict[str, Any]:
    with _sorted(address, contents.layout, by_slice=False) as sorter:
        for group in contents.groups_of(number):
            keys, texts = slots_of(slice_number)
            pieces = (read_pieces(contents.group_address(group), *each) for each in ((KEYS, keys), (TEXTS, texts)))
            for (_, key_batch), (_, text_batch) in zip(*pieces, strict=True):
                for row in zip(*(column.to_pylist() for column in (*key_batch.columns, *text_batch.columns)), strict=True):
                    sorter.add_row(row)
    return {}


@contextmanager
def _sorted(address: str, layout: Layout, by_slice: bool) -> Iterator[_Sorter]:
    """Sort documents into a file of pieces, which is there when the context ends without an exception."""
    with write_pieces(address) as writer:
        sorter = _Sorter(writer, layout, by_slice)
        yield sorter
        sorter.flush()


class _Sorter:
    """Documents into the slots of their buckets, or of their slices, in one file of pieces; holds a few megabytes of them, so that pieces are not too small."""

    def __init__(self, writer: PieceWriter, layout: Layout, by_slice: bool) -> None:
        self._layout, self._width = layout, layout.per_slice if by_slice else 1
        self._writer = writer
        self._rows: dict[int, list[Row]] = defaultdict(list)
        self._sizes: dict[int, int] = defaultdict(int)
        self._buffered = 0

    def add(self, document: Document | Skip, order: int) -> None:
        """A document; what cannot be one is not kept."""
        if isinstance(document, Document):
            size = len(document.text.encode())
            self.add_row((document_hash(document.text), document.domain, document.heldout, order, size, document.text))

    def add_row(self, row: Row) -> None:
        """A document as it is kept: hash, domain, whether declared held out, order, bytes, text."""
        place = (int.from_bytes(row[0][:8]) * self._layout.buckets >> 64) // self._width
        self._rows[place].append(row)
        self._sizes[place] += row[4]
        self._buffered += row[4]
        if self._sizes[place] > FLUSH_BYTES:
            self._flush(place)
        elif self._buffered > BUFFER_BYTES:
            self._flush(max(self._sizes, key=self._sizes.__getitem__))

    def _flush(self, place: int) -> None:
        columns = list(zip(*self._rows.pop(place), strict=True))
        for schema, slots, mine in zip((KEYS, TEXTS), slots_of(place), (columns[:-1], columns[-1:]), strict=True):
            arrays = [pa.array(column, kind.type) for column, kind in zip(mine, schema, strict=True)]
            self._writer.add(slots.start, pa.record_batch(arrays, schema=schema))
        self._buffered -= self._sizes.pop(place)

    def flush(self) -> None:
        """Write what there is."""
        for place in sorted(self._rows):
            self._flush(place)
