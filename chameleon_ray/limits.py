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

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.errors import UserError
from chameleon_ray.settings import listed

Array = NDArray[np.float64]
TOLERANCE = 1e-12
SWEEPS = 20_000
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

    def binding(self, weights: Array) -> list[Row]:
        """The rows that weights lie at the border of."""
        sums = [(row, weights[self.places[row.name]].sum()) for row in self.rows]
        return [row for row, total in sums if (row.least > 0 and total <= row.least + 1e-9) or (row.most < 1 and total >= row.most - 1e-9)]

    def project(self, weights: Array) -> Array:
        """The nearest weights that keep to the rows.

        Args:
            weights: [..., k] on the simplex.
        Returns:
            [..., k], equal to the weights where they keep to all rows.
        Raises:
            UserError: no weights do.
        Cost: passes over the weights, hundreds where rows bind tightly.
        """
        single, groups = self._boxes(), [row for row in self.rows if len(row.domains) != 1]
        flat = np.array(weights, np.float64).reshape(-1, len(self.names))
        if self._violation(flat) <= TOLERANCE:
            return np.asarray(weights, np.float64)
        self.check()
        given = self._with_something(flat)
        alpha = fill(given, *single)
        left = given / np.where(alpha > 0, alpha, 1.0)  # what the step onto the boxes has taken, to be offered again
        duals = np.zeros((len(groups), len(alpha)))
        for _ in range(SWEEPS if groups else 0):
            before = alpha.copy()
            for number, row in enumerate(groups):
                mine = self.places[row.name]
                total = alpha[:, mine].sum(axis=1)
                with np.errstate(divide="ignore", invalid="ignore"):
                    step = np.where(total > 0, _median(duals[number], np.log(row.most / total), np.log(row.least / total)), 0.0)
                alpha[:, mine] *= np.exp(step)[:, None]
                duals[number] -= step
            offered = alpha * left
            alpha = fill(offered, *single)
            left = offered / np.where(alpha > 0, alpha, 1.0)
            if self._violation(alpha) <= TOLERANCE and np.abs(alpha - before).max() <= TOLERANCE:
                break
        return alpha.reshape(np.shape(weights))

    def _boxes(self) -> tuple[Array, Array]:
        """[k] least and most of single domains."""
        least, most = np.zeros(len(self.names)), np.ones(len(self.names))
        for row in self.rows:
            if len(row.domains) == 1:
                (i,) = self.places[row.name]
                least[i], most[i] = max(least[i], row.least), min(most[i], row.most)
        return least, most

    def _violation(self, weights: Array) -> float:
        """How far weights [n, k] are out of the rows at most."""
        least, most = self._boxes()
        worst = float(max((least - weights).max(initial=0), (weights - most).max(initial=0)))
        for row in self.rows:
            if len(row.domains) != 1:
                total = weights[:, self.places[row.name]].sum(axis=1)
                worst = max(worst, float((row.least - total).max()), float((total - row.most).max()))
        return worst

    def _with_something(self, weights: Array) -> Array:
        """Weights with a little for the domains of rows that must have some and have none."""
        found = weights.copy()
        for row in self.rows:
            mine = self.places[row.name]
            if row.least > 0:
                found[:, mine] += np.where(found[:, mine].sum(axis=1, keepdims=True) < NOTHING, NOTHING / len(mine), 0.0)
        most = self._boxes()[1]
        capped = (found > 0) & (most < 1)
        starved = np.where(found > 0, most, 0.0).sum(axis=1) < 1
        if starved.any() and capped.any():  # what has weight may not take all of it: the others take the rest alike
            found[starved] += np.where(found[starved] > 0, 0.0, NOTHING)
        return found / found.sum(axis=1, keepdims=True)

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
        from scipy.optimize import linprog
        from scipy.sparse import coo_array

        k, m = len(self.names), len(self.rows)
        index = np.concatenate([np.full(len(row.domains), r) for r, row in enumerate(self.rows)])
        columns = np.concatenate([self.places[row.name] for row in self.rows])
        ones = np.ones(len(index))
        slack = np.arange(m)
        # A alpha - t <= u and -A alpha - t <= -l with t >= 0, whose sum is least
        rows = np.concatenate([index, slack, m + index, m + slack])
        places = np.concatenate([columns, k + slack, columns, k + slack])
        values = np.concatenate([ones, -np.ones(m), -ones, -np.ones(m)])
        bounds = np.array([row.most for row in self.rows] + [-row.least for row in self.rows])
        total = coo_array((np.ones(k), (np.zeros(k, int), np.arange(k))), shape=(1, k + m))
        found = linprog(np.concatenate([np.zeros(k), np.ones(m)]), coo_array((values, (rows, places)), shape=(2 * m, k + m)), bounds, total, [1.0])
        if found.fun <= 1e-9:
            return []
        prices = np.abs(found.ineqlin.marginals).reshape(2, m).max(axis=0)
        return [row for row, price in zip(self.rows, prices, strict=True) if price > 1e-9]


def fill(weights: Array, least: Array, most: Array) -> Array:
    """Water-filling: alpha_i = min(max(s w_i, l_i), u_i) with the one s for which alpha sums to 1.

    Args:
        weights: [n, k] not negative. What has none gets its least and no more.
        least, most: [k], with sums of at most and at least 1.
    Returns:
        [n, k] summing to 1. Cost: one sort of 2 k levels at which a weight leaves its least or reaches its most.
    """
    divisor = np.where(weights > 0, weights, 1.0)
    levels = np.concatenate([np.where(weights > 0, limit / divisor, 1e300) for limit in (least, most)], axis=1)
    slopes = np.concatenate([weights, -weights], axis=1)
    order = np.argsort(levels, axis=1, kind="stable")
    levels, slopes = np.take_along_axis(levels, order, 1), np.take_along_axis(slopes, order, 1).cumsum(axis=1)
    steps = np.concatenate([np.zeros((len(weights), 1)), slopes[:, :-1] * np.diff(levels, axis=1)], axis=1)
    reached = least.sum() + steps.cumsum(axis=1)  # the sum of alpha at every level
    last = np.clip((reached < 1).sum(axis=1, keepdims=True) - 1, 0, None)
    level = np.take_along_axis(levels, last, 1)
    slope = np.take_along_axis(slopes, last, 1)
    level = level + np.where(slope > 0, (1 - np.take_along_axis(reached, last, 1)) / np.where(slope > 0, slope, 1.0), 0.0)
    under, over = level * weights <= least, level * weights >= most
    free = ~under & ~over
    kept = np.where(under, least, np.where(over, most, 0.0)).sum(axis=1, keepdims=True)
    loose = np.where(free, weights, 0.0).sum(axis=1, keepdims=True)
    level = np.where(loose > 0, (1 - kept) / np.where(loose > 0, loose, 1.0), 0.0)
    return np.clip(np.where(free, level * weights, np.where(under, least, most)), least, most)


def _median(first: Array, second: Array, third: Array) -> Array:
    """Elementwise, of three numbers."""
    return np.maximum(np.minimum(first, second), np.minimum(np.maximum(first, second), third))
