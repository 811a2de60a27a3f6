"""Low-rank adapters beside a frozen model, by `peft`: put there to be trained, kept in PEFT's own layout without the model, and merged into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chameleon_ray.artifacts import TrainedModel
from chameleon_ray.config import LoraConfig
from chameleon_ray.errors import UserError

ADAPTER_CONFIG = "adapter_config.json"
_NAME = "default"  # what peft calls an adapter that nobody named


def adapted_maps(lora: LoraConfig, model: TrainedModel, where: str = "base.model.lora.targets") -> list[str]:
    """The linear maps that adapters are put beside, as they are called within a block.

    Raises:
        UserError: a target that is none of them.
    """
    names = list(model.details["linear_maps"])
    for target in lora.targets:
        if not any(_is_called(name, target) for name in names):
            raise UserError(f"{where}: no linear map of {model.address} is called {target!r}; there are {', '.join(names)}")
    return [name for name in names if not lora.targets or any(_is_called(name, target) for target in lora.targets)]


def adapter_parameters(lora: LoraConfig, model: TrainedModel) -> int:
    """Of all adapters: a map from m to n numbers gets rank x (m + n)."""
    return lora.rank * sum(model.details["linear_maps"][name] for name in adapted_maps(lora, model))


def add_adapters(model: Any, lora: LoraConfig, start: TrainedModel, seed: int) -> None:
    """Put fresh adapters beside a causal LM's maps and freeze everything else; they change nothing yet (B is 0), and the same seed gives the same A."""
    import peft
    import torch
    from transformers.pytorch_utils import Conv1D

    lora_config: Any = peft.LoraConfig  # its annotations allow no fractions for alpha
    config = lora_config(
        r=lora.rank,
        lora_alpha=lora.scale * lora.rank,
        target_modules=adapted_maps(lora, start),
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    model.add_adapter(config, _NAME)
    # Where the model lies, for whoever loads the adapters: transformers knows the folder of a copy on this machine.
    model.peft_config[_NAME].base_model_name_or_path = start.address


def base_of(folder: str) -> str | None:
    """The address of the model that a folder's adapters belong to; None where a whole model lies there."""
    config = Path(folder) / ADAPTER_CONFIG
    return str(json.loads(config.read_text())["base_model_name_or_path"]) if config.exists() else None


def merged(model: Any, folder: str) -> Any:
    """A causal LM with the adapters in a folder added to its weights, so that it is an ordinary one again.

    Raises:
        UserError: adapters that are not safetensors.
    """
    from peft import PeftModel

    if not list(Path(folder).glob("*.safetensors")):
        raise UserError(f"{folder}: adapters without *.safetensors; save them with save_pretrained (pickled weights are not read)")
    return PeftModel.from_pretrained(model, folder).merge_and_unload().requires_grad_(True)  # peft leaves what it froze frozen


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
