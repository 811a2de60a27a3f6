"""Device and number format, chosen from the hardware and not from a default."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Hardware:
    """What a worker computes on; `reason` is printed."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def detect(use_gpu: bool) -> Hardware:
    """bf16 where there are units for it, else fp32: on a CPU without them bf16 was measured some 250 times slower than fp32."""
    if use_gpu:
        device = torch.device("cuda", torch.cuda.current_device())
        name = torch.cuda.get_device_name(device)
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return Hardware(device, torch.bfloat16, f"bf16 on {name}")
        return Hardware(device, torch.float32, f"fp32 on {name}, which has no bf16 units")
    if cpu_has_bf16_units():
        return Hardware(torch.device("cpu"), torch.bfloat16, "bf16 on a CPU with bf16 units")
    return Hardware(torch.device("cpu"), torch.float32, "fp32 on a CPU without bf16 units")


def cpu_has_bf16_units() -> bool:
    """Whether the processor multiplies bf16 matrices in hardware (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
