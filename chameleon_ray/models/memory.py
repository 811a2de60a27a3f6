"""What rows take of a device's memory, and how many of them fit.

Sizes are in bytes. L layers of width w, rows of T tokens, a vocabulary of V, e bytes per number: 2 in bf16, 4 in fp32.

    activations   (a L + w) T e      what autograd keeps of a row: a numbers per token and block (16 w in the paper's layout), and the last norm's input
    recomputed    (w L + a + w) T e  the same if only the inputs of blocks are kept and one block at a time is computed again
    logits        e T V              logits, and in their place their gradients (`head.py`); beside them a part in fp32
    states        16 N               parameters, gradients and AdamW's two moments of N parameters in fp32; 20 N with bf16 and fp32 masters; with ZeRO a bucket;
                                     of what is frozen beside adapters e N
"""

from __future__ import annotations

import torch

from chameleon_ray.models.architecture import Architecture
from chameleon_ray.models.hardware import Hardware

# On a CPU small blocks, which stay near the caches, are faster than large ones: what rows may take there does not grow with the machine.
CPU_BYTES = 1 << 30
# Logits that are in fp32 at a time, whatever the batch.
PART_BYTES = {"cpu": 1 << 22, "cuda": 1 << 30}
# Tokens of one forward pass without gradients: enough to keep the device busy.
FORWARD_TOKENS = {"cpu": 4096, "cuda": 65536}
# Numbers that ZeRO reduces at a time, of larger models.
BUCKET = 1 << 27
# Of what a GPU has free: fragments of the allocator, buffers of collectives, kernels' workspaces.
RESERVE = 0.1


def activation_bytes(model: Architecture, row_tokens: int, number_bytes: int, recompute: bool = False) -> int:
    """Of one row in training: what is kept between its forward and its backward pass."""
    of_blocks = model.width * model.layers + model.kept_numbers if recompute else model.kept_numbers * model.layers
    return (of_blocks + model.width) * row_tokens * number_bytes


def logits_bytes(row_tokens: int, vocab_size: int, number_bytes: int) -> int:
    """Of one row in training."""
    return row_tokens * vocab_size * number_bytes


def effective_stage(zero_stage: int, number_bytes: int) -> int:
    """What is run for a ZeRO stage: in bf16 at least 1, since only there gradients are summed in fp32."""
    return max(zero_stage, 1) if number_bytes < 4 else zero_stage


def bucket(trained_parameters: int) -> int:
    """Numbers of a gradient that ZeRO reduces at a time, in fp32."""
    return min(BUCKET, trained_parameters)


def state_bytes(model: Architecture, number_bytes: int, zero_stage: int, world_size: int) -> int:
    """Parameters, and of those that are trained gradients and the optimizer's states, on one worker; ZeRO 1, 2 and 3 cut the optimizer's, the gradients' and
    the parameters' share, and keep a bucket."""
    held, trained = model.num_parameters + model.adapters, model.trained_parameters
    zero_stage = effective_stage(zero_stage, number_bytes)
    parameters, gradients = (4, 4) if number_bytes >= 4 else (2, 6)
    optimizer = 8 if number_bytes >= 4 else 12
    shares = (world_size if zero_stage >= stage else 1 for stage in (3, 2, 1))
    total = sum(part / share for part, share in zip((held * parameters, trained * gradients, trained * optimizer), shares, strict=True))
    return int(total) + (4 * bucket(trained) if zero_stage else 0)


def free_bytes(hardware: Hardware) -> int:
    """What rows may take: of a GPU's free memory all but a reserve and what the loss needs at a time, of a CPU's a fixed amount."""
    if hardware.device.type != "cuda":
        return CPU_BYTES
    return int((1 - RESERVE) * torch.cuda.mem_get_info(hardware.device)[0]) - 3 * PART_BYTES["cuda"]


def number_bytes(hardware: Hardware) -> int:
    """Bytes of one number that the hardware computes with."""
    return torch.finfo(hardware.dtype).bits // 8


def forward_rows(hardware: Hardware, row_tokens: int) -> int:
    """Rows of one forward pass without gradients: on a GPU half as many in fp32 as in bf16, which take the same memory."""
    wider = number_bytes(hardware) // 2 if hardware.device.type == "cuda" else 1
    return max(1, FORWARD_TOKENS[hardware.device.type] // wider // row_tokens)
