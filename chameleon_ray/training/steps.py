"""One step of training, as a strategy: the plain one here, those that a signal takes from within the step in `signals/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.corpus.rows import Rows
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.models.compiled import compiles
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.training.micro_batch import MicroBatch


@dataclass(frozen=True)
class Worker:
    """One of the processes that train a job together: what it knows of the run, and its place in it."""

    job: TrainJob
    corpus: TokenCorpus
    hardware: Hardware
    micro_batch: MicroBatch
    rank: int = 0
    world_size: int = 1

    @property
    def architecture(self) -> Architecture:
        """Of the model that is trained."""
        return Architecture.of(self.job, self.corpus)

    @property
    def compiled(self) -> bool:
        """Whether the model's blocks are compiled; ZeRO 3 gathers their parameters by hooks that a compiled block would not see."""
        return compiles(self.hardware.device.type) and self.job.training.zero_stage < 3


class Step(Protocol):
    """What the loop asks of a strategy."""

    def mine(self, domains: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the global batch's rows (given by their domains) this worker takes, in the order it takes them."""
        ...

    def __call__(self, engine: Any, rows: Rows, domains: NDArray[np.int64]) -> torch.Tensor:
        """Gradients and optimizer step; the loss of every row, summed over its tokens, [n] nats."""
        ...


class PlainStep:
    """The mean loss over all tokens of the batch."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def mine(self, domains: NDArray[np.int64]) -> NDArray[np.int64]:
        """An equal slice."""
        return np.array_split(np.arange(len(domains)), self._worker.world_size)[self._worker.rank]

    def __call__(self, engine: Any, rows: Rows, domains: NDArray[np.int64]) -> torch.Tensor:
        found = []
        for tokens in micro_batches(rows, self._worker):
            losses = engine(tokens).sum(dim=1)
            engine.backward(losses.mean() / (tokens.shape[1] - 1))
            engine.step()
            found.append(losses.detach())
        return torch.cat(found)


def micro_batches(rows: Rows, worker: Worker) -> list[torch.Tensor]:
    """Tokens [at most a micro-batch, T] on the device."""
    tokens = torch.from_numpy(rows.tokens.astype(np.int64)).to(worker.hardware.device, non_blocking=True)
    return list(tokens.split(worker.micro_batch.rows))
