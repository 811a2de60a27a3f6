"""Scores that look towards a target: the identities of the lemma, boosts that come out exactly, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.target import Target, outside_scores
from chameleon_ray.mixture import Mixture
from tests.fakes import noisy_embeddings

Array = NDArray[np.float64]
K, P, RIDGE = 6, 4, 0.7
NAMES = tuple(f"domain{i}" for i in range(K))


@pytest.fixture
def rows() -> Array:
    return np.random.default_rng(3).standard_normal((K, P)) + 0.4


def scored(rows: Array, eta: Array, own: bool = False, outside: Array | None = None, counted: Array | None = None, ridge: float = RIDGE) -> Array:
    p = rows.shape[1]
    target = Target(eta, np.zeros((0, p)) if outside is None else outside, np.zeros(0) if counted is None else counted, 1.0, math.inf, own)
    return target.leverage(rows, False, ridge, None)


def test_the_scaled_rows_and_the_lemma_s_literal_form_are_the_same(rows: Array) -> None:
    eta = np.array([1.0, 2.5, 0.3, 1.0, 4.0, 1.0])
    gram = rows @ rows.T
    literal = np.diag(gram @ np.linalg.inv(gram + K * RIDGE * np.diag(1 / eta)))
    scaled = np.sqrt(eta)[:, None] * rows
    ordinary = np.diag(scaled @ np.linalg.inv(scaled.T @ scaled + K * RIDGE * np.eye(P)) @ scaled.T)
    assert np.abs(scored(rows, eta, own=True) - literal).max() < 1e-12
    assert np.abs(ordinary - literal).max() < 1e-12


def test_dimensions_that_are_zero_everywhere_change_nothing(rows: Array) -> None:
    eta = np.array([1.0, 2.5, 0.3, 1.0, 4.0, 1.0])
    wide = np.concatenate([rows, np.zeros((K, 20))], axis=1)  # more dimensions than domains, and the same inner products
    assert np.abs(scored(rows, eta) - scored(wide, eta)).max() < 1e-12


def test_two_domains_by_hand() -> None:
    rows, eta, shift = np.array([[1.0, 0.5], [0.2, 1.5]]), np.array([1.0, 3.0]), 2 * RIDGE
    a, b, c = rows[0] @ rows[0], rows[1] @ rows[1], rows[0] @ rows[1]
    q = (a - eta[1] * c**2 / (shift + eta[1] * b)) / shift
    assert 1 / scored(rows, eta)[0] == pytest.approx(eta[0] + 1 / q, abs=1e-12)


def test_a_domain_s_own_count_adds_itself_and_the_others_add_their_squared_regression(rows: Array) -> None:
    eta, step = np.array([1.0, 2.5, 0.3, 1.0, 4.0, 1.0]), 1e-5
    for j in range(K):
        moved = [eta + sign * step * (np.arange(K) == j) for sign in (1, -1)]
        slope = (1 / scored(rows, moved[0]) - 1 / scored(rows, moved[1])) / (2 * step)
        for i in range(K):
            others = np.arange(K) != i
            bracket = np.linalg.inv((rows[others].T * eta[others]) @ rows[others] + K * RIDGE * np.eye(P))
            expected = 1.0 if i == j else (rows[i] @ bracket @ rows[j]) ** 2 / (rows[i] @ bracket @ rows[i]) ** 2
            assert slope[i] == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_counting_twice_or_three_times_is_what_copies_do(rows: Array) -> None:
    eta = np.array([1.0, 1.0, 3.0, 1.0, 1.0, 1.0])
    copies = np.concatenate([rows, rows[2:3], rows[2:3]])
    with_copies = scored(copies, np.ones(K + 2), ridge=RIDGE * K / (K + 2))
    others = [0, 1, 3, 4, 5]
    assert np.abs(scored(rows, eta)[others] - with_copies[others]).max() < 1e-12


def test_text_that_is_no_domain_explains_and_changes_nothing_where_it_does_not_count(rows: Array) -> None:
    outside = np.random.default_rng(0).standard_normal((2, P))
    none, some = (scored(rows, np.ones(K), outside=outside, counted=np.array(counted)) for counted in ([0.0, 0.0], [0.0, 2.0]))
    assert np.abs(none - scored(rows, np.ones(K))).max() < 1e-12 and (some < none).all()
    as_domain = np.concatenate([rows, outside[1:]])
    assert np.abs(some - scored(as_domain, np.array([1.0] * K + [2.0]), ridge=RIDGE * K / (K + 1))[:K]).max() < 1e-12
    alone = outside_scores(rows, outside, False, RIDGE, None)
    assert alone[1] == pytest.approx(outside[1] @ np.linalg.inv(rows.T @ rows + K * RIDGE * np.eye(P)) @ outside[1], abs=1e-12)


def weights_of(means: dict[str, Any], others: dict[str, Any] | None = None, noise: float = 0.0, **settings: Any) -> Mixture:
    embedded = noisy_embeddings({name: np.array(row, float) for name, row in means.items()}, 64, noise)
    beside = noisy_embeddings({name: np.array(row, float) for name, row in others.items()}, 64, noise) if others else None
    return Chameleon(bootstrap_draws=0, **settings).weigh(embedded, others=beside)


def logits_of(mixture: Mixture, of: str, against: str) -> float:
    return math.log(mixture.weights[of] / mixture.weights[against])


ORTHOGONAL = dict(zip("abcd", np.eye(5)[:4] * 3, strict=True))
SPREAD = {f"d{i}": row for i, row in enumerate(np.random.default_rng(1).standard_normal((7, 12)))}


@pytest.mark.parametrize("variant", ["paper", "calibrated"])
def test_a_boost_of_one_is_no_target_bit_for_bit(variant: str) -> None:
    plain = weights_of(SPREAD, noise=0.3, variant=variant)
    assert weights_of(SPREAD, noise=0.3, variant=variant, targets={"d2": 1, "d3": 1.0}).weights == plain.weights
    outside = weights_of(SPREAD, {"use": SPREAD["d1"]}, noise=0.3, variant=variant, targets={"use": 1})
    assert outside.weights == plain.weights and outside.scores == plain.scores


@pytest.mark.parametrize("boost", [0.9, 1.5, 4.0])
def test_the_odds_of_an_orthogonal_domain_are_multiplied_by_the_boost_and_no_others_move(boost: float) -> None:
    plain, aimed = (weights_of(ORTHOGONAL, variant="paper", **more) for more in ({}, {"targets": {"b": boost}}))
    assert logits_of(aimed, "b", "a") - logits_of(plain, "b", "a") == pytest.approx(math.log(boost), abs=1e-9)
    assert logits_of(aimed, "c", "a") == pytest.approx(logits_of(plain, "c", "a"), abs=1e-12)


@pytest.mark.parametrize("variant", ["paper", "calibrated"])
@pytest.mark.parametrize("prior", ["uniform", {name: 1.0 + i for i, name in enumerate(SPREAD)}])
def test_the_own_logit_rises_by_the_boost_and_no_neighbour_s_falls(variant: str, prior: Any) -> None:
    if isinstance(prior, dict):
        prior = {name: share / sum(prior.values()) for name, share in prior.items()}
    settings = {"variant": variant, "prior": prior}
    plain, aimed = (weights_of(SPREAD, noise=0.3, **settings, **more) for more in ({}, {"targets": {"d2": 1.3}}))
    assert plain.scores and aimed.scores

    def logit(mixture: Mixture, name: str) -> float:
        floor = 0.0 if variant == "paper" else FLOOR(plain)
        assert mixture.scores
        return 1 / ((mixture.scores[name] + floor) * plain.details["temperature"])

    def FLOOR(mixture: Mixture) -> float:
        reliable = mixture.details["reliability"]
        return mixture.details["effective_dimension"] / len(SPREAD) * (0.5 + (1 - reliable) / reliable)

    assert logit(aimed, "d2") - logit(plain, "d2") == pytest.approx(math.log(1.3), abs=1e-9)
    assert all(aimed.scores[name] <= plain.scores[name] + 1e-12 for name in SPREAD)
    assert aimed.details["temperature"] == plain.details["temperature"] and aimed.details["ridge"] == plain.details["ridge"]
    assert aimed.weights["d2"] > plain.weights["d2"]


@pytest.mark.parametrize("variant", ["paper", "calibrated"])
@pytest.mark.parametrize("prior", ["uniform", {name: (1.0 + i) / 28 for i, name in enumerate(SPREAD)}])
def test_text_like_a_domain_lifts_that_domain_as_if_it_were_the_target(variant: str, prior: Any) -> None:
    like, settings = {"use": SPREAD["d4"]}, {"variant": variant, "prior": prior}
    plain, outside, inside = (weights_of(SPREAD, like, **settings, targets=targets) for targets in ({}, {"use": 1.2}, {"d4": 1.2}))
    assert outside.weights == pytest.approx(inside.weights, abs=1e-9)
    assert outside.weights["d4"] > plain.weights["d4"] + 0.01


def test_a_boost_without_end_gives_everything_to_the_domain_like_the_text() -> None:
    plain, aimed = (weights_of(SPREAD, {"use": 2 * SPREAD["d4"]}, variant="paper", targets=targets) for targets in ({}, {"use": 1e5}))
    assert aimed.weights["d4"] > 0.999 > 0.5 > plain.weights["d4"]


def test_text_that_counts_without_end_takes_everything_to_the_domain_like_it(rows: Array) -> None:
    inverse = 1 / scored(rows, np.ones(K), outside=2 * rows[4:5], counted=np.array([1e6]))
    assert (np.delete(inverse, 4) < inverse[4] - 1e5).all()


def test_finetuning_lifts_the_target_and_lowers_what_it_explains() -> None:
    near = {**SPREAD, "near": SPREAD["d1"] + 0.1}
    settings = {"variant": "paper", "ridge": {"energy": 1.0}, "stage": "finetune"}
    plain, aimed = (weights_of(near, **settings, **more) for more in ({}, {"targets": {"d1": 4}}))
    assert plain.scores and aimed.scores
    assert aimed.scores["d1"] > plain.scores["d1"] and aimed.scores["near"] < plain.scores["near"]
    assert aimed.weights["d1"] > plain.weights["d1"] and aimed.weights["near"] < plain.weights["near"]


@pytest.mark.parametrize("prior", [None, {name: (1.0 + i) / 28 for i, name in enumerate(SPREAD)}])
def test_when_finetuning_ridge_floor_temperature_and_cap_are_those_without_a_target(prior: Any) -> None:
    settings = {"stage": "finetune", "cap": 1.1, **({"prior": prior} if prior else {})}
    plain, aimed = (weights_of(SPREAD, noise=0.3, **settings, **more) for more in ({}, {"targets": {"d2": 3}}))
    assert plain.scores and aimed.scores and all(plain.details[key] == aimed.details[key] for key in ("ridge", "temperature"))
    shares, reliable = prior or dict.fromkeys(SPREAD, 1 / 7), plain.details["reliability"]
    mean = sum(shares[name] * plain.scores[name] for name in SPREAD)
    floor = mean * (0.5 + (1 - reliable) / reliable)
    capped = {name for name in SPREAD if aimed.scores[name] > 1.1 * (mean + floor) - floor}
    assert "d2" in capped and len(capped) < 7 and plain.scores["d2"] < aimed.scores["d2"]
    logits = {name: math.log(shares[name]) + min(aimed.scores[name] + floor, 1.1 * (mean + floor)) / plain.details["temperature"] for name in SPREAD}
    total = sum(map(math.exp, logits.values()))
    expected = {name: math.exp(logit) / total for name, logit in logits.items()}
    assert aimed.weights == pytest.approx(expected, abs=1e-9)


def test_error_bars_are_of_the_scores_that_look_towards_the_target() -> None:
    embedded = noisy_embeddings(SPREAD, 64, 0.5)
    plain, aimed = (Chameleon(bootstrap_draws=50, targets=targets).weigh(embedded) for targets in ({}, {"d2": 1.5}))
    assert plain.weights_stderr and aimed.weights_stderr and aimed.weights_stderr["d2"] > plain.weights_stderr["d2"] > 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"targets": {"nowhere": 2}}, r"^targets\.nowhere: neither a domain nor a target of the corpus; there are d0, .*use"),
        ({"targets": {"d2": 1e6}}, r"^targets\.d2: 1e\+06 cannot be reached, [\d.]+ is the most that the floor of this formula allows here; lower it"),
        ({"targets": {"d2": 1e-6}}, r"^targets\.d2: 1e-06 cannot be reached, 0\.\d+ is the least, when it explains nothing; raise it"),
        ({"targets": {"use": 0.5}}, r"^targets\.use: 0\.5, and text that is no domain can only be looked towards"),
        (
            {"targets": {"use": 2}, "stage": "finetune"},
            r"^targets\.use: text that is no domain, and when finetuning what a target explains gets less; name a domain",
        ),
        ({"targets": {"d2": 2}, "prior": {"d2": 0.0, **{name: 1 / 6 for name in SPREAD if name != "d2"}}}, r"^targets\.d2: its prior is 0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        weights_of(SPREAD, {"use": SPREAD["d1"]}, noise=0.3, **settings)


def test_embeddings_that_say_nothing_can_look_towards_nothing() -> None:
    with pytest.raises(UserError, match="the embeddings say nothing of these domains"):
        weights_of({name: np.ones(4) for name in "abc"}, targets={"a": 2})
    with pytest.raises(ValueError, match="targets needs scores that are not divided by their sum"):
        Chameleon(variant="released", targets={"a": 2})


def test_the_reachable_boosts_are_those_that_are_told() -> None:
    with pytest.raises(UserError) as refused:
        weights_of(SPREAD, noise=0.3, targets={"d2": 1e6})
    most = float(str(refused.value).split("reached, ")[1].split()[0])
    assert weights_of(SPREAD, noise=0.3, targets={"d2": most * 0.98})
    with pytest.raises(UserError):
        weights_of(SPREAD, noise=0.3, targets={"d2": most * 1.02})
