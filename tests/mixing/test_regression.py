"""Regressors on losses they can and cannot express, and on the published swarm."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.regression import REGRESSORS, candidates, cross_validated_spearman, distinct, fit, mean_loss, possible, spearman
from chameleon_ray.mixing.regressors.additive import fit_additive
from chameleon_ray.mixing.regressors.exponential import fit_law
from chameleon_ray.mixing.regressors.linear import fit_linear
from chameleon_ray.mixing.regressors.log_ridge import fit_log_ridge
from chameleon_ray.mixing.regressors.regressor import Runs, along_sizes
from chameleon_ray.mixing.regressors.trees import fit_lightgbm
from chameleon_ray.mixing.runs import ONE_SIZE, runs_of
from chameleon_ray.mixing.swarm import Swarm, draw_mixtures, read_swarm

DATA = os.environ.get("CHAMELEON_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="CHAMELEON_DATA is not set: it names the folder with regmix/{train,test}_{mixture,pile_loss}_1m.csv")


def mixtures(n: int, k: int, seed: int = 0) -> np.ndarray:
    return draw_mixtures({f"d{i}": 1 / k for i in range(k)}, n, seed)


def law(ratios: np.ndarray) -> np.ndarray:
    """c = 2, kappa = 1.5, t = 0, -0.5, -1, …."""
    return 2 + 1.5 * np.exp(-0.5 * ratios @ np.arange(ratios.shape[1]))


def published(part: str, size: str = "1m") -> Swarm:
    folder = Path(DATA) / "regmix"
    return read_swarm(str(folder / f"{part}_mixture_{size}.csv"), str(folder / f"{part}_pile_loss_{size}.csv"))


ONE = tuple(name for name, found in REGRESSORS.items() if not found.across_sizes)
SEVERAL = tuple(name for name, found in REGRESSORS.items() if found.across_sizes)


def runs(ratios: np.ndarray, *columns: np.ndarray) -> Runs:
    """Of one size; the texts of neighbours are alike."""
    m, k = len(columns), ratios.shape[1]
    alike = np.exp(-np.abs(np.arange(m)[:, None] - np.arange(k)))
    return Runs(ratios, np.stack(columns, axis=1), tuple(j if j < k else -1 for j in range(m)), np.full(len(ratios), ONE_SIZE), alike)


def spearman_of(name: str, ratios: np.ndarray, *columns: np.ndarray) -> float:
    return cross_validated_spearman(name, runs(ratios, *columns), ONE_SIZE, seed=0)


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


@pytest.mark.parametrize("name", ONE)
def test_fits_are_deterministic_and_order_what_they_have_not_seen(name: str) -> None:
    ratios, losses = mixtures(150, 4), law(mixtures(150, 4))
    found = [spearman_of(name, ratios, losses) for _ in range(2)]
    assert found[0] == found[1] > 0.93


def test_a_mean_over_domains_is_the_mean_of_one_law_each() -> None:
    """Every domain's loss falls with its own share, so that the mean is least inside: no single law has its minimum there."""
    ratios = mixtures(80, 4)
    columns = 2 + np.exp(-4 * ratios)
    assert spearman_of("law", ratios, *columns.T) > 0.999
    assert spearman_of("law", ratios, columns.mean(axis=1)) < 0.9
    inside, corner = np.full((1, 4), 0.25), np.eye(4)[:1]
    predict = mean_loss(fit("law", runs(ratios, *columns.T), ONE_SIZE))
    assert predict(inside) == pytest.approx(2 + np.exp(-1), rel=1e-6)
    assert predict(corner) == pytest.approx(2 + (3 + np.exp(-4)) / 4, rel=1e-6)


@pytest.mark.parametrize("name", ONE)
def test_noise_cannot_be_ordered(name: str) -> None:
    losses = np.random.default_rng(5).standard_normal(100)
    assert abs(spearman_of(name, mixtures(100, 4), losses)) < 0.35


