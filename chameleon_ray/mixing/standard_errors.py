"""How far scores and weights would move with other samples of the same domains.

Two ways to the same numbers. The bootstrap repeats the computation hundreds of times. The delta method follows small changes through the formulae,
at the cost of a few computations:

    y_i      [p] row i of the prepared embeddings Y (krls.prepare)
    mu       k lam;  P = (Y^T Y + mu I)^-1, [p, p]
    u_i      [p] P y_i;  S_i = y_i . u_i;  H_ij = y_i . u_j;  D = sum_i S_i
    c        1 / k if centred, else 0
    rho      mu / tr(Y^T Y) for a relative ridge, which grows with the trace; 0 for an absolute one
    dx_j     [p] noise of a domain's mean, independent between domains, with covariance C_j (see deviations)

    dS_i            = 2 sum_j (delta_ij - c - H_ij) u_i . dx_j - 2 rho |u_i|^2 sum_j y_j . dx_j
    sum_i w_i dS_i  = sum_j f_j . dx_j,  f_j = 2 (w_j u_j - c sum_i w_i u_i - B y_j - rho (sum_i w_i |u_i|^2) y_j),  B = sum_i w_i u_i u_i^T
    d alpha_i       = alpha_i (dz_i - sum_j alpha_j dz_j),  dz_i = z'_i (dS_i - S_i dD / D),  without dD where z depends on S_i alone

What a domain adds to its own error is exact to first order. So is what the others add through D, the ridge and the softmax, but for the covariance
of these with what they add through H_ij, about 1 / k of the whole. The latter, sum_j (c + H_ij)^2 u_i^T C_j u_i, would take O(k^2 p): the sum of the
(c + H_ij)^2 is exact, and the C_j are pooled in proportion to how much each domain enters the scores of the others. It matters only where scores come
near 1, as with fewer domains than dimensions under a small ridge: there errors of single domains are off by up to a fifth where noise differs much.

Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 21.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotri

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing import krls
from chameleon_ray.mixing.formula import Formula
from chameleon_ray.mixing.krls import Array, Leverage

# Of width 768: 200 draws then take a quarter of a minute on one core.
MAX_BOOTSTRAP_DOMAINS = 1000
CHUNK_ROWS = 256
POOLED_DOMAINS = 4096


@dataclass(frozen=True)
class StandardErrors:
    """Of the scores and of the weights, [k] each, and the way they were found."""

    scores: Array
    weights: Array
    method: Literal["bootstrap", "delta method"]


def standard_errors(embeddings: Embeddings, order: Sequence[int], leverage: Leverage, formula: Formula, draws: int) -> StandardErrors:
    """By the bootstrap up to 1,000 domains, by the delta method beyond.

    Args:
        order: of the result, as indices into the embeddings' domains.
        leverage: of these domains in this order.
        draws: of the bootstrap, at least 2; their number does not decide which way is taken.
    """
    if len(order) <= MAX_BOOTSTRAP_DOMAINS:
        return bootstrap(embeddings, order, formula, draws)
    return delta_method(embeddings, order, leverage, formula)


def bootstrap(embeddings: Embeddings, order: Sequence[int], formula: Formula, draws: int) -> StandardErrors:
    """By repeating the whole computation, relative ridge and temperature included, `draws` times.

    Every draw resamples each domain's hash groups with replacement.
    """
    picks = _resamples(embeddings, draws)  # [draws, k, groups]
    scores, weights = (np.empty((draws, len(order))) for _ in range(2))
    for draw, pick in enumerate(picks):
        sums = np.matmul(pick[:, None, :].astype(np.float64), embeddings.group_sums)[:, 0, :]  # [k, p]
        counts = (pick * embeddings.group_counts).sum(axis=1)  # [k]
        rows = krls.prepare((sums / counts[:, None])[order], formula.center)
        scores[draw] = formula.scores(krls.leverage(rows, formula.ridge)[0])
        weights[draw] = formula.weights(scores[draw])
    return StandardErrors(scores.std(axis=0, ddof=1), weights.std(axis=0, ddof=1), "bootstrap")


def deviations(sums: Array, counts: NDArray[np.int64]) -> Array:
    """d_g, [n, groups, p]: sum_g d_g d_g^T estimates the covariance of a domain's mean. 0 where one group has all samples.

    d_g = sqrt(G / (G - 1)) (S_g - n_g x) / n over the G groups with samples, of sums S_g and counts n_g: the variance of a ratio of sums over groups
    (W. Cochran, Sampling Techniques, 1977, section 6.3).

    Args:
        sums: [n, groups, p] of n domains, or linear functions of them: those of the deviations are returned then.
        counts: [n, groups].
    """
    total, filled = counts.sum(axis=1)[:, None, None], (counts > 0).sum(axis=1)[:, None, None]
    centred = sums - counts[:, :, None] * (sums.sum(axis=1, keepdims=True) / total)
    return np.asarray(centred * (np.sqrt(filled / np.maximum(filled - 1, 1)) / total))


def delta_method(embeddings: Embeddings, order: Sequence[int], leverage: Leverage, formula: Formula) -> StandardErrors:
    """To first order in the noise of the domains' means; 0 where all embeddings are equal.

    No weight's error exceeds sqrt(alpha (1 - alpha)), the most that a number between 0 and 1 with this mean can have.

    Cost: O(k p (p + groups)) in three passes over chunks of the embeddings, one of them with the group sums; four p x p matrices in memory.
    """
    leverages, total, none = leverage.scores, leverage.effective_dimension, np.zeros(len(order))
    if not leverages.any():
        return StandardErrors(none, none, "delta method")
    scores = formula.scores(leverages)
    weights, logits = formula.weights(scores), formula.logits(scores)
    assert logits is not None
    sign = -1 if formula.stage == "pretrain" else 1
    # S_i = 0 means y_i = 0, which no small change moves.
    slopes = sign * np.divide(logits, leverages, out=none.copy(), where=leverages > 0)  # [k] dz_i / dS_i where D stays
    by_total = slopes * leverages / total if formula.scale_free else none  # [k] -dz_i / dD
    # Sums of scores that matter to all domains, by their weights: sum_j alpha_j z_j, and D where something depends on it.
    weightings, of_scores, of_weights = [weights * slopes - weights @ by_total], [none], [-weights]
    if formula.scale_free:
        weightings.append(np.ones(len(order)))
        of_scores.append(-leverages / total**2 if formula.normalize else none)
        of_weights.append(-weights * by_total)
    noise = _Noise.of(embeddings, order, leverage, formula, weightings)
    score_errors = noise.errors(np.full(len(order), 1 / total if formula.normalize else 1.0), of_scores)
    weight_errors = np.minimum(noise.errors(weights * slopes, of_weights), np.sqrt(weights * (1 - weights)))
    # Changes of the weights cancel: one that all others mirror is better known from them.
    return StandardErrors(score_errors, np.minimum(weight_errors, weight_errors.sum() - weight_errors), "delta method")


@dataclass(frozen=True)
class _Derivatives:
    """Of scores by prepared embeddings, in the names of this module's docstring."""

    rows: Array  # [k, p]
    inverse: Array  # P, [p, p]
    share: float  # c
    rho: float

    @classmethod
    def of(cls, leverage: Leverage, formula: Formula) -> _Derivatives:
        rows, mu = leverage.rows, len(leverage.rows) * leverage.ridge
        lower, _ = dpotri(krls.cholesky(krls.second_moment(rows), mu), lower=1)
        inverse = np.tril(lower) + np.tril(lower, -1).T
        return cls(rows, inverse, 1 / len(rows) if formula.center else 0.0, mu / float(leverage.eigenvalues.sum()) if formula.ridge.relative else 0.0)

    def chunks(self) -> Iterator[tuple[slice, Array, Array]]:
        """(which rows, y, u), [rows, p] each."""
        for start in range(0, len(self.rows), CHUNK_ROWS):
            some = slice(start, start + CHUNK_ROWS)
            yield some, self.rows[some], self.rows[some] @ self.inverse

    def quadratic(self, matrix: Array) -> Array:
        """u_i^T matrix u_i, [k]."""
        between = self.inverse @ matrix @ self.inverse
        starts = range(0, len(self.rows), CHUNK_ROWS)
        return np.concatenate([np.einsum("kp,kp->k", y @ between, y) for y in (self.rows[start : start + CHUNK_ROWS] for start in starts)])


