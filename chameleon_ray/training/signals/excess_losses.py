"""Excess losses over a frozen reference, and a loss that each domain counts for by the rule's weights: what DoReMi trains with.

A rule sees, over the whole batch, `excess` [k], the sum over a domain's tokens of max(l - l_reference, 0) in nats, clipped token by token, and `tokens` [k],
how many there were. Its weights reweigh the loss of the same batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.corpus.rows import Rows
from chameleon_ray.errors import UserError
from chameleon_ray.models.flops import forward_flops_per_token
from chameleon_ray.models.load import load_causal_lm
from chameleon_ray.models.losses import row_losses
from chameleon_ray.training.learner import Learner
from chameleon_ray.training.steps import PlainStep, Worker, micro_batches

# Logits of a reference pass on a CPU: what is kept of them is one number per token, so that small parts, which stay near the caches, lose nothing.
REFERENCE_BYTES = 1 << 24


class ExcessLossStep(PlainStep):
    """loss = sum_i alpha_i l_i over the global batch, alpha from the same batch.

    With one micro-batch the model runs forward once. With several it runs once more, without gradients, since alpha needs the whole batch
    before the first backward pass.
    """

    def __init__(self, worker: Worker, learner: Learner) -> None:
        super().__init__(worker)
        assert worker.job.reference is not None
        self._learner = learner
        self._reference = load_causal_lm(worker.job.reference.address, worker.hardware)
        corpus = worker.corpus
        self._token_count = corpus.row_tokens - 1
        fitting = max(1, REFERENCE_BYTES // (4 * corpus.row_tokens * corpus.vocab_size))
        self._reference_rows = min(fitting, worker.micro_batch.rows) if worker.hardware.device.type == "cpu" else worker.micro_batch.rows

    def __call__(self, engine: Any, rows: Rows, domains: NDArray[np.int64]) -> torch.Tensor:
        batches = micro_batches(rows, self._worker)
        index = torch.from_numpy(domains).to(self._worker.hardware.device)
        first = row_losses(engine(input_ids=batches[0], use_cache=False).logits, batches[0]) if len(batches) == 1 else None
        with torch.no_grad():
            losses = [first.detach()] if first is not None else [row_losses(engine.module(input_ids=b, use_cache=False).logits, b) for b in batches]
            excess = torch.cat([self._excess(found, tokens) for found, tokens in zip(losses, batches, strict=True)])  # [n]
            per_token = self._reweigh(excess, index)
        weights = per_token[index].split(self._worker.micro_batch.rows)
        for tokens, weight in zip(batches, weights, strict=True):
            found = first if first is not None else row_losses(engine(input_ids=tokens, use_cache=False).logits, tokens)
            # DeepSpeed takes the mean over ranks and micro-batches; what is wanted is the sum.
            engine.backward((found.sum(dim=1) * weight).sum() * (self._worker.world_size * len(batches)))
            engine.step()
        return torch.cat([found.sum(dim=1) for found in losses])

    def _excess(self, losses: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[n] per row, the sum of what each token's loss exceeds the reference's by; clipped token by token."""
        parts = tokens.split(self._reference_rows)
        reference = torch.cat([row_losses(self._reference(input_ids=part, use_cache=False).logits, part) for part in parts])
        return (losses - reference).clamp_(min=0).double().sum(dim=1)

    def _reweigh(self, excess: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        """Show the learner all ranks' rows; [k] what one token of each domain counts for: alpha_i over the batch's tokens of i."""
        sums = torch.zeros(2, len(self._learner.state.names), dtype=torch.float64, device=excess.device)
        sums[0].index_add_(0, domains, excess)
        sums[1].index_add_(0, domains, torch.full_like(excess, self._token_count))
        dist.all_reduce(sums)
        totals, counts = sums.cpu().numpy()
        if not np.isfinite(totals).all():
            job = self._worker.job
            raise UserError(f"{job.role}: the training loss is not finite; lower {job.key('learning_rate')} or raise {job.key('warmup_steps')}")
        per_token = self._learner.see(excess=totals, tokens=counts) / np.maximum(counts, 1)
        return torch.from_numpy(per_token.astype(np.float32)).to(excess.device)


def check(job: TrainJob, corpus: TokenCorpus, world_size: int) -> None:
    """Nothing that trains is refused."""


def flops(worker: Worker, steps: int) -> float:
    """Operations of the reference's forward pass, and of the model's second one where there are several micro-batches."""
    training, corpus = worker.job.training, worker.corpus
    layers, _, width = training.model.shape
    passes = 1 if worker.micro_batch.rows * worker.world_size == training.batch_rows else 2
    return passes * forward_flops_per_token(layers, width, corpus.row_tokens, corpus.vocab_size) * steps * training.batch_rows * corpus.row_tokens
