"""The truncated forward pass gives the mean hidden state of layer L, no matter how it saves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from chameleon_ray.config import ModelConfig
from chameleon_ray.embedding.groups import group_of, group_sums
from chameleon_ray.errors import UserError
from chameleon_ray.models.architecture import middle_layer
from chameleon_ray.models.build import build_model
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.load import load_truncated
from chameleon_ray.models.pooling import MeanHiddenState
from tests.families import FAMILIES, family_model

CPU = Hardware(torch.device("cpu"), torch.float32, "test")
LAYERS, VOCAB, TOKENS = 4, 97, 24


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(request.param, tmp_path_factory.mktemp(request.param))


def save(family: str, path: Path) -> str:
    """A fresh model of LAYERS blocks."""
    if family == "gpt2":
        model = build_model(ModelConfig(layers=LAYERS, heads=2, width=32), VOCAB, TOKENS, 0, seed=3)
    else:
        model = family_model(family, VOCAB, layers=LAYERS, context=TOKENS, seed=3)
    model.save_pretrained(path)
    return str(path)


def hidden_states(folder: str, tokens: np.ndarray) -> tuple[torch.Tensor, ...]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens), output_hidden_states=True).hidden_states


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_equals_the_mean_of_hidden_states(folder: str, layer: int) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCAB, (5, TOKENS))
    expected = hidden_states(folder, tokens)[layer].mean(dim=1)
    found = MeanHiddenState(load_truncated(folder, layer, CPU), layer)(tokens, np.full(5, TOKENS))
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected.double(), atol=2e-6)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_that_do_more_with_their_last_projection_are_found_out(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder, tokens = save(family, tmp_path), np.random.default_rng(0).integers(0, VOCAB, (5, TOKENS))
    embed = MeanHiddenState(load_truncated(folder, 2, replace(CPU, dtype=dtype)), 2)
    plain = family in ("llama", "llama_tied", "gpt_neox", "qwen2")  # the others scale, normalise, or name it otherwise
    assert embed._mean_first is plain if dtype == torch.float32 else embed._mean_first <= plain, "in bf16 rounding may hide what is added"
    expected = hidden_states(folder, tokens)[2].mean(dim=1).double()
    assert (embed(tokens, np.full(5, TOKENS)) - expected).norm() <= (2e-6 if dtype == torch.float32 else 0.02) * expected.norm()


def test_a_token_that_outshines_the_others_does_not_hide_what_a_family_does(tmp_path: Path) -> None:
    model = family_model("granite", VOCAB, layers=LAYERS, context=TOKENS, seed=3)
    with torch.no_grad():
        model.get_input_embeddings().weight[1] *= 20
    model.save_pretrained(tmp_path)
    assert not MeanHiddenState(load_truncated(str(tmp_path), 2, replace(CPU, dtype=torch.bfloat16)), 2)._mean_first


def test_truncated_model_ends_in_the_state_itself(folder: str) -> None:
    tokens = np.random.default_rng(1).integers(0, VOCAB, (2, TOKENS))
    model = load_truncated(folder, 2, CPU)
    with torch.no_grad():
        last = model(input_ids=torch.from_numpy(tokens), use_cache=False).last_hidden_state
    assert torch.allclose(last, hidden_states(folder, tokens)[2], atol=2e-6)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())


def test_padding_never_enters_the_mean(folder: str) -> None:
    rng = np.random.default_rng(2)
    tokens, length = rng.integers(0, VOCAB, (4, TOKENS)), np.array([24, 7, 1, 13])
    embed = MeanHiddenState(load_truncated(folder, 2, CPU), 2)
    expected = torch.cat([embed(tokens[i : i + 1, :n], np.array([n])) for i, n in enumerate(length)])
    assert torch.allclose(embed(tokens, length), expected, atol=2e-6)
    other = np.where(np.arange(TOKENS)[None] < length[:, None], tokens, rng.integers(0, VOCAB, tokens.shape))
    assert torch.equal(embed(other, length), embed(tokens, length))


def test_the_middle_of_hidden_states() -> None:
    assert [middle_layer(n) for n in (1, 2, 3, 4, 6, 12)] == [1, 1, 2, 2, 3, 6]


def test_a_layer_that_is_not_there(folder: str) -> None:
    with pytest.raises(UserError, match=r"embedding\.layer: 9 but the model .* has 4 layers"):
        load_truncated(folder, 9, CPU)


def test_groups_keep_documents_together_and_lose_nothing() -> None:
    document = np.random.default_rng(0).integers(0, 1 << 40, 1000)
    vectors = np.random.default_rng(1).normal(size=(1000, 3))
    sums, counts = group_sums(vectors, document)
    assert counts.sum() == 1000
    assert counts.min() > 10
    assert sums.sum(axis=0) == pytest.approx(vectors.sum(axis=0))
    few = np.random.default_rng(2).integers(0, 50, 1000)
    assert len(set(zip(few.tolist(), group_of(few).tolist(), strict=True))) == 50, "every row of a document in its one group"
