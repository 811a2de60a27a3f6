"""What the matrix products of a GPT-2 layout decoder cost."""

from __future__ import annotations

from chameleon_ray.config import ModelConfig


def forward_flops_per_token(layers: int, width: int, row_tokens: int, vocab_size: int, head: bool = True) -> float:
    """Operations of all matrix products of one forward pass, per token (a multiply-add counts as two).

    Per layer 24 width^2 for projections and feed-forward and 4 T width for attention over all T positions (what dense kernels compute; a causal
    kernel does half of the latter); 2 width V for the output head. Training takes three times as much: forward, and two products in backward.
    """
    per_layer = 24 * width**2 + 4 * row_tokens * width
    return float(layers * per_layer + (2 * width * vocab_size if head else 0))


def embedding_flops_per_token(layers: int, width: int, row_tokens: int) -> float:
    """Operations of all matrix products that embed a row at a layer (`pooling.py`), per token.

    The last projection, 8 width^2, runs on a row's mean instead of its tokens; the two means over tokens, of width and 4 width, are products too.
    """
    per_row = 8 * width**2
    return forward_flops_per_token(layers, width, row_tokens, 0, head=False) - per_row + 10 * width + per_row / row_tokens


def training_flops(config: ModelConfig, tokens: int, row_tokens: int, vocab_size: int) -> float:
    """Operations of training on so many tokens, output head included."""
    layers, _, width = config.shape
    return 3 * forward_flops_per_token(layers, width, row_tokens, vocab_size) * tokens


def num_parameters(config: ModelConfig, vocab_size: int, row_tokens: int) -> int:
    """Parameters of the GPT-2 layout with tied embeddings."""
    layers, _, width = config.shape
    return layers * (12 * width**2 + 13 * width) + 2 * width + (vocab_size + row_tokens) * width
