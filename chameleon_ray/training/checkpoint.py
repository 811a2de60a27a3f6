"""DeepSpeed checkpoints as safetensors: nothing that is read back from storage is ever unpickled.

DeepSpeed hands its state as nested dictionaries of tensors and plain values. One safetensors file holds the tensors under their path in
the tree, and the tree itself as JSON in one more tensor of bytes: a header may not exceed 100 MB. Two kinds of objects that DeepSpeed adds
are known: the static loss scaler of fp32 and bf16 training is its one number, and the addresses of parameters inside a flat partition,
which follow from the shapes, are left out.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

_LEFT_OUT = ("fragment_address",)
_TREE = "tree"  # every path in the tree begins with a slash


def save_tree(tree: Any, path: str) -> None:
    """Write a tree of dictionaries, lists, tensors, arrays and plain values to one safetensors file."""
    tensors: dict[str, torch.Tensor] = {}
    plain = json.dumps(_encode(tree, "", tensors), allow_nan=False)
    tensors[_TREE] = torch.frombuffer(bytearray(plain.encode()), dtype=torch.uint8)
    save_file(tensors, path, metadata={"tree": _TREE})


def load_tree(path: str) -> Any:
    """Read back what `save_tree` wrote; tensors on the CPU, and arrays as tensors."""
    with safe_open(path, framework="pt") as file:
        # Copies: what is loaded is mapped from the file, which the next checkpoint may overwrite while it is still in use.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        plain = tensors.pop(file.metadata()["tree"])
    return _decode(json.loads(plain.numpy().tobytes()), tensors)


def _encode(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        items = [[_encode_key(key), _encode(item, f"{path}/{key}", tensors)] for key, item in value.items() if type(item).__name__ not in _LEFT_OUT]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if type(value).__name__ == "LossScaler":
        return {"loss_scale": value.cur_scale}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, set):
        return {"set": [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(sorted(value))]}
    raise TypeError(f"checkpoint holds a {type(value).__module__}.{type(value).__name__} at {path}, which is neither a tensor nor a plain value")


def _encode_key(key: Any) -> list[Any]:
    if not isinstance(key, (str, int)):
        raise TypeError(f"checkpoint has a key of type {type(key).__name__}")
    return ["int" if isinstance(key, int) else "str", key]


def _decode(value: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for (_, key), item in content}
    if kind in ("list", "tuple", "set"):
        return {"list": list, "tuple": tuple, "set": set}[kind](_decode(item, tensors) for item in content)
    if kind == "loss_scale":
        from deepspeed.runtime.fp16.loss_scaler import LossScaler

        return LossScaler(content)
    return getattr(torch, content) if kind == "dtype" else content
