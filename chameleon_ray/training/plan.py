"""The order of the data: row j of a run -> (domain, row, epoch), a pure function of weights, sizes, seed and j.

Two independent parts. *Which domain*: Tijdeman's rule for the chairman assignment problem (R. Tijdeman, "The chairman assignment problem",
Discrete Mathematics 32, 1980) keeps the count of every domain within 1 - 1/(2k - 2) of weight * j at **every** j, the best constant there is
(see `chairman`). *Which row*: the n-th draw from a domain of R rows is position n mod R of epoch n // R, sent through a keyed permutation of the
epoch.

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
from chameleon_ray.training.chairman import Chairman

WINDOW_ROWS = 1 << 16
KEY_BYTES = 64


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
    _keys: dict[int, tuple[int, bytes]] = field(default_factory=dict, compare=False, repr=False)
    _last: dict[str, tuple[PlanState, Chairman]] = field(default_factory=dict, compare=False, repr=False)

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
        """The next rows and the state after them.

        Cost: O(log k) per row where `state` is the one that the last call returned, and O(k) to begin from any other.
        """
        chairman = self._chairman(state)
        domain, draw = chairman.take(num_rows)
        epoch, position = np.divmod(draw, self._sizes[domain])
        keys = b"".join([self._key(index, at) for index, at in zip(domain.tolist(), epoch.tolist(), strict=True)])
        row = permute(position, self._sizes[domain], np.frombuffer(keys, np.uint64).reshape(num_rows, KEY_BYTES // 8))
        after = PlanState(state.position + num_rows, chairman.counts, state.origin, state.due)
        self._last["take"] = after, chairman
        return PlannedRows(domain, row, epoch), after

    @cached_property
    def _shares(self) -> NDArray[np.float64]:
        return np.array([self.weights[name] for name in self.names], np.float64)

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        return np.array([self.rows.get(name, 0) for name in self.names], np.int64)

    def _chairman(self, state: PlanState) -> Chairman:
        """The one that stands at this state, handed out once so that no two threads share it."""
        last = self._last.pop("take", None)
        if last is not None and last[0] is state:
            return last[1]
        return Chairman(self._shares, np.array(state.due), state.counts, state.position - state.origin)

    def _key(self, index: int, epoch: int) -> bytes:
        """A domain's epochs come one after the other, so that the last is all that is kept."""
        at, key = self._keys.get(index, (-1, b""))
        if at != epoch:
            key = hashlib.blake2b(f"{self.seed}/{epoch}/{self.names[index]}".encode(), digest_size=KEY_BYTES).digest()
            self._keys[index] = epoch, key
        return key


def permute(positions: NDArray[np.int64], size: int | NDArray[np.int64], key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A keyed permutation of range(size), at some positions [n]; `size` and `key` are those of all positions ([8]) or of each ([n] and [n, 8]).

    Rows are stored shuffled, so only locality is at stake: whole windows of 65,536 rows change places and rows change places inside their
    window, which keeps reads inside one shard at a time. A partial last window stays last.
    """
    sizes, keys = np.broadcast_to(size, positions.shape), np.broadcast_to(key, (len(positions), key.shape[-1]))
    whole = sizes // WINDOW_ROWS
    window, inside = np.divmod(positions, WINDOW_ROWS)
    full = window < whole
    window[full] = _feistel(window[full], whole[full], keys[full, ::-1])
    return window * WINDOW_ROWS + _feistel(inside, np.where(full, WINDOW_ROWS, sizes - whole * WINDOW_ROWS), keys)


def _feistel(values: NDArray[np.int64], sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Balanced Feistel network on the smallest even number of bits that holds `size`, walked until it lands inside."""
    bits = np.frexp(np.maximum(sizes - 1, 1))[1]
    half = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = values.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        low, at_most = half[outside], mask[outside]
        left, right = result[outside] >> low, result[outside] & at_most
        for round_key in keys[outside, :6].T:
            mixed = (right + round_key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & at_most)
        result[outside] = (left << low) | right
        outside = outside[result[outside] >= sizes[outside].astype(np.uint64)]
    return result.astype(np.int64)
