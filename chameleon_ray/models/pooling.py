"""The mean hidden state of layer L, without computing anything that it does not need.

Of a model with N blocks only the first L are run, and of one that is opened for this only they are loaded (`load_truncated`). And because the mean over
tokens commutes with a linear map, the last projection of block L is applied to the mean of its inputs, [p] instead of [T, p]: exact, and it saves a
third of the last block's matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from chameleon_ray.models.compiled import blocks_of, eagerly

# Of what the last projection gives: what scales or normalises that differs by far more, rounding by less.
SAME = 0.05
# Of our own models, whose blocks add what their last projection gives.
OWN_LAYOUT = "gpt2"
LAST_PROJECTIONS = ("mlp.c_proj", "mlp.down_proj", "mlp.dense_4h_to_h")


class MeanHiddenState:
    """Token rows -> one vector per row: the mean of hidden state `layer` over the tokens that are not padding.

    Rows are padded on the right and attention is causal, so that padding needs no mask, only to be left out of the mean. The model is any Hugging Face
    causal LM or its decoder, truncated or whole, and may be in training: it is left as it was.
    """

    def __init__(self, model: Any, layer: int) -> None:
        self._decoder = model.base_model
        self._block = blocks_of(self._decoder)[layer - 1]
        self.width = int(model.config.hidden_size)
        known = model.config.model_type == OWN_LAYOUT
        self._mean_first = last_projection(self._block) is not None and (known or self._adds_last_projection())

    @torch.no_grad()
    def __call__(self, tokens: NDArray, length: NDArray) -> torch.Tensor:
        """tokens [n, T] integers, length [n] -> [n, p] float64 on the device, which may still be computing them."""
        device = self._decoder.device
        ids = torch.as_tensor(tokens, dtype=torch.int64).to(device, non_blocking=True)
        lengths = torch.as_tensor(length, dtype=torch.int64).to(device)
        inside = torch.arange(ids.shape[1], device=device)[None, :] < lengths[:, None]
        return self._mean(ids, inside / lengths[:, None], self._mean_first).double()

    def _mean(self, ids: torch.Tensor, weights: torch.Tensor, mean_first: bool) -> torch.Tensor:
        """[n, p] in fp32."""
        if not mean_first:
            with eagerly(self._block):
                return weighted_mean(self._states(ids), weights)
        with eagerly(self._block), _mean_before_last_projection(self._block, weights, self.width) as projected:
            mean = weighted_mean(self._states(ids), weights)
        return mean + projected[0]

    @torch.no_grad()
    def _adds_last_projection(self) -> bool:
        """Whether the block adds what its last projection gives to the residual stream as it is: some families scale or normalise it first.

        Seen on a few tokens, one by one, in the precision of the model; where that cannot tell, no.
        """
        device = self._decoder.device
        count = min(8, self._decoder.config.vocab_size)
        ids = torch.arange(count, device=device).repeat(count, 1)
        tokens = torch.eye(count, device=device)  # each row's mean is one token's state
        whole = self._mean(ids, tokens, False)
        with eagerly(self._block), _mean_before_last_projection(self._block, tokens, self.width) as projected:
            parts = weighted_mean(self._states(ids), tokens) + projected[0]
        rounding = 2 * torch.finfo(self._decoder.dtype).eps * whole.norm(dim=1)
        allowed = SAME * projected[0].norm(dim=1)
        telling = allowed > rounding  # a state that is far longer than what is added to it hides everything
        return bool(telling.any() and ((whole - parts).norm(dim=1) <= allowed + rounding)[telling].all())

    def _states(self, ids: torch.Tensor) -> torch.Tensor:
        """[n, T, p] what block L puts out; what comes after it is not run."""
        kept: list[torch.Tensor] = []

        def keep(_: Any, __: Any, output: Any) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)
            raise _ReachedError

        handle = self._block.register_forward_hook(keep)
        try:
            self._decoder(input_ids=ids, use_cache=False)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return kept[0]


class _ReachedError(Exception):
    """The state wanted is there: nothing above needs to be computed."""


class _MeanFirst(nn.Module):
    """Stands in for the last projection: keeps the projected mean of what goes in, and adds nothing to the residual stream."""

    def __init__(self, projection: nn.Module, weights: torch.Tensor, width: int, projected: list[torch.Tensor]) -> None:
        super().__init__()
        self._projection, self._weights, self._width, self._projected = projection, weights, width, projected

    def forward(self, inner: torch.Tensor) -> torch.Tensor:
        self._projected.append(self._projection(weighted_mean(inner, self._weights).to(inner.dtype)))
        return inner.new_zeros(()).expand(*inner.shape[:-1], self._width)


def last_projection(block: nn.Module) -> Any:
    """A block's last linear map, where its family names it in a way that is known; else None."""
    for path in LAST_PROJECTIONS:
        parent, name = path.split(".")
        if hasattr(getattr(block, parent, None), name):
            return getattr(getattr(block, parent), name)
    return None


@contextmanager
def _mean_before_last_projection(block: nn.Module, weights: torch.Tensor, width: int) -> Iterator[list[torch.Tensor]]:
    """While it is open, the block's last projection gives its mean to the list and nothing to the block."""
    projected: list[torch.Tensor] = []
    projection = last_projection(block)
    parent, name = next((part, name) for part in block.modules() for name, child in part.named_children() if child is projection)
    setattr(parent, name, _MeanFirst(projection, weights, width, projected))
    try:
        yield projected
    finally:
        setattr(parent, name, projection)


def weighted_mean(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """states [n, T, d], weights [n, T] summing to 1 over T -> [n, d], accumulated in fp32."""
    return torch.bmm(weights.float().unsqueeze(1), states.float()).squeeze(1)
