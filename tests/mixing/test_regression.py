"""Regressors on losses they can and cannot express, and on the published swarm."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.regression import REGRESSORS, candidates, cross_validated_spearman, fit_mean, spearman
from chameleon_ray.mixing.regressors.exponential import fit_law
from chameleon_ray.mixing.regressors.linear import fit_linear
from chameleon_ray.mixing.regressors.log_ridge import fit_log_ridge
from chameleon_ray.mixing.regressors.trees import fit_lightgbm
from chameleon_ray.mixing.swarm import Swarm, draw_mixtures, read_swarm

DATA = os.environ.get("CHAMELEON_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="CHAMELEON_DATA is not set: it names the folder with regmix/{train,test}_{mixture,pile_loss}_1m.csv")


def mixtures(n: int, k: int, seed: int = 0) -> np.ndarray:
    return draw_mixtures({f"d{i}": 1 / k for i in range(k)}, n, seed)


def law(ratios: np.ndarray) -> np.ndarray:
    """c = 2, kappa = 1.5, t = 0, -0.5, -1, …."""
    return 2 + 1.5 * np.exp(-0.5 * ratios @ np.arange(ratios.shape[1]))


def published(part: str) -> Swarm:
    folder = Path(DATA) / "regmix"
    return read_swarm(str(folder / f"{part}_mixture_1m.csv"), str(folder / f"{part}_pile_loss_1m.csv"))


def test_linear_recovers_a_plane() -> None:
    slopes = np.array([3.0, 1.0, 2.0])
    predict = fit_linear(mixtures(20, 3), mixtures(20, 3) @ slopes)
    assert predict(mixtures(50, 3, seed=1)) == pytest.approx(mixtures(50, 3, seed=1) @ slopes, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_law_recovers_itself_in_any_unit(scale: float) -> None:
    predict = fit_law(mixtures(60, 5), scale * law(mixtures(60, 5)))
    assert predict(mixtures(50, 5, seed=1)) == pytest.approx(scale * law(mixtures(50, 5, seed=1)), rel=1e-6)


def test_law_extrapolates_where_trees_cannot() -> None:
    ratios = mixtures(200, 3)
    inside = ratios[ratios.max(axis=1) < 0.8]
    corner = np.eye(3)[2:]
    assert fit_law(inside, law(inside))(corner) == pytest.approx(law(corner), rel=1e-6)
    assert fit_lightgbm(inside, law(inside))(corner)[0] > law(inside).min() - 1e-6


@pytest.mark.parametrize("name", REGRESSORS)
def test_fits_are_deterministic_and_order_what_they_have_not_seen(name: str) -> None:
    ratios, losses = mixtures(150, 4), law(mixtures(150, 4))
    found = [cross_validated_spearman(name, ratios, losses[:, None], seed=0) for _ in range(2)]
    assert found[0] == found[1] > 0.93


def test_a_mean_over_domains_is_the_mean_of_one_law_each() -> None:
    """Every domain's loss falls with its own share, so that the mean is least inside: no single law has its minimum there."""
    ratios = mixtures(80, 4)
    columns = 2 + np.exp(-4 * ratios)
    assert cross_validated_spearman("law", ratios, columns, seed=0) > 0.999
    assert cross_validated_spearman("law", ratios, columns.mean(axis=1, keepdims=True), seed=0) < 0.9
    inside, corner = np.full((1, 4), 0.25), np.eye(4)[:1]
    predict = fit_mean("law", ratios, columns)
    assert predict(inside) == pytest.approx(2 + np.exp(-1), rel=1e-6)
    assert predict(corner) == pytest.approx(2 + (3 + np.exp(-4)) / 4, rel=1e-6)


@pytest.mark.parametrize("name", REGRESSORS)
def test_noise_cannot_be_ordered(name: str) -> None:
    losses = np.random.default_rng(5).standard_normal(100)
    assert abs(cross_validated_spearman(name, mixtures(100, 4), losses[:, None], seed=0)) < 0.35


