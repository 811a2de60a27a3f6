"""How far scores and weights would move with other samples of the same domains.

Two ways to the same numbers. The bootstrap repeats the computation hundreds of times. The delta method follows small changes through the formulae,
at the cost of a few computations:

    y_i      [p] row i of the prepared embeddings Y (krls.prepare)
    w_i      how often a domain counts, k pi_i
    c_j      w_j / k if centred, else 0
    mu       k lam;  P = (Y^T W Y + mu I)^-1, [p, p]
    u_i      [p] P y_i;  S_i = y_i . u_i;  H_ij = y_i . u_j;  D = sum_i w_i S_i
    dx_j     [p] noise of a domain's mean, independent between domains, with covariance C_j (see noise.py)

    dS_i            = 2 sum_j (delta_ij - c_j - w_j H_ij) u_i . dx_j
    sum_i a_i dS_i  = sum_j f_j . dx_j,  f_j = 2 (a_j u_j - c_j sum_i a_i u_i - w_j B y_j),  B = sum_i a_i u_i u_i^T
    d alpha_i       = alpha_i (dz_i - sum_j alpha_j dz_j),  dz_i = z'_i (dS_i - T_i dD / sum_j w_j T_j), without dD where z depends on S_i alone

In both lam and the floor F stay what they are for the embeddings as they are: a draw has twice the noise, and would find the scores that much less
reliable (formula.Weighing).

What a domain adds to its own error is exact to first order. So is what the others add through D and the softmax, but for the covariance of these with
what they add through H_ij, about 1 / k of the whole. The latter, sum_j (c_j + w_j H_ij)^2 u_i^T C_j u_i, would take O(k^2 p): the sum of the
(c_j + w_j H_ij)^2 is exact, and the C_j are pooled in proportion to how much each domain enters the scores of the others. It matters only where scores
come near 1, as with fewer domains than dimensions under a small ridge: there errors of single domains are off by up to a fifth where noise differs much.

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
from chameleon_ray.mixing.formula import Weighing
from chameleon_ray.mixing.krls import Array, Leverage
from chameleon_ray.mixing.noise import Sharing, deviations

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


def standard_errors(embeddings: Embeddings, order: Sequence[int], leverage: Leverage, weighing: Weighing, draws: int) -> StandardErrors | None:
    """By the bootstrap up to 1,000 domains, by the delta method beyond; that knows nothing of scores that look towards a target, which have none then.

    Args:
        order: of the result, as indices into the embeddings' domains.
        leverage: of these domains in this order.
        draws: of the bootstrap, at least 2; their number does not decide which way is taken.
    """
    if len(order) <= MAX_BOOTSTRAP_DOMAINS:
        return bootstrap(embeddings, order, weighing, draws)
    if weighing.target is not None:
        return None
    return delta_method(embeddings, order, leverage, weighing)


def bootstrap(embeddings: Embeddings, order: Sequence[int], weighing: Weighing, draws: int) -> StandardErrors:
    """By repeating everything that `weighing` does not hold fast, `draws` times. It holds fast the embeddings of texts that are no domains and are looked
    towards: a target is what is asked for, and not a sample of it.

    Every draw resamples each domain's hash groups with replacement; its distance from the domain's mean is scaled by sqrt(own G / (G - 1)), and the share that
    covariances have in common is drawn from the normal distribution, so that it has the covariance C (noise.py).
    """
    picks = _resamples(embeddings, draws)  # [draws, k, groups]
    sharing, filled = Sharing.of(embeddings.group_counts), (embeddings.group_counts > 0).sum(axis=1)
    own = np.sqrt(sharing.own * filled / np.maximum(filled - 1, 1))
    sparse = np.flatnonzero(sharing.common)
    root = _common_root(embeddings, order) if len(sparse) else np.zeros((0, embeddings.group_sums.shape[2]))
    means = embeddings.means
    scores, weights = (np.empty((draws, len(order))) for _ in range(2))
    for draw, pick in enumerate(picks):
        sums = np.matmul(pick[:, None, :].astype(np.float64), embeddings.group_sums)[:, 0, :]  # [k, p]
        counts = (pick * embeddings.group_counts).sum(axis=1)  # [k]
        drawn = means + own[:, None] * (sums / counts[:, None] - means)
        if len(sparse):
            normal = np.stack([_generator(embeddings.names[i], 1 + draw).standard_normal(len(root)) for i in sparse])
            drawn[sparse] += np.sqrt(sharing.common[sparse])[:, None] * (normal @ root)
        leverage = weighing.leverage(drawn[order])
        scores[draw], weights[draw] = weighing.scores(leverage), weighing.weights(leverage)
    # From the first draw on: what no draw changes then has an error of exactly 0.
    return StandardErrors((scores - scores[0]).std(axis=0, ddof=1), (weights - weights[0]).std(axis=0, ddof=1), "bootstrap")


def delta_method(embeddings: Embeddings, order: Sequence[int], leverage: Leverage, weighing: Weighing) -> StandardErrors:
    """To first order in the noise of the domains' means; 0 where all embeddings are equal.

    No weight's error exceeds sqrt(alpha (1 - alpha)), the most that a number between 0 and 1 with this mean can have.

    Cost: O(k p (p + groups)) in three passes over chunks of the embeddings, one of them with the group sums; four p x p matrices in memory.
    """
    leverages, total, none = leverage.scores, leverage.effective_dimension, np.zeros(len(order))
    if not leverages.any():
        return StandardErrors(none, none, "delta method")
    counted = leverage.counted  # w, [k]
    slopes, by_total = _slopes(leverages, weighing)
    weights = weighing.weights(leverages)
    # Sums of scores that matter to all domains, by their weights: sum_j alpha_j z_j, and D where something depends on it.
    weightings, of_scores, of_weights = [weights * slopes - weights @ by_total * counted], [none], [-weights]
    if weighing.scale_free:
        weightings.append(counted)
        of_scores.append(-leverages / total**2 if weighing.formula.normalize else none)
        of_weights.append(-weights * by_total)
    noise = _Noise.of(embeddings, order, leverage, weighing, weightings)
    score_errors = noise.errors(np.full(len(order), 1 / total if weighing.formula.normalize else 1.0), of_scores)
    weight_errors = np.minimum(noise.errors(weights * slopes, of_weights), np.sqrt(weights * (1 - weights)))
    # Changes of the weights cancel: one that all others mirror is better known from them.
    return StandardErrors(score_errors, np.minimum(weight_errors, weight_errors.sum() - weight_errors), "delta method")


def _slopes(leverages: Array, weighing: Weighing) -> tuple[Array, Array]:
    """[k] dz_i / dS_i where D stays, [k] -dz_i / dD."""
    none = np.zeros(len(leverages))
    logits = weighing.logits(leverages)
    if logits is None:
        return none, none
    floored = leverages + weighing.floor
    sign = -1 if weighing.formula.stage == "pretrain" else 1
    # T_i = 0 means y_i = 0, which no small change moves; a score over the cap counts as the cap.
    moves = (floored > 0) & (weighing.floored(leverages) <= weighing.bound(leverages))
    slopes = sign * np.divide(logits, floored, out=none.copy(), where=moves)
    relative = weighing.formula.temperature.relative is not None
    total = len(leverages) * weighing.mean(floored if relative else leverages)
    return slopes, slopes * floored / total if weighing.scale_free else none


@dataclass(frozen=True)
class _Derivatives:
    """Of scores by prepared embeddings, in the names of this module's docstring."""

    rows: Array  # [k, p]
    inverse: Array  # P, [p, p]
    counted: Array  # w, [k]
    shares: Array  # c, [k]

    @classmethod
    def of(cls, leverage: Leverage, weighing: Weighing) -> _Derivatives:
        rows, k = leverage.rows, len(leverage.rows)
        lower, _ = dpotri(krls.cholesky(krls.second_moment(rows, leverage.prior), k * leverage.ridge), lower=1)
        inverse = np.tril(lower) + np.tril(lower, -1).T
        return cls(rows, inverse, leverage.counted, leverage.counted / k if weighing.formula.center else np.zeros(k))

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
    """sum_i a_i S_i: what f_j is made of."""

    weights: Array  # a, [k]
    vectors: Array  # sum_i a_i u_i, [p]
    products: Array  # B, [p, p]

    def gradient(self, derivatives: _Derivatives, some: slice, y: Array, u: Array) -> Array:
        """f_j of some domains, [rows, p]."""
        through_mean = derivatives.shares[some, None] * self.vectors
        return 2 * (self.weights[some, None] * u - through_mean - derivatives.counted[some, None] * (y @ self.products))


