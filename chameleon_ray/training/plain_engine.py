"""What the loop asks of DeepSpeed's engine, for one process: for models so small that starting DeepSpeed would take longer than training them."""

from __future__ import annotations

from typing import Any

import torch

from chameleon_ray.config import TrainingConfig
from chameleon_ray.training.optimizer import build_optimizer


class PlainEngine:
    """Gradient accumulation, clipping and the optimizer, in fp32; a model in another format is computed with a copy of the fp32 parameters."""

    def __init__(self, module: torch.nn.Module, training: TrainingConfig, accumulation: int = 1) -> None:
        self.module = module
        self._copies = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._parameters = [each if each.dtype == torch.float32 else torch.nn.Parameter(each.detach().float()) for each in self._copies]
        self.optimizer = build_optimizer(self._parameters, training)
        self._accumulation, self._clipping = accumulation, training.gradient_clipping
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
        for copy, parameter in zip(self._copies, self._parameters, strict=True):
            if copy is not parameter and copy.grad is not None:
                parameter.grad = copy.grad.float() if parameter.grad is None else parameter.grad.add_(copy.grad)
                copy.grad = None

    def step(self) -> None:
        """Update the parameters, once a whole batch has gone backward."""
        if self._backwards % self._accumulation:
            return
        torch.nn.utils.clip_grad_norm_(self._parameters, self._clipping)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for copy, parameter in zip(self._copies, self._parameters, strict=True):
                if copy is not parameter:
                    copy.copy_(parameter)
