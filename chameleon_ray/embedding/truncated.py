"""The mean hidden state of layer L, without computing anything that it does not need.

Of a model with N blocks only the first L are loaded: no upper blocks, no final norm, no head. And because the mean over tokens commutes with
a linear map, the last projection of block L is applied to the mean of its inputs, [p] instead of [T, p]: exact, and it saves a third of the
last block's matrix products.
"""

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from chameleon_ray.errors import UserError
from chameleon_ray.training.hardware import Hardware

FINAL_NORMS = ("ln_f", "norm", "final_layer_norm", "final_layernorm")
LAST_PROJECTIONS = ("mlp.c_proj", "mlp.down_proj", "mlp.dense_4h_to_h")


def middle_layer(num_layers: int) -> int:
    """The middle entry of the N + 1 hidden states (0 is the token embedding), as in the authors' script."""
    return (num_layers + 1) // 2


def load_truncated(folder: str, layer: int, hardware: Hardware) -> PreTrainedModel:
    """The first `layer` blocks of a Hugging Face causal LM, with the identity for its final norm; `last_hidden_state` is then `hidden_states[layer]`.

    Raises:
        UserError: the model has fewer blocks, lacks weights, or is of a family whose final norm is not known.
    """
    config = AutoConfig.from_pretrained(folder)
    if not 1 <= layer <= config.num_hidden_layers:
        raise UserError(f"embedding.layer: {layer} but the model in {folder} has {config.num_hidden_layers} layers; choose 1 to {config.num_hidden_layers}")
    config.num_hidden_layers = layer
    model, info = AutoModel.from_pretrained(folder, config=config, dtype=hardware.dtype, attn_implementation="sdpa", output_loading_info=True)
    if info["missing_keys"]:
        raise UserError(f"{folder}: the checkpoint lacks {sorted(info['missing_keys'])[0]} and {len(info['missing_keys']) - 1} other weights")
    norm = next((name for name in FINAL_NORMS if hasattr(model, name)), None)
    if norm is None:
        raise UserError(f"{folder}: {type(model).__name__} has none of the final norms {', '.join(FINAL_NORMS)}; this family is not supported")
    setattr(model, norm, nn.Identity())
    return model.to(hardware.device).eval()


class _MeanFirst(nn.Module):
    """Stands in for the last projection: keeps the mean of what goes in, and adds nothing to the residual stream."""

    def __init__(self, projection: nn.Module, width: int) -> None:
        super().__init__()
        self._projection = projection
        self._width = width
        self.token_weights: torch.Tensor | None = None
        self.projected_mean: torch.Tensor | None = None

    def forward(self, inner: torch.Tensor) -> torch.Tensor:
        assert self.token_weights is not None
        self.projected_mean = self._projection(_weighted_mean(inner, self.token_weights).to(inner.dtype))
        return inner.new_zeros(()).expand(*inner.shape[:-1], self._width)


class MeanHiddenState:
    """Token rows -> one vector per row: the mean of hidden state `layer` over the tokens that are not padding.

    Rows are padded on the right and attention is causal, so that padding needs no mask, only to be left out of the mean.
    """

    def __init__(self, folder: str, layer: int, hardware: Hardware) -> None:
        self._hardware = hardware
        self._model = load_truncated(folder, layer, hardware)
        self.width = int(self._model.config.hidden_size)
        self.vocab_size = int(self._model.config.vocab_size)
        self._last = self._shorten_last_block()

    @torch.inference_mode()
    def __call__(self, tokens: NDArray, length: NDArray) -> torch.Tensor:
        """tokens [n, T] integers, length [n] -> [n, p] float64 on the CPU."""
        ids = torch.as_tensor(tokens, dtype=torch.int64).to(self._hardware.device, non_blocking=True)
        lengths = torch.as_tensor(length, dtype=torch.int64).to(self._hardware.device)
        inside = torch.arange(ids.shape[1], device=ids.device)[None, :] < lengths[:, None]
        weights = inside / lengths[:, None]
        if self._last is not None:
            self._last.token_weights = weights
        mean = _weighted_mean(self._model(input_ids=ids, use_cache=False).last_hidden_state, weights)
        if self._last is not None:
            assert self._last.projected_mean is not None
            mean = mean + self._last.projected_mean
        return mean.double().cpu()

    def _shorten_last_block(self) -> _MeanFirst | None:
        """Families whose last projection is not known are computed in full."""
        blocks = next(child for child in self._model.children() if isinstance(child, nn.ModuleList))
        for path in LAST_PROJECTIONS:
            parent_name, name = path.split(".")
            parent = getattr(blocks[-1], parent_name, None)
            if parent is not None and hasattr(parent, name):
                stand_in = _MeanFirst(getattr(parent, name), self.width)
                setattr(parent, name, stand_in)
                return stand_in
        return None


def _weighted_mean(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """states [n, T, d], weights [n, T] summing to 1 over T -> [n, d], accumulated in fp32."""
    return torch.bmm(weights.float().unsqueeze(1), states.float()).squeeze(1)
