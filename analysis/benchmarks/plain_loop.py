"""A training loop in PyTorch alone, without plan, reading, logging or engine: the other side of the training benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import TrainingConfig
from chameleon_ray.models.build import build_model
from chameleon_ray.models.head import TokenLosses
from chameleon_ray.training.optimizer import build_optimizer

IGNORED = -100


class PlainLoop:
    """The model and AdamW of a training run, stepped on batches that are ready in memory.

    The loss is ours, so that what differs is all that is around a step; with `usual_loss` it is taken from logits in fp32, as is common.
    In bf16 it has no fp32 parameters, which is less work.
    """

    def __init__(
        self,
        training: TrainingConfig,
        corpus: TokenCorpus,
        seed: int,
        micro_batch_rows: int,
        dtype: torch.dtype = torch.float32,
        usual_loss: bool = False,
    ) -> None:
        model: Any = build_model(training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, seed).to(dtype).train()
        self._model = model
        self._losses = None if usual_loss else TokenLosses(model)
        self._optimizer = build_optimizer(model.parameters(), training)
        self._clip = training.gradient_clipping
        self._micro_batch_rows = micro_batch_rows

    def run(self, batches: Iterable[torch.Tensor]) -> float:
        """One step per batch, [rows, row_tokens] int64 each; returns the last loss in nats per token."""
        loss = 0.0
        for tokens in batches:
            loss = self._step(tokens)
        return loss

    def _step(self, tokens: torch.Tensor) -> float:
        total = 0.0
        for block in tokens.split(self._micro_batch_rows):
            loss = self._loss(block) * (len(block) / len(tokens))
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total

    def _loss(self, block: torch.Tensor) -> torch.Tensor:
        if self._losses is not None:
            losses: torch.Tensor = self._losses(block)
            return losses.sum() / (block.shape[0] * (block.shape[1] - 1))
        targets = F.pad(block[:, 1:], (0, 1), value=IGNORED)
        logits = self._model(input_ids=block, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
