"""The decoder of the paper: Hugging Face GPT-2 layout, built from a configuration; and what its matrix products cost."""

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


def forward_flops_per_token(layers: int, width: int, row_tokens: int, vocab_size: int, head: bool = True) -> float:
    """Operations of all matrix products of one forward pass, per token (a multiply-add counts as two).

    Per layer 24 width^2 for projections and feed-forward and 4 T width for attention over all T positions (what dense kernels compute; a causal
    kernel does half of the latter); 2 width V for the output head. Training takes three times as much: forward, and two products in backward.
    """
    per_layer = 24 * width**2 + 4 * row_tokens * width
    return float(layers * per_layer + (2 * width * vocab_size if head else 0))


def training_flops(config: ModelConfig, tokens: int, row_tokens: int, vocab_size: int) -> float:
    """Operations of training on so many tokens, output head included."""
    layers, _, width = config.shape
    return 3 * forward_flops_per_token(layers, width, row_tokens, vocab_size) * tokens


def num_parameters(config: ModelConfig, vocab_size: int, row_tokens: int) -> int:
    """Parameters of the GPT-2 layout with tied embeddings."""
    layers, _, width = config.shape
    return layers * (12 * width**2 + 13 * width) + 2 * width + (vocab_size + row_tokens) * width
