"""How well the domains' means are known: what another draw of the same samples would change, and how much of what tells domains apart it explains.

    S_g, n_g     sum and count of the samples in hash group g of a domain (samples of one document are in one group)
    x, n         the domain's mean and its samples
    d_g          sqrt(G / (G - 1)) (S_g - n_g x) / n over its G groups with samples; C' = sum_g d_g d_g^T estimates the covariance of x
    m            documents that the samples are of, about
    V            covariance of one document's mean: sum_j (G_j - 1) m_j C'_j / sum_j (G_j - 1) over all domains
    C            ((G - 1) C' + f V / m) / (G - 1 + f), f = 2 (1 - G / groups): what the samples say, and where they are of a handful of documents, from which a
                 covariance is hardly known, what those of all domains say
    e_i          tr C_i, the expected square of what the domain's mean is off by
    E            energy: the mean under the prior pi of the squared lengths of the embeddings as they are scored (krls.py)
    R            reliability: 1 - sum_i pi_i e_i / E, between 0 and 1

A domain of two documents that happen to be alike would otherwise have error bars of next to nothing. Measured in analysis/results/sampling.md.

Sources: W. Cochran, Sampling Techniques, 1977, section 6.3 (the variance of a ratio of sums over groups); G. Smyth, Linear models and empirical Bayes methods
for assessing differential expression, 2004, section 3 (variances moderated by a common one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chameleon_ray.artifacts import CHUNK_DOMAINS, Counts, Embeddings
from chameleon_ray.mixing.krls import Array

# Under it most of what tells domains apart is chance.
MIN_RELIABILITY = 0.5
# f for a domain of a single group: so many degrees of freedom has what all domains say.
COMMON_FREEDOM = 2.0


@dataclass(frozen=True)
class Sharing:
    """How covariances are shared, [n] each: C_i = own_i C'_i + common_i V, V = sum_j part_j C'_j. No part is left where nothing tells how samples scatter."""

    own: Array
    common: Array
    part: Array

    @classmethod
    def of(cls, counts: Counts) -> Sharing:
        """By the samples in the hash groups of n domains, [n, groups]."""
        groups, filled = counts.shape[1], (counts > 0).sum(axis=1)
        freedom, documents = np.maximum(filled - 1.0, 0.0), num_documents(counts)
        of_all = COMMON_FREEDOM * (1 - filled / groups)
        total = np.maximum(freedom + of_all, 1e-12)  # a domain in the only group has neither
        return cls(freedom / total, of_all / total / documents, freedom * documents / max(1.0, freedom.sum()))


def num_documents(counts: Counts) -> Array:
    """Documents that samples are of, [n], by how many groups they fill and how evenly; where they fill all, nothing tells, and each sample counts as one.

    Args:
        counts: [n, groups].
    """
    groups, filled, samples = counts.shape[1], (counts > 0).sum(axis=1), counts.sum(axis=1)
    if groups == 1:
        return samples.astype(np.float64)
    drawn = np.full(len(counts), np.inf)
    some = filled < groups
    drawn[some] = np.log1p(-filled[some] / groups) / math.log1p(-1 / groups)  # fill so many of the groups on average
    evenness = samples.astype(np.float64) ** 2 / (counts.astype(np.float64) ** 2).sum(axis=1) / filled
    return np.minimum(drawn * evenness, samples)


def deviations(sums: Array, counts: Counts) -> Array:
    """d_g, [n, groups, p]; 0 where one group has all samples.

    Args:
        sums: [n, groups, p] of n domains, or linear functions of them: those of the deviations are returned then.
        counts: [n, groups].
    """
    total, filled = counts.sum(axis=1)[:, None, None], (counts > 0).sum(axis=1)[:, None, None]
    centred = sums - counts[:, :, None] * (sums.sum(axis=1, keepdims=True) / total)
    return np.asarray(centred * (np.sqrt(filled / np.maximum(filled - 1, 1)) / total))


def noise_of(embeddings: Embeddings, order: Sequence[int]) -> Array:
    """e_i, [n] of the domains in this order; NaN where one group has all samples of every domain, so that nothing tells how they scatter.

    Cost: one pass over the group sums.
    """
    found = np.empty(len(order))
    for start in range(0, len(order), CHUNK_DOMAINS):
        some = list(order[start : start + CHUNK_DOMAINS])
        each = deviations(embeddings.group_sums[some].astype(np.float64), embeddings.group_counts[some])
        found[start : start + len(some)] = np.einsum("ngp,ngp->n", each, each)
    sharing = Sharing.of(embeddings.group_counts[list(order)])
    if not sharing.part.any():
        return np.full(len(order), np.nan)
    return sharing.own * found + sharing.common * (sharing.part @ found)


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
