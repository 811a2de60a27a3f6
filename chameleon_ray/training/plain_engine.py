"""What the loop asks of DeepSpeed's engine, for one process: for models so small that starting DeepSpeed would take longer than training them."""

from __future__ import annotations

from typing import Any

import torch


class PlainEngine:
    """Gradient accumulation, clipping, AdamW."""

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulation: int, clipping: float) -> None:
        self.module, self.optimizer = module, optimizer
        self._accumulation, self._clipping = accumulation, clipping
        self._backwards = 0

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def train(self) -> None:
        """Training mode."""
        self.module.train()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of one micro-batch's mean loss."""
        (loss / self._accumulation).backward()
        self._backwards += 1

    def step(self) -> None:
        """Update the parameters, once a whole batch has gone backward."""
        if self._backwards % self._accumulation == 0:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._clipping)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
