"""How a corpus of some size is cut into pieces of work that do not grow with it.

    bucket   documents of an equal range of hashes, of all domains: some 16 MB of text. Copies meet in one.
    slice    up to 1,024 consecutive buckets, 16 GB: as much as one level of sorting reaches, since a task writes to so many places at most. Beyond, documents
             are sorted into slices first and every slice then into its buckets.
    shard    train rows of one domain, shuffled: some 32 MB of its text out of one slice. Which documents are in a slice follows from their hashes, so that
             every slice is a random sample of every domain.
    lane     consecutive shards of a slice, at most 64 MB of text, that one task shuffles and writes; at most 32 MB in slices of up to 512 buckets, since what
             it reads of a bucket, a request, is then still 64 kB.
    rest     what buckets leave over: less than a row of each domain, and held-out documents. Consecutive domains, some 64 MB, go to one task.

A plan for 10 TB: 655,360 buckets in 640 slices; no task holds more than a lane, and no list here or on the driver grows faster than with slices times domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

BUCKET_BYTES = 16 << 20
MAX_OPEN = 1024
SHARD_BYTES = 32 << 20
LANE_BYTES = 64 << 20
PIECE_BYTES = LANE_BYTES // MAX_OPEN
REST_BYTES = 64 << 20
MAX_RUNS = 8192
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Layout:
    """Buckets and slices: each slice has `per_slice` consecutive buckets."""

    slices: int
    per_slice: int

    @classmethod
    def of(cls, text_bytes: int) -> Layout:
        """For so much text, of which a guess will do."""
        buckets = max(1, -(-text_bytes // BUCKET_BYTES))
        slices = -(-buckets // MAX_OPEN)
        return cls(slices, -(-buckets // slices))

    @property
    def buckets(self) -> int:
        return self.slices * self.per_slice

    @property
    def lane_bytes(self) -> int:
        """The most text of a lane: a shard's as long as what it reads of every bucket is worth a request."""
        return SHARD_BYTES if self.per_slice * PIECE_BYTES <= SHARD_BYTES else LANE_BYTES

    def buckets_of(self, slice_number: int) -> range:
        """The buckets of a slice."""
        return range(slice_number * self.per_slice, (slice_number + 1) * self.per_slice)

    def runs(self) -> list[range]:
        """Consecutive buckets, dealt to at most `MAX_RUNS` tasks; none goes over the border of a slice."""
        length = -(-self.buckets // MAX_RUNS)
        return [range(start, min(start + length, mine.stop)) for n in range(self.slices) for mine in [self.buckets_of(n)] for start in mine[::length]]


@dataclass(frozen=True)
class Lanes:
    """Which task writes which shard.

    Attributes:
        layout: of the buckets.
        shards: [k] train shards of every domain in each slice; 0 of one that is not trained on.
        text_bytes: [k] of every domain, in all.
        rest_bytes: [k] of what every domain leaves over in a slice, about, and of what is held out.
    """

    layout: Layout
    shards: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    rest_bytes: NDArray[np.int64]

    @classmethod
    def of(cls, layout: Layout, text_bytes: Mapping[str, int], trained: Sequence[bool], row_tokens: int, heldout_bytes: int) -> Lanes:
        """Args:
        text_bytes: by domain.
        trained: which of the domains are trained on.
        heldout_bytes: at most so much of a domain is held out.
        """
        sizes = np.array(list(text_bytes.values()), np.int64)
        shards = np.maximum(1, -(-sizes // (layout.slices * SHARD_BYTES))) * np.array(trained, np.int64)
        rest = np.minimum(sizes, np.minimum(sizes // layout.slices, layout.per_slice * row_tokens * BYTES_PER_TOKEN // 2) + heldout_bytes)
        return cls(layout, shards, sizes, rest)

    @cached_property
    def first_shard(self) -> NDArray[np.int64]:
        """[k + 1] number of the first shard of every domain among those of a slice, and how many these are."""
        return np.concatenate([[0], np.cumsum(self.shards)])

    @cached_property
    def lane_of(self) -> NDArray[np.int64]:
        """[shards of a slice] the lane of each."""
        each = np.repeat(self.text_bytes / (self.layout.slices * np.maximum(1, self.shards)), self.shards)
        return _cut(each, self.layout.lane_bytes)

    @property
    def num_lanes(self) -> int:
        """Lanes of a slice."""
        return int(self.lane_of[-1]) + 1 if len(self.lane_of) else 0

    @cached_property
    def rest_of(self) -> NDArray[np.int64]:
        """[k] the rest that every domain belongs to."""
        return _cut(self.rest_bytes.astype(np.float64), REST_BYTES)

    @property
    def num_rests(self) -> int:
        return int(self.rest_of[-1]) + 1

    def shards_of_lane(self, lane: int) -> range:
        """The shards of a lane, by their numbers in the slice."""
        return range(*np.searchsorted(self.lane_of, [lane, lane + 1]).tolist())

    def lanes_of_domain(self, domain: int) -> range:
        """The lanes with a domain's shards."""
        first, stop = self.first_shard[domain], self.first_shard[domain + 1]
        return range(int(self.lane_of[first]), int(self.lane_of[stop - 1]) + 1) if stop > first else range(0)


def _cut(sizes: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Number consecutive things so that those of one number have at most `most` together; what has more by itself has a number of its own."""
    numbers = np.empty(len(sizes), np.int64)
    number, together = -1, math.inf
    for i, size in enumerate(sizes.tolist()):
        if together + size > most:
            number, together = number + 1, 0.0
        together += size
        numbers[i] = number
    return numbers
