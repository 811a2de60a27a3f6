"""The order of the data: row j of a run -> (domain, row, epoch), a pure function of weights, sizes, seed and j.

Two independent parts. *Which domain*: Tijdeman's rule for the chairman assignment problem (R. Tijdeman, "The chairman assignment problem",
Discrete Mathematics 32, 1980) keeps the count of every domain within 1 - 1/(2k - 2) of weight * j at **every** j, the best constant there is.
*Which row*: the n-th draw from a domain of R rows is position n mod R of epoch n // R, sent through a keyed permutation of the epoch.

Nothing here knows of workers or micro-batches: they only slice what the plan says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.errors import UserError

WINDOW_ROWS = 1 << 16


@dataclass(frozen=True)
class PlanState:
    """All that the next row depends on. `due` is what each domain was owed at `origin`, where the weights last changed."""

    position: int
    counts: tuple[int, ...]
    origin: int
    due: tuple[float, ...]


@dataclass(frozen=True)
class PlannedRows:
    """n consecutive rows: domain [n] (index into the plan's names), row [n], epoch [n]."""

    domain: NDArray[np.int64]
    row: NDArray[np.int64]
    epoch: NDArray[np.int64]


@dataclass(frozen=True)
class MixturePlan:
    """Weights (fractions of rows, by domain name), rows available in each domain, and the seed of the row order.

    Raises:
        UserError: a domain with positive weight has no rows or is unknown.
    """

    weights: Mapping[str, float]
    rows: Mapping[str, int]
    seed: int
    _keys: dict[tuple[str, int], NDArray[np.uint64]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if weight > 0 and self.rows.get(name, 0) < 1:
                known = ", ".join(self.rows)
                raise UserError(f"weights.{name}: {weight} but the corpus has no rows of this domain; domains with rows: {known}")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Domain names in the order of the weights."""
        return tuple(self.weights)

    def start(self) -> PlanState:
        """The state before the first row."""
        k = len(self.names)
        return PlanState(0, (0,) * k, 0, (0.0,) * k)

    def reweighted(self, state: PlanState, weights: Mapping[str, float]) -> tuple[MixturePlan, PlanState]:
        """Other weights from this state on; what each domain was owed so far is kept."""
        due = np.asarray(state.due) + self._shares * (state.position - state.origin)
        ordered = {name: weights[name] for name in self.names}
        return MixturePlan(ordered, self.rows, self.seed), PlanState(state.position, state.counts, state.position, tuple(due.tolist()))

    def take(self, state: PlanState, num_rows: int) -> tuple[PlannedRows, PlanState]:
        """The next rows and the state after them. Cost: O(k) per row."""
        counts = np.array(state.counts, np.int64)
        before = counts.copy()
        domain = self._assign(state, counts, num_rows)
        draw = np.empty(num_rows, np.int64)
        row, epoch = np.empty_like(draw), np.empty_like(draw)
        for index in np.unique(domain):
            where = np.flatnonzero(domain == index)
            name = self.names[index]
            draws = before[index] + np.arange(len(where))
            epoch[where], position = np.divmod(draws, self.rows[name])
            row[where] = self._permute(name, epoch[where], position)
        after = PlanState(state.position + num_rows, tuple(counts.tolist()), state.origin, state.due)
        return PlannedRows(domain, row, epoch), after

    @cached_property
    def _shares(self) -> NDArray[np.float64]:
        return np.array([self.weights[name] for name in self.names], np.float64)

    def _assign(self, state: PlanState, counts: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
        active = np.flatnonzero(self._shares > 0)
        if len(active) == 1:
            counts[active[0]] += num_rows
            return np.full(num_rows, active[0], np.int64)
        shares, due = self._shares[active], np.asarray(state.due)[active]
        slack = 1 / (2 * len(active) - 2)
        taken = counts[active].astype(np.float64)
        chosen = np.empty(num_rows, np.int64)
        elapsed = state.position - state.origin
        for i in range(num_rows):
            lag = due + shares * (elapsed + i + 1) - taken
            with np.errstate(over="ignore"):  # a share may be as small as a float can be
                deadline = (1 - slack - lag) / shares
            deadline[lag < slack] = np.inf
            pick = int(deadline.argmin())
            if deadline[pick] == np.inf:
                pick = int(lag.argmax())
            taken[pick] += 1
            chosen[i] = pick
        counts[active] = taken.astype(np.int64)
        return active[chosen]

    def _permute(self, name: str, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        size = self.rows[name]
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            where = epochs == epoch
            result[where] = permute(positions[where], size, self._key(name, int(epoch)))
        return result

    def _key(self, name: str, epoch: int) -> NDArray[np.uint64]:
        key = self._keys.get((name, epoch))
        if key is None:
            digest = hashlib.blake2b(f"{self.seed}/{epoch}/{name}".encode(), digest_size=64).digest()
            key = self._keys[name, epoch] = np.frombuffer(digest, np.uint64)
        return key


def permute(positions: NDArray[np.int64], size: int, key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A keyed permutation of range(size), at some positions.

    Rows are stored shuffled, so only locality is at stake: whole windows of 65,536 rows change places and rows change places inside their
    window, which keeps reads inside one shard at a time. A partial last window stays last.
    """
    whole = size // WINDOW_ROWS
    if whole == 0:
        return _feistel(positions, size, key)
    window, inside = np.divmod(positions, WINDOW_ROWS)
    result = np.empty_like(positions)
    full = window < whole
    if full.any():
        result[full] = _feistel(window[full], whole, key[::-1]) * WINDOW_ROWS + _feistel(inside[full], WINDOW_ROWS, key)
    if not full.all():
        result[~full] = whole * WINDOW_ROWS + _feistel(inside[~full], size - whole * WINDOW_ROWS, key)
    return result


def _feistel(values: NDArray[np.int64], size: int, key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Balanced Feistel network on the smallest even number of bits that holds `size`, walked until it lands inside."""
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    result = values.astype(np.uint64)
    outside = np.ones(len(result), bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for round_key in key[:6]:
            mixed = (right + round_key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        result[outside] = (left << half) | right
        outside = result >= np.uint64(size)
    return result.astype(np.int64)
