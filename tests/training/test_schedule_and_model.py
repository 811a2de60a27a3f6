"""Schedule, presets, initialisation, and what a step costs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chameleon_ray.config import ModelConfig, TrainingConfig
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.models.build import build_model
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.head import TokenLosses
from chameleon_ray.models.pooling import MeanHiddenState
from chameleon_ray.models.pretrained import architecture_of
from chameleon_ray.presets import PRESETS
from chameleon_ray.training.schedule import learning_rate
from tests.families import family_model

TINY = ModelConfig(layers=2, heads=2, width=32)
CPU = Hardware(torch.device("cpu"), torch.float32, "test")


def test_schedule_warms_up_and_ends_at_the_minimum() -> None:
    training = TrainingConfig(model=TINY, steps=100, learning_rate=1.0, min_learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate(training, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


@pytest.mark.parametrize(("preset", "millions"), [("60M", 60), ("82M", 82), ("124M", 124), ("210M", 210), ("684M", 684), ("1.2B", 1200)])
def test_presets_have_the_size_in_their_name(preset: str, millions: int) -> None:
    _, heads, width = PRESETS[preset]
    assert width % heads == 0
    assert Architecture.gpt2(ModelConfig(preset=preset), 50257, 1024).num_parameters / 1e6 == pytest.approx(millions, rel=0.02)


def test_parameters_and_operations_are_counted_right() -> None:
    model = build_model(TINY, 101, 16, 0, seed=0)
    shape = Architecture.gpt2(TINY, 101, 16)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    tokens = torch.randint(0, 101, (3, 16))
    model.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens).logits.sum().backward()
    assert shape.training_flops(48, 16) == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert shape.forward_flops(16, head=False) == 2 * (24 * 32**2 + 4 * 16 * 32)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt"])
def test_operations_of_computing_activations_again_are_those_that_are_run(family: str) -> None:
    found = []
    for recompute in (False, True):
        model = build_model(TINY, 101, 16, 0, seed=0) if family == "gpt2" else family_model(family, 101)
        model.set_attn_implementation("eager")
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with FlopCounterMode(display=False) as counter:
            TokenLosses(model.train())(torch.ones(3, 16, dtype=torch.int64)).sum().backward()
        found.append(counter.get_total_flops())
    assert architecture_of(model).recompute_flops(16) * 48 == found[1] - found[0] > 0


@pytest.mark.parametrize("layer", [1, 2])
def test_operations_of_embedding_are_those_that_are_run(layer: int) -> None:
    model = build_model(TINY, 101, 16, 0, seed=0)
    model.config._attn_implementation = "eager"
    embed = MeanHiddenState(model, layer)
    with FlopCounterMode(display=False) as counter:
        embed(np.ones((3, 16), np.int64), np.full(3, 16))
    assert Architecture.gpt2(TINY, 101, 16).embedding_flops(layer, 16) * 48 == counter.get_total_flops()


def test_the_seed_alone_decides_the_initial_weights() -> None:
    first, again, other = (build_model(TINY, 64, 16, 0, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])
