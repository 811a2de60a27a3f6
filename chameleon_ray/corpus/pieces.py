"""Record batches by slot in one file: what one task writes for many later tasks, each of which reads its own slots and nothing else.

The batches come first, each compressed by itself; an index of (slot, offset, stored bytes, bytes) follows, then how many entries it has. So many tasks that
hand pieces to so many others make as many files as there are tasks, and not their product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chameleon_ray import storage

_TAIL_BYTES = 16 << 10  # read at first: small indices fit
_CODEC = "lz4"
GIVEN_BACK_BYTES = 2 << 20  # to let go of before memory is given back


@contextmanager
def write_pieces(address: str) -> Iterator[PieceWriter]:
    """Write a file of pieces, which is there when the context ends without an exception."""
    with storage.open_output(address) as sink:
        writer = PieceWriter(sink, address)
        yield writer
        writer.write_index()


class PieceWriter:
    """Writes pieces to a file, then their index."""

    def __init__(self, sink: IO[bytes], address: str) -> None:
        self._sink, self._address = sink, address
        self._codec = pa.Codec(_CODEC)
        self._index: list[tuple[int, int, int, int]] = []
        self._offset = 0

    def add(self, slot: int, batch: pa.RecordBatch) -> None:
        """One more batch of a slot; batches of a slot are read in the order they are written."""
        raw = batch.serialize()
        stored = self._codec.compress(raw)
        with storage.telling(self._address):
            self._sink.write(stored)
        self._index.append((slot, self._offset, stored.size, raw.size))
        self._offset += stored.size

    def write_index(self) -> None:
        """Write where every batch lies; the last thing that is written."""
        entries = np.array(self._index, "<i8").reshape(-1, 4)
        with storage.telling(self._address):
            self._sink.write(entries.tobytes())
            self._sink.write(np.array([len(entries)], "<i8").tobytes())


def read_pieces(address: str, schema: pa.Schema, slots: range) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The batches of some slots, slot by slot. Cost: two requests, and one for each batch."""
    with storage.open_input(address) as opened:
        source: Any = opened
        entries = _index(source)
        codec = pa.Codec(_CODEC)
        mine = entries[(entries[:, 0] >= slots.start) & (entries[:, 0] < slots.stop)]
        for slot, offset, stored, size in mine[np.argsort(mine[:, 0], kind="stable")].tolist():
            yield slot, pa.ipc.read_record_batch(codec.decompress(source.read_at(stored, offset), size), schema)


def give_back() -> None:
    """Return to the system what this process has freed; the C library would keep it, and what is allocated next seldom fits into it. Cost: a millisecond."""
    pa.system_memory_pool().release_unused()


def _index(source: Any) -> NDArray[np.int64]:
    size = source.size()
    tail = source.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
    count = int(np.frombuffer(tail[-8:], "<i8")[0])
    needed = 32 * count + 8
    if needed > len(tail):
        tail = source.read_at(needed, size - needed)
    return np.frombuffer(tail[-needed:-8], "<i8").astype(np.int64).reshape(-1, 4)