@dataclass(frozen=True)
class _Noise:
    """Everything that an error is put together from.

    Attributes:
        own: [k] 1 - c_i - w_i S_i.
        weightings: the [k] weights of each of n sums of scores.
        grams: [k, 1 + n, 1 + n] covariances, by C_j, of u_j and the gradients f_j of the sums.
        through_others: [k] sum over j != i of (c_j + w_j H_ij)^2 u_i^T C u_i, C pooled.
    """

    weightings: Sequence[Array]
    own: Array
    grams: Array
    through_others: Array

    @classmethod
    def of(cls, embeddings: Embeddings, order: Sequence[int], leverage: Leverage, weighing: Weighing, weightings: Sequence[Array]) -> _Noise:
        derivatives = _Derivatives.of(leverage, weighing)
        sums, squares = _sums(derivatives, weightings)
        entering, entered = _coupling(derivatives, leverage, squares)
        grams, pooled = _covariances(embeddings, order, derivatives, sums, entered)
        own = 1 - derivatives.shares - derivatives.counted * leverage.scores
        return cls(weightings, own, grams, entering * derivatives.quadratic(pooled))

    def errors(self, by_score: Array, by_sums: Sequence[Array]) -> Array:
        """[k] standard errors of quantities q_i with dq_i = by_score_i dS_i + a multiple by_sums_i of the change of each sum."""
        common = np.stack(by_sums, axis=1)  # [k, n]
        own = np.column_stack([2 * by_score * self.own, common])  # [k, 1 + n]
        rest = self.grams[:, 1:, 1:].sum(axis=0) - self.grams[:, 1:, 1:]  # [k, n, n]
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
    return [_Sum(*each) for each in zip(weightings, vectors, products, strict=True)], squares


