"""Learning rate as a pure function of the step: linear warm-up, then a cosine down to the minimum (section B.2; length of the warm-up: DECISIONS.md)."""

from __future__ import annotations

import math

from chameleon_ray.config import TrainingConfig


def warmup_steps(training: TrainingConfig) -> int:
    """As configured, or a twentieth of the schedule."""
    return training.warmup_steps if training.warmup_steps is not None else training.horizon // 20


def learning_rate(training: TrainingConfig, step: int) -> float:
    """Learning rate of step 0 … horizon - 1; the last step of the schedule uses the minimum."""
    warmup = warmup_steps(training)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, training.horizon - 1 - warmup)
    return training.min_learning_rate + (training.learning_rate - training.min_learning_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
