"""Kernel ridge leverage scores: how much of a domain the other domains do not explain.

    k        number of domains
    p        embedding width
    X        [k, p] domain embeddings, one row per domain
    Omega    [k, k] affinity X X^T (linear kernel)
    H        [k, k] centring I - 11^T / k
    lam      ridge, in the units of Omega; it enters as k lam
    S        [k] leverage scores, diag(Omega (Omega + k lam I)^-1)
    sigma    eigenvalues of Omega, descending

Source: Chameleon (ICML 2025), definition 3.1 and lemma A.1. Everything is float64.
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


class AbsoluteOrRelative(Settings):
    """A number in the units of what it acts on (`absolute`), or as a multiple of its typical size (`relative`)."""

    absolute: PositiveFloat | None = None
    relative: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> AbsoluteOrRelative:
        if (self.absolute is None) == (self.relative is None):
            raise ValueError("give exactly one of absolute and relative")
        return self


class Ridge(AbsoluteOrRelative):
    """lam itself, or r with k lam = r * mean eigenvalue of Omega: the same r means the same for every k, p and scale of the embeddings."""

    def resolve(self, mean_eigenvalue: float, k: int) -> float:
        """lam for k domains."""
        if self.absolute is not None:
            return self.absolute
        assert self.relative is not None
        return self.relative * mean_eigenvalue / k


@dataclass(frozen=True)
class Leverage:
    """Leverage scores and what explains them.

    Attributes:
        scores: [k] S in [0, 1), not normalised.
        effective_dimension: sum of S.
        eigenvalues: [min(k, p)] of Omega, descending; the other k - p are 0.
        ridge: lam that was used.
        rows: [k, p] what the scores are of: the embeddings, centred where that was asked for.
    """

    scores: Array
    effective_dimension: float
    eigenvalues: Array
    ridge: float
    rows: Array


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
        moment: `second_moment(embeddings)` where it is known; not changed.
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


def center(gram: Array) -> Array:
    """H Omega H, [k, k]: the affinity of embeddings whose mean row was subtracted."""
    row_means = gram.mean(axis=0, keepdims=True)  # [1, k]
    centered: Array = gram - row_means - row_means.T + gram.mean()
    return centered


def normalise(scores: Array) -> Array:
    """S / sum(S), [k]; 1/k where every score is 0 (no domain differs from another)."""
    total = math.fsum(scores.tolist())
    return np.asarray(scores / total) if total > 0 else np.full(len(scores), 1 / len(scores))


def spectrum(embeddings: Array, moment: Array | None = None) -> Array:
    """[min(k, p)] largest eigenvalues of Omega = X X^T, descending.

    For k > p they are taken from X^T X (`moment`, where it is known), since both have the same non-zero ones.
    """
    k, p = embeddings.shape
    if moment is None:
        moment = embeddings @ embeddings.T if k <= p else second_moment(embeddings)
    eigenvalues: Array = linalg.eigvalsh(moment, lower=True, check_finite=False)[::-1]
    return np.maximum(eigenvalues, 0.0)


def scores(embeddings: Array, ridge: Ridge, centered: bool, names: Sequence[str], overwrite: bool = False) -> Leverage:
    """Leverage scores of domain embeddings, with their spectrum.

    Args:
        embeddings: X, [k, p].
        ridge: lam or relative to the mean eigenvalue.
        centered: whether the mean row is subtracted first (H Omega H instead of Omega).
        names: k domain names, for errors.
        overwrite: whether X may be changed, which saves a copy of it if centred.
    Raises:
        UserError: an embedding that is not finite (or whose square is not), or a ridge lost in rounding.
    Cost: O(k p min(k, p)); one copy of X if centred without `overwrite`.
    """
    squares = np.einsum("kp,kp->k", embeddings, embeddings)
    if not np.isfinite(squares).all():
        name = names[int(np.argmin(np.isfinite(squares)))]
        raise UserError(f"domain {name!r}: its embedding is not finite; the proxy's training has diverged, lower proxy.learning_rate")
    rows = prepare(embeddings, centered, overwrite)
    moment = second_moment(rows) if rows.shape[0] > rows.shape[1] else None
    values, absolute = leverage(rows, ridge, moment)
    return Leverage(values, math.fsum(values.tolist()), spectrum(rows, moment), absolute, rows)


def prepare(embeddings: Array, centered: bool, overwrite: bool = False) -> Array:
    """[k, p] embeddings with their mean row subtracted if `centered`; exactly 0 where they differ by less than single precision resolves."""
    if not centered:
        return embeddings
    trace = _trace(embeddings)
    rows = np.subtract(embeddings, embeddings.mean(axis=0), out=embeddings if overwrite else None)
    return rows if _trace(rows) > NO_DIFFERENCE**2 * trace else np.zeros_like(rows)


def leverage(rows: Array, ridge: Ridge, moment: Array | None = None) -> tuple[Array, float]:
    """([k] scores, lam) of prepared embeddings: dual form for k <= p, primal otherwise; scores are 0 where the embeddings are."""
    k, p = rows.shape
    trace = _trace(rows)
    absolute = ridge.resolve(trace / k, k)
    if trace == 0:
        return np.zeros(k), absolute
    return (ridge_leverage_scores(rows @ rows.T, absolute) if k <= p else ridge_leverage_scores_primal(rows, absolute, moment)), absolute


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


def second_moment(embeddings: Array) -> Array:
    """Lower triangle of X^T X, [p, p] in Fortran order, summed over chunks of rows."""
    p = embeddings.shape[1]
    moment = np.zeros((p, p), order="F")
    for chunk in _chunks(embeddings):
        moment = dsyrk(1.0, chunk.T, beta=1.0, c=moment, lower=1, overwrite_c=1)
    return moment


def _chunks(embeddings: Array) -> Iterator[Array]:
    """Copies of consecutive rows, C-ordered float64."""
    for start in range(0, len(embeddings), CHUNK_ROWS):
        yield np.array(embeddings[start : start + CHUNK_ROWS], dtype=np.float64, order="C")


def _trace(rows: Array) -> float:
    """Sum of the eigenvalues of X X^T."""
    return float(np.einsum("kp,kp->", rows, rows))