def _coupling(derivatives: _Derivatives, leverage: Leverage, squares: Array) -> tuple[Array, Array]:
    """[k] sum over j != i of (c_j + w_j H_ij)^2, how much the others enter a score; [k] sum over i != j, how much a domain enters the others' scores.

    Under a uniform prior both are the same, and sum_j H_ij^2 = y_i^T P (P^-1 - mu I) P y_i.
    """
    scores, counted, shares = leverage.scores, derivatives.counted, derivatives.shares
    k, own = len(scores), (shares + counted * scores) ** 2
    if leverage.prior is None:
        entering = np.maximum(shares + scores - k * leverage.ridge * squares - own, 0.0)
        return entering, entering

    def summed(weights: Array) -> Array:
        """[k] sum_j weights_j (c + H_ij)^2 with c = c_j / w_j."""
        c, rows = (1 / k if shares.any() else 0.0), derivatives.rows
        lower = np.tril(krls.second_moment(rows, weights / k))
        vector = derivatives.inverse @ (weights @ rows)
        return c**2 * weights.sum() + 2 * c * (rows @ vector) + derivatives.quadratic(lower + np.tril(lower, -1).T)

    return np.maximum(summed(counted**2) - own, 0.0), np.maximum(counted**2 * summed(np.ones(k)) - own, 0.0)


