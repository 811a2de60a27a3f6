"""A rule at work in a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.backend import Rule, RuleState, Seen, TrainJob, rule_settings
from chameleon_ray.training.history import History


class Learner:
    """Feeds a job's rule with what its signal shows, and keeps its state, which belongs to the checkpoint."""

    def __init__(self, job: TrainJob, state: RuleState | None) -> None:
        assert job.rule is not None
        self.rule = job.rule
        prior = np.array(list(job.weights.values()), np.float64)
        self.state = state or job.rule.start(tuple(job.weights), prior, job.training.horizon)
        self.step, self._learning_rate = 0, 0.0

    def begin(self, step: int, learning_rate: float) -> None:
        """Before every step: its number, from 1, and its learning rate."""
        self.step, self._learning_rate = step, learning_rate

    @property
    def due(self) -> bool:
        """Whether the rule wants its signal after this step."""
        return self.step >= self.state.next_look

    @property
    def done(self) -> bool:
        """Whether the rule lets the run end here."""
        return self.rule.done(self.state)

    def see(self, **values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Update the rule; [k] its weights now."""
        self.state = self.rule.update(self.state, Seen(self.step, self._learning_rate, values))
        return self.state.weights

    def note(self, history: History) -> None:
        """Add the weights after this step: `weight` now, and `mean`, the rule's answer by now."""
        history.add(self.step, self.state.names, weight=self.state.weights, mean=self.rule.answer(self.state))


def learned(rule: Rule, state: RuleState, step: int) -> dict[str, Any]:
    """What a record says of a rule: its settings, number of updates, answer and last weights by domain, and the step at which it let the run end."""
    answer, last = (dict(zip(state.names, values.tolist(), strict=True)) for values in (rule.answer(state), state.weights))
    ended_at = step if rule.done(state) else None
    return {**rule_settings(rule), "updates": state.updates, "answer": answer, "last": last, "ended_at_step": ended_at}
