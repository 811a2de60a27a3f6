"""DoReMi's update, by hand and by its properties."""

from __future__ import annotations

import numpy as np
import pytest

from chameleon_ray.backend import RuleState, Seen
from chameleon_ray.config import ProxyChanges
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.doremi import DoReMi, DoReMiRule
from tests.fakes import make_context

ROWS = {"web": 400, "books": 90, "code": 120}


def start(rule: DoReMiRule, k: int) -> RuleState:
    return rule.start([f"domain {i}" for i in range(k)], np.full(k, 1 / k), 10)


def shown(rule: DoReMiRule, state: RuleState, excess: np.ndarray, tokens: np.ndarray) -> RuleState:
    return rule.update(state, Seen(state.updates + 1, 1e-3, {"excess": excess, "tokens": tokens}))


def test_one_step_by_hand() -> None:
    rule = DoReMiRule(step_size=0.5, smoothing=0.1)
    state = shown(rule, start(rule, 2), np.array([30.0, 10.0]), np.array([10.0, 10.0]))
    raised = np.array([0.5 * np.exp(1.5), 0.5 * np.exp(0.5)])
    expected = 0.9 * raised / raised.sum() + 0.05
    assert state.weights == pytest.approx(expected, abs=1e-15)
    assert state.memory["excess"].tolist() == [3.0, 1.0]
    assert state.mean().tolist() == state.weights.tolist()


def test_a_proxy_that_equals_its_reference_stays_uniform() -> None:
    rule = DoReMiRule()
    state = start(rule, 3)
    for _ in range(50):
        state = shown(rule, state, np.zeros(3), np.full(3, 7.0))
    assert state.weights == pytest.approx((1 / 3,) * 3, abs=1e-15)


def test_an_absent_domain_keeps_its_last_excess() -> None:
    rule = DoReMiRule(smoothing=0.0)
    state = shown(rule, start(rule, 2), np.array([8.0, 0.0]), np.array([4.0, 0.0]))
    assert state.memory["excess"].tolist() == [2.0, 0.0]  # never seen: 0, not log V
    state = shown(rule, state, np.array([0.0, 3.0]), np.array([0.0, 3.0]))
    assert state.memory["excess"].tolist() == [2.0, 1.0]
    logits = np.array([4.0, 1.0])
    assert state.weights == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-15)


def test_the_answer_is_the_mean_over_updates_without_the_start() -> None:
    rule = DoReMiRule()
    states = [start(rule, 2)]
    for excess in (3.0, 1.0, 5.0):
        states.append(shown(rule, states[-1], np.array([excess, 0.0]), np.ones(2)))
    assert states[-1].mean() == pytest.approx(np.mean([state.weights for state in states[1:]], axis=0), abs=1e-15)


def test_smoothing_keeps_every_domain_alive() -> None:
    rule = DoReMiRule()
    state = start(rule, 4)
    for _ in range(2000):
        state = shown(rule, state, np.array([50.0, 0, 0, 0]), np.ones(4))
    assert min(state.weights) == pytest.approx(1e-3 / 4, rel=1e-6)


def test_two_runs_of_the_same_proxy_and_the_cost_of_both() -> None:
    context = make_context(ROWS)
    mixture = DoReMi(proxy=ProxyChanges(steps=20)).fit(context)
    reference, proxy = context.backend.jobs
    assert (reference.rule, reference.weights) == (None, proxy.weights)
    assert reference.training == proxy.training and proxy.training.steps == 20
    assert proxy.reference is not None and isinstance(proxy.rule, DoReMiRule)
    assert mixture.cost.tokens == 2 * 20 * proxy.training.batch_rows * context.corpus.row_tokens
    assert mixture.details["updates"] == 20


def test_a_proportional_reference_is_trained_on_the_domains_sizes() -> None:
    context = make_context(ROWS)
    DoReMi(reference="proportional").fit(context)
    assert context.backend.jobs[0].weights == pytest.approx({name: rows / 610 for name, rows in ROWS.items()})


def test_batches_that_cannot_show_every_domain_are_refused() -> None:
    with pytest.raises(UserError, match=r"methods\.label\.proxy\.batch_rows: batches of 2 rows cannot show all 3 domains; raise it to at least 3"):
        DoReMi(proxy=ProxyChanges(batch_rows=2)).fit(make_context(ROWS))


def test_weights_that_collapse_are_warned_about() -> None:
    mixture = DoReMi(step_size=1000.0, smoothing=0.0).fit(make_context(ROWS))
    assert any("the weights collapse" in warning and "train the reference longer" in warning for warning in mixture.warnings)
