"""What holds for every rule that learns weights while a model trains, on signals that are the same for a domain whenever it is asked."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from chameleon_ray.backend import Rule, RuleState, Seen
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.doge import DoGERule
from chameleon_ray.mixing.doremi import DoReMiRule
from chameleon_ray.mixing.settled import SettledRule
from chameleon_ray.training.checkpoint import load_tree, save_tree
from chameleon_ray.training.signals import SIGNALS
from tests.fakes import seen_by

NAMES = ("web", "books", "code", "math")
RULES: dict[str, Rule] = {
    "doremi": DoReMiRule(),
    "doge": DoGERule(mu=0.1),
    "doge without own domain": DoGERule(mu=0.1, own_domain=False),
    "settled": SettledRule(Chameleon().formula, tolerance=1e-9, every_steps=2, samples_per_domain=4),
    "settled by its errors": SettledRule(Chameleon().formula, tolerance="bootstrap", every_steps=1, samples_per_domain=4),
}


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]


def begun(rule: Rule, names: tuple[str, ...]) -> RuleState:
    return rule.start(names, np.full(len(names), 1 / len(names)), 20)


def after(rule: Rule, state: RuleState, steps: range) -> list[RuleState]:
    """The states after every look that the rule asks for."""
    states = []
    for step in steps:
        if step >= state.next_look:
            state = rule.update(state, seen_by(rule.signal, state.names, step))
            states.append(state)
    return states


def test_its_signal_can_do_what_the_rule_does_with_it(rule: Rule) -> None:
    signal = SIGNALS[rule.signal]
    assert (signal.step if rule.changes == "loss" else signal.look) is not None


def test_weights_and_answers_lie_on_the_simplex(rule: Rule) -> None:
    for state in (begun(rule, NAMES), *after(rule, begun(rule, NAMES), range(1, 21))):
        for weights in (state.weights, *([rule.answer(state)] if state.updates else [])):
            assert weights.shape == (4,) and weights.dtype == np.float64
            assert weights.min() >= 0 and abs(weights.sum() - 1) < 1e-9


def test_a_single_domain_keeps_everything(rule: Rule) -> None:
    last = after(rule, begun(rule, ("web",)), range(1, 11))[-1]
    assert last.weights.tolist() == [1.0] and rule.answer(last).tolist() == [1.0]


def test_permuting_the_domains_permutes_the_weights(rule: Rule) -> None:
    order = [2, 0, 3, 1]
    one, other = (after(rule, begun(rule, names), range(1, 11))[-1] for names in (NAMES, tuple(NAMES[i] for i in order)))
    assert np.abs(one.weights[order] - other.weights).max() <= 1e-12
    assert np.abs(rule.answer(one)[order] - rule.answer(other)).max() <= 1e-12


def test_updates_are_counted_and_looks_lie_ahead(rule: Rule) -> None:
    states = after(rule, begun(rule, NAMES), range(1, 21))
    assert [state.updates for state in states] == list(range(1, len(states) + 1))
    assert all(later.next_look > earlier.next_look for earlier, later in pairwise(states))
    assert not rule.done(begun(rule, NAMES))


def test_an_update_is_pure(rule: Rule) -> None:
    state = after(rule, begun(rule, NAMES), range(1, 5))[-1]
    before = [state.weights.copy(), state.total.copy(), *(value.copy() for value in state.memory.values())]
    seen = seen_by(rule.signal, NAMES, state.next_look)
    first, second = rule.update(state, seen), rule.update(state, seen)
    assert all(np.array_equal(x, y) for x, y in zip(before, [state.weights, state.total, *state.memory.values()], strict=True))
    assert first.weights.tolist() == second.weights.tolist()


def test_a_state_in_a_checkpoint_goes_on_as_if_it_had_never_left(rule: Rule, tmp_path: Path) -> None:
    state = after(rule, begun(rule, NAMES), range(1, 8))[-1]
    save_tree({"rule": state.to_dict()}, str(tmp_path / "state"))
    loaded = RuleState.from_dict(load_tree(str(tmp_path / "state"))["rule"])
    kept, resumed = (after(rule, begun_at, range(8, 21))[-1] for begun_at in (state, loaded))
    assert resumed.to_dict().keys() == kept.to_dict().keys()
    assert all(np.array_equal(np.asarray(resumed.to_dict()[part]), np.asarray(kept.to_dict()[part])) for part in ("weights", "total", "updates", "next_look"))
    assert all(np.array_equal(resumed.memory[name], kept.memory[name]) for name in kept.memory)
    assert rule.done(resumed) == rule.done(kept)


def test_the_learning_rate_of_a_step_reaches_the_rules_that_use_it() -> None:
    rule = DoGERule(mu=0.1)
    values = seen_by(rule.signal, NAMES, 1).values
    slow, fast = (rule.update(begun(rule, NAMES), Seen(1, rate, values)).weights for rate in (1e-3, 1e-1))
    assert np.ptp(fast) > 10 * np.ptp(slow) > 0
