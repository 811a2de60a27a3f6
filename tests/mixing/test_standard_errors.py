"""The closed form of the error bars against the bootstrap."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing import standard_errors
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.estimate import estimate
from chameleon_ray.mixing.formula import Temperature
from chameleon_ray.mixing.krls import Ridge
from chameleon_ray.mixing.noise import deviations
from chameleon_ray.mixing.standard_errors import StandardErrors, bootstrap, delta_method
from tests.fakes import noisy_embeddings, rng


def uneven(k: int, p: int, noise: float = 0.1, num_groups: int = 32) -> Embeddings:
    """Domains of different lengths, whose noise differs between domains and dimensions, in groups of different sizes."""
    generator = np.random.default_rng(0)
    counts = generator.integers(20, 40, (k, num_groups))
    means = 1 + generator.standard_normal((k, 1, p)) * np.exp(0.3 * generator.standard_normal((k, 1, 1)))
    spread = noise * np.exp(0.7 * generator.standard_normal((k, 1, p)))
    sums = counts[:, :, None] * means + np.sqrt(counts)[:, :, None] * spread * generator.standard_normal((k, num_groups, p))
    return Embeddings(tuple(f"d{i:05}" for i in range(k)), sums, counts, 1)


def both(embeddings: Embeddings, method: Chameleon, draws: int) -> tuple[StandardErrors, StandardErrors]:
    found = estimate(embeddings, method.formula, method.prior_of(embeddings.names, None), 0)
    order = range(len(embeddings.names))
    return delta_method(embeddings, order, found.leverage, found.weighing), bootstrap(embeddings, order, found.weighing, draws)


SETTINGS = list(itertools.product(["pretrain", "finetune"], ["absolute", "relative"], ["absolute", "relative"], [False, True], [False, True]))
CASES = [(48, 12, *case) for case in SETTINGS] + [(k, p, *case) for k, p in ((40, 100), (160, 24)) for case in SETTINGS[::9]]


@pytest.mark.parametrize("k, p, stage, ridge, temperature, center, normalize", CASES)
def test_the_closed_form_agrees_with_the_bootstrap(k: int, p: int, stage: str, ridge: str, temperature: str, center: bool, normalize: bool) -> None:
    embeddings, draws = uneven(k, p), 400
    # Temperatures that neither collapse nor flatten: tau goes with the size of the scores.
    size = (1 / k if normalize else 0.2) ** (-1 if stage == "pretrain" else 1)
    method = Chameleon(
        variant="paper",
        stage=stage,
        ridge=Ridge(absolute=0.01 * p) if ridge == "absolute" else Ridge(relative=1.0),
        temperature=Temperature(absolute=1.2 * size) if temperature == "absolute" else Temperature(relative=1.0),
        center=center,
        normalize=normalize,
    )
    closed, drawn = both(embeddings, method, draws)
    monte_carlo = 1 / math.sqrt(2 * (draws - 1))
    for found, expected in ((closed.scores, drawn.scores), (closed.weights, drawn.weights)):
        ratio = found / expected
        # One heavy weight's draws move all others, so that the median is hardly better known than each.
        assert abs(np.median(ratio) - 1) < 2.5 * monte_carlo
        assert np.sqrt(np.mean((ratio - 1) ** 2)) < 2.5 * monte_carlo
        assert np.abs(ratio - 1).max() < 6 * monte_carlo


def sparse(k: int, p: int) -> Embeddings:
    """Every other domain of a handful of documents: all but some groups are empty."""
    embeddings = uneven(k, p)
    sums, counts = embeddings.group_sums.copy(), embeddings.group_counts.copy()
    for i in range(0, k, 2):
        few = 1 + i % 6
        sums[i, few:], counts[i, few:] = 0, 0
    return replace(embeddings, group_sums=sums, group_counts=counts)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_both_ways_share_what_is_known_of_documents_among_domains_of_few(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, draws = sparse(48, 12), 400
    closed, drawn = both(embeddings, Chameleon(stage=stage), draws)
    ratio = closed.scores / drawn.scores
    assert abs(np.median(ratio) - 1) < 0.1 and np.abs(ratio - 1).max() < 0.4
    full, _ = both(uneven(48, 12), Chameleon(stage=stage), 2)
    assert (closed.scores[::2] > full.scores[::2]).all()
    monkeypatch.setattr(standard_errors, "CHUNK_ROWS", 7)
    again, _ = both(embeddings, Chameleon(stage=stage), 2)
    assert again.scores == pytest.approx(closed.scores) and again.weights == pytest.approx(closed.weights)


@pytest.mark.parametrize("center", [False, True])
def test_error_bars_of_weights_that_collapse_agree_too(center: bool) -> None:
    embeddings = uneven(60, 16, noise=0.02)
    method = Chameleon(variant="paper", center=center, normalize=True, ridge=Ridge(relative=1.0), temperature=Temperature(absolute=6.0))
    closed, drawn = both(embeddings, method, 300)
    weights = np.array(list(method.weigh(embeddings).weights.values()))
    assert weights.max() > 0.8
    ratio = closed.weights / drawn.weights
    assert ratio.min() > 0.6 and ratio.max() < 1.5
    assert (closed.weights <= np.sqrt(weights * (1 - weights))).all()


def test_one_domain_with_all_the_weight_has_no_error() -> None:
    # S = 0 for the middle domain, which takes everything whatever the noise of the others is.
    embeddings = noisy_embeddings({"left": np.array([-1.0, 0]), "middle": np.zeros(2), "right": np.array([1.0, 0])}, 64)
    closed, _ = both(embeddings, Chameleon(variant="released"), 2)
    assert closed.weights.tolist() == [0, 0, 0]
    assert np.isfinite(closed.scores).all()


def test_equal_domains_have_no_error() -> None:
    embeddings = noisy_embeddings(dict.fromkeys("abc", np.array([0.1, 0.7])), 64)
    closed, _ = both(embeddings, Chameleon(variant="released"), 2)
    assert closed.weights.tolist() == closed.scores.tolist() == [0, 0, 0]


@pytest.mark.parametrize("variant", ["calibrated", "paper", "released"])
def test_domains_too_many_for_the_bootstrap_get_the_closed_form(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = uneven(30, 8)
    few = Chameleon(variant=variant).weigh(embeddings)
    monkeypatch.setattr(standard_errors, "MAX_BOOTSTRAP_DOMAINS", 29)
    monkeypatch.setattr(standard_errors, "CHUNK_ROWS", 7)
    many = Chameleon(variant=variant).weigh(embeddings)
    assert (few.provenance["standard_errors"], many.provenance["standard_errors"]) == ("bootstrap", "delta method")
    assert many.weights == few.weights and many.scores == few.scores
    assert many.scores_stderr == pytest.approx(few.scores_stderr, rel=0.25)
    permuted = embeddings.select(np.random.default_rng(0).permutation(embeddings.names).tolist())
    again = Chameleon(variant=variant).weigh(permuted)
    for part in ("weights", "scores", "weights_stderr", "scores_stderr"):
        assert getattr(again, part) == getattr(many, part)


def test_a_thousand_and_one_domains_are_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard_errors, "bootstrap", None)
    mixture = Chameleon(variant="paper", ridge=Ridge(relative=1.0), temperature=Temperature(relative=1.0)).weigh(uneven(1001, 8))
    assert mixture.provenance["standard_errors"] == "delta method"
    assert all(0 < error < 1 for error in mixture.weights_stderr.values())


def test_the_closed_form_holds_for_pooled_noise_of_part_of_the_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, method = uneven(160, 24), Chameleon(variant="paper", ridge=Ridge(relative=1.0), temperature=Temperature(relative=1.0))
    whole, _ = both(embeddings, method, 2)
    monkeypatch.setattr(standard_errors, "POOLED_DOMAINS", 40)
    part, _ = both(embeddings, method, 2)
    assert part.scores == pytest.approx(whole.scores, rel=0.02)
    assert not np.array_equal(part.scores, whole.scores)


def test_deviations_give_the_variance_of_a_mean() -> None:
    samples, noise = 640, 0.5
    means = {f"d{i}": rng(f"d{i}").standard_normal(4) for i in range(400)}
    embeddings = noisy_embeddings(means, samples, noise)
    found = (deviations(embeddings.group_sums, embeddings.group_counts) ** 2).sum(axis=1)
    assert found.mean() == pytest.approx(noise**2 / samples, rel=0.03)


def test_deviations_of_one_group_are_zero_and_of_empty_groups_too() -> None:
    counts, sums = np.zeros((2, 32), np.int64), np.zeros((2, 32, 2))
    counts[0, 3], sums[0, 3] = 5, 10
    counts[1, [1, 2]], sums[1, 1], sums[1, 2] = 2, 2, 4
    one, two = deviations(sums, counts)
    assert not one.any()
    # x = 6 / 4; (2 - 3) / 4 and (4 - 3) / 4, times sqrt(2).
    assert two[[1, 2]] == pytest.approx(math.sqrt(2) / 4 * np.array([[-1, -1], [1, 1]]))
    assert not two[[0, *range(3, 32)]].any()
