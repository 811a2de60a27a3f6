"""What single tokens say of a domain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def entropy_nats(histogram: NDArray[np.int64]) -> float:
    """Entropy of a domain's unigram distribution: the loss of the best model that ignores context; 0 for a target, of which nothing is trained on.

    Args:
        histogram: [vocabulary] how often each token occurs.
    """
    counts = histogram[histogram > 0].astype(np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
