"""Models in Hugging Face layout, opened from a folder: whole, or only as far as a layer; of adapters' folders with the model that they belong to."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from chameleon_ray import storage
from chameleon_ray.artifacts import TrainedModel
from chameleon_ray.corpus.tokenizer import load_tokenizer, save_tokenizer
from chameleon_ray.errors import UserError
from chameleon_ray.models.adapters import ADAPTER_CONFIG, base_of, merged
from chameleon_ray.models.compiled import blocks_of
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.head import TokenLosses

# Settings of families in whose blocks the number of all blocks counts, so that these are loaded whole and cut afterwards.
DEPTH_IN_FORMULAE = ("scale_depth", "num_kv_shared_layers")
FINAL_NORMS = ("ln_f", "norm", "final_layer_norm", "final_layernorm")


def load_losses(address: str, hardware: Hardware, allow_remote_code: bool = False) -> TokenLosses:
    """The losses of the model at an address, which is used and not trained: in eval mode on the device, without gradients."""
    folder = storage.local_directory(address)
    model = _whole(folder, allow_remote_code, hardware.dtype)
    return TokenLosses(model.to(hardware.device).eval().requires_grad_(False), probe=True).eval()


def load_to_train(folder: str, allow_remote_code: bool = False) -> PreTrainedModel:
    """The causal LM in a folder as it is to be trained further: on the CPU in fp32, without dropout, so that a resumed run repeats an uninterrupted one."""
    config = AutoConfig.from_pretrained(_without_adapters(folder), trust_remote_code=allow_remote_code)
    for name in vars(config):
        if name.endswith(("dropout", "_pdrop", "_dropout_prob")) and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    config.use_cache = False
    return _whole(folder, allow_remote_code, torch.float32, config=config).train()


def save_merged(model: TrainedModel, out: str) -> None:
    """Write a model with its tokenizer to an address as an ordinary folder in fp32 that needs no `peft`: adapters are merged into the weights.

    Raises:
        UserError: there is something already.
    """
    if storage.exists(storage.join(out, "config.json")):
        raise UserError(f"--out: {out} is there already; give a new folder")
    folder = storage.local_directory(model.address)
    whole = _whole(folder, model.allow_remote_code, torch.float32)
    with tempfile.TemporaryDirectory() as merged_folder:
        whole.save_pretrained(merged_folder, safe_serialization=True)
        save_tokenizer(*load_tokenizer(folder), merged_folder, like=folder)
        config = Path(merged_folder, "config.json").read_bytes()
        Path(merged_folder, "config.json").unlink()
        storage.publish(merged_folder, out)
        storage.write_bytes(storage.join(out, "config.json"), config)  # last: a copy that was interrupted is no model, and is made again


def load_truncated(folder: str, layer: int, hardware: Hardware, allow_remote_code: bool = False) -> PreTrainedModel:
    """The first `layer` blocks of a Hugging Face causal LM; what the last of them puts out is `hidden_states[layer]` of the whole. So is the
    `last_hidden_state`, where the family's final norm is known: the identity stands in for it.

    Raises:
        UserError: the model has fewer blocks, or lacks weights.
    """
    config = AutoConfig.from_pretrained(_without_adapters(folder), trust_remote_code=allow_remote_code)
    if not 1 <= layer <= config.num_hidden_layers:
        raise UserError(f"embedding.layer: {layer} but the model in {folder} has {config.num_hidden_layers} layers; choose 1 to {config.num_hidden_layers}")
    if base_of(folder) is not None or any(getattr(config, name, None) for name in DEPTH_IN_FORMULAE):
        model = _whole(folder, allow_remote_code, hardware.dtype).base_model
        del blocks_of(model)[layer:]
        model.config.num_hidden_layers = layer
    else:
        for name, value in vars(config).items():
            if isinstance(value, list) and len(value) == config.num_hidden_layers:  # families whose blocks differ list them
                setattr(config, name, value[:layer])
        config.num_hidden_layers = layer
        model = _loaded(AutoModel, folder, allow_remote_code, config=config, dtype=hardware.dtype)
    for norm in FINAL_NORMS:
        if hasattr(model, norm):
            setattr(model, norm, nn.Identity())
    return model.to(hardware.device).eval()


def _whole(folder: str, allow_remote_code: bool, dtype: torch.dtype, **options: Any) -> Any:
    """The causal LM in a folder; one of adapters is merged in fp32, whatever comes out."""
    base = base_of(folder)
    if base is None:
        return _loaded(AutoModelForCausalLM, folder, allow_remote_code, dtype=dtype, **options)
    return merged(_whole(_model_of_adapters(base, folder), allow_remote_code, torch.float32, **options), folder).to(dtype)


def _without_adapters(folder: str) -> str:
    """The folder of the model itself."""
    base = base_of(folder)
    return folder if base is None else _without_adapters(_model_of_adapters(base, folder))


def _model_of_adapters(address: str, folder: str) -> str:
    """The local folder of the model that adapters belong to."""
    if not storage.exists(address):
        raise UserError(f"{folder}: the model that its adapters belong to is not at {address}; put it back, or correct its place in {ADAPTER_CONFIG}")
    return storage.local_directory(address)


def _loaded(kind: Any, folder: str, allow_remote_code: bool, **options: Any) -> Any:
    """A model from safetensors; one whose weights are not all there would be filled up at random."""
    model, info = kind.from_pretrained(folder, use_safetensors=True, trust_remote_code=allow_remote_code, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} other weights" if len(missing) > 1 else ""
        raise UserError(f"{folder}: the checkpoint lacks {missing[0]}{more}; give a whole causal LM")
    return model
