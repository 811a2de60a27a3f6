"""What a training run will take, by the same formulae that it is planned and accounted by."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import Precision
from chameleon_ray.models import memory
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.models.devices import Device
from chameleon_ray.models.hardware import Hardware, detect
from chameleon_ray.training.loop import run_flops
from chameleon_ray.training.micro_batch import choose_micro_batch
from chameleon_ray.training.signals import signal_of
from chameleon_ray.training.steps import Worker


@dataclass(frozen=True)
class RunForecast:
    """Of all workers the operations; of one worker the memory of its device; on disk the finished model."""

    flops: float
    memory_bytes: int
    model_bytes: int


def run_forecast(job: TrainJob, corpus: TokenCorpus, use_gpu: bool, world_size: int, device: Device | None = None) -> RunForecast:
    """Of a whole run, if its rule does not end it early.

    Args:
        device: the GPU that it is meant for, where that is not this machine's.
    """
    hardware, room = _target(use_gpu, job.training.precision, device)
    signal = signal_of(job)
    kept = signal.kept_bytes(job, corpus, world_size) if signal else 0
    micro_batch = choose_micro_batch(job, corpus, hardware, world_size, kept, room)
    worker = Worker(job, corpus, hardware, micro_batch, 0, world_size)
    each = memory.number_bytes(hardware)
    of_row = memory.activation_bytes(worker.architecture, corpus.row_tokens, each, micro_batch.recompute)
    of_row += memory.logits_bytes(corpus.row_tokens, corpus.vocab_size, each)
    states = memory.state_bytes(worker.architecture, each, job.training.zero_stage, world_size)
    _, flops = run_flops(worker, job.training.steps)
    return RunForecast(flops, states + kept + micro_batch.rows * of_row, 4 * worker.architecture.trained_parameters)


def forward_bytes(model: Architecture, row_tokens: int, layers: int | None, use_gpu: bool, precision: Precision = "auto", device: Device | None = None) -> int:
    """Memory of an actor that passes rows through a model, or through its first blocks: parameters, what a block computes of the rows of one pass, and where
    losses are asked for, a part of their logits.

    Args:
        layers: the blocks; None for all of them, and losses.
    """
    hardware, _ = _target(use_gpu, precision, device)
    each = memory.number_bytes(hardware)
    left_out = (model.layers - layers) * model.block_products if layers is not None else 0
    rows = memory.forward_rows(hardware, row_tokens)
    logits = memory.PART_BYTES[hardware.device.type] if layers is None else 0
    return (model.num_parameters - left_out) * each + rows * row_tokens * (model.kept_numbers + model.width) * each + logits


def _target(use_gpu: bool, precision: Precision, device: Device | None) -> tuple[Hardware, int | None]:
    if device is None:
        return detect(use_gpu, precision), None
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    return Hardware(torch.device("cuda"), dtype, device.name), int((1 - memory.RESERVE) * device.memory_bytes) - 3 * memory.PART_BYTES["cuda"]
