"""Leverage scores against explicit formulas, limits and each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from chameleon_ray.errors import UserError
from chameleon_ray.mixing import krls
from chameleon_ray.mixing.krls import Ridge


def matrix(seed: int, k: int, p: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((k, p)) + 1.0


def names(k: int) -> list[str]:
    return [f"d{i}" for i in range(k)]


shapes = {"seed": st.integers(0, 10_000), "k": st.integers(1, 12), "p": st.integers(1, 12)}


def test_two_domains_by_hand() -> None:
    # Omega = [[5, 2], [2, 8]], k lam = 3: (Omega + 3 I)^-1 = [[11, -2], [-2, 8]] / 84, S = (5*11 - 4, 8*8 - 4) / 84.
    scores = krls.ridge_leverage_scores(np.array([[5.0, 2.0], [2.0, 8.0]]), 1.5)
    assert scores == pytest.approx([51 / 84, 60 / 84], abs=1e-15)


@settings(deadline=None, max_examples=50)
@given(**shapes, log_ridge=st.floats(-3, 4))
def test_primal_equals_dual(seed: int, k: int, p: int, log_ridge: float) -> None:
    embeddings, ridge = matrix(seed, k, p), 10**log_ridge
    dual = krls.ridge_leverage_scores(embeddings @ embeddings.T, ridge)
    assert krls.ridge_leverage_scores_primal(embeddings, ridge) == pytest.approx(dual, rel=1e-8, abs=1e-12)


def test_primal_equals_dual_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = matrix(0, 50, 6)
    untouched = embeddings.copy()
    whole = krls.ridge_leverage_scores_primal(embeddings, 0.3)
    monkeypatch.setattr(krls, "CHUNK_ROWS", 7)
    assert krls.ridge_leverage_scores_primal(embeddings, 0.3) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(krls.ridge_leverage_scores(embeddings @ embeddings.T, 0.3), rel=1e-10)
    assert (embeddings == untouched).all()


@settings(deadline=None, max_examples=30)
@given(**shapes, centered=st.booleans())
def test_scores_lie_in_the_unit_interval_and_permute(seed: int, k: int, p: int, centered: bool) -> None:
    embeddings = matrix(seed, k, p)
    order = np.random.default_rng(seed).permutation(k)
    first = krls.scores(embeddings, Ridge(absolute=1.0), centered, names(k))
    second = krls.scores(embeddings[order], Ridge(absolute=1.0), centered, names(k))
    assert (first.scores >= 0).all() and (first.scores < 1).all()
    assert second.scores == pytest.approx(first.scores[order], abs=1e-12)


@pytest.mark.parametrize("ridge", [1e9, 1e30, 1e300])
def test_a_large_ridge_leaves_the_squared_norms(ridge: float) -> None:
    embeddings = matrix(1, 5, 8)
    expected = (embeddings**2).sum(axis=1) / 5 / ridge
    assert krls.ridge_leverage_scores(embeddings @ embeddings.T, ridge) == pytest.approx(expected, rel=1e-7)
    assert krls.ridge_leverage_scores_primal(embeddings, ridge) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("ridge", [1e-9, 1e-30, 1e-300])
def test_a_small_ridge_saturates_independent_domains(ridge: float) -> None:
    embeddings = matrix(2, 5, 8)
    assert krls.ridge_leverage_scores(embeddings @ embeddings.T, ridge) == pytest.approx(np.ones(5), abs=1e-7)


def test_duplicated_domains_share_their_leverage() -> None:
    embeddings = matrix(3, 5, 8)
    embeddings[3] = embeddings[1]
    scores = krls.ridge_leverage_scores(embeddings @ embeddings.T, 1e-8)
    assert scores == pytest.approx([1, 0.5, 1, 0.5, 1], abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(**shapes)
def test_subtracting_the_mean_row_centers_the_gram(seed: int, k: int, p: int) -> None:
    embeddings = matrix(seed, k, p)
    middle = np.eye(k) - 1 / k
    gram = middle @ embeddings @ embeddings.T @ middle
    leverage = krls.scores(embeddings, Ridge(absolute=2.0), True, names(k))
    assert leverage.scores == pytest.approx(krls.ridge_leverage_scores(gram, 2.0), abs=1e-12)


@pytest.mark.parametrize("k, p", [(4, 9), (9, 4)])
def test_spectrum_and_effective_dimension(k: int, p: int) -> None:
    embeddings = matrix(5, k, p)
    eigenvalues = np.linalg.svd(embeddings, compute_uv=False) ** 2
    leverage = krls.scores(embeddings, Ridge(absolute=0.7), False, names(k))
    assert leverage.eigenvalues == pytest.approx(eigenvalues, rel=1e-10)
    assert leverage.effective_dimension == pytest.approx((eigenvalues / (eigenvalues + k * 0.7)).sum(), rel=1e-10)
    assert leverage.ridge == 0.7


@pytest.mark.parametrize("k, p", [(4, 9), (9, 4)])
@pytest.mark.parametrize("centered", [False, True])
def test_a_relative_ridge_ignores_the_scale(k: int, p: int, centered: bool) -> None:
    embeddings = matrix(6, k, p)
    small, large = (krls.scores(embeddings * scale, Ridge(relative=0.5), centered, names(k)) for scale in (1e-6, 1e5))
    assert small.scores == pytest.approx(large.scores, rel=1e-10)
    # k lam = r * mean eigenvalue, zeros included.
    assert k * large.ridge == pytest.approx(0.5 * large.eigenvalues.sum() / k, rel=1e-10)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_identical_domains_have_no_centered_leverage(k: int) -> None:
    embeddings = np.tile(matrix(7, 1, 5), (k, 1))
    embeddings += 1e-9 * matrix(8, k, 5)
    leverage = krls.scores(embeddings, Ridge(relative=1.0), True, names(k))
    assert (leverage.scores == 0).all() and (leverage.eigenvalues == 0).all()
    assert krls.normalise(leverage.scores) == pytest.approx(np.full(k, 1 / k))


def test_a_ridge_lost_in_rounding_is_an_error() -> None:
    embeddings = matrix(9, 4, 6)
    with pytest.raises(UserError, match="lost in rounding.*relative"):
        krls.scores(embeddings, Ridge(absolute=1e-18), True, names(4))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_an_embedding_that_is_not_finite_is_named(value: float) -> None:
    embeddings = matrix(10, 3, 4)
    embeddings[1, 2] = value
    with pytest.raises(UserError, match="'d1'"):
        krls.scores(embeddings, Ridge(absolute=1.0), True, names(3))


@pytest.mark.parametrize(
    "fields", [{}, {"absolute": 1, "relative": 1}, {"relative": 1, "energy": 1}, {"absolute": 0}, {"relative": -1}, {"absolute": float("inf")}, {"scale": 1}]
)
def test_a_ridge_is_one_positive_number(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Ridge(**fields)
