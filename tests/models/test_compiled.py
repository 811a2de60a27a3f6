"""Compiled blocks and losses compute what eager ones do. A CPU stands in for the GPU they are switched on for; it needs a C++ compiler."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch

from chameleon_ray.config import ModelConfig
from chameleon_ray.models import head
from chameleon_ray.models.build import build_model
from chameleon_ray.models.compiled import compile_blocks, compiles
from chameleon_ray.models.head import TokenLosses
from chameleon_ray.models.pooling import MeanHiddenState

pytestmark = [pytest.mark.long, pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(head, "compiles", lambda device_type: True)
    head._elementwise.cache_clear()
    yield
    head._elementwise.cache_clear()


def make_model(recompute: bool = False) -> Any:
    model: Any = build_model(ModelConfig(layers=3, heads=2, width=32), 211, 24, 0, seed=1).train()
    if recompute:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


@pytest.mark.parametrize("recompute", [False, True])
def test_losses_gradients_and_embeddings_agree(compiled: None, recompute: bool) -> None:
    tokens = torch.randint(0, 211, (6, 24), generator=torch.Generator().manual_seed(0))
    plain, model = make_model(), make_model(recompute)
    embedded = MeanHiddenState(plain, 2)(tokens.numpy(), np.full(6, 24))
    compile_blocks(model)
    losses = TokenLosses(model)
    expected = TokenLosses(plain)(tokens)
    for rows in (6, 5, 6):
        found = losses(tokens[:rows])
        assert (found - expected[:rows]).abs().max() < 1e-5
    with torch.no_grad():
        assert (losses(tokens) - expected).abs().max() < 1e-5
    assert (MeanHiddenState(model, 2)(tokens.numpy(), np.full(6, 24)) - embedded).abs().max() < 1e-6
    found.sum().backward()
    expected.sum().backward()
    for (name, parameter), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (parameter.grad - wanted.grad).abs().max() < 1e-3 * wanted.grad.abs().max() + 1e-5, name


def test_cpus_compile_nothing() -> None:
    assert not compiles("cpu")
