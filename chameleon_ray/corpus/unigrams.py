"""What single tokens say of a domain."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def entropy_nats(histogram: Mapping[int, int]) -> float:
    """Entropy of a domain's unigram distribution: the loss of the best model that ignores context; 0 for a target, of which nothing is trained on."""
    counts = np.array(list(histogram.values()), np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
