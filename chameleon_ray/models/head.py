"""The output head and its loss as one operation: a causal LM that answers with next-token losses instead of logits.

Logits of n tokens over a vocabulary of V are the largest thing in a small model's step, and what is done to them one by one (to fp32, logarithm of the
softmax, loss, the same backward, to the model's format) takes longer than their matrix products. Here they are written once, in the model's format, and
the backward pass puts their gradient in their place: e bytes for each of the n V instead of e + 8 to 2 e + 12. What is computed on single logits goes
part by part, in fp32: on a CPU a part stays in the caches, and on a GPU that can compile, it is one fused kernel each way.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from chameleon_ray.models.compiled import compiles
from chameleon_ray.models.memory import PART_BYTES

IGNORED = -100


class TokenLosses(nn.Module):
    """A Hugging Face causal LM as a function from tokens to next-token losses.

    The model stays usable and is saved as before: only its output head learns to take targets. A family that does more between the head and its logits
    (scales them, caps them) is computed from its own logits.
    """

    def __init__(self, model: Any, probe: bool = False) -> None:
        """With `probe` a few tokens are sent through the model, to see whether its logits are what its head makes of the last hidden state."""
        super().__init__()
        self.model = model
        self._has_plain_head = _has_plain_head(model) if probe else True
        if self._has_plain_head:
            model.set_output_embeddings(_LossHead(model.get_output_embeddings()))

    def forward(self, tokens: torch.Tensor, length: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens [n, T] int64, length [n] of what is not padding -> [n, T] nats in fp32; 0 where there is no next token or only padding."""
        targets = next_tokens(tokens, length)
        if self._has_plain_head:
            hidden = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            losses = self.model.get_output_embeddings()(hidden.flatten(0, 1), targets.flatten())
            return losses.view(tokens.shape)
        return torch.cat([self._of_logits(*parts) for parts in zip(*(each.split(self._rows_of_logits(tokens)) for each in (tokens, targets)), strict=True)])

    def _of_logits(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=tokens, use_cache=False).logits
        return _losses_of(logits.flatten(0, 1), targets.flatten()).view(tokens.shape)

    def _rows_of_logits(self, tokens: torch.Tensor) -> int:
        """As many as a part holds: all of their logits are there at once, and several times over."""
        return max(1, PART_BYTES[tokens.device.type] // (4 * tokens.shape[1] * self.model.config.vocab_size))


def next_tokens(tokens: torch.Tensor, length: torch.Tensor | None = None) -> torch.Tensor:
    """[n, T] the token that follows each, or IGNORED."""
    targets = torch.full_like(tokens, IGNORED)
    targets[:, :-1] = tokens[:, 1:]
    if length is not None:
        targets[torch.arange(tokens.shape[1], device=tokens.device)[None, :] >= length[:, None] - 1] = IGNORED
    return targets


class _LossHead(nn.Linear):
    """A head that shares another's weight, and gives losses where it is given targets."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        self.weight, self.bias = head.weight, head.bias

    def forward(self, input: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        if targets is None:
            return super().forward(input)
        if torch.is_grad_enabled():
            losses: torch.Tensor = _HeadLosses.apply(input, self.weight, self.bias, targets)
            return losses
        losses_of, _ = _elementwise(input.device.type)
        return torch.cat([losses_of(F.linear(input[part], self.weight, self.bias), targets[part]) for part in _parts(input, self.out_features)])


class _HeadLosses(torch.autograd.Function):
    """hidden [n, d], weight [V, d], bias [V] or None, targets [n] -> losses [n]. It differentiates once."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
        losses_of, _ = _elementwise(hidden.device.type)
        logits = F.linear(hidden, weight, bias)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.logits = logits
        return torch.cat([losses_of(logits[part], targets[part]) for part in _parts(logits, len(weight))])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        hidden, weight, targets = ctx.saved_tensors
        logits, ctx.logits = ctx.logits, None
        _, differentiate = _elementwise(hidden.device.type)
        for part in _parts(logits, len(weight)):
            differentiate(logits[part], targets[part], gradient[part])
        of_hidden, of_weight, of_bias, _ = ctx.needs_input_grad  # beside adapters the head is frozen
        return logits @ weight if of_hidden else None, logits.T @ hidden if of_weight else None, logits.sum(dim=0) if of_bias else None, None


def _parts(rows: torch.Tensor, vocab_size: int) -> Iterator[slice]:
    step = max(1, PART_BYTES[rows.device.type] // (4 * vocab_size))
    return (slice(i, i + step) for i in range(0, len(rows), step))


def _losses_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[n, V], [n] -> [n] in fp32."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")


def _differentiate(logits: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor) -> None:
    """Put the gradient of the losses [n, V] in the logits' place."""
    counted = (gradient * (targets != IGNORED))[:, None]
    found = logits.float()  # in fp32 the logits themselves
    torch.softmax(found, 1, out=found)
    found.mul_(counted).scatter_add_(1, targets.clamp(min=0)[:, None], -counted)
    if found is not logits:
        logits.copy_(found)


@cache
def _elementwise(device_type: str) -> tuple[Any, Any]:
    """`_losses_of` and `_differentiate`, fused where the device's compiler can."""
    if not compiles(device_type):
        return _losses_of, _differentiate
    return torch.compile(_losses_of, dynamic=True), torch.compile(_differentiate, dynamic=True)


@torch.no_grad()
def _has_plain_head(model: Any) -> bool:
    """Whether the logits are the head's product with the last hidden state, and nothing more."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    tokens = torch.arange(min(8, head.out_features), device=head.weight.device)[None, :]
    logits = model(input_ids=tokens, use_cache=False).logits
    return torch.equal(logits, head(model.base_model(input_ids=tokens, use_cache=False).last_hidden_state))
