"""Which documents are held out: of every domain the first in the order of their hashes, among those that are left when copies are dropped.

Copies are dropped across the whole corpus, and a document declared held-out wins over its copies, so that no copy of what is measured is
trained on. Nothing but the text and the order of the domains decides: not the files, the seed, the workers or the number of buckets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chameleon_ray.errors import UserError

COUNTS = ("bucket", "domain", "declared", "documents", "bytes")  # columns of what is counted of a bucket; the domain by its place, copies left out
MIN_DOCUMENTS = 2  # one for valid, one for test
MARGIN = 1.1  # more bytes than tokens should take by a look at the text: copies are left out, and other documents have other tokens
BYTES_PER_TOKEN = 6  # generous for most tokenizers, so that the documents held out have the tokens that are wanted


@dataclass(frozen=True)
class Sampled:
    """Of a domain that was not read whole: bytes of all its text (infinite where that is not known), and how many make a token."""

    text_bytes: float
    bytes_per_token: float


@dataclass(frozen=True)
class Border:
    """Where a domain's held-out documents end in the order of their hashes: in the buckets before `bucket` all are held out, behind it none.

    In `bucket` documents are held out until they have `text_bytes`, at least `at_least` and at most `at_most` of them. `declared`: only documents
    of `heldout` files are meant, and those behind the border are used for nothing; otherwise all of the domain's, and those are trained on.
    """

    declared: bool
    bucket: int
    text_bytes: int
    at_least: int
    at_most: int

    def count(self, bucket: int, sizes: NDArray[np.int64]) -> int:
        """How many of a bucket's documents are held out; `sizes` are their bytes in the order of their hashes."""
        if bucket != self.bucket:
            return len(sizes) if bucket < self.bucket else 0
        return int(np.clip(np.searchsorted(np.cumsum(sizes), self.text_bytes) + 1, self.at_least, self.at_most))


def heldout_bytes(split_tokens: int) -> int:
    """At most so many bytes of a domain are held out, for `split_tokens` tokens in each of valid and test, where it is not known how many make a token."""
    return 2 * split_tokens * BYTES_PER_TOKEN


def heldout_borders(
    names: Sequence[str],
    totals: Mapping[str, ArrayLike],
    counts: Iterable[NDArray[np.int64]],
    declared: Collection[str],
    fraction: float,
    split_tokens: int,
    sampled: Mapping[str, Sampled],
) -> dict[str, Border]:
    """The borders of the domains that can be measured.

    Documents are held out until they have `fraction` of the domain's bytes, or the bytes of twice `split_tokens` tokens when that is less, but two
    at least; one is always left to train on. Of declared documents all are held out up to the same bytes. A domain with fewer than three documents,
    or two declared ones, has no border. Of a domain that was not read whole `fraction` is of all its bytes, and at least half of what was read is trained on.

    Args:
        names: of the domains.
        totals: domain -> [2, 2]: of the documents that are not declared held-out and of those that are, how many and how many bytes, without copies.
        counts: arrays of `COUNTS`, from bucket to bucket; no more of them are read than are needed.
        declared: domains with `heldout` files.
        split_tokens: at most so many tokens of a domain are measured in each of valid and test.
        sampled: what is known of domains that were not read whole.
    """
    k = len(names)
    is_declared = np.array([name in declared for name in names])
    found = np.array([totals.get(name, [[0, 0], [0, 0]]) for name in names], np.int64).reshape(k, 2, 2)[np.arange(k), is_declared.astype(int)]
    documents, sizes = found[:, 0], found[:, 1].astype(np.float64)
    of_all = np.array([sampled[name].text_bytes if name in sampled else size for name, size in zip(names, sizes, strict=True)])
    part = np.where([name in sampled for name in names], np.minimum(fraction * np.maximum(of_all, sizes), sizes / 2), fraction * sizes)
    most_bytes = np.array([2 * split_tokens * (MARGIN * sampled[name].bytes_per_token if name in sampled else BYTES_PER_TOKEN) for name in names])
    wanted = np.where(is_declared, most_bytes, np.minimum(most_bytes, np.ceil(part))).astype(np.int64)
    at_most = documents - ~is_declared
    looking = at_most >= MIN_DOCUMENTS
    before = np.zeros((k, 2), np.int64)
    borders: dict[str, Border] = {}
    for rows in (rows for array in counts for rows in np.split(array, np.flatnonzero(np.diff(array[:, 0])) + 1)):
        mine = rows[looking[rows[:, 1]] & (rows[:, 2] == is_declared[rows[:, 1]])]
        for bucket, rank, *_ in mine[_reached(before[mine[:, 1]] + mine[:, 3:], wanted[mine[:, 1]], at_most[mine[:, 1]])].tolist():
            so_far, text_bytes = before[rank].tolist()
            limits = int(wanted[rank]) - text_bytes, MIN_DOCUMENTS - so_far, int(at_most[rank]) - so_far
            borders[names[rank]] = Border(bool(is_declared[rank]), bucket, *limits)
            looking[rank] = False
        before[mine[:, 1]] += mine[:, 3:]
        if not looking.any():
            break
    return {name: borders[name] for name in names if name in borders}


def _reached(found: NDArray[np.int64], wanted: NDArray[np.int64], at_most: NDArray[np.int64]) -> NDArray[np.bool_]:
    documents, sizes = found[:, 0], found[:, 1]
    return ((sizes >= wanted) & (documents >= MIN_DOCUMENTS)) | (documents >= at_most)


def refuse_unmeasured(names: Iterable[str]) -> None:
    """Raise `UserError` for the first of some domains that cannot be measured; for `corpus.require_heldout: true`."""
    for name in names:
        raise UserError(
            f"corpus.domains.{name}: too little text to be measured: two distinct held-out documents are needed beside a row to train on "
            "(copies do not count); add documents or heldout files, or set corpus.require_heldout to false, to train on it unmeasured"
        )
