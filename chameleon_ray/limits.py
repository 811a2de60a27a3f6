"""What weights may be: least and most shares of domains and of groups of them, and the weights nearest to given ones that keep to these.

    w        [k] the weights of a method
    l_r, u_r least and most of row r: a domain or a group, the sum of whose weights is A_r alpha
    alpha    argmin sum_i alpha_i log(alpha_i / w_i) over the simplex with l <= A alpha <= u

The relative entropy is the distance in which a cap on single domains means water-filling: alpha_i = min(u_i, s w_i) with one s for all.

Single domains are filled at once; groups are met in turns with them, each correcting what it did before.

References: Censor and Lent (1981), An iterative row-action method for interval convex programming, for the entropy and rows of zeros and ones;
Bauschke and Lewis (2000), Dykstra's algorithm with Bregman projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.errors import UserError
from chameleon_ray.settings import listed

Array = NDArray[np.float64]
TOLERANCE = 1e-12
SWEEPS = 20_000
BORDER = 1e-9
_HUGE = 1e300
NOTHING = 1e-9  # what domains without weight begin from that must have some


@dataclass(frozen=True)
class Row:
    """least <= sum of the weights of `domains` <= most; `name` is what the experiment calls it."""

    name: str
    domains: tuple[str, ...]
    least: float = 0.0
    most: float = 1.0

    def __str__(self) -> str:
        if self.least > 0 and self.most < 1:
            return f"{self.name} ({self.least:.4g} to {self.most:.4g})"
        return f"{self.name} (at {'least' if self.least > 0 else 'most'} {self.least if self.least > 0 else self.most:.4g})"


@dataclass(frozen=True)
class Limits:
    """Rows over domains, in the order of the weights. Without rows every mixture will do."""

    names: tuple[str, ...]
    rows: tuple[Row, ...] = ()

    @cached_property
    def places(self) -> dict[str, NDArray[np.int64]]:
        """Row -> the places of its domains."""
        place = {name: i for i, name in enumerate(self.names)}
        return {row.name: np.array([place[name] for name in row.domains]) for row in self.rows}

    def check(self) -> None:
        """Raise `UserError` when no mixture keeps to all rows, naming those that contradict each other. Cost: one linear program where there are groups."""
        if wrong := self._contradiction():
            raise UserError(f"no mixture keeps to {listed([str(row) for row in wrong])}: raise what is the most, or lower what is the least, of one of them")

    def broken(self, weights: Array) -> list[Row]:
        """The rows that weights do not keep to."""
        sums = [(row, weights[self.places[row.name]].sum()) for row in self.rows]
        return [row for row, total in sums if total < row.least - TOLERANCE or total > row.most + TOLERANCE]

    def binding(self, weights: Array) -> list[Row]:
        """The rows that weights lie at the border of."""
        sums = [(row, weights[self.places[row.name]].sum()) for row in self.rows]
        return [row for row, total in sums if (row.least > 0 and total <= row.least + BORDER) or (row.most < 1 and total >= row.most - BORDER)]

    def hold(self, weights: Array, within: float = BORDER) -> NDArray[np.bool_]:
        """[n] whether weights [n, k] are a mixture and keep to the rows."""
        least, most = self._boxes()
        worst = np.maximum((least - weights).max(axis=1), (weights - most).max(axis=1))
        for row in self.rows:
            total = weights[:, self.places[row.name]].sum(axis=1)
            worst = np.maximum(worst, np.maximum(row.least - total, total - row.most))
        return (worst <= within) & (np.abs(weights.sum(axis=1) - 1) <= BORDER)

    def project(self, weights: Array) -> Array:
        """The nearest weights that keep to the rows. What has no weight gets some only where the rows demand it.

        Args:
            weights: [..., k] on the simplex.
        Returns:
            [..., k], equal to the weights where they keep to all rows.
        Raises:
            UserError: no weights do.
        Cost: passes over the weights, hundreds where rows bind tightly.
        """
        flat = np.array(weights, np.float64).reshape(-1, len(self.names))
        outside = ~self.hold(flat, TOLERANCE)
        if not outside.any():
            return np.asarray(weights, np.float64)
        self.check()
        found = flat.copy()
        found[outside] = self._nearest(flat[outside])
        if (wrong := ~self.hold(found)).any():  # domains without weight must have some
            seeded = np.where(flat[wrong] > 0, flat[wrong], NOTHING)
            found[wrong] = self._nearest(seeded / seeded.sum(axis=1, keepdims=True))
        if (wrong := ~self.hold(found)).any():
            found[wrong] = self._towards_the_middle(found[wrong])
        assert self.hold(found).all(), "rows that can be kept are kept"
        return found.reshape(np.shape(weights))

    def _nearest(self, weights: Array) -> Array:
        """What the sweeps come to; it need not keep to the rows where weights of 0 or hardly any room stand in the way."""
        least, most = self._boxes()
        groups = [(self.places[row.name], row) for row in self.rows if len(row.domains) != 1 and row.most > 0]
        result = fill(weights, least, most)
        if not groups:
            return result
        moving = np.arange(len(weights))
        alpha = result.copy()
        left = weights / np.where(alpha > 0, alpha, 1.0)  # what the step onto the boxes has taken, to be offered again
        duals = np.zeros((len(groups), len(alpha)))
        for _ in range(SWEEPS):
            before = alpha.copy()
            for number, (mine, row) in enumerate(groups):
                total = alpha[:, mine].sum(axis=1)
                with np.errstate(divide="ignore", invalid="ignore"):
                    step = np.where(total > 0, _median(duals[number], np.log(row.most / total), np.log(row.least / total)), 0.0)
                alpha[:, mine] *= np.exp(step)[:, None]
                duals[number] -= step
            offered = alpha * left
            alpha = fill(offered, least, most)
            left = offered / np.where(alpha > 0, alpha, 1.0)
            result[moving] = alpha
            settled = self.hold(alpha, TOLERANCE) & (np.abs(alpha - before).max(axis=1) <= TOLERANCE)
            if settled.all():
                break
            if settled.sum() > len(settled) // 2:
                keep = ~settled
                moving, alpha, left, duals = moving[keep], alpha[keep], left[keep], duals[:, keep]
        return result

    def _towards_the_middle(self, weights: Array) -> Array:
        """Weights [n, k] moved towards a mixture with as much room on all sides as there is, until they keep to the rows."""
        middle, usable = self._middle(), np.where(np.isfinite(weights), weights, 0.0)
        total = usable.sum(axis=1, keepdims=True)
        usable = np.where(total > 0, usable / np.where(total > 0, total, 1.0), middle)
        low, high = np.zeros((len(usable), 1)), np.ones((len(usable), 1))
        for _ in range(50):
            part = (low + high) / 2
            kept = self.hold((1 - part) * usable + part * middle, TOLERANCE)[:, None]
            low, high = np.where(kept, low, part), np.where(kept, part, high)
        return (1 - high) * usable + high * middle

    def _boxes(self) -> tuple[Array, Array]:
        """[k] least and most of single domains; of groups that may have nothing, 0."""
        least, most = np.zeros(len(self.names)), np.ones(len(self.names))
        for row in self.rows:
            mine = self.places[row.name]
            if len(mine) == 1:
                least[mine], most[mine] = np.maximum(least[mine], row.least), np.minimum(most[mine], row.most)
            elif row.most == 0:
                most[mine] = 0.0
        return least, most

    def _contradiction(self) -> Sequence[Row]:
        least, most = self._boxes()
        if (least > most).any():
            place = int(np.argmax(least > most))
            return [row for row in self.rows if row.domains == (self.names[place],)]
        singles = [row for row in self.rows if len(row.domains) == 1]
        if least.sum() > 1 + TOLERANCE:
            return [row for row in singles if row.least > 0]
        if most.sum() < 1 - TOLERANCE:
            return [row for row in singles if row.most < 1]
        return self._by_program() if len(singles) < len(self.rows) else []

    def _by_program(self) -> Sequence[Row]:
        """Rows that cannot all be kept, by how much they must give way together: those whose price is not zero."""
        found, m = self._program(np.ones(len(self.rows))), len(self.rows)
        if found.fun <= BORDER:
            return []
        prices = np.abs(found.ineqlin.marginals).reshape(2, m).max(axis=0)
        return [row for row, price in zip(self.rows, prices, strict=True) if price > BORDER]

    def _middle(self) -> Array:
        """[k] a mixture that keeps to all rows, with the same distance from all borders, as large as can be, where that is possible."""
        found = self._program(None)
        middle = np.clip(found.x[: len(self.names)], 0.0, None)
        return np.asarray(middle / middle.sum())

    def _program(self, prices: Array | None) -> Any:
        """A linear program: A alpha - t <= u and -A alpha - t <= -l. With prices the rows give way by t >= 0, as little as they must; without, all rows keep
        one distance -t, as much as they can."""
        from scipy.optimize import linprog
        from scipy.sparse import coo_array

        k, m = len(self.names), len(self.rows)
        index = np.concatenate([np.full(len(row.domains), r) for r, row in enumerate(self.rows)])
        columns = np.concatenate([self.places[row.name] for row in self.rows])
        ones, slack = np.ones(len(index)), np.arange(m)
        gives = slack if prices is not None else np.zeros(m, int)
        extra = m if prices is not None else 1
        rows = np.concatenate([index, slack, m + index, m + slack])
        places = np.concatenate([columns, k + gives, columns, k + gives])
        values = np.concatenate([ones, -np.ones(m), -ones, -np.ones(m)])
        borders = np.array([row.most for row in self.rows] + [-row.least for row in self.rows])
        total = coo_array((np.ones(k), (np.zeros(k, int), np.arange(k))), shape=(1, k + extra))
        aim = np.concatenate([np.zeros(k), np.ones(extra) if prices is None else prices])
        bounds = [(0, 1)] * k + [(0, None) if prices is not None else (-1, 0)] * extra
        return linprog(aim, coo_array((values, (rows, places)), shape=(2 * m, k + extra)), borders, total, [1.0], bounds)


def fill(weights: Array, least: Array, most: Array) -> Array:
    """Water-filling: alpha_i = min(max(s w_i, l_i), u_i) with the one s for which alpha sums to 1.

    Args:
        weights: [n, k] not negative. What has none gets its least and no more.
        least, most: [k], with sums of at most and at least 1.
    Returns:
        [n, k] summing to 1. Cost: one sort of the 2 k levels at which a weight leaves its least or reaches its most, and log k passes.
    """
    divisor = np.where(weights > 0, weights, 1.0)
    leaves, reaches = (np.where(weights > 0, limit / divisor, np.inf) for limit in (least, most))
    levels = np.sort(np.concatenate([np.zeros((len(weights), 1)), leaves, reaches], axis=1), axis=1)
    low, high = np.zeros((len(weights), 1), np.int64), np.full((len(weights), 1), levels.shape[1] - 1)
    while (low < high).any():
        middle = (low + high) // 2
        level = np.minimum(np.take_along_axis(levels, middle, 1), _HUGE)
        enough = np.clip(level * weights, least, most).sum(axis=1, keepdims=True) >= 1
        low, high = np.where(enough, low, np.minimum(middle + 1, high)), np.where(enough, middle, high)
    above, below = np.take_along_axis(levels, high, 1), np.take_along_axis(levels, np.maximum(high - 1, 0), 1)
    over, under = reaches <= below, leaves >= above
    free = ~over & ~under
    kept = np.where(over, most, np.where(under, least, 0.0)).sum(axis=1, keepdims=True)
    loose = np.where(free, weights, 0.0).sum(axis=1, keepdims=True)
    level = np.where(loose > 0, (1 - kept) / np.where(loose > 0, loose, 1.0), 0.0)
    return np.clip(np.where(free, level * weights, np.where(over, most, least)), least, most)


def _median(first: Array, second: Array, third: Array) -> Array:
    """Elementwise, of three numbers."""
    return np.maximum(np.minimum(first, second), np.minimum(np.maximum(first, second), third))
