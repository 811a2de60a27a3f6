"""One step of training, as a strategy: the plain one here, DoReMi's and DoGE's in files of their own.

A strategy says which rows of a global batch a rank works on, and turns them into gradients of DeepSpeed's engine; `state` is what its rule
has learned and belongs to the checkpoint.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import RuleState, TrainJob
from chameleon_ray.corpus.rows import Rows
from chameleon_ray.models.flops import forward_flops_per_token, num_parameters
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.losses import row_losses


class Step(Protocol):
    """What the loop asks of a strategy."""

    @property
    def state(self) -> RuleState | None:
        """What the rule has learned so far."""
        ...

    def mine(self, domains: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the global batch's rows (given by their domains) this rank takes, in the order it takes them."""
        ...

    def __call__(self, engine: Any, rows: Rows, domains: NDArray[np.int64], learning_rate: float) -> torch.Tensor:
        """Gradients and optimizer step; the loss of every row, summed over its tokens, [n] nats."""
        ...


class PlainStep:
    """The mean loss over all tokens of the batch."""

    state: RuleState | None = None

    def __init__(self, hardware: Hardware, micro_batch_rows: int, rank: int, world_size: int) -> None:
        self._hardware, self._micro = hardware, micro_batch_rows
        self._rank, self._world_size = rank, world_size

    def mine(self, domains: NDArray[np.int64]) -> NDArray[np.int64]:
        """An equal slice."""
        return np.array_split(np.arange(len(domains)), self._world_size)[self._rank]

    def __call__(self, engine: Any, rows: Rows, domains: NDArray[np.int64], learning_rate: float) -> torch.Tensor:
        found = []
        for tokens in micro_batches(rows, self._micro, self._hardware):
            losses = row_losses(engine(input_ids=tokens, use_cache=False).logits, tokens).sum(dim=1)
            engine.backward(losses.mean() / (tokens.shape[1] - 1))
            engine.step()
            found.append(losses.detach())
        return torch.cat(found)


def make_step(job: TrainJob, corpus: TokenCorpus, hardware: Hardware, micro_batch_rows: int, rank: int, world_size: int, state: RuleState | None) -> Step:
    """The strategy of a job: the plain one, or that of its rule, going on from a state."""
    if job.rule is None:
        return PlainStep(hardware, micro_batch_rows, rank, world_size)
    state = state or job.rule.start(len(job.weights))
    if job.rule.name == "doremi":
        from chameleon_ray.training.doremi import DoReMiStep

        return DoReMiStep(job, corpus, hardware, micro_batch_rows, rank, world_size, state)
    from chameleon_ray.training.doge import DoGEStep

    return DoGEStep(job, hardware, micro_batch_rows, rank, world_size, state)


def engine_micro_batch(job: TrainJob, micro_batch_rows: int, world_size: int) -> int:
    """Rows between two calls of the engine's `step`: DoGE hands it the gradient of a whole batch at once."""
    return job.training.batch_rows // world_size if job.rule is not None and job.rule.name == "doge" else micro_batch_rows


def extra_flops(job: TrainJob, corpus: TokenCorpus, micro_batch_rows: int, world_size: int) -> float:
    """Operations of a run's matrix products beyond plain training: DoReMi's further forward passes, DoGE's four products with k gradients."""
    training = job.training
    if job.rule is None:
        return 0.0
    if job.rule.name == "doge":
        return 8.0 * training.steps * len(job.weights) * num_parameters(training.model, corpus.vocab_size, corpus.row_tokens)
    layers, _, width = training.model.shape
    passes = 1 if micro_batch_rows * world_size == training.batch_rows else 2
    return passes * forward_flops_per_token(layers, width, corpus.row_tokens, corpus.vocab_size) * training.steps * training.batch_rows * corpus.row_tokens


def micro_batches(rows: Rows, micro_batch_rows: int, hardware: Hardware) -> list[torch.Tensor]:
    """Tokens [at most micro_batch_rows, T] on the device."""
    tokens = torch.from_numpy(rows.tokens.astype(np.int64)).to(hardware.device, non_blocking=True)
    return list(tokens.split(micro_batch_rows))
