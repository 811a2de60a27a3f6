"""From leverage scores to weights: what a variant of Chameleon and its overrides amount to.

S        [k] leverage scores (see krls.py)
tau      temperature; pretraining alpha = softmax(1 / (S tau)), finetuning alpha = softmax(S / tau)
t        relative temperature: softmax((mean S / S) / t), softmax((S / mean S) / t)
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from chameleon_ray.mixing import krls
from chameleon_ray.mixing.krls import AbsoluteOrRelative, Array, Ridge
from chameleon_ray.mixing.simplex import normalised, softmax
from chameleon_ray.settings import Settings

Stage = Literal["pretrain", "finetune"]


class Temperature(AbsoluteOrRelative):
    """tau itself, or t relative to the mean score: the same t means the same for every k and every ridge."""

    def resolve(self, mean_score: float, stage: Stage) -> float:
        """tau for scores of this mean."""
        if self.absolute is not None:
            return self.absolute
        assert self.relative is not None
        return self.relative / mean_score if stage == "pretrain" else self.relative * mean_score


class Formula(Settings):
    """The formula a variant and its overrides amount to."""

    stage: Stage
    ridge: Ridge
    temperature: Temperature
    center: bool
    normalize: bool

    @property
    def scale_free(self) -> bool:
        """Whether the weights depend on the ratios of the scores alone."""
        return self.normalize or self.temperature.relative is not None

    def scores(self, leverage: Array) -> Array:
        """[k] what enters the softmax."""
        return krls.normalise(leverage) if self.normalize else leverage

    def tau(self, scores: Array) -> float | None:
        """The absolute temperature; None where every score is 0, since no temperature matters there."""
        return self.temperature.resolve(float(scores.mean()), self.stage) if scores.any() else None

    def logits(self, scores: Array) -> Array | None:
        """[k] whose softmax are the weights; +inf where a score is 0 when pretraining, None where every score is."""
        tau = self.tau(scores)
        if tau is None:
            return None
        with np.errstate(divide="ignore", over="ignore"):
            return 1 / (scores * tau) if self.stage == "pretrain" else scores / tau

    def weights(self, scores: Array) -> Array:
        """[k] alpha; uniform where every score is 0."""
        logits = self.logits(scores)
        return normalised(np.ones(len(scores))) if logits is None else softmax(logits)
