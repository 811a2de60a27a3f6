"""Which documents are held out: of every domain the first in the order of their hashes, among those that are left when copies are dropped.

Copies are dropped across the whole corpus, and a document declared held-out wins over its copies, so that no copy of what is measured is
trained on. Nothing but the text and the order of the domains decides: not the files, the seed, the workers or the number of buckets.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.errors import UserError

MIN_DOCUMENTS = 2  # one for valid, one for test
BYTES_PER_TOKEN = 6  # generous for most tokenizers, so that the documents held out have the tokens that are wanted


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
    """At most so many bytes of a domain are held out, for `split_tokens` tokens in each of valid and test."""
    return 2 * split_tokens * BYTES_PER_TOKEN


def heldout_borders(
    counts: Mapping[str, NDArray[np.int64]], declared: Collection[str], fraction: float, split_tokens: int, of_all: Mapping[str, float]
) -> dict[str, Border]:
    """The borders of the domains that can be measured.

    Documents are held out until they have `fraction` of the domain's bytes, or the bytes of twice `split_tokens` tokens when that is less, but two
    at least; one is always left to train on. Of declared documents all are held out up to the same bytes. A domain with fewer than three documents,
    or two declared ones, has no border. Of a domain that was not read whole `fraction` is of all its bytes, and at least half of what was read is trained on.

    Args:
        counts: domain -> [buckets, 2, 2]: of the documents that are not declared held-out and of those that are, how many and how many bytes,
            without copies.
        declared: domains with `heldout` files.
        split_tokens: at most so many tokens of a domain are measured in each of valid and test.
        of_all: domain -> bytes of all its text, where it was not read whole.
    """
    most_bytes = heldout_bytes(split_tokens)
    borders = {}
    for name, found in counts.items():
        is_declared = name in declared
        mine = found[:, int(is_declared)]
        documents, sizes = mine.cumsum(axis=0).T
        at_most = int(documents[-1]) - (not is_declared)
        if at_most < MIN_DOCUMENTS:
            continue
        read = int(sizes[-1])
        part = min(fraction * max(of_all[name], read), read / 2) if name in of_all else fraction * read
        wanted = most_bytes if is_declared else min(most_bytes, math.ceil(part))
        bucket = int(np.argmax(((sizes >= wanted) & (documents >= MIN_DOCUMENTS)) | (documents >= at_most)))
        documents_before, bytes_before = (int(total[bucket] - own) for total, own in zip((documents, sizes), mine[bucket], strict=True))
        borders[name] = Border(is_declared, bucket, wanted - bytes_before, MIN_DOCUMENTS - documents_before, at_most - documents_before)
    return borders


def refuse_unmeasured(names: Iterable[str]) -> None:
    """Raise `UserError` for the first of some domains that cannot be measured; for `corpus.require_heldout: true`."""
    for name in names:
        raise UserError(
            f"corpus.domains.{name}: too little text to be measured: two distinct held-out documents are needed beside a row to train on "
            "(copies do not count); add documents or heldout files, or set corpus.require_heldout to false, to train on it unmeasured"
        )
