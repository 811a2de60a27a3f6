"""What is compiled before it runs, where the hardware gains by it."""

from __future__ import annotations

import os
import shutil
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton


@cache
def compiles(device_type: str) -> bool:
    """Whether kernels are made on the spot: on GPUs that Triton knows, with a C compiler and Python's headers for what launches them."""
    if device_type != "cuda" or not has_triton():
        return False
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    folders = {sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")}  # a system's own Python has them in the second
    return compiler is not None and any((Path(folder) / "Python.h").exists() for folder in folders)


def blocks_of(decoder: Any) -> nn.ModuleList:
    """The blocks of a Hugging Face decoder, in order, wherever its family keeps them."""
    return next(part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == decoder.config.num_hidden_layers)


def compile_blocks(model: Any) -> None:
    """Compile the blocks of a causal LM in place. They are alike, so that one is compiled for all; parameters keep their names."""
    for block in blocks_of(model.base_model):
        block.compile()


def eagerly(block: nn.Module) -> AbstractContextManager[Any]:
    """While it is open a compiled block runs as it is written, so that hooks and stand-ins for its parts are seen."""
    return torch.compiler.set_stance("force_eager") if block._compiled_call_impl is not None else nullcontext()
