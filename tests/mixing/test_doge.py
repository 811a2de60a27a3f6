"""DoGE's update, by hand and on a quadratic toy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from chameleon_ray.backend import RuleState, Seen
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.doge import DoGE, DoGERule
from tests.fakes import make_context, with_target

ROWS = {"web": 400, "books": 90, "code": 120}


def start(rule: DoGERule, k: int) -> RuleState:
    return rule.start([f"domain {i}" for i in range(k)], np.full(k, 1 / k), 10)


def shown(rule: DoGERule, state: RuleState, products: np.ndarray, norms: np.ndarray, learning_rate: float) -> RuleState:
    return rule.update(state, Seen(state.updates + 1, learning_rate, {"products": products, "norms": norms}))


def test_one_step_by_hand() -> None:
    rule = DoGERule(mu=0.5)
    products, norms, rate = np.array([2.0, -1.0, 40.0]), np.array([1.0, 2.0, 3.0]), 0.1
    state = shown(rule, start(rule, 3), products, norms, rate)
    scores = rate * np.array([2.0 / (2 + 1e-6), 0.0, 5.0])  # the learning rate enters once; negative and large ones are clipped
    expected = np.exp(scores / 0.5)
    assert state.weights == pytest.approx(expected / expected.sum(), abs=1e-14)
    assert np.exp(state.memory["logits"]).sum() == pytest.approx(1, abs=1e-14)


def test_logarithms_are_the_state_so_that_nothing_underflows() -> None:
    rule = DoGERule(mu=1e-4)
    state = start(rule, 2)
    for _ in range(100):
        state = shown(rule, state, np.array([5.0, 0.0]), np.ones(2), 0.1)
    assert state.weights[1] < 1e-300 and np.isfinite(state.memory["logits"]).all()
    for _ in range(200):
        state = shown(rule, state, np.array([0.0, 5.0]), np.ones(2), 0.1)
    assert state.weights[1] > 0.99


def test_own_domain_and_targets() -> None:
    norms, products = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    without = shown(DoGERule(mu=1.0, own_domain=False), start(DoGERule(), 2), products, norms, 1.0)
    assert np.diff(without.memory["logits"])[0] == pytest.approx((5 - 4) / 1.500001 - (3 - 1) / 1.500001)
    one_target = shown(DoGERule(mu=1.0, own_domain=False, targets=(0,)), start(DoGERule(), 2), products, norms, 1.0)
    assert np.diff(one_target.memory["logits"])[0] == pytest.approx(5 / 1.500001 - (3 - 1) / 1.500001)
    assert DoGERule(targets=(1,)).target_mask(3).tolist() == [0, 1, 0]


def test_a_domain_that_is_absent_neither_moves_nor_counts_in_the_mean_norm() -> None:
    rule = DoGERule(mu=1.0)
    state = shown(rule, start(rule, 3), np.array([1.0, 0.0, 1.0]), np.array([2.0, 0.0, 2.0]), 1.0)
    assert state.memory["logits"][0] - state.memory["logits"][1] == pytest.approx(1 / (2 + 1e-6))


def test_quadratic_toy_agrees_with_the_closed_form() -> None:
    """Domain i has loss |theta - c_i|^2 / 2. With every gradient of norm 1 the score of i is the sum of cosines with all domains."""
    angles = np.array([0.0, 0.2, 2.0])
    gradients = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rule = DoGERule(mu=0.1)
    state = start(rule, 3)
    for _ in range(10):
        state = shown(rule, state, gradients @ gradients.sum(axis=0), np.linalg.norm(gradients, axis=1), 0.01)
    cosines = np.cos(angles[:, None] - angles[None, :]).sum(axis=1)
    logits = 10 * 0.01 / 0.1 * np.maximum(cosines, 0) / (1 + 1e-6)
    assert state.weights == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-12)
    assert state.weights[2] == min(state.weights)


def test_settings_reach_the_rule() -> None:
    context = make_context(ROWS)
    DoGE(mu=0.05, max_norm=2.0, max_score=3.0, targets=("code",), own_domain=False).fit(context)
    (job,) = context.backend.jobs
    assert job.rule == DoGERule(mu=0.05, max_norm=2.0, max_score=3.0, targets=(2,), own_domain=False)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UserError, match=r"methods\.label\.targets: 'maths' is no domain and no target of the corpus; it has web, books, code"):
        DoGE(targets=("maths",)).fit(make_context(ROWS))


def test_targets_of_the_corpus_are_told_from_domains() -> None:
    context = make_context(ROWS)
    context = replace(context, corpus=with_target(context.corpus, "letters"))
    (both,) = DoGE(targets=("letters", "code")).jobs(context)
    (unseen,) = DoGE(targets=("letters",)).jobs(context)
    assert both.rule == DoGERule(targets=(2,), external=("letters",)) and unseen.rule == DoGERule(targets=(), external=("letters",))
    assert DoGERule(targets=()).target_mask(3).tolist() == [0, 0, 0]
    assert set(both.weights) == set(ROWS), "a target is not trained on"


@pytest.mark.parametrize("targets", [(), ("code", "code")])
def test_no_target_and_one_that_is_there_twice_are_refused(targets: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="give at least one target, each once; null takes all domains"):
        DoGE(targets=targets)
