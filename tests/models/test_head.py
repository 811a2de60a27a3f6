"""The output head with its loss as one operation: against logits and autograd, in memory, and for families whose logits are more than the head's product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from chameleon_ray.config import ModelConfig
from chameleon_ray.models import memory
from chameleon_ray.models.build import build_model
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.head import TokenLosses
from chameleon_ray.models.load import load_losses

VOCAB, TOKENS, ROWS = 211, 24, 5
CPU = Hardware(torch.device("cpu"), torch.float32, "test")
FAMILY = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


def make_model(dtype: torch.dtype = torch.float32) -> Any:
    return build_model(ModelConfig(layers=2, heads=2, width=32), VOCAB, TOKENS, 0, seed=1).to(dtype)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (ROWS, TOKENS), generator=generator)
    return tokens, torch.tensor([24, 3, 1, 17, 24]), torch.rand(ROWS, TOKENS, generator=generator)


def by_logits(model: Any, tokens: torch.Tensor, length: torch.Tensor | None) -> torch.Tensor:
    """Token by token from the logits."""
    logs = torch.log_softmax(model(input_ids=tokens).logits.float(), -1)
    losses = F.pad(-logs[:, :-1].gather(2, tokens[:, 1:, None]).squeeze(2), (0, 1))
    if length is not None:
        losses = losses * (torch.arange(TOKENS)[None, :] < length[:, None] - 1)
    return losses


@pytest.mark.parametrize("part_rows", [1, 7, 1 << 10])
@pytest.mark.parametrize("padded", [False, True])
def test_losses_and_gradients_are_those_of_the_logits(monkeypatch: pytest.MonkeyPatch, part_rows: int, padded: bool) -> None:
    monkeypatch.setitem(memory.PART_BYTES, "cpu", 4 * VOCAB * part_rows)
    tokens, length, weights = batch()
    lengths = length if padded else None
    expected = by_logits(plain := make_model(), tokens, lengths)
    found = (losses := TokenLosses(make_model()))(tokens, lengths)
    assert found.dtype == torch.float32 and (found - expected).abs().max() < 1e-5
    assert (found[:, -1] == 0).all() and (not padded or (found[2] == 0).all())
    for without in (torch.no_grad, torch.inference_mode):
        with without(), Allocations(4 * ROWS * TOKENS * VOCAB) as watched:
            again = losses(tokens, lengths)
        assert (again - found).abs().max() < 1e-5
        assert bool(watched.found) == (part_rows > ROWS * TOKENS), "logits are there part by part"
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, parameter), (_, wanted) in zip(losses.model.named_parameters(), plain.named_parameters(), strict=True):
        assert (parameter.grad - wanted.grad).abs().max() < 1e-5 * max(1.0, float(wanted.grad.abs().max())), name


def test_in_bf16_it_rounds_where_logits_and_their_gradients_do() -> None:
    tokens, _, weights = batch()
    expected, found = by_logits(plain := make_model(torch.bfloat16), tokens, None), (losses := TokenLosses(make_model(torch.bfloat16)))(tokens)
    assert (found - expected).abs().max() < 1e-5
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for parameter, wanted in zip(losses.model.parameters(), plain.parameters(), strict=True):
        assert (parameter.grad - wanted.grad).float().norm() < 0.02 * wanted.grad.float().norm()


class Allocations(TorchDispatchMode):
    """The storages, of so many bytes or more, that any operation made."""

    def __init__(self, at_least: int) -> None:
        super().__init__()
        self.at_least = at_least
        self.found: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()).nbytes() >= self.at_least:
                self.found[storage.data_ptr()] = storage  # kept, so that no other gets its address
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_written_once_in_the_format_of_the_model(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setitem(memory.PART_BYTES, "cpu", 4 * VOCAB * 3)
    tokens, _, weights = batch()
    size = memory.logits_bytes(TOKENS, VOCAB, torch.finfo(dtype).bits // 8) * ROWS
    losses = TokenLosses(make_model(dtype))
    with Allocations(size) as watched:
        (losses(tokens) * weights).sum().backward()
    assert [storage.nbytes() for storage in watched.found.values()] == [size]


def test_a_model_is_saved_and_used_as_before(tmp_path: Path) -> None:
    plain, model = make_model(), make_model()
    losses = TokenLosses(model)
    tokens, _, _ = batch()
    assert torch.equal(model(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is GPT2LMHeadModel and loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(load_losses(str(tmp_path), CPU)(tokens), losses(tokens))


@pytest.mark.parametrize(
    ("model", "plain_head"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**FAMILY, tie_word_embeddings=False)), True),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**FAMILY, head_dim=16, final_logit_softcapping=0.01)), False),
        (lambda: CohereForCausalLM(CohereConfig(**FAMILY, logit_scale=0.25)), False),
    ],
    ids=["llama", "gemma2", "cohere"],
)
def test_logits_that_are_more_than_the_heads_product_are_seen(tmp_path: Path, model: Any, plain_head: bool) -> None:
    torch.manual_seed(0)
    plain = model().eval()
    plain.save_pretrained(tmp_path)
    tokens, length, _ = batch()
    losses = load_losses(str(tmp_path), CPU)
    assert losses._has_plain_head == plain_head
    assert (losses(tokens, length) - by_logits(plain, tokens, length)).abs().max() < 1e-5
