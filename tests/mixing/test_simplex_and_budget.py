"""Points on the simplex, whole units and repetition caps."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.budget import largest_remainder
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
