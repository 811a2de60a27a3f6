"""Whether the device computes what a CPU computes in fp32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from analysis.gpu.setting import Setting
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.load import load_losses
from chameleon_ray.training import loop
from chameleon_ray.training.steps import Worker
from chameleon_ray.training.worker import make_plain_engine, place

CPU = Hardware(torch.device("cpu"), torch.float32, "fp32 on a CPU")
# Nats per token: bf16 has 8 bits, and a loss is a mean over some hundred tokens that round on their own.
ROW_TOLERANCE = 0.02
TRAINING_TOLERANCE = 0.02
ROWS = 4


def run(setting: Setting, preset: str) -> dict[str, Any]:
    """Losses of a model's rows; and of a small model all along some steps of training. Raises `AssertionError` where they are further apart than stated."""
    corpus = setting.corpus
    rows = RowReader(corpus).read(corpus.names[0], np.arange(ROWS))
    tokens = torch.from_numpy(rows.tokens.astype(np.int64))
    folder = setting.model_folder(preset)
    here, there = (_row_losses(folder, hardware, tokens) for hardware in (CPU, setting.hardware))
    forward = float(np.abs(here - there).max())
    curves = [_curve(setting, hardware) for hardware in (CPU, setting.hardware)]
    training = float(np.abs(np.subtract(*curves)).max())
    assert forward <= ROW_TOLERANCE, f"a row's loss is {forward:.3g} nats per token apart, more than {ROW_TOLERANCE}"
    assert training <= TRAINING_TOLERANCE, f"a training loss is {training:.3g} nats per token apart, more than {TRAINING_TOLERANCE}"
    return {
        "rows_apart_nats": forward,
        "rows_tolerance_nats": ROW_TOLERANCE,
        "training_apart_nats": training,
        "training_tolerance_nats": TRAINING_TOLERANCE,
        "training_steps": len(curves[0]),
    }


def _row_losses(folder: str, hardware: Hardware, tokens: torch.Tensor) -> np.ndarray:
    """[n] nats per token."""
    with torch.inference_mode():
        found: np.ndarray = load_losses(folder, hardware)(tokens.to(hardware.device)).double().sum(dim=1).cpu().numpy()
    return found / (tokens.shape[1] - 1)


def _curve(setting: Setting, hardware: Hardware) -> np.ndarray:
    """The loss of every step of a small model, [steps] nats per token."""
    worker: Worker = place(setting.job("cpu-small", 20, 2 * len(setting.corpus.names)), setting.corpus, hardware)
    worker = replace(worker, micro_batch=replace(worker.micro_batch, rows=worker.job.training.batch_rows))
    columns = loop.train(make_plain_engine(worker), worker, loop.Progress(), lambda _: None).curve.table().to_pylist()
    return np.array([entry["loss"] for entry in columns if entry["domain"] == "all"])
