"""Weights within limits: water-filling, groups, what cannot be, and that every method's answer keeps to the question."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from chameleon_ray.config import BudgetConfig, ConstraintsConfig, QuestionConfig
from chameleon_ray.counts import Excerpt
from chameleon_ray.errors import UserError
from chameleon_ray.limits import Limits, Row, fill
from chameleon_ray.mixing.budget import largest_remainder
from chameleon_ray.mixing.methods import METHODS
from chameleon_ray.mixing.question import Question
from chameleon_ray.mixture import Mixture
from tests.fakes import make_context, swarm_losses

NAMES = ("a", "b", "c", "d", "e", "f")
CLOSE = 1e-9


def caps(**most: float) -> Limits:
    return Limits(NAMES, tuple(Row(name, (name,), 0.0, share) for name, share in most.items()))


def test_water_filling_by_hand() -> None:
    # a wants 50 of 100 and may have 20; the 30 go to b and c as 3:2, which puts c over its 24, so b takes the rest.
    limits = Limits(("a", "b", "c"), (Row("a", ("a",), 0.0, 0.2), Row("c", ("c",), 0.0, 0.24)))
    assert limits.project(np.array([0.5, 0.3, 0.2])) == pytest.approx([0.2, 0.56, 0.24], abs=1e-15)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=8), st.data())
def test_one_level_for_all_that_are_not_at_a_limit(values: list[float], data: st.DataObject) -> None:
    weights = np.array(values) / math.fsum(values)
    least = np.array([data.draw(st.floats(0, 0.5)) for _ in values]) / len(values)
    most = least + np.array([data.draw(st.floats(0.001, 1)) for _ in values])
    assume(most.sum() > 1 and least.sum() < 1)
    (found,) = fill(weights[None], least, most)
    assert abs(found.sum() - 1) < CLOSE
    assert (found >= least).all() and (found <= most).all()
    free = (found > least) & (found < most)
    levels = found[free] / weights[free]
    assert not free.any() or levels.max() == pytest.approx(levels.min(), rel=1e-9)
    if free.any():
        assert (found <= np.maximum(levels.max() * weights, least) * (1 + 1e-9)).all()


def test_what_fits_is_left_and_what_just_fits_is_filled_to_the_brim() -> None:
    even = np.array([0.5, 0.5])
    limits = Limits(("a", "b"), (Row("a", ("a",), 0.0, 0.5), Row("b", ("b",), 0.0, 0.5)))
    assert limits.project(even) is not None and np.array_equal(limits.project(even), even)
    assert limits.project(np.array([0.9, 0.1])) == pytest.approx(even, abs=1e-12)


def test_whole_units_after_a_cap_respect_it() -> None:
    limits = Limits(("a", "b", "c"), (Row("a", ("a",), 0.0, 7 / 99),))
    counts = largest_remainder(dict(zip("abc", limits.project(np.array([0.8, 0.1, 0.1])).tolist(), strict=True)), 99)
    assert counts["a"] == 7 and sum(counts.values()) == 99


@st.composite
def polytopes(draw: st.DrawFn) -> tuple[np.ndarray, Limits]:
    """Limits around a point, so that they can be met, and weights somewhere else; groups overlap."""
    inside, weights = (np.array(draw(st.lists(st.floats(0.02, 1), min_size=6, max_size=6))) for _ in range(2))
    weights = weights * np.array(draw(st.lists(st.sampled_from([0, 1, 1, 1]), min_size=6, max_size=6)))
    weights[0] = weights[0] or 0.3
    inside, weights = inside / inside.sum(), weights / weights.sum()
    rows = []
    for number in range(draw(st.integers(1, 5))):
        members = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
        here = sum(inside[NAMES.index(name)] for name in members)
        rows.append(Row(f"row {number}", tuple(members), here * draw(st.floats(0.5, 0.97)), min(1.0, here * draw(st.floats(1.03, 2)))))
    return weights, Limits(NAMES, tuple(rows))


@settings(deadline=None, max_examples=20)
@given(polytopes())
def test_the_nearest_weights_within_groups(problem: tuple[np.ndarray, Limits]) -> None:
    weights, limits = problem
    found = limits.project(weights)
    assert abs(found.sum() - 1) < CLOSE
    for row in limits.rows:
        total = found[[NAMES.index(name) for name in row.domains]].sum()
        assert row.least - CLOSE <= total <= row.most + CLOSE
    if not (weights > 0).all():
        return
    entropy = lambda alpha: float((alpha * np.log(alpha / weights)).sum())  # noqa: E731
    sides: list[dict[str, Any]] = [{"type": "eq", "fun": lambda alpha: alpha.sum() - 1}]
    for row in limits.rows:
        mine = [NAMES.index(name) for name in row.domains]
        sides.append({"type": "ineq", "fun": lambda alpha, mine=mine, row=row: alpha[mine].sum() - row.least})
        sides.append({"type": "ineq", "fun": lambda alpha, mine=mine, row=row: row.most - alpha[mine].sum()})
    other = minimize(entropy, found, constraints=sides, bounds=[(1e-9, 1)] * 6, options={"ftol": 1e-13, "maxiter": 500})
    assert entropy(found) <= other.fun + 1e-7
    assert np.allclose(limits.project(found), found, atol=1e-9), "what keeps to the limits is left"


def test_many_weights_at_once_are_each_their_own() -> None:
    limits = Limits(NAMES, (Row("two", ("a", "b"), 0.3, 0.4), Row("c", ("c",), 0.1, 1.0), Row("de", ("d", "e"), 0.0, 0.2)))
    draws = np.random.default_rng(0).dirichlet(np.ones(6), 500)
    together = limits.project(draws)
    assert np.allclose(together, [limits.project(draw) for draw in draws], atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "weights", "expected"),
    [
        ((Row("ab", ("a", "b"), 0.0, 0.5),), [0.6, 0.4, 0, 0, 0, 0], [0.3, 0.2, 0.125, 0.125, 0.125, 0.125]),
        ((Row("ab", ("a", "b"), 0.5), Row("a", ("a",), 0.0, 0.1)), [0.2, 0, 0.4, 0.4, 0, 0], [0.1, 0.4, 0.25, 0.25, 0, 0]),
        ((Row("ab", ("a", "b"), 0.0, 0.0),), [1 / 6] * 6, [0, 0, 0.25, 0.25, 0.25, 0.25]),
        ((Row("ab", ("a", "b"), 0.5, 0.5), Row("bc", ("b", "c"), 0.5, 0.5), Row("ac", ("a", "c"), 0.5, 0.5)), [0.2, 0.1, 0.1, 0.3, 0.2, 0.1], None),
    ],
)
def test_nothing_and_no_room_are_no_obstacle(rows: tuple[Row, ...], weights: list[float], expected: list[float] | None) -> None:
    found = Limits(NAMES, rows).project(np.array(weights))
    assert found.sum() == pytest.approx(1, abs=CLOSE)
    for row in rows:
        assert row.least - CLOSE <= found[[NAMES.index(name) for name in row.domains]].sum() <= row.most + CLOSE
    assert expected is None or found == pytest.approx(expected, abs=1e-6)


def test_weights_of_nothing_get_what_they_must_have() -> None:
    found = Limits(NAMES, (Row("f", ("f",), 0.25, 1.0), Row("de", ("d", "e"), 0.2, 1.0))).project(np.array([0.5, 0.3, 0.2, 0, 0, 0]))
    assert found[5] == pytest.approx(0.25)
    assert found[3] == found[4] == pytest.approx(0.1)
    assert found[:3] / found[:3].sum() == pytest.approx([0.5, 0.3, 0.2])
    assert caps(a=0.6).project(np.array([1.0, 0, 0, 0, 0, 0])) == pytest.approx([0.6, 0.08, 0.08, 0.08, 0.08, 0.08])


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ((Row("a", ("a",), 0.6), Row("b", ("b",), 0.5)), "a (at least 0.6), b (at least 0.5)"),
        (tuple(Row(name, (name,), 0.0, 0.1) for name in NAMES), "a (at most 0.1), b (at most 0.1)"),
        ((Row("low", ("a",), 0.0, 0.2), Row("high", ("a",), 0.3)), "low (at most 0.2), high (at least 0.3)"),
        ((Row("fr", ("a", "b"), 0.7), Row("web", ("b", "c", "d"), 0.6), Row("b", ("b",), 0.0, 0.1), Row("e", ("e",), 0.1)), "fr (at least 0.7), web"),
    ],
)
def test_what_contradicts_itself_is_named(rows: tuple[Row, ...], named: str) -> None:
    with pytest.raises(UserError) as refusal:
        Limits(NAMES, rows).check()
    assert str(refusal.value).startswith(f"no mixture keeps to {named}")
    with pytest.raises(UserError):
        Limits(NAMES, rows).project(np.full(6, 1 / 6))


ROWS = {"web": 400, "books": 90, "code": 120, "math": 33, "news": 7}  # of 16 tokens each
GROUP = {"groups": {"prose": {"of": ["web", "books", "news"], "min": 0.2, "max": 0.5}}, "domains": {"math": {"min": 0.1}, "code": {"max": 0.45}}}


def asked(budget: dict[str, Any] | None = None, most: float | None = None, constraints: dict[str, Any] | None = None) -> QuestionConfig:
    found = BudgetConfig.model_validate(budget) if budget else None
    return QuestionConfig(budget=found, max_repetition=most, constraints=ConstraintsConfig.model_validate(constraints or {}))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_the_question(name: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"regmix": {"num_proxies": 64, "samples": 2000, "top": 16}, "fixed": {"weights": dict.fromkeys(ROWS, 0.2)}}
    context = make_context(ROWS)
    question = Question.of(asked({"tokens": 8_000}, 2.0, GROUP), context.corpus.names, context.corpus.tokens())
    free = METHODS[name](**chosen.get(name, {})).fit(context)
    mixture = question.answer(METHODS[name](**chosen.get(name, {})).fit(replace(context, limits=question.limits)))
    assert mixture.weights["news"] * 8_000 <= 2 * 7 * 16 * (1 + CLOSE)
    assert mixture.weights["math"] >= 0.1 - CLOSE
    assert mixture.weights["code"] <= 0.45 + CLOSE
    assert 0.2 - CLOSE <= sum(mixture.weights[each] for each in ("web", "books", "news")) <= 0.5 + CLOSE
    assert mixture.epochs == pytest.approx({each: mixture.weights[each] * 8_000 / (16 * rows) for each, rows in ROWS.items()})
    assert sum(mixture.budget.values()) == 8_000
    assert all(abs(tokens - mixture.weights[each] * 8_000) < 1 for each, tokens in mixture.budget.items())
    assert mixture.unconstrained == pytest.approx(dict(free.weights)), "what the method said without limits stands beside"
    assert "Without limits the weights would be those beside, outside of" in mixture.explanation[-1]
    mixture.save(str(tmp_path / "mixture.json"))
    kept = Mixture.load(str(tmp_path / "mixture.json"))
    assert (kept.unconstrained, kept.budget) == (mixture.unconstrained, mixture.budget)
    if name == "regmix":
        assert mixture.details["predicted_loss"] > mixture.details["predicted_loss_unconstrained"] - 0.01


def test_without_a_question_nothing_changes() -> None:
    mixture = Mixture("fixed", {"a": 0.4, "b": 0.6})
    assert Question.of(asked(), ("a", "b"), {"a": 1, "b": 2}).answer(mixture) == mixture


def test_a_constrained_search_is_better_than_a_moved_optimum() -> None:
    """RegMix searches within the limits; moving its free optimum there would leave the loss to chance."""
    context = make_context(ROWS)
    limits = Limits(tuple(ROWS), (Row("two", ("web", "books"), 0.0, 0.1), Row("math", ("math",), 0.5, 1.0)))
    method = METHODS["regmix"](num_proxies=128, samples=20_000, top=16, regressor="additive")
    free, kept = method.fit(context), method.fit(replace(context, limits=limits))
    moved = limits.project(np.array(list(free.weights.values())))
    loss = lambda weights: np.mean(list(swarm_losses(weights).values()))  # noqa: E731
    assert loss(kept.weights) <= loss(dict(zip(ROWS, moved.tolist(), strict=True))) + 1e-4


def test_error_bars_of_weights_that_were_moved() -> None:
    mixture = Mixture("chameleon", {"a": 0.5, "b": 0.25, "c": 0.25}, weights_stderr={"a": 0.05, "b": 0.02, "c": 0.01})
    found = Question.of(asked(constraints={"domains": {"a": {"max": 0.25}}}), ("a", "b", "c"), {}).answer(mixture)
    assert found.weights == pytest.approx({"a": 0.25, "b": 0.375, "c": 0.375})
    assert found.weights_stderr == pytest.approx({"a": 0.0, "b": 0.03, "c": 0.015})


def test_repetition_is_warned_of_where_nothing_caps_it() -> None:
    found = Question.of(asked({"tokens": 1000}), ("a", "b"), {"a": 50, "b": 5000}).answer(Mixture("fixed", {"a": 0.5, "b": 0.5}))
    assert found.epochs == pytest.approx({"a": 10, "b": 0.1})
    assert "A budget of 1,000 tokens reads a 10.0 times over;" in found.warnings[0] and "set corpus.max_repetition" in found.warnings[0]


def test_what_the_budget_says_of_a_domain_comes_before_the_corpus() -> None:
    question = Question.of(asked({"tokens": 1000, "domain_tokens": {"a": 5000}}, 1.0), ("a", "b"), {"a": 50, "b": 5000})
    assert question.limits.rows == ()
    assert question.available == {"a": 5000, "b": 5000}


@pytest.mark.parametrize(
    ("question", "tokens", "message"),
    [
        (asked({"tokens": 1000}, 2.0), {"a": 100, "b": 100}, r"no mixture keeps to a, 2 times over \(at most 0\.2\), b, 2 times over"),
        (asked({"tokens": 1000}, 2.0), {"a": 100}, r"^corpus\.max_repetition: nothing tells how much text domain 'b' has; give budget\.domain_tokens"),
        (asked({"tokens": 9, "domain_tokens": {"c": 5}}), {}, r"^budget\.domain_tokens: 'c' is no domain of the corpus; it has a, b"),
        (asked(constraints={"domains": {"aa": {"max": 0.1}}}), {}, r"^constraints\.domains\.aa: 'aa' is no domain .*did you mean 'a'"),
        (asked(constraints={"groups": {"g": {"of": ["a", "z"], "max": 0.1}}}), {}, r"^constraints\.groups\.g\.of: 'z' is no domain"),
        (asked(constraints={"groups": {"g": {"of": ["a", "b"], "max": 0.9}}}), {}, r"no mixture keeps to constraints\.groups\.g \(at most 0\.9\)"),
    ],
)
def test_questions_that_have_no_answer(question: QuestionConfig, tokens: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Question.of(question, ("a", "b"), tokens)


def test_a_changed_set_of_domains_keeps_to_what_concerns_it() -> None:
    question = Question.of(asked({"tokens": 100}, None, GROUP), ("web", "new"), {"web": 10, "new": 10}, is_changed=True)
    assert [row.domains for row in question.limits.rows] == [("web",)]


def test_an_estimate_is_what_a_sampled_domain_has() -> None:
    context = make_context({"a": 10, "b": 10})
    counts = replace(context.corpus.domains["a"], excerpt=Excerpt(1000, 1, 9, 1e6, 250_000.0, 10_000.0))
    corpus = replace(context.corpus, domains={**context.corpus.domains, "a": counts})
    question = Question.of(asked({"tokens": 1000}, 1.0), corpus.names, corpus.tokens())
    assert [row.domains for row in question.limits.rows] == [("b",)]
    assert METHODS["proportional"]().fit(replace(context, corpus=corpus)).weights["a"] == pytest.approx(250_000 / 250_160)


def test_a_mixture_from_elsewhere_is_checked_and_an_answer_passes() -> None:
    question = Question.of(asked(constraints={"groups": {"g": {"of": ["a", "b"], "max": 0.3}}, "domains": {"b": {"max": 0.1}}}), ("a", "b", "c"), {})
    free = Mixture("fixed", {"a": 0.4, "b": 0.3, "c": 0.3})
    question.check(question.answer(free))
    with pytest.raises(UserError, match=r"^mixture 'fixed': its weights do not keep to constraints\.domains\.b .*chameleon mix"):
        question.check(free)
