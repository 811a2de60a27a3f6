"""How well the domains' means are known: what another draw of the same samples would change, and how much of what tells domains apart it explains.

    S_g, n_g     sum and count of the samples in hash group g of a domain (samples of one document are in one group)
    x, n         the domain's mean and its samples
    d_g          sqrt(G / (G - 1)) (S_g - n_g x) / n over its G groups with samples; sum_g d_g d_g^T estimates the covariance of x
    e_i          sum_g |d_g|^2, the expected square of what the domain's mean is off by
    E            energy: the mean under the prior pi of the squared lengths of the embeddings as they are scored (krls.py)
    R            reliability: 1 - sum_i pi_i e_i / E, between 0 and 1

Source: W. Cochran, Sampling Techniques, 1977, section 6.3 (the variance of a ratio of sums over groups).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.artifacts import CHUNK_DOMAINS, Embeddings

Array = NDArray[np.float64]
# Under it most of what tells domains apart is chance.
MIN_RELIABILITY = 0.5


def deviations(sums: Array, counts: NDArray[np.int64]) -> Array:
    """d_g, [n, groups, p]; 0 where one group has all samples.

    Args:
        sums: [n, groups, p] of n domains, or linear functions of them: those of the deviations are returned then.
        counts: [n, groups].
    """
    total, filled = counts.sum(axis=1)[:, None, None], (counts > 0).sum(axis=1)[:, None, None]
    centred = sums - counts[:, :, None] * (sums.sum(axis=1, keepdims=True) / total)
    return np.asarray(centred * (np.sqrt(filled / np.maximum(filled - 1, 1)) / total))


def noise_of(embeddings: Embeddings, order: Sequence[int]) -> Array:
    """e_i, [n] of the domains in this order.

    Where one group has all samples nothing tells how they scatter: such a domain is taken to scatter like the mean of the others, sample for sample
    (the mean of n_j e_j, over n_i). Where this holds for all it is not known, NaN.

    Cost: one pass over the group sums.
    """
    found = np.empty(len(order))
    for start in range(0, len(order), CHUNK_DOMAINS):
        some = list(order[start : start + CHUNK_DOMAINS])
        each = deviations(embeddings.group_sums[some].astype(np.float64), embeddings.group_counts[some])
        found[start : start + len(some)] = np.einsum("ngp,ngp->n", each, each)
    counts = embeddings.group_counts[list(order)]  # [n, groups]
    samples, alone = counts.sum(axis=1), (counts > 0).sum(axis=1) < 2
    if alone.any():
        found[alone] = np.nan if alone.all() else (samples * found)[~alone].mean() / samples[alone]
    return found


def reliability(noise: Array, energy: float, prior: Array | None = None) -> float:
    """R. 0 where the embeddings do not differ at all, NaN where the noise is not known.

    Args:
        noise: e_i, [k].
        prior: pi, [k]; None where it is uniform.
    """
    if energy == 0:
        return 0.0
    mean = float(noise.mean() if prior is None else prior @ noise)
    return float(np.clip(1.0 - mean / energy, 0.0, 1.0))