@pytest.mark.parametrize("name", ONE)
def test_the_smallest_swarm_is_large_enough(name: str) -> None:
    for k in (2, 7):
        n = REGRESSORS[name].min_runs(k)
        ratios = mixtures(n, k)
        assert np.isfinite(spearman_of(name, ratios, law(ratios)))
        without_a_fold = ratios[: n - -(-n // 5)]
        assert np.ptp(fit(name, runs(without_a_fold, law(without_a_fold)), ONE_SIZE)(ratios)) > 0.01, "it can tell mixtures apart"


@pytest.mark.parametrize("name, k, least", [("lightgbm", 7, 53), ("linear", 2, 10), ("linear", 17, 23), ("law", 17, 24), ("additive", 17, 10)])
def test_a_swarm_smaller_than_the_regression_needs(name: str, k: int, least: int) -> None:
    assert possible(name, least, k, "swarm") == (name,)
    with pytest.raises(UserError, match=f"swarm: {least - 1} runs are too few for regressor {name!r} with {k} domains; needed are {name} {least}"):
        possible(name, least - 1, k, "swarm")


def test_best_tries_what_the_swarm_is_large_enough_for() -> None:
    assert possible("best", 100, 5, "swarm") == ("lightgbm", "linear", "law", "log-ridge", "additive")
    assert possible("best", 49, 5, "swarm") == ("linear", "law", "log-ridge", "additive")
    assert possible("best", 100, 300, "swarm", embedded=True) == ("lightgbm", "log-ridge", "additive", "content")
    assert possible("best", 0, 5, "swarm", sizes=2, in_all=100) == ("parallel", "shrinking", "shrinking-lightgbm", "shrinking-law", "bimix")
    with pytest.raises(UserError, match="9 runs are too few"):
        possible("best", 9, 2, "swarm")


@pytest.mark.parametrize(
    "name, here, sizes, told",
    [
        ("content", 100, 1, "regressor 'content' needs embeddings of the domains"),
        ("shrinking", 100, 1, "regressor 'shrinking' learns from models of several sizes; give runs of at least two"),
        ("shrinking", 0, 1, "regressor 'shrinking' learns from models of several sizes; give runs of at least two"),
        ("law", 0, 2, "regressor 'law' knows only models of a size that was run; choose one that carries on to other sizes, such as shrinking"),
        ("best", 0, 1, "runs of one size tell nothing of another; give runs of at least two sizes"),
    ],
)
def test_what_a_regressor_needs_is_said(name: str, here: int, sizes: int, told: str) -> None:
    with pytest.raises(UserError, match=f"swarm: {told}"):
        possible(name, here, 4, "swarm", sizes, 100)


def test_too_few_runs_of_a_size_tell_nothing_of_it() -> None:
    few = two_sizes(60)
    few = few.only(np.concatenate([np.flatnonzero(few.parameters == 1e6), np.flatnonzero(few.parameters == 1e8)[:3]]))
    for size, told in ((1e8, "3 runs are too few"), (1e9, "3 runs of the largest size are too few")):
        with pytest.raises(UserError, match=f"swarm: {told} to tell how well a regression orders them; give at least 10"):
            candidates("shrinking", few, size, "swarm")


def test_rank_correlation() -> None:
    first, second = np.array([1.0, 2, 2, 5, 9]), np.array([3.0, 1, 4, 4, 8])
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-15)
    assert spearman(first, np.ones(5)) == 0


@needs_data
def test_published_swarm() -> None:
    """METHODS: mean over 13 metrics of Spearman x 100 on the 256 test runs, without the authors' early stopping on them."""
    (_, train), (_, test) = (runs_of({ONE_SIZE: published(part)}) for part in ("train", "test"))
    assert train.ratios.shape == (512, 17) and test.losses.shape == (256, 13)
    found = {}
    for name in ("lightgbm", "linear", "log-ridge", "additive"):
        predicted = fit(name, train, ONE_SIZE)(test.ratios)
        found[name] = [100 * spearman(predicted[:, j], test.losses[:, j]) for j in range(13)]
    print({name: np.round(values, 2).tolist() for name, values in found.items()})
    assert np.mean(found["lightgbm"]) == pytest.approx(98.96, abs=0.5)
    assert found["lightgbm"][sorted(published("train").targets).index("the_pile_pile_cc")] == pytest.approx(98.9, abs=0.5)
    assert np.mean(found["linear"]) == pytest.approx(83.1, abs=0.5)
    assert np.mean(found["log-ridge"]) > 96.5
    assert np.mean(found["additive"]) > 98.8


@needs_data
def test_a_few_published_runs_are_enough_for_the_additive_law() -> None:
    """Sixteen runs of seventeen domains: no penalty that knows nothing of domains could do (log-ridge: 69)."""
    (_, train), (_, test) = (runs_of({ONE_SIZE: published(part)}) for part in ("train", "test"))
    few = train.only(np.random.default_rng(0).permutation(512)[:16])
    predicted = {name: fit(name, few, ONE_SIZE)(test.ratios) for name in ("additive", "log-ridge")}
    found = {name: np.mean([spearman(losses[:, j], test.losses[:, j]) for j in range(13)]) for name, losses in predicted.items()}
    assert found["additive"] > 0.93 and found["log-ridge"] < 0.8


@needs_data
def test_sixty_million_parameters_are_told_by_one_million_and_a_few_runs() -> None:
    swarms = {1e6: published("train"), 6e7: published("test", "60m")}
    _, both = runs_of(swarms)
    large = np.flatnonzero(both.parameters == 6e7)
    few, others = large[:16], large[16:]
    seen = both.only(np.concatenate([np.flatnonzero(both.parameters == 1e6), few]))
    predicted = {name: fit(name, seen, 6e7)(both.ratios[others]) for name in ("shrinking", "parallel")}
    correlation = {name: spearman(losses.mean(axis=1), both.losses[others].mean(axis=1)) for name, losses in predicted.items()}
    assert correlation["shrinking"] > 0.97 > correlation["parallel"], "what a mixture does shrinks for every domain at its own rate"
    assert np.abs(predicted["shrinking"] - both.losses[others]).mean() < 0.1


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


def kept(ratios: np.ndarray) -> np.ndarray:
    """[n, k] losses by the additive law itself: what k domains do for each other's text."""
    k = ratios.shape[1]
    does = np.where(np.eye(k) > 0, 8.0, 1.0) + np.linspace(0, 1, k)
    return 2 + 3 / (ratios**0.6 @ does.T)


def test_the_additive_law_recovers_itself() -> None:
    ratios, others = mixtures(150, 5), mixtures(60, 5, seed=1)
    found = fit_additive(runs(ratios, *kept(ratios).T), ONE_SIZE)(others)
    assert found == pytest.approx(kept(others), abs=0.02)


def test_the_additive_law_on_a_few_noisy_runs() -> None:
    ratios, others = mixtures(20, 8), mixtures(200, 8, seed=1)
    noise = 0.03 * np.random.default_rng(0).standard_normal((20, 8))
    noisy = runs(ratios, *(kept(ratios) + noise).T)
    found = {name: np.sqrt(((fit(name, noisy, ONE_SIZE)(others) - kept(others)) ** 2).mean()) for name in ("additive", "log-ridge", "linear")}
    assert found["additive"] < 0.7 * min(found["log-ridge"], found["linear"])


def two_sizes(n: int = 60) -> Runs:
    """Losses that shrink to a half and a third from 1 to 100 million parameters, around levels that fall."""
    ratios = np.concatenate([mixtures(n, 4), mixtures(n // 2, 4, seed=1)])
    small = np.arange(len(ratios)) < n
    columns = kept(ratios)[:, :2]
    losses = np.where(small[:, None], 2 + columns, 1 + columns * np.array([1 / 2, 1 / 3]))
    return Runs(ratios, losses, (0, 1), np.where(small, 1e6, 1e8), np.eye(2, 4))


@pytest.mark.parametrize("name", ["shrinking", "shrinking-content"])
def test_shrinking_deviations_are_found_and_carried_on(name: str) -> None:
    others = mixtures(50, 4, seed=2)
    columns = kept(others)[:, :2]
    predicted = {size: REGRESSORS[name].fit(two_sizes(), size)(others) for size in (1e6, 1e7, 1e8, 1e10)}
    assert predicted[1e6] == pytest.approx(2 + columns, abs=0.05)
    assert predicted[1e8] == pytest.approx(1 + columns * [1 / 2, 1 / 3], abs=0.05)
    spread = {size: np.ptp(losses, axis=0) for size, losses in predicted.items()}
    assert spread[1e7] / spread[1e6] == pytest.approx(np.array([1 / 2, 1 / 3]) ** 0.5, rel=0.05), "half way, in logarithms"
    assert spread[1e10] / spread[1e6] == pytest.approx(np.array([1 / 4, 1 / 9]), rel=0.1), "as far again"
    beyond = REGRESSORS[name].fit(two_sizes(), 1.0001e8)(others)
    assert beyond == pytest.approx(predicted[1e8], abs=1e-3), "no step at the last size"


def test_levels_that_are_not_positive_are_carried_on_in_a_straight_line() -> None:
    others, runs_ = mixtures(50, 4, seed=2), two_sizes()
    plain, lowered = (REGRESSORS["shrinking"].fit(found, 1e8)(others) for found in (runs_, replace(runs_, losses=runs_.losses - 20)))
    assert lowered == pytest.approx(plain - 20, abs=1e-6)
    assert not np.isfinite(REGRESSORS["bimix"].fit(replace(runs_, losses=runs_.losses - 20), 1e8)(others)).any()
    assert cross_validated_spearman("bimix", replace(runs_, losses=runs_.losses - 20), 1e8, seed=0) == 0


def test_beyond_three_sizes_the_law_goes_on_from_the_last() -> None:
    logs, values = np.log([1e6, 6e7, 1e9]), np.array([[5.0], [3.5], [2.9]])
    assert along_sizes(logs, values, np.log(1e9)) == pytest.approx([2.9]) and along_sizes(logs, values, np.log(1.001e9)) == pytest.approx([2.9], abs=1e-3)
    assert along_sizes(logs, values, np.log(1e12))[0] < 1.5 and along_sizes(logs, values, np.log(1e5))[0] > 5.5


def test_mixtures_that_several_runs_have_count_once() -> None:
    ratios = mixtures(20, 4)
    assert len(distinct(np.concatenate([ratios, ratios[:7]]))) == 20


def test_without_shrinking_sizes_only_add_a_level() -> None:
    others = mixtures(50, 4, seed=2)
    predicted = [REGRESSORS["parallel"].fit(two_sizes(), size)(others) for size in (1e6, 1e8)]
    assert np.ptp(predicted[1] - predicted[0], axis=0) == pytest.approx(0, abs=1e-9)


def test_the_bivariate_law_recovers_itself() -> None:
    ratios = np.tile(mixtures(30, 4), (2, 1))
    parameters = np.repeat([1e6, 1e8], 30)
    losses = np.stack([5 * parameters**-0.05 * (ratios[:, j] + 1e-3) ** -0.1 for j in range(2)], axis=1)
    predict = REGRESSORS["bimix"].fit(Runs(ratios, losses, (0, 1), parameters), 1e9)
    assert predict(ratios[:30]) == pytest.approx(np.stack([5 * 1e9**-0.05 * (ratios[:30, j] + 1e-3) ** -0.1 for j in range(2)], axis=1))


@pytest.mark.parametrize("name", SEVERAL)
def test_a_size_without_runs_is_judged_by_the_largest_from_the_smaller(name: str) -> None:
    found = [cross_validated_spearman(name, two_sizes(), size, seed=0) for size in (1e8, 1e9)]
    assert found[0] > 0.8 and found[1] > 0.8


def test_a_mixture_that_both_sizes_have_is_left_out_of_both() -> None:
    """Noise that a mixture has at every size would be found again otherwise."""
    ratios = np.tile(mixtures(60, 4), (2, 1))
    chance = np.tile(np.random.default_rng(0).standard_normal(60), 2)
    both = Runs(ratios, chance[:, None] + 3, (-1,), np.repeat([1e6, 1e8], 60))
    assert abs(cross_validated_spearman("shrinking-lightgbm", both, 1e8, seed=0)) < 0.4


def test_what_embeddings_say_of_a_domain_that_no_run_has() -> None:
    """Five domains, the fifth like the first; runs have none of the fifth."""
    alike = np.full((4, 5), 0.05)
    np.fill_diagonal(alike, 1.0)
    alike[0, 4] = alike[1, 2] = alike[2, 1] = 0.9
    does = np.where(alike == 1, 8.0, np.where(alike > 0.5, 5.0, 1.0))

    def losses(ratios: np.ndarray) -> np.ndarray:
        return 2 + 3 / (ratios**0.6 @ does.T)

    ratios = np.pad(mixtures(80, 4), ((0, 0), (0, 1)))
    seen = Runs(ratios, losses(ratios), (0, 1, 2, 3), np.full(80, ONE_SIZE), alike)
    asked = np.array([[0.1, 0.2, 0.2, 0.2, 0.3], [0.1, 0.3, 0.3, 0.3, 0.0]])
    told = fit("content", seen, ONE_SIZE)(asked)
    blind = fit("additive", seen, ONE_SIZE)(asked)
    truth = losses(asked)
    assert truth[0, 0] - truth[1, 0] < -0.3
    assert told[0, 0] - told[1, 0] < 0.5 * (truth[0, 0] - truth[1, 0])
    assert abs(told[0, 0] - truth[0, 0]) < 0.5 * abs(blind[0, 0] - truth[0, 0])
