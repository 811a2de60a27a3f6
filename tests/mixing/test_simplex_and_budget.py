"""Points on the simplex, whole units and repetition caps."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.budget import cap_repetition, largest_remainder
from chameleon_ray.mixing.simplex import effective_number, named, normalised, softmax, uniform

raw_weights = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=12).filter(lambda values: sum(values) > 1e-6)


def weights_of(values: list[float]) -> dict[str, float]:
    return named([f"d{i}" for i in range(len(values))], normalised(values))


def test_softmax_by_hand_and_far_from_zero() -> None:
    assert softmax([0.0, math.log(3.0)]) == pytest.approx([0.25, 0.75], abs=1e-15)
    assert softmax([1e6, 1e6 + math.log(3.0)]) == pytest.approx([0.25, 0.75], abs=1e-9)
    assert softmax([0.0, np.inf, np.inf]).tolist() == [0, 0.5, 0.5]
    assert softmax([0.0, -np.inf]).tolist() == [1, 0]


def test_effective_number() -> None:
    assert effective_number([0.25] * 4) == pytest.approx(4)
    assert effective_number([1.0, 0.0, 0.0]) == 1


@settings(deadline=None, max_examples=60)
@given(raw_weights)
def test_normalised_sums_to_one_in_any_order(values: list[float]) -> None:
    weights = normalised(values)
    assert abs(math.fsum(weights) - 1) < 1e-12
    assert normalised(values[::-1]).tolist() == weights.tolist()[::-1]


def test_named_wants_one_value_per_name() -> None:
    assert uniform(("a", "b")) == {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError):
        named(["a"], [0.5, 0.5])


@settings(deadline=None, max_examples=60)
@given(raw_weights, st.integers(0, 10**15))
def test_largest_remainder_sums_exactly_and_stays_within_one_of_the_quota(values: list[float], total: int) -> None:
    weights = weights_of(values)
    counts = largest_remainder(weights, total)
    assert sum(counts.values()) == total
    mass = sum(map(Fraction, weights.values()))
    for name, weight in weights.items():
        assert abs(counts[name] - Fraction(weight) * total / mass) < 1
        assert weight > 0 or counts[name] == 0


@settings(deadline=None, max_examples=60)
@given(raw_weights, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_largest_remainder_permutes(values: list[float], total: int, random) -> None:
    weights = weights_of(values)
    items = list(weights.items())
    random.shuffle(items)
    assert largest_remainder(dict(items), total) == largest_remainder(weights, total)


def test_largest_remainder_breaks_ties_by_name() -> None:
    assert largest_remainder({"b": 0.25, "c": 0.25, "a": 0.25, "d": 0.25}, 6) == {"b": 2, "c": 1, "a": 2, "d": 1}
    assert largest_remainder({"z": 0.0, "y": 1.0}, 7) == {"z": 0, "y": 7}


@pytest.mark.parametrize("weights, total", [({"a": 0.5}, 3), ({"a": 1.0}, -1), ({}, 3), ({"a": 2.0, "b": -1.0}, 3)])
def test_largest_remainder_refuses(weights: dict[str, float], total: int) -> None:
    with pytest.raises(UserError):
        largest_remainder(weights, total)


def test_cap_repetition_by_hand() -> None:
    # a wants 50 of 100 and may have 2 * 10; the 30 go to b and c as 3:2, which puts c over its 2 * 12, so b takes the rest.
    capped = cap_repetition({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 10, "b": 1000, "c": 12}, 100, 2.0)
    assert capped == pytest.approx({"a": 0.2, "b": 0.56, "c": 0.24}, abs=1e-15)


@settings(deadline=None, max_examples=60)
@given(raw_weights, st.data())
def test_cap_repetition_water_fills(values: list[float], data: st.DataObject) -> None:
    weights = weights_of(values)
    available = {name: data.draw(st.integers(1, 500)) for name in weights}
    limit, total = data.draw(st.floats(0.1, 8)), data.draw(st.integers(1, 1000))
    assume(limit * sum(available[name] for name in weights if weights[name] > 0) >= total)
    capped = cap_repetition(weights, available, total, limit)
    assert abs(math.fsum(capped.values()) - 1) < 1e-9
    # One level s for all: alpha_i = min(cap_i, s w_i).
    caps = {name: limit * available[name] / total for name in weights}
    levels = [capped[name] / weight for name, weight in weights.items() if weight > 0 and capped[name] < caps[name] * (1 - 1e-9)]
    for name, weight in weights.items():
        assert capped[name] <= caps[name] * (1 + 1e-12)
        assert weight > 0 or capped[name] == 0
        if weight > 0 and levels:
            assert capped[name] <= weight * max(levels) * (1 + 1e-9)
    assert not levels or max(levels) == pytest.approx(min(levels), rel=1e-9)
    reverse = cap_repetition(dict(reversed(weights.items())), available, total, limit)
    assert reverse == capped


def test_cap_repetition_leaves_what_fits_and_fills_to_the_brim() -> None:
    weights = {"a": 0.5, "b": 0.5}
    assert cap_repetition(weights, {"a": 50, "b": 50}, 100, 1.0) == weights
    brim = cap_repetition({"a": 0.9, "b": 0.1}, {"a": 50, "b": 50}, 100, 1.0)
    assert brim == pytest.approx(weights, abs=1e-12)


def test_whole_units_after_a_cap_respect_it() -> None:
    capped = cap_repetition({"a": 0.8, "b": 0.1, "c": 0.1}, {"a": 7, "b": 100, "c": 100}, 99, 1.0)
    counts = largest_remainder(capped, 99)
    assert counts["a"] == 7 and sum(counts.values()) == 99


def test_cap_repetition_that_cannot_be_met_names_the_field_and_the_remedy() -> None:
    weights, available = {"a": 0.5, "b": 0.5, "c": 0.0}, {"a": 10, "b": 10, "c": 10**6}
    with pytest.raises(UserError, match=r"corpus\.max_repetition: 3 times the 20 .*100 .*at least 5"):
        cap_repetition(weights, available, 100, 3.0)
    assert cap_repetition(weights, available, 100, 5.0) == pytest.approx(weights)
    with pytest.raises(UserError, match=r"corpus\.max_repetition: .*add documents"):
        cap_repetition(weights, {"a": 0, "b": 0, "c": 5}, 100, 3.0)
    with pytest.raises(UserError, match="'b'"):
        cap_repetition(weights, {"a": 10}, 100, 3.0)
