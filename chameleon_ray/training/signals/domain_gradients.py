"""One gradient per domain, side by side, and a step on a weighted sum of them: what more than one signal is taken with.

The gradient that is wanted is handed to the engine as the gradient of a linear function of the parameters, so that averaging over ranks, bf16 master
weights, clipping and the optimizer stay its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.corpus.rows import Rows
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.training.steps import Worker, micro_batches


class DomainGradients:
    """The gradients of the domains that a rank owns, as rows of one matrix [owned, N] in fp32."""

    def __init__(self, worker: Worker, owned: NDArray[np.int64]) -> None:
        self.owned = owned
        self._worker = worker
        self._matrix: torch.Tensor | None = None

    def take(self, module: Any, rows: Rows, domains: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Write every owned domain's gradient of its mean loss, 0 where the batch does not show it.

        Args:
            rows: of the owned domains, domain by domain; domains: [n] theirs.
        Returns:
            The matrix; the loss of every token, [n, T] nats.
        """
        parameters = _trained(module)
        if self._matrix is None:
            total = sum(parameter.numel() for parameter in parameters)
            self._matrix = torch.empty(len(self.owned), total, device=self._worker.hardware.device)
        found = [
            self._differentiate(module, parameters, gradient, rows.take(np.flatnonzero(domains == domain)))
            for gradient, domain in zip(self._matrix, self.owned.tolist(), strict=True)
        ]
        return self._matrix, torch.cat(found)

    def of(self, module: Any, rows: Rows) -> torch.Tensor:
        """[N] the gradient of the mean loss of other rows, which this and no other gradient is kept of."""
        parameters = _trained(module)
        gradient = torch.empty(sum(parameter.numel() for parameter in parameters), device=self._worker.hardware.device)
        self._differentiate(module, parameters, gradient, rows)
        return gradient

    def step(self, engine: Any, scale: torch.Tensor) -> None:
        """Step on the sum over all ranks of scale [owned] times the gradients."""
        assert self._matrix is not None
        parameters = _trained(engine.module)
        # DeepSpeed takes the mean over ranks; what is wanted is the sum.
        combined = torch.mv(self._matrix.T, scale * self._worker.world_size)
        shares = combined.split([parameter.numel() for parameter in parameters])
        linear = sum(torch.dot(parameter.flatten(), share.to(parameter.dtype)) for parameter, share in zip(parameters, shares, strict=True))
        engine.backward(linear)
        engine.step()

    def _differentiate(self, module: Any, parameters: list[torch.nn.Parameter], gradient: torch.Tensor, rows: Rows) -> torch.Tensor:
        if not len(rows):
            gradient.zero_()
            return torch.zeros(0, rows.tokens.shape[1], device=gradient.device)
        views = [view.view_as(each) for view, each in zip(gradient.split([each.numel() for each in parameters]), parameters, strict=True)]
        found = []
        for number, tokens in enumerate(micro_batches(rows, self._worker)):
            losses = module(tokens)
            parts = torch.autograd.grad(losses.sum() / (len(rows) * (tokens.shape[1] - 1)), parameters)
            (torch._foreach_add_ if number else torch._foreach_copy_)(views, parts)
            found.append(losses.detach())
        return torch.cat(found)


def matrix_bytes(job: TrainJob, corpus: TokenCorpus, world_size: int) -> int:
    """What the gradients of a rank's domains take."""
    return 4 * -(-len(job.weights) // world_size) * Architecture.of(job, corpus).num_parameters


def _trained(module: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
