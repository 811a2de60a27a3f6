"""One proxy of a swarm, in one process: the same loop as every other run, with a plain engine, and measured at once on held-out rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from chameleon_ray.artifacts import Cost, TokenCorpus
from chameleon_ray.backend import ProxyLosses, TrainJob
from chameleon_ray.models.build import build_model
from chameleon_ray.models.flops import forward_flops_per_token, training_flops
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.losses import domain_losses
from chameleon_ray.training import loop
from chameleon_ray.training.engine import build_optimizer


class PlainEngine:
    """What the loop asks of DeepSpeed's engine, for one process: gradient accumulation, clipping, AdamW."""

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulation: int, clipping: float) -> None:
        self.module, self.optimizer = module, optimizer
        self._accumulation, self._clipping = accumulation, clipping
        self._backwards = 0

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)

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


def train_proxy(job: TrainJob, corpus: TokenCorpus, split: str, hardware: Hardware) -> ProxyLosses:
    """Train a tiny model from scratch and measure it on a split. In fp32 everywhere: models this small gain nothing from bf16.

    Raises:
        UserError: a loss that is not finite.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    training = job.training
    micro = loop.choose_micro_batch(training.micro_batch_rows, training.batch_rows, corpus.row_tokens, corpus.vocab_size, hardware)
    model = build_model(training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, job.seed).to(hardware.device)
    engine = PlainEngine(model, build_optimizer(model, training), training.batch_rows // micro, training.gradient_clipping)
    progress = loop.train(engine, job, corpus, hardware, micro, loop.Progress(), lambda _: None)
    losses = domain_losses(model, corpus, split, hardware)
    tokens = training.steps * training.batch_rows * corpus.row_tokens
    layers, _, width = training.model.shape
    bare = 3 * forward_flops_per_token(layers, width, corpus.row_tokens, corpus.vocab_size, head=False) * tokens
    return ProxyLosses(losses, Cost(tokens, training_flops(training.model, tokens, corpus.row_tokens, corpus.vocab_size), progress.seconds, bare))
