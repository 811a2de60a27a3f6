"""Uniform, proportional and fixed weights, and the published tables."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.published import PUBLISHED
from chameleon_ray.mixing.static import Fixed, Proportional, Uniform
from tests.fakes import make_context

ROWS = {"a": 16, "b": 64, "c": 16}


def test_uniform() -> None:
    assert Uniform().fit(make_context(ROWS)).weights == dict.fromkeys("abc", 1 / 3)


@pytest.mark.parametrize("temperature, expected", [(1.0, (1 / 6, 4 / 6, 1 / 6)), (2.0, (1 / 4, 2 / 4, 1 / 4)), (1e9, (1 / 3, 1 / 3, 1 / 3))])
def test_proportional(temperature: float, expected: tuple[float, ...]) -> None:
    weights = Proportional(temperature=temperature).fit(make_context(ROWS)).weights
    assert list(weights.values()) == pytest.approx(expected, abs=1e-8)


def test_fixed_takes_the_corpus_order_and_a_weight_of_zero() -> None:
    mixture = Fixed(weights={"c": 0.75, "a": 0.25, "b": 0.0}).fit(make_context(ROWS))
    assert list(mixture.weights.items()) == [("a", 0.25), ("b", 0.0), ("c", 0.75)]


@pytest.mark.parametrize("weights, name", [({"a": 0.5, "b": 0.5}, "'c'"), ({"a": 0.5, "b": 0.25, "c": 0.125, "d": 0.125}, "'d'")])
def test_fixed_names_must_match(weights: dict[str, float], name: str) -> None:
    with pytest.raises(UserError, match=name):
        Fixed(weights=weights).fit(make_context(ROWS))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({}, "either weights or preset"),
        ({"weights": {"a": 1.0}, "preset": "pile_doge"}, "either weights or preset"),
        ({"weights": {"a": 0.5, "b": 0.4}}, "sum to"),
        ({"weights": {"a": 1.5, "b": -0.5}}, "weights.b"),
        ({"weights": {}}, "empty"),
        ({"preset": "pile_dogs"}, "did you mean 'pile_doge'"),
    ],
)
def test_fixed_refuses(fields: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Fixed(**fields)


def test_a_temperature_is_positive() -> None:
    with pytest.raises(ValidationError):
        Proportional(temperature=0)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_sum_to_one_and_record_what_was_printed(preset: str) -> None:
    table = PUBLISHED[preset]
    mixture = Fixed(preset=preset).fit(make_context(dict.fromkeys(table.raw, 3)))
    assert abs(math.fsum(mixture.weights.values()) - 1) < 1e-12
    assert mixture.provenance["tokenizer"] == "gpt2" and "table" in mixture.provenance["table"]
    assert mixture.provenance["raw_sum"] == pytest.approx(math.fsum(table.raw.values()))
    ratios = [mixture.weights[name] * table.raw_sum - value for name, value in table.raw.items()]
    assert ratios == pytest.approx([0] * len(ratios), abs=1e-15)


def test_printed_sums() -> None:
    sums = {name: round(table.raw_sum, 3) for name, table in PUBLISHED.items()}
    assert {name: value for name, value in sums.items() if abs(value - 1) > 0.0025} == {"pile_doge": 1.135, "pile_chameleon": 1.017}
    assert all("sums to" in PUBLISHED[name].note for name in ("pile_doge", "pile_chameleon"))
    assert [len(PUBLISHED[name].raw) for name in ("slimpajama_doge", "pile_human", "wiki40b_chameleon", "stack_chameleon")] == [7, 17, 7, 7]


def test_a_preset_for_other_domains_names_the_first_that_differs() -> None:
    with pytest.raises(UserError, match="preset slimpajama_doge: no weight for domain 'a'"):
        Fixed(preset="slimpajama_doge").fit(make_context(ROWS))
