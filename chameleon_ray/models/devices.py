"""GPUs that times can be estimated for without having one."""

from __future__ import annotations

from dataclasses import dataclass

from chameleon_ray.config import Precision
from chameleon_ray.errors import UserError
from chameleon_ray.settings import nearest


@dataclass(frozen=True)
class Device:
    """Operations per second of dense matrix products at most, in bf16 and in fp32, by the vendor's data sheet, and memory."""

    name: str
    bf16_flops: float
    fp32_flops: float
    memory_bytes: int

    def peak_flops(self, precision: Precision) -> float:
        """In a number format; `auto` is bf16 here."""
        return self.fp32_flops if precision == "fp32" else self.bf16_flops


DEVICES = {
    device.name: device
    for device in (
        Device("A10G", 70e12, 31e12, 24 << 30),
        Device("A100", 312e12, 19.5e12, 80 << 30),
        Device("L4", 121e12, 30e12, 24 << 30),
        Device("L40S", 362e12, 92e12, 48 << 30),
        Device("RTX4090", 165e12, 83e12, 24 << 30),
        Device("H100", 989e12, 67e12, 80 << 30),
        Device("H200", 989e12, 67e12, 141 << 30),
        Device("B200", 2250e12, 80e12, 180 << 30),
    )
}


def device_of(name: str) -> Device:
    """A device by its name; raises `UserError` for one that is not known."""
    if name not in DEVICES:
        raise UserError(f"--device: {name!r} is not known; known: {', '.join(DEVICES)}{nearest(name, DEVICES)}")
    return DEVICES[name]
