"""The optimizer of every run."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from chameleon_ray.config import TrainingConfig

BETAS = (0.9, 0.95)


def build_optimizer(parameters: Iterable[torch.nn.Parameter], training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW on two groups: parameters with two dimensions decay, the others do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=BETAS, fused=True)
