"""Time of DoGE's and DoReMi's step over a plain step of the same model, batch and micro-batches."""

from __future__ import annotations

from typing import Any

from analysis.benchmarks.first_step import first_step
from analysis.gpu.setting import Setting
from chameleon_ray.backend import Rule, TrainJob
from chameleon_ray.mixing.doge import DoGERule
from chameleon_ray.mixing.doremi import DoReMiRule
from chameleon_ray.training.worker import make_plain_engine, place

RULES: dict[str, type[Rule]] = {"doge": DoGERule, "doremi": DoReMiRule}
AIM = {"doge": 1.25, "doremi": 1.45}


def run(setting: Setting, preset: str, rule: str) -> dict[str, Any]:
    """Both kinds of step on the run's first batch; each chooses its own micro-batch, as in production."""
    reference = setting.model_folder(preset) if rule == "doremi" else ""
    plain = setting.job(preset, 100, setting.batch_rows)
    learning = setting.job(preset, 100, setting.batch_rows, RULES[rule](), reference)
    plain_rows, plain_seconds = _measure(setting, plain)
    setting.give_back()
    rule_rows, rule_seconds = _measure(setting, learning)
    return {
        "batch_rows": setting.batch_rows,
        "domains": len(setting.corpus.names),
        "micro_batch_rows": {"plain": plain_rows, "rule": rule_rows},
        "plain_seconds": plain_seconds,
        "rule_seconds": rule_seconds,
        "over_plain": rule_seconds / plain_seconds,
        "aim_over_plain": AIM[rule],
    }


def _measure(setting: Setting, job: TrainJob) -> tuple[int, float]:
    worker = place(job, setting.corpus, setting.hardware)
    step = first_step(worker, make_plain_engine(worker))
    for _ in range(2):
        step()
    return worker.micro_batch.rows, setting.seconds(step)
