"""What is compiled before it runs, where the hardware gains by it."""

from __future__ import annotations

import shutil
from functools import cache
from importlib.util import find_spec
from typing import Any

from torch import nn


@cache
def compiles(device_type: str) -> bool:
    """Whether kernels are made on the spot: on GPUs, which need Triton for it, and a C compiler for what launches them."""
    return device_type == "cuda" and find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))


def blocks_of(decoder: Any) -> nn.ModuleList:
    """The blocks of a Hugging Face decoder, in order."""
    return next(child for child in decoder.children() if isinstance(child, nn.ModuleList))


def compile_blocks(model: Any) -> None:
    """Compile the blocks of a causal LM in place. They are alike, so that one is compiled for all; parameters keep their names."""
    for block in blocks_of(model.base_model):
        block.compile()
