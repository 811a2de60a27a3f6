"""Kernel ridge leverage scores: how much of a domain the other domains do not explain.

    k        number of domains
    p        embedding width
    X        [k, p] domain embeddings, one row per domain
    Omega    [k, k] affinity X X^T (linear kernel)
    H        [k, k] centring I - 11^T / k
    lam      ridge, in the units of Omega; it enters as k lam
    S        [k] leverage scores, diag(Omega (Omega + k lam I)^-1)
    sigma    eigenvalues of Omega, descending

Under a prior pi over the domains, which is 1/k in the paper, every domain counts k pi_i times:

    Y        [k, p] X, or X with its mean under pi subtracted
    W        [k, k] diag(k pi)
    S_i      y_i^T (Y^T W Y + k lam I)^-1 y_i, the same as above where pi = 1/k and nothing is subtracted
    D        effective dimension, sum_i k pi_i S_i
    E        energy, tr(Y^T W Y) / k: the mean of |y_i|^2 under pi, and the mean of the k eigenvalues

Source: Chameleon (ICML 2025), definition 3.1 and lemma A.1; a domain that counts k pi_i times is what that many copies of it come to. Everything is
float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from scipy import linalg
from scipy.linalg.blas import dsyrk, dtrsm
from scipy.linalg.lapack import dpocon

from chameleon_ray.errors import UserError
from chameleon_ray.settings import PositiveFloat, Settings

Array = NDArray[np.float64]
CHUNK_ROWS = 4096
# Rounding errors of S are about 2e-16 over the reciprocal condition number; under this bound fewer than three digits would be left.
MIN_RECIPROCAL_CONDITION = 1e-12
# Models compute hidden states in single precision at best: differences under it say nothing about the domains.
NO_DIFFERENCE = float(np.finfo(np.float32).eps)


class OneOf(Settings):
    """A number that is given in exactly one of several units."""

    @model_validator(mode="after")
    def _exactly_one(self) -> OneOf:
        units = type(self).model_fields
        if sum(getattr(self, unit) is not None for unit in units) != 1:
            raise ValueError(f"give exactly one of {', '.join(units)}")
        return self


class Ridge(OneOf):
    """lam itself (`absolute`); rho with lam = rho E (`energy`), which means the same for every scale and number of domains and of dimensions; or r with
    k lam = r E (`relative`), which weakens as domains are added."""

    absolute: PositiveFloat | None = None
    relative: PositiveFloat | None = None
    energy: PositiveFloat | None = None

    def resolve(self, energy: float, k: int) -> float:
        """lam for k domains of energy E."""
        if self.absolute is not None:
            return self.absolute
        if self.energy is not None:
            return self.energy * energy
        assert self.relative is not None
        return self.relative * energy / k


@dataclass(frozen=True)
class Leverage:
    """Leverage scores and what explains them.

    Attributes:
        scores: [k] S, not normalised; in [0, 1) where pi = 1/k.
        effective_dimension: D.
        energy: E.
        eigenvalues: [min(k, p)] of Y^T W Y, descending; the other k - p are 0.
        ridge: lam that was used.
        rows: [k, p] Y: the embeddings, centred where that was asked for.
        prior: [k] pi, None where it is uniform.
    """

    scores: Array
    effective_dimension: float
    energy: float
    eigenvalues: Array
    ridge: float
    rows: Array
    prior: Array | None = None

    @property
    def counted(self) -> Array:
        """[k] how often each domain counts, k pi."""
        return np.ones(len(self.scores)) if self.prior is None else len(self.scores) * self.prior

    @property
    def mean(self) -> float:
        """The mean score under the prior, D / k."""
        return self.effective_dimension / len(self.scores)


def ridge_leverage_scores(gram: Array, ridge: float) -> Array:
    """S = diag(Omega (Omega + k lam I)^-1), dual form.

    Solved with Omega on the right-hand side: 1 - k lam diag((Omega + k lam I)^-1) would cancel where S is small.

    Args:
        gram: Omega, [k, k] symmetric positive semi-definite.
        ridge: lam > 0. As lam grows, S tends to diag(Omega) / (k lam); as it shrinks, to the diagonal of the projector on the range of Omega.
    Returns:
        [k] scores; nothing is normalised here.
    Raises:
        UserError: the ridge is lost in rounding beside a singular Omega.
    Cost: one k x k Cholesky factor and k solves, O(k^3).
    """
    shift = len(gram) * ridge
    factor = cholesky(np.array(gram, dtype=np.float64, order="F"), shift)
    solution = linalg.cho_solve((factor, True), gram, check_finite=False)  # [k, k] (Omega + k lam I)^-1 Omega
    return np.diagonal(solution).copy()


def ridge_leverage_scores_primal(embeddings: Array, ridge: float, moment: Array | None = None) -> Array:
    """S = diag(X (X^T X + k lam I)^-1 X^T), primal form (lemma A.1): the same scores when domains outnumber dimensions.

    With X^T X + k lam I = L L^T, S_i = |L^-1 x_i|^2: a sum of squares, so nothing cancels.

    Args:
        embeddings: X, [k, p].
        ridge: lam > 0.
        moment: what takes the place of X^T X, as `second_moment` makes it; not changed.
    Raises:
        UserError: the ridge is lost in rounding beside a singular X^T X.
    Cost: O(k p^2) in two passes over X, with one chunk of rows and one p x p matrix in memory.
    """
    moment = second_moment(embeddings) if moment is None else np.array(moment, order="F")
    factor = cholesky(moment, len(embeddings) * ridge)  # [p, p]
    scores = np.empty(len(embeddings))
    start = 0
    for chunk in _chunks(embeddings):
        # chunk.T is Fortran-ordered and ours, so BLAS solves in place.
        solved = dtrsm(1.0, factor, chunk.T, lower=1, overwrite_b=1)  # [p, rows]
        scores[start : start + len(chunk)] = np.einsum("pr,pr->r", solved, solved)
        start += len(chunk)
    return scores


def dimension(scores: Array, prior: Array | None = None) -> float:
    """D, the sum of the scores as often as their domains count."""
    return math.fsum((scores if prior is None else len(scores) * prior * scores).tolist())


def normalise(scores: Array, prior: Array | None = None) -> Array:
    """S / D, [k]; 1/k where every score is 0 (no domain differs from another)."""
    total = dimension(scores, prior)
    return np.asarray(scores / total) if total > 0 else np.full(len(scores), 1 / len(scores))


def spectrum(rows: Array, prior: Array | None = None, moment: Array | None = None) -> Array:
    """[min(k, p)] largest eigenvalues of Y^T W Y, descending.

    For k <= p they are taken from the k x k affinity, since both have the same non-zero ones; `moment` is the p x p one, where it is known.
    """
    if len(rows) <= rows.shape[1]:
        counted = _counted(rows, prior)
        moment = counted @ counted.T
    elif moment is None:
        moment = second_moment(rows, prior)
    eigenvalues: Array = linalg.eigvalsh(moment, lower=True, check_finite=False)[::-1]
    return np.maximum(eigenvalues, 0.0)


def scores(embeddings: Array, ridge: Ridge, centered: bool, names: Sequence[str], prior: Array | None = None, overwrite: bool = False) -> Leverage:
    """Leverage scores of domain embeddings, with their spectrum.

    Args:
        embeddings: X, [k, p].
        ridge: lam or what it is relative to.
        centered: whether the mean row under the prior is subtracted first (for a uniform one, H Omega H instead of Omega).
        names: k domain names, for errors.
        prior: pi, [k] on the simplex; None where it is uniform. A domain that has none of it still has a score.
        overwrite: whether X may be changed, which saves a copy of it if centred.
    Raises:
        UserError: an embedding that is not finite (or whose square is not), or a ridge lost in rounding.
    Cost: O(k p min(k, p)); one copy of X if centred without `overwrite`.
    """
    squares = np.einsum("kp,kp->k", embeddings, embeddings)
    if not np.isfinite(squares).all():
        name = names[int(np.argmin(np.isfinite(squares)))]
        raise UserError(f"domain {name!r}: its embedding is not finite: the proxy has diverged; lower proxy.learning_rate, or take another pretrained one")
    rows = prepare(embeddings, centered, prior, overwrite)
    moment = second_moment(rows, prior) if rows.shape[0] > rows.shape[1] else None
    energy = _trace(rows, prior) / len(rows)
    lam = ridge.resolve(energy, len(rows))
    values = leverage(rows, lam, prior, moment)
    return Leverage(values, dimension(values, prior), energy, spectrum(rows, prior, moment), lam, rows, prior)


def prepare(embeddings: Array, centered: bool, prior: Array | None = None, overwrite: bool = False) -> Array:
    """Y: [k, p] embeddings with their mean row subtracted if `centered`; exactly 0 where they differ by less than single precision resolves."""
    if not centered:
        return embeddings
    trace = _trace(embeddings, prior)
    mean = embeddings.mean(axis=0) if prior is None else prior @ embeddings
    rows = np.subtract(embeddings, mean, out=embeddings if overwrite else None)
    return rows if _trace(rows, prior) > NO_DIFFERENCE**2 * trace else np.zeros_like(rows)


def leverage(rows: Array, ridge: float, prior: Array | None = None, moment: Array | None = None) -> Array:
    """[k] scores of prepared embeddings; 0 where these are, and everywhere without a ridge, which is how one relative to embeddings that are all equal ends.

    Dual form for k <= p, primal otherwise. Under a prior the dual form would divide by pi_i: there the primal one is taken on coordinates in the span of
    the rows, [k, k].
    """
    k, p = rows.shape
    if ridge == 0 or not rows.any():
        return np.zeros(k)
    if prior is None and k <= p:
        return ridge_leverage_scores(rows @ rows.T, ridge)
    if k <= p:
        (triangle,) = linalg.qr(rows.T, mode="r", check_finite=False)  # Y^T = Q R: the inner products of the rows of R^T are those of Y
        rows, moment = np.ascontiguousarray(triangle[:k].T), None
    return ridge_leverage_scores_primal(rows, ridge, second_moment(rows, prior) if moment is None else moment)


def cholesky(matrix: Array, shift: float) -> Array:
    """Lower factor of matrix + shift * I; only the lower triangle is read and `matrix` is overwritten.

    Raises:
        UserError: the shift, k lam, is lost in rounding.
    """
    matrix.flat[:: len(matrix) + 1] += shift
    trace = float(np.trace(matrix))
    try:
        factor = linalg.cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
        # The trace bounds the norm and costs nothing.
        reciprocal, _ = dpocon(factor, trace, uplo="L")
    except linalg.LinAlgError:
        reciprocal = 0.0
    if reciprocal < MIN_RECIPROCAL_CONDITION:
        raise UserError(
            f"ridge: k * lam = {shift:.3g} is lost in rounding beside eigenvalues that sum to {trace:.3g}; raise it, for example ridge: {{relative: 1.0e-6}}"
        )
    return np.asarray(factor)


def second_moment(rows: Array, prior: Array | None = None) -> Array:
    """Lower triangle of Y^T W Y, [p, p] in Fortran order, summed over chunks of rows; W is the identity without a prior."""
    p = rows.shape[1]
    moment = np.zeros((p, p), order="F")
    start = 0
    for chunk in _chunks(rows):
        if prior is not None:
            chunk *= np.sqrt(len(rows) * prior[start : start + len(chunk), None])
        moment = dsyrk(1.0, chunk.T, beta=1.0, c=moment, lower=1, overwrite_c=1)
        start += len(chunk)
    return moment


def _chunks(rows: Array) -> Iterator[Array]:
    """Copies of consecutive rows, C-ordered float64."""
    for start in range(0, len(rows), CHUNK_ROWS):
        yield np.array(rows[start : start + CHUNK_ROWS], dtype=np.float64, order="C")


def _counted(rows: Array, prior: Array | None) -> Array:
    """[k, p] W^(1/2) Y."""
    return rows if prior is None else rows * np.sqrt(len(rows) * prior[:, None])


def _trace(rows: Array, prior: Array | None = None) -> float:
    """tr(Y^T W Y), the sum of the eigenvalues."""
    if prior is None:
        return float(np.einsum("kp,kp->", rows, rows))
    return float(len(rows) * (prior @ np.einsum("kp,kp->k", rows, rows)))
