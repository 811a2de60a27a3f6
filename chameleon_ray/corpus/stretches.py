"""Bounded stretches of a file, so that a sample of its text can be taken without reading all of it.

The content of a file is an order of stretches, r = 0, 1, 2, …, of a fixed size, the same whoever reads how many of them:

    plain lines     the file in runs of 16 consecutive stretches; the first of every run, then the second of every run, …
    Parquet         the first stretch of every row group, then the second of every row group, …
    compressed      one after the other from the beginning, since nothing else can be reached without reading what is before it
    text files      the whole file is the first stretch

Runs and row groups come in an order that the file's name decides and that spreads evenly. A record belongs to the stretch in which it begins.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import zstandard

from chameleon_ray import storage
from chameleon_ray.corpus.documents import Document, Skip
from chameleon_ray.corpus.formats import file_format
from chameleon_ray.corpus.readers import (
    Columns,
    Record,
    check_exists,
    decompressed,
    documents,
    json_records,
    lines,
    open_parquet,
    plain_content,
    row_group_records,
    stream_records,
    text_record,
)
from chameleon_ray.corpus.sources import File, Origin

STRETCH_BYTES = 256 << 10
PAGE_BYTES = 1 << 20  # of a stretch in a Parquet file: a page, the least that can be read of it, has about so much
RUN_STRETCHES = 16
_FIRST_READ = 4  # of a compressed file this part of what is wanted is read at first, and then in steps
_STEP_BYTES = 16 << 10
_FED_BYTES = 4 << 10
_PARQUET_BUFFER_BYTES = 128 << 10
_UNRELIABLE = 0.8  # a size that a compressed file states is not that of all of its content where its beginning expands so much more


@dataclass
class StretchReading:
    """Some stretches of a file, from `first` to `stop`, read when iterated over.

    After that `extent` [stretch -> extent] says how much of the file begins in it, and `whole` how much the file has in all, as far as that can be told: of
    tables in rows, of other files in bytes of content. `exhausted`: whether nothing is left behind `stop`.
    `other_bytes`: how much text was of domains that are not wanted.
    """

    origin: Origin
    file: File
    first: int
    stop: int
    text_column: str
    extent: Counter[int] = field(default_factory=Counter)
    whole: float | None = None
    exhausted: bool = False
    other_bytes: int = 0

    def __iter__(self) -> Iterator[tuple[int, Document | Skip]]:
        columns = Columns(self.text_column, self.origin.domain_column)
        for stretch, record in self._records(columns):
            self.extent[stretch] += 1 if self._is_table else record.size
            found = next(documents(self.origin, [record]), None)
            if found is None:
                self.other_bytes += len(record.value or "")
            else:
                yield stretch, found

    @property
    def _is_table(self) -> bool:
        return self.origin.kind == "stream" or (file_format(self.file.address) or ("",))[0] == ".parquet"

    def _records(self, columns: Columns) -> Iterator[tuple[int, Record]]:
        if self.origin.kind == "stream":
            return self._of_stream(columns)
        check_exists(self.file)
        suffix, compression = file_format(self.file.address) or ("", "")
        if suffix == ".parquet":
            return self._of_parquet(columns)
        if suffix == ".txt":
            return self._of_text(compression)
        return self._of_compressed(compression, columns) if compression else self._of_plain(columns)

    def _of_text(self, compression: str) -> Iterator[tuple[int, Record]]:
        if self.first == 0:
            record = text_record(self.file.address, compression)
            self.whole = record.size
            yield 0, record
        self.exhausted = True

    def _of_plain(self, columns: Columns) -> Iterator[tuple[int, Record]]:
        size = self.file.size_bytes
        stretches = -(-size // STRETCH_BYTES)
        runs = -(-stretches // RUN_STRETCHES)
        turns = range(self.first, min(self.stop, runs * RUN_STRETCHES))
        turn_of = {spread(self.file.name, turn % runs, runs) * RUN_STRETCHES + turn // runs: turn for turn in turns}
        for group in _consecutive(sorted(place for place in turn_of if place < stretches)):
            start, stop = group[0] * STRETCH_BYTES, min(size, (group[-1] + 1) * STRETCH_BYTES)
            found = lines(plain_content(self.file.address, start, stop, _STEP_BYTES), start, stop)
            for record in json_records(self.file.address, found, columns):
                yield turn_of[record.start // STRETCH_BYTES], record
        self.whole, self.exhausted = size, self.stop >= runs * RUN_STRETCHES

    def _of_compressed(self, compression: str, columns: Columns) -> Iterator[tuple[int, Record]]:
        prefix = _Prefix(self.file.address, compression, self.stop * STRETCH_BYTES)
        for record in json_records(self.file.address, lines(prefix, 0, self.stop * STRETCH_BYTES), columns):
            if record.start >= self.first * STRETCH_BYTES:
                yield record.start // STRETCH_BYTES, record
        self.exhausted = prefix.ended and prefix.produced <= self.stop * STRETCH_BYTES
        self.whole = prefix.produced if prefix.ended else _content_bytes(self.file, compression, prefix.expansion)

    def _of_stream(self, columns: Columns) -> Iterator[tuple[int, Record]]:
        rows = 0
        self.exhausted, self.whole = True, self.file.records
        for record in stream_records(self.origin, self.file, columns):
            if record.start >= self.stop * STRETCH_BYTES:
                self.exhausted = False
                break
            rows += 1
            if record.start >= self.first * STRETCH_BYTES:
                yield record.start // STRETCH_BYTES, record
        if self.exhausted:
            self.whole = rows

    def _of_parquet(self, columns: Columns) -> Iterator[tuple[int, Record]]:
        ended = 0
        with open_parquet(self.file.address, _PARQUET_BUFFER_BYTES) as file:
            groups = file.num_row_groups
            for turn in range(self.first, min(self.stop, self.first + groups)):
                first, place = divmod(turn, groups)
                stop = -(-(self.stop - place) // groups)
                ended += 1
                for record in row_group_records(file, self.file.address, columns, [spread(self.file.name, place, groups)]):
                    if record.start >= stop * PAGE_BYTES:
                        ended -= 1
                        break
                    if record.start >= first * PAGE_BYTES:
                        yield place + record.start // PAGE_BYTES * groups, record
            self.exhausted, self.whole = ended == groups, file.metadata.num_rows


class _Prefix:
    """The beginning of a compressed file's content: at least `wanted` bytes of it, unless it ends before; little more is read than these take."""

    def __init__(self, address: str, compression: str, wanted: int) -> None:
        self._address, self._compression, self._wanted = address, compression, wanted
        self.produced = 0
        self.expansion = 1.0
        self.ended = False
        self._fed = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in decompressed(self._address, self._compression, self._stored()):
            self.produced += len(piece)
            if piece:
                self.expansion = self.produced / max(1, self._fed)
            yield piece
        self.ended = True

    def _stored(self) -> Iterator[bytes]:
        with storage.open_input(self._address) as stream:
            first = stream.read(max(_STEP_BYTES, self._wanted // _FIRST_READ))
            for block in itertools.chain([first], iter(lambda: stream.read(_STEP_BYTES), b"")):
                for start in range(0, len(block), _FED_BYTES):
                    fed = block[start : start + _FED_BYTES]
                    self._fed += len(fed)
                    yield fed


def _content_bytes(file: File, compression: str, expansion: float) -> float:
    """How much content a compressed file has: what it states, where that can be of all of it, or by how its beginning expands."""
    with storage.open_input(file.address) as stream:
        if compression == ".zst":
            stated = zstandard.frame_content_size(stream.read(18))
        else:
            stream.seek(file.size_bytes - 4)
            stated = int.from_bytes(stream.read(4), "little")
    likely = expansion * file.size_bytes
    return stated if stated >= _UNRELIABLE * likely else likely


def spread(name: str, turn: int, count: int) -> int:
    """Which of `count` places comes at a turn: every place once, early turns far from each other, decided by a name."""
    step = next(each for each in range(max(1, round(count * (math.sqrt(5) - 1) / 2)), 2 * count + 1) if math.gcd(each, count) == 1)
    return (int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) + turn * step) % count


def _consecutive(places: list[int]) -> Iterator[list[int]]:
    """Sorted numbers as groups without a gap."""
    group: list[int] = []
    for place in places:
        if group and place != group[-1] + 1:
            yield group
            group = []
        group.append(place)
    if group:
        yield group
