"""DeepSpeed around a model: configuration as a pure function of the job and the hardware, and checkpoints without pickle.

Import this module inside a worker only: DeepSpeed probes the machine when it is imported.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from chameleon_ray.config import TrainingConfig
from chameleon_ray.models import memory
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.head import TokenLosses
from chameleon_ray.training.checkpoint import load_tree, save_tree
from chameleon_ray.training.optimizer import build_optimizer


def deepspeed_config(training: TrainingConfig, hardware: Hardware, micro_batch_rows: int, world_size: int, trained_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration of one run (ZeRO 0 to 3; clipping as in section B.2).

    Gradients are summed over micro-batches and ranks in fp32, whatever the model computes in. Without ZeRO DeepSpeed would sum those of a bf16 model in
    bf16 and knows no other way: such a run has its optimizer's states cut over the workers, as in stage 1.
    """
    stage = memory.effective_stage(training.zero_stage, memory.number_bytes(hardware))
    return {
        "train_batch_size": training.batch_rows,
        "train_micro_batch_size_per_gpu": micro_batch_rows,
        "gradient_accumulation_steps": training.batch_rows // (micro_batch_rows * world_size),
        "gradient_clipping": training.gradient_clipping,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": memory.bucket(trained_parameters)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": hardware.dtype == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 1 << 40,
        "wall_clock_breakdown": False,
    }


def build_engine(model: TokenLosses, training: TrainingConfig, hardware: Hardware, micro_batch_rows: int, world_size: int) -> Any:
    """A DeepSpeed engine with AdamW; matrices decay, biases and layer norms do not."""
    if hardware.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # gloo carries every collective on CPUs. DeepSpeed's own shared-memory op would need a compiler at first use, for a small gain.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer = build_optimizer(model.parameters(), training)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    config = deepspeed_config(training, hardware, micro_batch_rows, world_size, trained)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if hardware.device.type == "cuda" else "gloo", verbose=False)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.checkpoint_engine = _safetensors_engine(_frozen(model))
    return engine


def layout(training: TrainingConfig, hardware: Hardware) -> str:
    """What the shards of a checkpoint fit, beside the number of workers."""
    return f"ZeRO {training.zero_stage} in {str(hardware.dtype).removeprefix('torch.')}"


def consolidated_state(engine: Any) -> dict[str, torch.Tensor] | None:
    """The weights of the causal LM in fp32 on rank 0 (None elsewhere), or those of its adapters alone, whatever the ZeRO stage. A collective: every rank
    calls it.

    Of a bf16 run they are the optimizer's own: rounded to bf16, many small steps would be no step.
    """
    cut = engine.zero_optimization_stage() == 3
    state = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True) if cut else engine.module.state_dict()
    masters = _masters(engine) if engine.bfloat16_enabled() else {}
    if engine.global_rank != 0:
        return None
    frozen, buffers = _frozen(engine.module), dict(engine.module.named_buffers()).keys()
    rounded = {name for name, value in state.items() if value.is_floating_point()} - frozen - buffers - masters.keys()
    assert not masters or not rounded, f"no fp32 weights of {sorted(rounded)[:3]}"
    kept = {name: masters.get(name, value) for name, value in state.items() if name not in frozen}
    return {name.removeprefix("model."): value.float() if value.is_floating_point() else value for name, value in kept.items()}


def _masters(engine: Any) -> dict[str, torch.Tensor]:
    """What the optimizer steps of each trained parameter, by each of its names, on rank 0."""
    from deepspeed.utils import safe_get_full_fp32_param

    names: dict[torch.nn.Parameter, list[str]] = {}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    found: dict[str, torch.Tensor] = {}
    for parameter, each in names.items():
        master = safe_get_full_fp32_param(parameter)
        if engine.global_rank == 0:
            found |= dict.fromkeys(each, master.cpu())
    return found


def _frozen(model: torch.nn.Module) -> frozenset[str]:
    """The parameters that are not trained, by each of their names: tied ones have several."""
    return frozenset(name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad)


def _safetensors_engine(left_out: frozenset[str]) -> Any:
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    class SafetensorsCheckpointEngine(CheckpointEngine):
        """Every file DeepSpeed writes or reads goes through `save_tree` and `load_tree`. Weights that are left out follow from the digest of the model that the
        run starts from."""

        def create(self, info: Any) -> None: ...

        def save(self, state_dict: Any, path: str) -> None:
            module = state_dict.get("module")
            kept = {"module": {name: value for name, value in module.items() if name not in left_out}} if left_out and module else {}
            save_tree({**state_dict, **kept}, path)

        def load(self, path: str, map_location: Any = None) -> Any:
            return load_tree(path)

        def commit(self, info: Any) -> bool:
            return True

    return SafetensorsCheckpointEngine(None)
