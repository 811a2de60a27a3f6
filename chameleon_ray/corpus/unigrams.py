"""What single tokens say of a domain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 1 << 18  # counted at a time: NumPy counts 64-bit numbers, four times the bytes of a token


def histogram(tokens: NDArray[np.uint16 | np.uint32], vocab_size: int) -> NDArray[np.int64]:
    """[vocab_size] how often each token occurs."""
    flat, counts = tokens.reshape(-1), np.zeros(vocab_size, np.int64)
    for start in range(0, len(flat), BLOCK_TOKENS):
        counts += np.bincount(flat[start : start + BLOCK_TOKENS], minlength=vocab_size)
    return counts


def entropy_nats(histogram: NDArray[np.int64]) -> float:
    """Entropy of a domain's unigram distribution: the loss of the best model that ignores context; 0 for a target, of which nothing is trained on.

    Args:
        histogram: [vocabulary] how often each token occurs.
    """
    counts = histogram[histogram > 0].astype(np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