@dataclass(frozen=True)
class _Sum:
    """sum_i w_i S_i: what f_j is made of."""

    weights: Array  # w, [k]
    vectors: Array  # sum_i w_i u_i, [p]
    products: Array  # B, [p, p]
    squares: float  # sum_i w_i |u_i|^2

    def gradient(self, derivatives: _Derivatives, some: slice, y: Array, u: Array) -> Array:
        """f_j of some domains, [rows, p]."""
        scaled = derivatives.rho * self.squares * y
        return 2 * (self.weights[some, None] * u - derivatives.share * self.vectors - y @ self.products - scaled)


@dataclass(frozen=True)
class _Noise:
    """Everything that an error is put together from.

    Attributes:
        own: [k] 1 - c - S_i.
        ridge: [k] -2 rho |u_i|^2.
        weightings: the [k] weights of each of n sums of scores.
        grams: [k, 2 + n, 2 + n] covariances, by C_j, of u_j, y_j and the gradients f_j of the sums.
        through_others: [k] sum over j != i of (c + H_ij)^2 u_i^T C u_i, C pooled.
    """

    weightings: Sequence[Array]
    own: Array
    ridge: Array
    grams: Array
    through_others: Array

    @classmethod
    def of(cls, embeddings: Embeddings, order: Sequence[int], leverage: Leverage, formula: Formula, weightings: Sequence[Array]) -> _Noise:
        derivatives = _Derivatives.of(leverage, formula)
        sums, squares = _sums(derivatives, weightings)
        c, scores, mu = derivatives.share, leverage.scores, len(order) * leverage.ridge
        # sum_j H_ij^2 = y_i^T P (P^-1 - mu I) P y_i
        entering = np.maximum(c + scores - mu * squares - (c + scores) ** 2, 0.0)  # [k] sum over j != i of (c + H_ij)^2
        grams, pooled = _covariances(embeddings, order, derivatives, sums, entering)
        quadratic = derivatives.quadratic(pooled)
        return cls(weightings, 1 - c - scores, -2 * derivatives.rho * squares, grams, entering * quadratic)

    def errors(self, by_score: Array, by_sums: Sequence[Array]) -> Array:
        """[k] standard errors of quantities q_i with dq_i = by_score_i dS_i + a multiple by_sums_i of the change of each sum."""
        common = np.stack([by_score * self.ridge, *by_sums], axis=1)  # [k, 1 + n]
        own = np.column_stack([2 * by_score * self.own, common])  # [k, 2 + n]
        rest = self.grams[:, 1:, 1:].sum(axis=0) - self.grams[:, 1:, 1:]  # [k, 1 + n, 1 + n]
        share = sum(by_sum * weights for by_sum, weights in zip(by_sums, self.weightings, strict=True))  # [k] of dS_i in the sums
        through_sums = np.einsum("ki,kij,kj->k", common, rest, common) - 4 * share**2 * self.through_others
        through_score = 4 * (by_score + share) ** 2 * self.through_others
        return np.sqrt(np.maximum(np.einsum("ki,kij,kj->k", own, self.grams, own), 0) + np.maximum(through_sums, 0) + through_score)


