"""The decoder of the paper, built from a configuration in the layout of Hugging Face's GPT-2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chameleon_ray.config import ModelConfig

if TYPE_CHECKING:
    import torch


def build_model(config: ModelConfig, vocab_size: int, row_tokens: int, end_of_document: int, seed: int) -> torch.nn.Module:
    """A freshly initialised `GPT2LMHeadModel`; the same seed gives the same weights whatever the mixture or the number of workers.

    Dropout is 0 (a resumed run then repeats an uninterrupted one bit by bit). The activation is GPT-2's tanh approximation of GELU in its
    fused form: the same function as `gelu_new`, a quarter of the memory traffic.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, heads, width = config.shape
    layout = GPT2Config(
        vocab_size=vocab_size,
        n_positions=row_tokens,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_of_document,
        eos_token_id=end_of_document,
        use_cache=False,
    )
    layout._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    return GPT2LMHeadModel(layout)
