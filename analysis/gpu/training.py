"""Tokens per second and use of the device in training: the production loop on its plain engine, over an eager loop that a person would write."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F

from analysis.gpu.setting import Setting
from chameleon_ray.backend import TrainJob
from chameleon_ray.models.build import build_model
from chameleon_ray.training import loop
from chameleon_ray.training.plain_engine import PlainEngine
from chameleon_ray.training.steps import Worker
from chameleon_ray.training.worker import make_plain_engine, place

AIM_MFU = {"82M": 0.45, "684M": 0.50}
WARM_STEPS = 3


def run(setting: Setting, preset: str) -> dict[str, Any]:
    """Both loops after their first steps. The use of the device (MFU) counts matrix products, attention over all positions, output head included."""
    job = setting.job(preset, WARM_STEPS + setting.steps, setting.batch_rows)
    tokens = setting.batch_rows * setting.corpus.row_tokens
    worker = place(job, setting.corpus, setting.hardware)
    seconds = _production(setting, worker)
    setting.give_back()
    eager_rows, eager_seconds = _eager(setting, job, worker.micro_batch.rows)
    flops, peak = worker.architecture.training_flops(tokens, setting.corpus.row_tokens), setting.peak_flops
    return {
        "batch_rows": setting.batch_rows,
        "micro_batch_rows": worker.micro_batch.rows,
        "tokens_per_second": tokens / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "aim_mfu": AIM_MFU.get(preset),
        "eager_micro_batch_rows": eager_rows,
        "eager_tokens_per_second": tokens / eager_seconds,
        "eager_mfu": flops / eager_seconds / peak if peak else None,
        "over_eager": eager_seconds / seconds,
    }


def _production(setting: Setting, worker: Worker) -> float:
    """Seconds of a step."""
    engine = make_plain_engine(worker)
    began = 0.0

    def on_step(step: int, _: float) -> None:
        nonlocal began
        if step == WARM_STEPS:
            setting.wait()
            began = time.perf_counter()

    loop.train(engine, worker, loop.Progress(), lambda _: None, on_step)
    setting.wait()
    return (time.perf_counter() - began) / setting.steps


def _eager(setting: Setting, job: TrainJob, rows: int) -> tuple[int, float]:
    """As many rows at a time as fit, from the production loop's number down, and seconds of a step: eager attention, logits in fp32, nothing compiled."""
    while True:
        try:
            return rows, _eager_seconds(setting, job, rows)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        setting.give_back()
        rows = max(divisor for divisor in range(1, rows // 2 + 1) if job.training.batch_rows % divisor == 0)


def _eager_seconds(setting: Setting, job: TrainJob, rows: int) -> float:
    corpus, hardware, training = setting.corpus, setting.hardware, job.training
    model: Any = build_model(training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, 0)
    model.set_attn_implementation("eager")
    engine = PlainEngine(model.to(hardware.device, hardware.dtype), training, training.batch_rows // rows)
    tokens = torch.randint(0, corpus.vocab_size, (training.batch_rows, corpus.row_tokens), device=hardware.device)

    def step() -> None:
        for part in tokens.split(rows):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1]
            engine.backward(F.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten()))
            engine.step()

    step()
    return setting.seconds(step)
