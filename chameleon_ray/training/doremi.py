"""DoReMi's step: the batch's excess losses over a frozen reference decide alpha, and alpha weighs the loss of the same batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import RuleState, TrainJob
from chameleon_ray.corpus.rows import Rows
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.doremi import DoReMiRule
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.load import load_causal_lm
from chameleon_ray.models.losses import row_losses
from chameleon_ray.training.steps import PlainStep, micro_batches

# Logits of a reference pass on a CPU: what is kept of them is one number per token, so that small parts, which stay near the caches, lose nothing.
REFERENCE_BYTES = 1 << 24


class DoReMiStep(PlainStep):
    """loss = sum_i alpha_i l_i over the global batch, alpha from the same batch.

    With one micro-batch the proxy runs forward once. With several it runs once more, without gradients, since alpha needs the whole batch
    before the first backward pass.
    """

    def __init__(self, job: TrainJob, corpus: TokenCorpus, hardware: Hardware, micro_batch_rows: int, rank: int, world_size: int, state: RuleState) -> None:
        super().__init__(hardware, micro_batch_rows, rank, world_size)
        assert isinstance(job.rule, DoReMiRule) and job.reference is not None
        self.state: RuleState = state
        self._rule = job.rule
        self._reference = load_causal_lm(job.reference.address, hardware)
        self._token_count = corpus.row_tokens - 1
        fitting = max(1, REFERENCE_BYTES // (4 * corpus.row_tokens * corpus.vocab_size))
        self._reference_rows = min(fitting, micro_batch_rows) if hardware.device.type == "cpu" else micro_batch_rows

    def __call__(self, engine: Any, rows: Rows, domains: NDArray[np.int64], learning_rate: float) -> torch.Tensor:
        batches = micro_batches(rows, self._micro, self._hardware)
        index = torch.from_numpy(domains).to(self._hardware.device)
        first = row_losses(engine(input_ids=batches[0], use_cache=False).logits, batches[0]) if len(batches) == 1 else None
        with torch.no_grad():
            losses = [first.detach()] if first is not None else [row_losses(engine.module(input_ids=b, use_cache=False).logits, b) for b in batches]
            excess = torch.cat([self._excess(found, tokens) for found, tokens in zip(losses, batches, strict=True)])  # [n]
            per_token = self._reweigh(excess, index)
        weights = per_token[index].split(self._micro)
        for tokens, weight in zip(batches, weights, strict=True):
            found = first if first is not None else row_losses(engine(input_ids=tokens, use_cache=False).logits, tokens)
            # DeepSpeed takes the mean over ranks and micro-batches; what is wanted is the sum.
            engine.backward((found.sum(dim=1) * weight).sum() * (self._world_size * len(batches)))
            engine.step()
        return torch.cat([found.sum(dim=1) for found in losses])

    def _excess(self, losses: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[n] per row, the sum of what each token's loss exceeds the reference's by; clipped token by token."""
        parts = tokens.split(self._reference_rows)
        reference = torch.cat([row_losses(self._reference(input_ids=part, use_cache=False).logits, part) for part in parts])
        return (losses - reference).clamp_(min=0).double().sum(dim=1)

    def _reweigh(self, excess: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        """Update alpha from all ranks' rows; [k] what one token of each domain counts for: alpha_i over the batch's tokens of i."""
        sums = torch.zeros(2, len(self.state.weights), dtype=torch.float64, device=excess.device)
        sums[0].index_add_(0, domains, excess)
        sums[1].index_add_(0, domains, torch.full_like(excess, self._token_count))
        dist.all_reduce(sums)
        totals, counts = sums.cpu().numpy()
        if not np.isfinite(totals).all():
            raise UserError("doremi: the training loss is not finite; lower the proxy's learning_rate or raise its warmup_steps")
        self.state = self._rule.update(self.state, totals, counts)
        per_token = np.asarray(self.state.weights) / np.maximum(counts, 1)
        return torch.from_numpy(per_token.astype(np.float32)).to(excess.device)
