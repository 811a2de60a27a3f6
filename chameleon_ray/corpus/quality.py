"""How good the text of a domain is, by measures that need no model: how far it compresses, and how much of it other documents of the domain repeat.

Scores of embeddings say nothing of quality: a page that is repeated a thousand times, or words in random order, may lie as near the middle of all domains
as good prose does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

from chameleon_ray.counts import Quality

SAMPLE_BYTES = 1 << 20
ALL_BYTES = 100 << 20
LEAST_BYTES = 1 << 10
PASSAGE_WORDS = 8
LEVEL = 9
WORD = re.compile(r"[^\W\d_]+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def sample_bytes(num_domains: int) -> int:
    """How much text of each domain is looked at: a megabyte, less where there are many, so that all samples fit in memory."""
    return max(LEAST_BYTES, min(SAMPLE_BYTES, ALL_BYTES // num_domains))


def quality_of(texts: Sequence[str]) -> Quality:
    """The measures of some documents of one domain; cost: about a second for a megabyte."""
    joined = "\n".join(texts).encode()
    compressed = zstandard.ZstdCompressor(level=LEVEL).compress(joined)
    return Quality(len(joined), len(joined) / len(compressed), _repeated(texts))


def _repeated(texts: Sequence[str]) -> float:
    """The share of passages, eight words each, that another document has too; words are sequences of letters in lower case, so that neither numbers nor
    punctuation nor layout tell copies apart. Scripts without spaces have few words in this sense: there only long copies are found."""
    numbers: dict[str, int] = {}
    found = [_passages(text, numbers) for text in texts]
    owners = np.repeat(np.arange(len(found)), [len(each) for each in found])
    passages = np.concatenate(found)
    if not len(passages):
        return 0.0
    distinct = np.unique(np.stack([passages, owners.astype(np.uint64)], axis=1), axis=0)
    kinds, documents = np.unique(distinct[:, 0], return_counts=True)
    return float(np.isin(passages, kinds[documents > 1]).mean())


def _passages(text: str, numbers: dict[str, int]) -> NDArray[np.uint64]:
    """A hash for every eight consecutive words; every word gets a number when first seen."""
    words = np.array([numbers.setdefault(word, len(numbers) + 1) for word in WORD.findall(text.lower())], dtype=np.uint64)
    count = len(words) - PASSAGE_WORDS + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for i in range(PASSAGE_WORDS):
        hashes = (hashes ^ words[i : i + count]) * FACTOR
        hashes ^= hashes >> np.uint64(29)
    return hashes
