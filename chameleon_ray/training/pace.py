"""How fast this machine trains and embeds: a few real steps of models of the shapes that are asked for, timed. `python -m chameleon_ray.training.pace`

Reads a JSON list of shapes on standard input and prints, as JSON, the operations per second of each, and how long it took to import what workers import.
Several at once tell how fast several runs go side by side.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from chameleon_ray.config import ModelConfig, Precision, TrainingConfig
from chameleon_ray.models.architecture import Architecture

STEP_SECONDS, WARM_UP_SECONDS, MOST_STEPS = 1.5, 0.3, 200


@dataclass(frozen=True)
class Shape:
    """What the speed of a run depends on: the model's blocks, its tokens, the rows of one worker's step (0: forward passes that embed), and what it runs on."""

    layers: int
    heads: int
    width: int
    vocab_size: int
    row_tokens: int
    batch_rows: int
    threads: int
    use_gpu: bool
    precision: Precision

    @property
    def model(self) -> ModelConfig:
        """A fresh model of that shape."""
        return ModelConfig(layers=self.layers, heads=self.heads, width=self.width)


def measure(shapes: list[Shape]) -> list[float]:
    """Operations per second of each."""
    return [_training(shape) if shape.batch_rows else _embedding(shape) for shape in shapes]


def _training(shape: Shape) -> float:
    import torch

    from chameleon_ray.models import memory
    from chameleon_ray.models.build import build_model
    from chameleon_ray.models.hardware import detect
    from chameleon_ray.models.head import TokenLosses
    from chameleon_ray.training.plain_engine import PlainEngine

    torch.set_num_threads(shape.threads)
    config, rows, row_tokens = shape.model, shape.batch_rows, shape.row_tokens
    hardware = detect(shape.use_gpu, shape.precision)
    architecture = Architecture.gpt2(config, shape.vocab_size, row_tokens)
    each = memory.number_bytes(hardware)
    of_row = memory.activation_bytes(architecture, row_tokens, each) + memory.logits_bytes(row_tokens, shape.vocab_size, each)
    fitting = max(1, min(rows, memory.free_bytes(hardware) // of_row))
    model = TokenLosses(build_model(config, shape.vocab_size, row_tokens, 0, 0)).to(hardware.device, hardware.dtype)
    engine = PlainEngine(model, TrainingConfig(model=config, steps=1, warmup_steps=0))
    engine.train()
    tokens = torch.randint(shape.vocab_size, (fitting, row_tokens), device=hardware.device)

    def step() -> None:
        engine.backward(engine(tokens).sum(dim=1).mean() / (row_tokens - 1))
        engine.step()

    return architecture.training_flops(fitting * row_tokens, row_tokens) / _seconds(step, shape.use_gpu)


def _embedding(shape: Shape) -> float:
    import torch

    from chameleon_ray.models import memory
    from chameleon_ray.models.build import build_model
    from chameleon_ray.models.hardware import detect
    from chameleon_ray.models.pooling import MeanHiddenState

    torch.set_num_threads(shape.threads)
    config, row_tokens = shape.model, shape.row_tokens
    hardware = detect(shape.use_gpu, shape.precision)
    model: Any = build_model(config, shape.vocab_size, row_tokens, 0, 0)
    embed = MeanHiddenState(model.to(hardware.device, hardware.dtype).eval(), shape.layers)
    rows = memory.forward_rows(hardware, row_tokens)
    tokens, length = np.random.default_rng(0).integers(shape.vocab_size, size=(rows, row_tokens)), np.full(rows, row_tokens)
    flops = Architecture.gpt2(config, shape.vocab_size, row_tokens).embedding_flops(shape.layers, row_tokens)
    return rows * row_tokens * flops / _seconds(lambda: embed(tokens, length).cpu(), shape.use_gpu)


def _seconds(step: Any, use_gpu: bool) -> float:
    """Of one step: the mean over a second and a half of them."""
    import torch

    started = time.perf_counter()
    while time.perf_counter() - started < WARM_UP_SECONDS:
        step()
    wait = torch.cuda.synchronize if use_gpu else lambda: None
    wait()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < STEP_SECONDS and steps < MOST_STEPS:
        step()
        steps += 1
    wait()
    return (time.perf_counter() - started) / steps


def main() -> None:
    """Import what a worker imports, then measure."""
    shapes = [Shape(**shape) for shape in json.load(sys.stdin)]
    started = time.perf_counter()
    import deepspeed  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    imported = time.perf_counter() - started
    print(json.dumps({"import_seconds": imported, "flops_per_second": measure(shapes)}))


if __name__ == "__main__":
    main()
