"""A confidence interval for the difference of two methods, measured on the same held-out documents with the same seeds of their base models.

Notation: S seeds, k domains, n documents of a domain; T_i tokens of document i, h_i = T_i / sum T its share of the domain, q = sum h_i^2. m_s is the
difference of the two methods' metric on a domain with seed s, m its mean over seeds; u_is is m_s less its value without document i (delete-one
jackknife: it sees the ratio of sums, nats over tokens, and the exponential as they are), u_i its mean over seeds. Averages over domains divide what
is summed over domains by k.

1. Documents, for every domain. c_i = 1 - 2 h_i + q, f_i = (1 - h_i)^2 / c_i:
   V = sum f_i u_i^2, without bias where the difference per token has the same variance in every document (for equal lengths the jackknife's factor
   (n - 1) / n); nu = q^2 / sum_ij (f_i f_j (h_i h_j / ((1 - h_i) (1 - h_j)))^2 g_ij^2), g_ii = c_i, g_ij = q - h_i - h_j, its degrees of freedom:
   n - 1 for equal lengths, fewer where some documents are long (Bell and McCaffrey; `c_i` and `f_i` are their correction CR2 for a weighted mean);
   M = sum u_i^3, the third moment of m. Over domains V_d = sum V / k^2, M_d = sum M / k^3, nu_d by Satterthwaite.
2. Seeds. V_s = (variance of the S differences averaged over domains) / S, less what single documents do to single seeds,
   sum f_i (u_is - u_i)^2 / (S (S - 1)) over domains, which V_d holds already, and not below zero; S - 1 degrees of freedom. What documents do to all
   seeds alike is common to the S differences and not in their variance.
3. Both. V = V_s + V_d. Two half widths: a = t(nu) sqrt(V), with 1 / nu = (V_s / V)^2 / (S - 1) + (V_d / V)^2 / nu_d (Satterthwaite), which is too
   short where two or three seeds rule the variance and happen to agree (87 % at two seeds); and b = sqrt(t(S - 1)^2 V_s + t(nu_d)^2 V_d) (Banerjee),
   which never covers less than it says and is too long where both parts count (98 % at three seeds). Between them the half width is a^(1 - r) b^r,
   r = 1 / d^2, d = min(S - 1, nu_d): Banerjee's for two seeds, nearly Satterthwaite's for many. Only r was chosen by simulation: with three seeds it
   keeps 93 to 97 % whatever the shares of the two parts.
4. Skewness gamma = M_d / V^(3/2). With Hall's transformation, x(z) = 3 / gamma (cbrt(1 + gamma (z - gamma / 6)) - 1) and z = 1.96, the interval of a
   difference D is D - half x(z) / z to D - half x(-z) / z: D -+ half without skewness, and longer towards the side where a rare document would pull.
   gamma counts up to .4 only, where the longer side is 1.63 and the shorter .79 of half: near .49 the cube root passes zero, infinitely steep, so that
   one end would hang on the third digit of a third moment of few documents. The bound moves simulated coverage by up to half a point, upwards.

With noise in seeds alone this is Student's t interval over seeds; with one seed only documents count. Simulated coverage: tests/report/test_coverage.py.

References: R. Bell and D. McCaffrey, Bias reduction in standard errors for linear regression with multi-stage samples, Survey Methodology 28, 2002;
F. Satterthwaite, An approximate distribution of estimates of variance components, Biometrics Bulletin 2, 1946; S. Banerjee, On confidence interval for
two-means problem based on separate estimates of variances and tabulated values of t-table, Sankhya A 23, 1961; P. Hall, On the removal of skewness by
transformation, Journal of the Royal Statistical Society B 54, 1992; B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, chapters 11
and 14.6 (the jackknife and its skewness); A. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007 (two crossed factors).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Array = NDArray[np.float64]

METRICS = ("mean_perplexity", "mean_loss_nats")
CONFIDENCE = 0.95
MIN_SKEWNESS = 1e-6  # under it the transformation is the identity to 1e-6, and its formula 0 / 0
MAX_SKEWNESS = 0.4


@dataclass(frozen=True)
class DomainPart:
    """What one domain says of a difference; leading axes are independent repetitions.

    Attributes:
        by_seed: [..., S] m_s.
        variance, third_moment: [...] V and M of the mean over seeds, over documents.
        degrees: [...] nu.
        interaction: [...] what single documents do to single seeds, as a variance of the mean over seeds.
    """

    by_seed: Array
    variance: Array
    third_moment: Array
    degrees: Array
    interaction: Array


def without_each_document(nats: Array, tokens: Array, metric: str) -> tuple[Array, Array]:
    """The metric of every run on one domain, and by how much each document moves it.

    Args:
        nats: [..., R, n] of R runs by document; n is two or more.
        tokens: [..., n], at least one each.
        metric: of METRICS.
    Returns:
        [..., R] the metric; [..., R, n] the metric less its value without the document.
    """
    total, size = nats.sum(axis=-1), tokens.sum(axis=-1)[..., None]
    whole, rest = total / size, (total[..., None] - nats) / (size - tokens)[..., None, :]
    if metric == "mean_perplexity":
        whole, rest = np.exp(whole), np.exp(rest)
    return whole, whole[..., None] - rest


def domain_part(by_seed: Array, moved: Array, tokens: Array) -> DomainPart:
    """Steps 1 and 2 for one domain: [..., S] differences by seed, [..., S, n] by how much each document moves them, [..., n] tokens.

    Cost: O(S n).
    """
    num_seeds = by_seed.shape[-1]
    share = tokens / tokens.sum(axis=-1, keepdims=True)
    q = (share**2).sum(axis=-1, keepdims=True)
    c = 1 - 2 * share + q
    factor = (1 - share) ** 2 / c
    mean = moved.mean(axis=-2)
    own = (factor * ((moved - mean[..., None, :]) ** 2).sum(axis=-2)).sum(axis=-1)
    return DomainPart(
        by_seed,
        (factor * mean**2).sum(axis=-1),
        (mean**3).sum(axis=-1),
        _degrees_of_freedom(share, q, c),
        own / max(num_seeds * (num_seeds - 1), 1),
    )


def difference_interval(parts: Sequence[DomainPart], confidence: float = CONFIDENCE) -> tuple[Array, Array]:
    """Steps 3 and 4: both ends of the interval of the difference averaged over seeds and domains, each [...]."""
    k, num_seeds = len(parts), parts[0].by_seed.shape[-1]
    by_seed = np.mean([part.by_seed for part in parts], axis=0)
    difference = by_seed.mean(axis=-1)
    variances = np.stack([part.variance for part in parts]) / k**2
    of_documents = variances.sum(axis=0)
    documents = _satterthwaite(variances, np.stack([part.degrees for part in parts]))
    quantile = (1 + confidence) / 2
    if num_seeds > 1:
        interaction = np.sum([part.interaction for part in parts], axis=0) / k**2
        of_seeds = np.maximum(by_seed.var(axis=-1, ddof=1) / num_seeds - interaction, 0)
        half = _half_width(of_seeds, num_seeds - 1, of_documents, documents, quantile)
        variance = of_seeds + of_documents
    else:
        half, variance = stdtrit(documents, quantile) * np.sqrt(of_documents), of_documents
    skewness = np.sum([part.third_moment for part in parts], axis=0) / k**3 / np.where(variance > 0, variance, 1) ** 1.5
    z = ndtri(quantile)
    return difference - half * _unskewed(z, skewness) / z, difference - half * _unskewed(-z, skewness) / z


def _degrees_of_freedom(share: Array, q: Array, c: Array) -> Array:
    """nu of step 1; the double sum over documents multiplied out."""
    weight = share**2 / c
    zeroth, first, second = ((weight * share**power).sum(axis=-1) for power in range(3))
    q_, own = q[..., 0], weight**2 * (c**2 - (q - 2 * share) ** 2)
    return q_**2 / (q_**2 * zeroth**2 - 4 * q_ * zeroth * first + 2 * zeroth * second + 2 * first**2 + own.sum(axis=-1))


def _satterthwaite(variances: Array, degrees: Array) -> Array:
    """Degrees of freedom of a sum over the first axis; of a sum that is zero, the fewest of its parts."""
    total, squares = variances.sum(axis=0), (variances**2 / degrees).sum(axis=0)
    return np.where(squares > 0, total**2 / np.where(squares > 0, squares, 1), degrees.min(axis=0))


def _half_width(of_seeds: Array, seeds: int, of_documents: Array, documents: Array, quantile: float) -> Array:
    """Step 3: variances and degrees of freedom of both parts -> half width."""
    both = np.stack([of_seeds, of_documents])
    degrees = np.stack([np.full_like(documents, seeds), documents])
    short = stdtrit(_satterthwaite(both, degrees), quantile) * np.sqrt(both.sum(axis=0))
    long = np.sqrt((stdtrit(degrees, quantile) ** 2 * both).sum(axis=0))
    exponent = 1 / np.maximum(degrees.min(axis=0), 1) ** 2
    return short ** (1 - exponent) * long**exponent


def _unskewed(z: float, skewness: Array) -> Array:
    """x(z) of step 4."""
    skewness = np.clip(skewness, -MAX_SKEWNESS, MAX_SKEWNESS)
    gamma = np.where(np.abs(skewness) > MIN_SKEWNESS, skewness, 1)
    return np.where(np.abs(skewness) > MIN_SKEWNESS, 3 / gamma * (np.cbrt(1 + gamma * (z - gamma / 6)) - 1), z)
