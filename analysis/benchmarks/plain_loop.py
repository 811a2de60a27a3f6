"""What a person would write in PyTorch alone to train the same model: the other side of the training benchmarks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import TrainingConfig
from chameleon_ray.models.build import build_model
from chameleon_ray.training.optimizer import build_optimizer

IGNORED = -100


class PlainLoop:
    """The model and AdamW of a training run, stepped on batches that are ready in memory."""

    def __init__(self, training: TrainingConfig, corpus: TokenCorpus, seed: int, micro_batch_rows: int) -> None:
        self._model = build_model(training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, seed).train()
        self._optimizer = build_optimizer(self._model.parameters(), training)
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
            targets = F.pad(block[:, 1:], (0, 1), value=IGNORED)
            logits = self._model(input_ids=block, use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED) * (len(block) / len(tokens))
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total