def _sums(derivatives: _Derivatives, weightings: Sequence[Array]) -> tuple[list[_Sum], Array]:
    """The sums of scores with these weights, and [k] |u_i|^2."""
    p = derivatives.rows.shape[1]
    vectors, products = [np.zeros(p) for _ in weightings], [np.zeros((p, p)) for _ in weightings]
    squares = np.empty(len(derivatives.rows))
    for some, _, u in derivatives.chunks():
        squares[some] = np.einsum("kp,kp->k", u, u)
        for i, weights in enumerate(weightings):
            weighted = weights[some, None] * u
            vectors[i] += weighted.sum(axis=0)
            products[i] += u.T @ weighted
    return [_Sum(*each, float(each[0] @ squares)) for each in zip(weightings, vectors, products, strict=True)], squares


def _covariances(embeddings: Embeddings, order: Sequence[int], derivatives: _Derivatives, sums: Sequence[_Sum], entering: Array) -> tuple[Array, Array]:
    """[k, 2 + n, 2 + n] covariances of u_j, y_j and the gradients of n sums, and [p, p] the pooled C.

    C is taken from at most `POOLED_DOMAINS` domains, evenly spread over all.
    """
    k, p = derivatives.rows.shape
    every = -(-k // POOLED_DOMAINS)
    grams, pooled = np.empty((k, 2 + len(sums), 2 + len(sums))), np.zeros((p, p))
    for some, y, u in derivatives.chunks():
        group_sums, counts = embeddings.group_sums[order[some]].astype(np.float64), embeddings.group_counts[order[some]]  # [rows, groups, p], [rows, groups]
        fields = np.stack([u, y, *(each.gradient(derivatives, some, y, u) for each in sums)], axis=2)  # [rows, p, 2 + n]
        projected = deviations(group_sums @ fields, counts)  # [rows, groups, 2 + n]
        grams[some] = projected.transpose(0, 2, 1) @ projected
        taken = np.arange(k)[some] % every == 0
        weighted = (np.sqrt(entering[some][taken])[:, None, None] * deviations(group_sums[taken], counts[taken])).reshape(-1, p)
        pooled += weighted.T @ weighted
    pool = entering[::every].sum()
    return grams, pooled / pool if pool > 0 else pooled


def _resamples(embeddings: Embeddings, draws: int) -> NDArray[np.uint8]:
    """[draws, k, groups] how often each hash group is drawn: as many draws as the domain has groups with samples, from those only.

    The generator depends on the domain's name alone, so neither the order of the domains nor the others change its draws.
    """
    picks = np.zeros((draws, *embeddings.group_counts.shape), dtype=np.uint8)
    for i, name in enumerate(embeddings.names):
        filled = np.flatnonzero(embeddings.group_counts[i])
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big")
        generator = np.random.default_rng(np.random.SeedSequence([0, key]))
        picks[:, i, filled] = generator.multinomial(len(filled), np.full(len(filled), 1 / len(filled)), size=draws)
    return picks
