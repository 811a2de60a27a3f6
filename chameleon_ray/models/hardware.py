"""Device and number format, chosen from the hardware and not from a default."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chameleon_ray.config import Precision


@dataclass(frozen=True)
class Hardware:
    """What a worker computes on; `reason` is printed."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def precision(self) -> str:
        """fp32 or bf16."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"


def detect(use_gpu: bool, precision: Precision = "auto") -> Hardware:
    """The device, and the number format that is asked for.

    `auto` takes bf16 where there are units for it, else fp32: on a CPU without them bf16 was measured some 250 times slower than fp32.
    """
    if use_gpu:
        device = torch.device("cuda", torch.cuda.current_device())
        name, units = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        device, name, units = torch.device("cpu"), "a CPU", cpu_has_bf16_units()
    dtype = {"auto": torch.bfloat16 if units else torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    shown = "bf16" if dtype == torch.bfloat16 else "fp32"
    return Hardware(device, dtype, f"{shown} on {name} {'with' if units else 'without'} bf16 units")


def cpu_has_bf16_units() -> bool:
    """Whether the processor multiplies bf16 matrices in hardware (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
