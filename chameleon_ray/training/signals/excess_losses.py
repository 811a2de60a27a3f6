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
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.models.load import load_losses
from chameleon_ray.models.memory import forward_rows
from chameleon_ray.training.learner import Learner
from chameleon_ray.training.signals.domain_gradients import DomainGradients, matrix_bytes
from chameleon_ray.training.steps import PlainStep, Worker, micro_batches

# What gradients side by side may take, for the sake of one forward pass less.
MATRIX_BYTES = {"cpu": 1 << 30, "cuda": 4 << 30}
# Tokens of a domain in a batch on average, under which a pass of its own costs more than a forward pass of everything. On a CPU: 1.9 against 1.4 plain steps
# at 64 tokens, 1.1 against 1.3 at 256. That of GPUs is a guess.
DOMAIN_TOKENS = {"cpu": 192, "cuda": 8192}


class ExcessLossStep(PlainStep):
    """loss = sum_i alpha_i l_i over the global batch, alpha from the same batch.

    Alpha is known only when the whole batch has run forward. With one micro-batch its graph waits for that. With several, one gradient per domain waits
    where there is room for them and each is worth a pass of its own (`by_domain`); elsewhere the model runs forward once more, without gradients, before
    the first backward pass.
    """

    def __init__(self, worker: Worker, learner: Learner) -> None:
        super().__init__(worker)
        assert worker.job.reference is not None
        self._learner = learner
        self._reference = load_losses(worker.job.reference.address, worker.hardware)
        self._reference_rows = forward_rows(worker.hardware, worker.corpus.row_tokens)
        self._token_count = worker.corpus.row_tokens - 1
        self._gradients = DomainGradients(worker, np.arange(len(worker.job.weights))) if by_domain(worker) else None

    def mine(self, domains: NDArray[np.int64]) -> NDArray[np.int64]:
        """An equal slice; all rows, domain by domain, where gradients are taken of each."""
        return super().mine(domains) if self._gradients is None else np.argsort(domains, kind="stable")

    def __call__(self, engine: Any, rows: Rows, domains: NDArray[np.int64]) -> torch.Tensor:
        index = torch.from_numpy(domains).to(self._worker.hardware.device)
        if self._gradients is not None:
            return self._step_by_domain(self._gradients, engine, rows, domains, index)
        batches = micro_batches(rows, self._worker)
        first = engine(batches[0]) if len(batches) == 1 else None
        with torch.no_grad():
            losses = first.detach() if first is not None else torch.cat([engine.module(tokens) for tokens in batches])
            per_token, _ = self._reweigh(losses, torch.cat(batches), index)
        for tokens, weight in zip(batches, per_token[index].split(self._worker.micro_batch.rows), strict=True):
            found = first if first is not None else engine(tokens)
            # DeepSpeed takes the mean over ranks and micro-batches; what is wanted is the sum.
            engine.backward((found.sum(dim=1) * weight).sum() * (self._worker.world_size * len(batches)))
            engine.step()
        return losses.sum(dim=1)

    def _step_by_domain(self, gradients: DomainGradients, engine: Any, rows: Rows, domains: NDArray[np.int64], index: torch.Tensor) -> torch.Tensor:
        _, losses = gradients.take(engine.module, rows, domains)
        with torch.no_grad():
            per_token, counts = self._reweigh(losses, torch.cat(micro_batches(rows, self._worker)), index)
        gradients.step(engine, per_token * counts)
        return losses.sum(dim=1)

    def _excess(self, losses: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[n] per row, the sum of what each token's loss exceeds the reference's by; clipped token by token."""
        reference = torch.cat([self._reference(part) for part in tokens.split(self._reference_rows)])
        return (losses - reference).clamp_(min=0).double().sum(dim=1)

    def _reweigh(self, losses: torch.Tensor, tokens: torch.Tensor, domains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Show the learner all ranks' rows; [k] what one token of each domain counts for, alpha_i over the batch's tokens of i, and [k] these tokens."""
        excess = self._excess(losses, tokens)
        sums = torch.zeros(2, len(self._learner.state.names), dtype=torch.float64, device=excess.device)
        sums[0].index_add_(0, domains, excess)
        sums[1].index_add_(0, domains, torch.full_like(excess, self._token_count))
        dist.all_reduce(sums)
        totals, counts = sums.cpu().numpy()
        if not np.isfinite(totals).all():
            job = self._worker.job
            raise UserError(f"{job.role}: the training loss is not finite; lower {job.key('learning_rate')} or raise {job.key('warmup_steps')}")
        per_token = self._learner.see(excess=totals, tokens=counts) / np.maximum(counts, 1)
        return torch.from_numpy(per_token.astype(np.float32)).to(excess.device), sums[1].float()


def by_domain(worker: Worker) -> bool:
    """Whether one gradient per domain waits for alpha: with several micro-batches, where that can be."""
    several = worker.micro_batch.rows < worker.job.training.batch_rows
    return several and _can_wait(worker.job, worker.corpus, worker.world_size, worker.hardware.device.type)


def _can_wait(job: TrainJob, corpus: TokenCorpus, world_size: int, device: str) -> bool:
    """On one rank without ZeRO that has room for the gradients, and where domains have enough tokens in a batch to keep the device busy."""
    alone = world_size == 1 and job.training.zero_stage == 0
    fits = matrix_bytes(job, corpus, 1) <= MATRIX_BYTES[device]
    return alone and fits and job.training.batch_rows * corpus.row_tokens >= DOMAIN_TOKENS[device] * len(job.weights)


def check(job: TrainJob, corpus: TokenCorpus, world_size: int) -> None:
    """Nothing that trains is refused."""


def flops(worker: Worker, steps: int) -> float:
    """Operations of the reference's forward pass, and where there are several micro-batches, of the model's second one or of the sum of k gradients."""
    training, corpus, model = worker.job.training, worker.corpus, worker.architecture
    several = worker.micro_batch.rows * worker.world_size < training.batch_rows
    passes = 2 if several and not by_domain(worker) else 1
    sums = 2.0 * len(worker.job.weights) * model.num_parameters if by_domain(worker) else 0.0
    return steps * (sums + passes * model.forward_flops(corpus.row_tokens) * training.batch_rows * corpus.row_tokens)


def kept_bytes(job: TrainJob, corpus: TokenCorpus, world_size: int) -> int:
    """On a GPU: the reference, at most in fp32, and where gradients can wait side by side these, their sum, and that of a micro-batch."""
    each = 4 * Architecture.of(job, corpus).num_parameters
    return each + (matrix_bytes(job, corpus, 1) + 2 * each if _can_wait(job, corpus, world_size, "cuda") else 0)
