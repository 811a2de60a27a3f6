"""The order of the data: exact shares at every prefix, independent of how it is sliced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_ray.errors import UserError
from chameleon_ray.training.plan import WINDOW_ROWS, MixturePlan, permute

KEY = np.arange(1, 9, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def plan(weights: list[float], rows: int = 50, seed: int = 0) -> MixturePlan:
    return MixturePlan({f"d{i}": weight for i, weight in enumerate(weights)}, {f"d{i}": rows + i for i in range(len(weights))}, seed)


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