@pytest.mark.parametrize("name", REGRESSORS)
def test_the_smallest_swarm_is_large_enough(name: str) -> None:
    for k in (2, 7):
        n = REGRESSORS[name].min_runs(k)
        ratios = mixtures(n, k)
        assert np.isfinite(cross_validated_spearman(name, ratios, law(ratios)[:, None], seed=0))
        without_a_fold = ratios[: n - -(-n // 5)]
        assert np.ptp(REGRESSORS[name].fit(without_a_fold, law(without_a_fold))(ratios)) > 0.01, "it can tell mixtures apart"


@pytest.mark.parametrize("name, k, runs", [("lightgbm", 7, 53), ("linear", 2, 10), ("linear", 17, 23), ("law", 17, 24)])
def test_a_swarm_smaller_than_the_regression_needs(name: str, k: int, runs: int) -> None:
    assert candidates(name, runs, k, "swarm") == (name,)
    with pytest.raises(UserError, match=f"swarm: {runs - 1} runs are too few for regressor {name!r} with {k} domains; needed are lightgbm 53, linear"):
        candidates(name, runs - 1, k, "swarm")


def test_best_tries_what_the_swarm_is_large_enough_for() -> None:
    assert candidates("best", 100, 5, "swarm") == ("lightgbm", "linear", "law", "log-ridge")
    assert candidates("best", 49, 5, "swarm") == ("linear", "law", "log-ridge")
    assert candidates("best", 100, 300, "swarm") == ("lightgbm", "log-ridge")
    with pytest.raises(UserError, match="9 runs are too few"):
        candidates("best", 9, 2, "swarm")


def test_rank_correlation() -> None:
    first, second = np.array([1.0, 2, 2, 5, 9]), np.array([3.0, 1, 4, 4, 8])
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-15)
    assert spearman(first, np.ones(5)) == 0


@needs_data
def test_published_swarm() -> None:
    """METHODS: mean over 13 metrics of Spearman x 100 on the 256 test runs, without the authors' early stopping on them."""
    train, test = published("train"), published("test")
    assert train.ratios.shape == (512, 17) and test.metrics.shape == (256, 13)
    found = {
        fit.__name__: [100 * spearman(fit(train.ratios, train.losses(name))(test.ratios), test.losses(name)) for name in train.targets]
        for fit in (fit_lightgbm, fit_linear, fit_law, fit_log_ridge)
    }
    print({name: np.round(values, 2).tolist() for name, values in found.items()})
    assert np.mean(found["fit_lightgbm"]) == pytest.approx(98.96, abs=0.5)
    assert found["fit_lightgbm"][train.targets.index("the_pile_pile_cc")] == pytest.approx(98.9, abs=0.5)
    assert np.mean(found["fit_linear"]) == pytest.approx(83.1, abs=0.5)
    assert np.mean(found["fit_log_ridge"]) > 96.5


def test_log_ridge_recovers_what_falls_with_the_logarithm_of_a_share() -> None:
    def falling(ratios: np.ndarray) -> np.ndarray:
        return 3 - 0.4 * np.log(ratios[:, 0] + 1e-3) + ratios[:, 1]

    predict = fit_log_ridge(mixtures(80, 5), falling(mixtures(80, 5)))
    assert predict(mixtures(50, 5, seed=1)) == pytest.approx(falling(mixtures(50, 5, seed=1)), abs=1e-3)


def test_log_ridge_does_not_follow_noise_where_runs_are_few() -> None:
    """16 runs of 17 domains: without a penalty every run would be met exactly."""
    ratios, others = mixtures(16, 17), mixtures(200, 17, seed=1)
    noise = 0.5 * np.random.default_rng(0).standard_normal((30, 16))
    truth = others[:, 0].mean()
    found = [np.std(fit_log_ridge(ratios, ratios[:, 0] + each)(others) - truth) for each in noise]
    features = [np.hstack([each, np.log(each + 1e-3)]) for each in (ratios, others)]
    exact = [np.std(features[1] @ np.linalg.lstsq(features[0], ratios[:, 0] + each, rcond=None)[0] - truth) for each in noise]
    assert np.median(found) < 0.5 * np.median(exact)


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("n", [41, 55, 62, 97])
def test_a_share_that_no_run_varies_says_nothing(share: float, n: int) -> None:
    ratios = np.hstack([(1 - share) * mixtures(n, 3), np.full((n, 1), share)])
    predict = fit_log_ridge(ratios, 3 - 0.3 * np.log(ratios[:, 0] + 1e-3))
    asked = np.array([[0.25, 0.25, 0.25, 0.25]])
    assert predict(asked)[0] == pytest.approx(3 - 0.3 * np.log(0.251), abs=0.1)
