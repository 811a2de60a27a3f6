"""Models in Hugging Face layout, opened from a folder: whole, or only as far as a layer."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from chameleon_ray import storage
from chameleon_ray.errors import UserError
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.head import TokenLosses

FINAL_NORMS = ("ln_f", "norm", "final_layer_norm", "final_layernorm")


def load_losses(address: str, hardware: Hardware) -> TokenLosses:
    """The losses of the model at an address, which is used and not trained: in eval mode on the device, without gradients."""
    model: Any = AutoModelForCausalLM.from_pretrained(storage.local_directory(address), dtype=hardware.dtype)
    return TokenLosses(model.to(hardware.device).eval().requires_grad_(False), probe=True).eval()


def load_truncated(folder: str, layer: int, hardware: Hardware) -> PreTrainedModel:
    """The first `layer` blocks of a Hugging Face causal LM, with the identity for its final norm; `last_hidden_state` is then `hidden_states[layer]`.

    Raises:
        UserError: the model has fewer blocks, lacks weights, or is of a family whose final norm is not known.
    """
    config = AutoConfig.from_pretrained(folder)
    if not 1 <= layer <= config.num_hidden_layers:
        raise UserError(f"embedding.layer: {layer} but the model in {folder} has {config.num_hidden_layers} layers; choose 1 to {config.num_hidden_layers}")
    config.num_hidden_layers = layer
    model, info = AutoModel.from_pretrained(folder, config=config, dtype=hardware.dtype, output_loading_info=True)
    if info["missing_keys"]:
        raise UserError(f"{folder}: the checkpoint lacks {sorted(info['missing_keys'])[0]} and {len(info['missing_keys']) - 1} other weights")
    norm = next((name for name in FINAL_NORMS if hasattr(model, name)), None)
    if norm is None:
        raise UserError(f"{folder}: {type(model).__name__} has none of the final norms {', '.join(FINAL_NORMS)}; this family is not supported")
    setattr(model, norm, nn.Identity())
    return model.to(hardware.device).eval()
