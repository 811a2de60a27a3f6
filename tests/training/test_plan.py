"""The order of the data: exact shares at every prefix, independent of how it is sliced."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chameleon_ray.errors import UserError
from chameleon_ray.training.chairman import Chairman
from chameleon_ray.training.plan import WINDOW_ROWS, MixturePlan, PlanState, permute

KEY = np.arange(1, 9, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def plan(weights: list[float], rows: int = 50, seed: int = 0) -> MixturePlan:
    return MixturePlan({f"d{i}": weight for i, weight in enumerate(weights)}, {f"d{i}": rows + i for i in range(len(weights))}, seed)


def chosen_by_looking_at_every_domain(weights: NDArray[np.float64], state: PlanState, num_rows: int) -> NDArray[np.int64]:
    """Tijdeman's rule as it is defined, at a cost of k per row."""
    active = np.flatnonzero(weights > 0)
    if len(active) == 1:
        return np.full(num_rows, active[0], np.int64)
    shares, due = weights[active], np.asarray(state.due)[active]
    slack = 1 / (2 * len(active) - 2)
    taken = np.array(state.counts, np.float64)[active]
    chosen = np.empty(num_rows, np.int64)
    elapsed = state.position - state.origin
    for i in range(num_rows):
        lag = due + shares * (elapsed + i + 1) - taken
        with np.errstate(over="ignore"):
            deadline = (1 - slack - lag) / shares
        deadline[lag < slack] = np.inf
        pick = int(deadline.argmin())
        if deadline[pick] == np.inf:
            pick = int(lag.argmax())
        taken[pick] += 1
        chosen[i] = pick
    return active[chosen]


def some_weights(kind: str, k: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Weights of which many deadlines are equal, all but equal, or out of a float's range."""
    raw = {
        "any": lambda: random.dirichlet(np.ones(k)),
        "uneven": lambda: random.dirichlet(np.full(k, 0.05)) + 1e-30,
        "equal": lambda: np.ones(k),
        "nearly equal": lambda: 1 + random.normal(0, 10.0 ** -random.integers(9, 17), k),
        "small whole numbers": lambda: random.integers(1, 4, k).astype(float),
        "powers of two": lambda: 2.0 ** -random.integers(0, 12, k),
        "some zero": lambda: np.where(random.random(k) < 0.5, 0, random.random(k)) + np.eye(k)[0],
        "tiny": lambda: np.where(random.random(k) < 0.4, random.choice([1e-300, 5e-324, 1e-308, 1e-20, 1e-12], k), random.integers(1, 5, k)) + np.eye(k)[0],
    }[kind]()
    return raw / raw.sum()


KINDS = ("any", "uneven", "equal", "nearly equal", "small whole numbers", "powers of two", "some zero", "tiny")


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), st.sampled_from([1, 2, 3, 7, 20, 150]), st.integers(0, 1 << 32), st.integers(0, 10**9))
def test_rows_are_those_of_looking_at_every_domain(kinds: list[str], k: int, seed: int, position: int) -> None:
    """Whatever the weights, from the start or in the middle of a run, through changes of the weights, and however `take` is cut."""
    random = np.random.default_rng(seed)
    weights = some_weights(kinds[0], k, random)
    mixture = plan(weights.tolist())
    state = replace(mixture.start(), position=position, counts=tuple(np.floor(weights * position).astype(int).tolist()))
    for i, kind in enumerate(kinds):
        if i:
            weights = some_weights(kind, k, random)
            mixture, state = mixture.reweighted(state, dict(zip(mixture.names, weights.tolist(), strict=True)))
        expected = chosen_by_looking_at_every_domain(weights, state, 600)
        counts = np.add(state.counts, np.bincount(expected, minlength=k))
        parts = []
        for size in np.diff([0, *np.sort(random.integers(0, 601, 4)), 600]):
            part, state = mixture.take(state, int(size))
            parts.append(part.domain)
        assert np.array_equal(np.concatenate(parts), expected)
        assert state.counts == tuple(counts)


def test_mixtures_of_one_seed_read_each_domain_in_the_same_order() -> None:
    """So that they are pairs: what differs is how far each is read."""
    one, two = ((made := plan(weights, seed=3)).take(made.start(), 90)[0] for weights in ([0.6, 0.3, 0.1], [0.2, 0.3, 0.5]))
    other = plan([0.6, 0.3, 0.1], seed=4)
    for domain in range(3):
        first, second = (taken.row[taken.domain == domain] for taken in (one, two))
        both = min(len(first), len(second))
        assert both > 5 and np.array_equal(first[:both], second[:both])
    assert not np.array_equal(other.take(other.start(), 90)[0].row, one.row)


@pytest.mark.parametrize("kind", ["any", "equal", "uneven"])
def test_long_runs_are_those_of_looking_at_every_domain(kind: str) -> None:
    weights = some_weights(kind, 300, np.random.default_rng(1))
    mixture = plan(weights.tolist())
    taken, _ = mixture.take(mixture.start(), 30_000)
    assert np.array_equal(taken.domain, chosen_by_looking_at_every_domain(weights, mixture.start(), 30_000))