def _covariances(embeddings: Embeddings, order: Sequence[int], derivatives: _Derivatives, sums: Sequence[_Sum], entered: Array) -> tuple[Array, Array]:
    """[k, 1 + n, 1 + n] covariances of u_j and the gradients of n sums, and [p, p] the pooled C.

    C is taken from at most `POOLED_DOMAINS` domains, evenly spread over all; what covariances have in common too.
    """
    k, p = derivatives.rows.shape
    every = -(-k // POOLED_DOMAINS)
    grams, pooled = np.empty((k, 1 + len(sums), 1 + len(sums))), np.zeros((p, p))
    sharing = Sharing.of(embeddings.group_counts[order])
    root = _common_root(embeddings, order[::every]) if sharing.common.any() else np.zeros((0, p))
    for some, y, u in derivatives.chunks():
        group_sums, counts = embeddings.group_sums[order[some]].astype(np.float64), embeddings.group_counts[order[some]]  # [rows, groups, p], [rows, groups]
        fields = np.stack([u, *(each.gradient(derivatives, some, y, u) for each in sums)], axis=2)  # [rows, p, 1 + n]
        projected = deviations(group_sums @ fields, counts)  # [rows, groups, 1 + n]
        grams[some] = sharing.own[some, None, None] * (projected.transpose(0, 2, 1) @ projected)
        if len(root) and sharing.common[some].any():
            shared = root @ fields  # [rows, p or fewer, 1 + n]
            grams[some] += sharing.common[some, None, None] * (shared.transpose(0, 2, 1) @ shared)
        taken = np.arange(k)[some] % every == 0
        weighted = (np.sqrt(entered[some] * sharing.own[some])[taken, None, None] * deviations(group_sums[taken], counts[taken])).reshape(-1, p)
        pooled += weighted.T @ weighted
    pooled += (entered * sharing.common)[::every].sum() * (root.T @ root)
    pool = entered[::every].sum()
    return grams, pooled / pool if pool > 0 else pooled


def _common_root(embeddings: Embeddings, order: Sequence[int]) -> Array:
    """A matrix R of p columns, and at most as many rows, with R^T R = V, what the covariances of these domains have in common."""
    p = embeddings.group_sums.shape[2]
    sharing, found = Sharing.of(embeddings.group_counts[order]), np.zeros((0, p))
    for start in range(0, len(order), CHUNK_ROWS):
        some = np.asarray(order[start : start + CHUNK_ROWS])
        each = deviations(embeddings.group_sums[some].astype(np.float64), embeddings.group_counts[some])
        weighted = (np.sqrt(sharing.part[start : start + CHUNK_ROWS])[:, None, None] * each).reshape(-1, p)
        found = np.concatenate([found, weighted[weighted.any(axis=1)]])
        found = np.asarray(np.linalg.qr(found, mode="r")) if len(found) > p else found
    return found


def _resamples(embeddings: Embeddings, draws: int) -> NDArray[np.uint8]:
    """[draws, k, groups] how often each hash group is drawn: as many draws as the domain has groups with samples, from those only.

    The generator depends on the domain's name alone, so neither the order of the domains nor the others change its draws.
    """
    picks = np.zeros((draws, *embeddings.group_counts.shape), dtype=np.uint8)
    for i, name in enumerate(embeddings.names):
        filled = np.flatnonzero(embeddings.group_counts[i])
        picks[:, i, filled] = _generator(name, 0).multinomial(len(filled), np.full(len(filled), 1 / len(filled)), size=draws)
    return picks


def _generator(name: str, number: int) -> np.random.Generator:
    """One of a domain's own, which depends on nothing else."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big")
    return np.random.default_rng(np.random.SeedSequence([number, key]))
