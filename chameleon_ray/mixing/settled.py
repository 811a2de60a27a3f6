"""Ending a proxy's training when Chameleon's weights have settled: they do so early (table 12 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.backend import Changes, RuleState, Seen
from chameleon_ray.mixing.estimate import estimate
from chameleon_ray.mixing.formula import Formula
from chameleon_ray.mixing.krls import Array
from chameleon_ray.mixing.noise import MIN_RELIABILITY

DRAWS = 200


@dataclass(frozen=True)
class SettledRule:
    """Ends the run when the weights of the formula in use have settled; nothing else of the run is changed.

    After every `every_steps` steps a small fixed sample of every domain is embedded with the model as it is, and weighed. Training ends when the weights
    are within `tolerance`, in L1 distance, of the weights at half the steps, at two such comparisons running. `bootstrap` takes the sum of the weights'
    standard errors as the tolerance. Looks at which most of what tells domains apart is noise do not count. Methods that weigh by other formulae stop
    elsewhere, so that each trains a proxy of its own.

    Attributes:
        prior: shares of the domains in the order that the run has them; empty for a uniform one.
        layer: that the domains are embedded at, as they will be at the end.
    """

    name: ClassVar[str] = "settled"
    version: ClassVar[int] = 2
    signal: ClassVar[str] = "embeddings"
    changes: ClassVar[Changes] = "nothing"
    formula: Formula
    prior: tuple[float, ...] = ()
    tolerance: float | Literal["bootstrap"] = 0.05
    every_steps: int = 1
    samples_per_domain: int = 64
    layer: Literal["middle"] | int = "middle"

    def start(self, names: Sequence[str], prior: Array, horizon_steps: int) -> RuleState:
        """No look taken yet."""
        k = len(names)
        memory = {"steps": np.zeros(0), "weights": np.zeros((0, k)), "errors": np.zeros((0, k)), "reliability": np.zeros(0)}
        return RuleState.start(names, prior, memory, self.every_steps)

    def update(self, state: RuleState, seen: Seen) -> RuleState:
        """Weigh the embeddings and remember the weights and their standard errors."""
        counts = seen.values["group_counts"].astype(np.int64)
        embeddings = Embeddings(state.names, seen.values["group_sums"], counts, int(seen.values["layer"]))
        prior = dict(zip(state.names, self.prior or [1 / len(state.names)] * len(state.names), strict=True))
        found = estimate(embeddings, self.formula, prior, DRAWS if self.tolerance == "bootstrap" else 0)
        place = [found.names.index(name) for name in state.names]
        errors = found.errors.weights if found.errors else np.zeros(len(place))
        now = {"steps": float(seen.step), "weights": found.weights[place], "errors": errors[place], "reliability": found.reliability}
        memory = {part: np.concatenate([state.memory[part], np.array(value)[None]]) for part, value in now.items()}
        return state.updated(memory["weights"][-1], memory, seen.step + self.every_steps)

    def answer(self, state: RuleState) -> Array:
        """The weights at the last look."""
        return state.weights

    def done(self, state: RuleState) -> bool:
        """Whether the last two comparisons, of the weights at t and t / 2 steps, were within the tolerance, the last of them just now."""
        place = {int(step): i for i, step in enumerate(state.memory["steps"])}
        compared = [step for step in place if step % 2 == 0 and step // 2 in place]
        if len(compared) < 2 or compared[-1] != max(place):
            return False
        return all(self._close(state, place[step], place[step // 2]) for step in compared[-2:])

    def _close(self, state: RuleState, now: int, before: int) -> bool:
        weights, errors, reliability = (state.memory[part] for part in ("weights", "errors", "reliability"))
        if min(reliability[now], reliability[before]) < MIN_RELIABILITY:
            return False  # near the prior because little is known, not because it has settled
        tolerance = errors[now].sum() if self.tolerance == "bootstrap" else self.tolerance
        return bool(np.abs(weights[now] - weights[before]).sum() <= tolerance)