def test_what_was_taken_before_changes_nothing() -> None:
    """A plan remembers where its last `take` ended; only speed may tell."""
    mixture = plan([0.61, 0.28, 0.11])
    _, middle = mixture.take(mixture.start(), 40)
    first, end = mixture.take(middle, 40)
    mixture.take(mixture.start(), 7)
    for state in (middle, replace(middle)):
        again, found = mixture.take(state, 40)
        assert found == end
        assert np.array_equal(again.domain, first.domain) and np.array_equal(again.row, first.row)
    fresh, found = plan([0.61, 0.28, 0.11]).take(middle, 40)
    assert found == end and np.array_equal(fresh.domain, first.domain)


@pytest.mark.parametrize("kind", ["any", "equal", "uneven"])
def test_ten_thousand_domains_are_not_looked_at_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chairman, "_by_definition", lambda self: pytest.fail("every domain was looked at"))
    mixture = plan(some_weights(kind, 10_000, np.random.default_rng(2)).tolist())
    _, state = mixture.take(mixture.start(), 30_000)
    assert np.abs(state.counts - np.multiply(mixture._shares, 30_000)).max() < 1


def test_the_cost_of_a_row_hardly_grows_with_the_domains() -> None:
    def seconds(k: int) -> float:
        mixture = plan(some_weights("any", k, np.random.default_rng(3)).tolist(), rows=4000)
        _, state = mixture.take(mixture.start(), 128)
        started = time.process_time()
        for _ in range(20):
            _, state = mixture.take(state, 128)
        return time.process_time() - started

    assert min(seconds(10_000) for _ in range(5)) < 4 * min(seconds(7) for _ in range(5))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12).filter(lambda found: sum(found) > 0.01), st.integers(0, 5))
def test_every_prefix_holds_each_share_to_within_one_row(raw: list[float], seed: int) -> None:
    weights = [value / sum(raw) for value in raw]
    taken, state = plan(weights, seed=seed).take(plan(weights, seed=seed).start(), 700)
    counts = np.cumsum(np.eye(len(weights))[taken.domain], axis=0)
    assert np.abs(counts - np.outer(np.arange(1, 701), weights)).max() < 1
    assert state.counts == tuple(counts[-1].astype(int))


def test_a_weight_of_zero_draws_nothing() -> None:
    taken, _ = plan([0.5, 0.0, 0.5]).take(plan([0.5, 0.0, 0.5]).start(), 300)
    assert not (taken.domain == 1).any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_slices_add_up_to_the_whole(sizes: list[int]) -> None:
    mixture = plan([0.61, 0.28, 0.11], rows=17)
    whole, _ = mixture.take(mixture.start(), sum(sizes))
    state, parts = mixture.start(), []
    for size in sizes:
        part, state = mixture.take(state, size)
        parts.append(part)
    for field in ("domain", "row", "epoch"):
        assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field))


def test_every_row_is_drawn_once_in_each_epoch() -> None:
    mixture = MixturePlan({"a": 0.75, "b": 0.25}, {"a": 10, "b": 1000}, seed=4)
    taken, _ = mixture.take(mixture.start(), 400)
    mine = taken.domain == 0
    for epoch in range(30):
        assert sorted(taken.row[mine & (taken.epoch == epoch)]) == list(range(10))
    assert not np.array_equal(taken.row[mine][:10], taken.row[mine][10:20])


def test_seeds_give_other_rows_of_the_same_domains() -> None:
    first, second = (plan([0.5, 0.5], seed=seed).take(plan([0.5, 0.5]).start(), 100)[0] for seed in (0, 1))
    assert np.array_equal(first.domain, second.domain)
    assert not np.array_equal(first.row, second.row)


def test_new_weights_keep_what_was_owed() -> None:
    mixture = plan([0.5, 0.5])
    _, state = mixture.take(mixture.start(), 101)
    changed, after = mixture.reweighted(state, {"d0": 0.9, "d1": 0.1})
    taken, end = changed.take(after, 1000)
    assert abs(end.counts[0] - (0.5 * 101 + 0.9 * 1000)) < 1.5
    assert taken.epoch[taken.domain == 0][0] == state.counts[0] // 50


def test_a_weighted_domain_without_rows_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"weights\.b"):
        MixturePlan({"a": 0.5, "b": 0.5}, {"a": 3, "b": 0}, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000, WINDOW_ROWS, WINDOW_ROWS + 1, 3 * WINDOW_ROWS + 5])
def test_permutation_is_one(size: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, KEY)), np.arange(size))


def test_permutation_mixes_and_stays_in_its_window() -> None:
    order = permute(np.arange(4 * WINDOW_ROWS), 4 * WINDOW_ROWS, KEY)
    windows = order.reshape(4, WINDOW_ROWS) // WINDOW_ROWS
    assert (windows == windows[:, :1]).all()
    assert abs(np.corrcoef(order[:WINDOW_ROWS], np.arange(WINDOW_ROWS))[0, 1]) < 0.02
