"""Training in bf16, for the most part on a CPU that has units for it: sums of gradients in fp32, exact resumption, small steps, DoGE's gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import ModelConfig, TrainingConfig
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.models.build import build_model
from chameleon_ray.models.hardware import Hardware, cpu_has_bf16_units
from chameleon_ray.models.head import TokenLosses
from chameleon_ray.training.plan import MixturePlan
from tests.corpora import make_corpus
from tests.training.worlds import run_world, run_worlds

needs_units = pytest.mark.skipif(not cpu_has_bf16_units(), reason="this CPU has no bf16 units")

BF16 = Hardware(torch.device("cpu"), torch.bfloat16, "test")
WEIGHTS = {"alpha": 1 / 3, "beta": 1 / 3, "gamma": 1 / 3}
MODEL = {"layers": 2, "heads": 2, "width": 64}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def settings(corpus: TokenCorpus, stage: int = 0, steps: int = 12, **others: Any) -> dict[str, Any]:
    training = {"model": MODEL, "steps": steps, "batch_rows": 12, "learning_rate": 5e-4, "warmup_steps": 0, "zero_stage": stage, "checkpoint_every_steps": 4}
    return {"corpus": corpus.address, "weights": WEIGHTS, "training": training, "dtype": "bfloat16", **others}


def first_moments(corpus: TokenCorpus, training: TrainingConfig, micro_batch_rows: int, hardware: Hardware) -> torch.Tensor:
    """AdamW's after one step: a tenth of the gradient that the engine summed."""
    from chameleon_ray.training.engine import build_engine

    model = TokenLosses(build_model(training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, 0))
    engine = build_engine(model, training, hardware, micro_batch_rows, 1)
    plan = MixturePlan(WEIGHTS, corpus.rows(), 0)
    planned, _ = plan.take(plan.start(), training.batch_rows)
    tokens = torch.from_numpy(RowReader(corpus).read_mixed(plan.names, planned.domain, planned.row).tokens.astype("int64"))
    for part in tokens.split(micro_batch_rows):
        engine.backward(engine(part).mean())
        engine.step()
    states = getattr(engine.optimizer, "optimizer", engine.optimizer).state.values()
    return torch.cat([state["exp_avg"].float().flatten() for state in states])


@needs_units
def test_the_plain_engine_sums_in_fp32_too(corpus: TokenCorpus) -> None:
    """And keeps parameters in fp32: steps smaller than a bf16 number's last digit add up."""
    from chameleon_ray.training.plain_engine import PlainEngine

    training = TrainingConfig(model=MODEL, steps=1, batch_rows=32, learning_rate=1e-5, min_learning_rate=1e-5)
    tokens = torch.from_numpy(RowReader(corpus).read("alpha", np.arange(32)).tokens.astype("int64"))
    moments = []
    for rows in (32, 2):
        model = TokenLosses(build_model(training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, 0)).bfloat16()
        before = model.model.transformer.wpe.weight.float().clone()
        engine = PlainEngine(model, training, 32 // rows)
        for part in tokens.split(rows):
            engine.backward(engine(part).mean())
            engine.step()
        moments.append(torch.cat([state["exp_avg"].flatten() for state in engine.optimizer.state.values()]))
    one, sixteen = moments
    assert 1e-5 < float((one - sixteen).norm() / one.norm()) < 3.5e-3
    for _ in range(100):
        for part in tokens.split(2):
            engine.backward(engine(part).mean())
            engine.step()
    assert float((model.model.transformer.wpe.weight.float() - before).abs().mean()) > 3e-4, "a step of 1e-5 alone is lost on most of them"


@needs_units
@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_sixteen_micro_batches_agree_with_one(corpus: TokenCorpus, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 3.5 thousandths of the gradient: each micro-batch's is rounded to bf16, their sum is not. Summed in bf16 they are 4.6 thousandths apart."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    training = TrainingConfig(model=MODEL, steps=1, batch_rows=32, zero_stage=stage)
    one, sixteen = (first_moments(corpus, training, rows, BF16) for rows in (32, 2))
    assert len(one) >= sum(p.numel() for p in build_model(ModelConfig(**MODEL), corpus.vocab_size, corpus.row_tokens, 0, 0).parameters())
    assert 1e-5 < float((one - sixteen).norm() / one.norm()) < 3.5e-3


@needs_units
@pytest.mark.long
@pytest.mark.parametrize(("stage", "world"), [(0, 1), (3, 2)])
def test_a_killed_run_is_resumed_bit_identical(corpus: TokenCorpus, tmp_path: Path, stage: int, world: int) -> None:
    killed = settings(corpus, stage, die_after=6)
    whole, dead = run_worlds((tmp_path / "whole", world, settings(corpus, stage)), (tmp_path / "killed", world, killed))
    assert whole["exit"] == [0] * world, whole["output"]
    assert 9 in dead["exit"]
    resumed = run_world(tmp_path / "killed", world, **settings(corpus, stage))
    assert resumed["exit"] == [0] * world, resumed["output"]
    assert (whole["begun"], resumed["begun"]) == ([0], [0, 4])
    assert resumed["state"] == whole["state"] and resumed["curve"] == whole["curve"]


@needs_units
def test_a_run_is_the_one_in_fp32_but_for_rounding(corpus: TokenCorpus, tmp_path: Path) -> None:
    """Losses are close all along, and one worker or two make no more difference than rounding."""
    asked = (("fp32", 1, "float32"), ("one", 1, "bfloat16"), ("two", 2, "bfloat16"))
    single, one, two = run_worlds(*((tmp_path / name, world, settings(corpus, steps=20) | {"dtype": dtype}) for name, world, dtype in asked))
    for found in (one, two):
        assert set(found["exit"]) == {0}, found["output"]
        losses = [(entry["loss"], wanted["loss"]) for entry, wanted in zip(found["curve"], single["curve"], strict=True)]
        assert max(abs(loss - wanted) for loss, wanted in losses) < 5e-3


@pytest.mark.parametrize(("stage", "world"), [(0, 1), pytest.param(2, 2, marks=needs_units), pytest.param(3, 2, marks=needs_units)])
def test_steps_too_small_for_bf16_are_published(corpus: TokenCorpus, tmp_path: Path, stage: int, world: int) -> None:
    asked = settings(corpus, stage, steps=2)
    asked["training"] |= {"learning_rate": 1e-6, "min_learning_rate": 1e-6}
    found = run_world(tmp_path / "run", world, **asked)
    assert set(found["exit"]) == {0}, found["output"]
    before: Any = build_model(ModelConfig(**MODEL), corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, 0).state_dict()
    moved = torch.cat([torch.tensor(found["state"][name]) - before[name].bfloat16().double().flatten() for name in found["state"]]).abs()
    assert 0.8e-6 < float(moved.median()) < 2.5e-6, "rounded to bf16 most would not have moved"
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["dtype"] == "float32"


@needs_units
@pytest.mark.long
@pytest.mark.parametrize("method", ["doge", "doremi"])
def test_rules_in_bf16_see_what_they_see_in_fp32(corpus: TokenCorpus, tmp_path: Path, method: str) -> None:
    """On one rank and on two; DoReMi also with micro-batches, by domain on one rank and with another forward pass on two."""
    reference: Any = build_model(ModelConfig(**MODEL), corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, 7)
    reference.save_pretrained(tmp_path / "reference")
    fields = {"doge": {"mu": 1e-3, "max_norm": 2.0}, "doremi": {"step_size": 5.0}}[method]
    asked = settings(corpus, steps=3, rule={"name": method, "fields": fields}, reference=str(tmp_path / "reference"))
    micro = {"micro_batch_rows": 3, "domain_tokens": 1} if method == "doremi" else {}
    worlds = {"fp32": (1, asked | {"dtype": "float32"}), "one": (1, asked | micro), "two": (2, asked | micro)}
    single, one, two = run_worlds(*((tmp_path / name, *world) for name, world in worlds.items()))
    weights = [[entry["weight"] for entry in found["weights"]] for found in (single, one, two)]
    assert max(weights[0]) - min(weights[0]) > 1e-2
    assert method == "doge" or one["flops"] < 0.9 * two["flops"]
    for found, its in ((one, weights[1]), (two, weights[2])):
        assert set(found["exit"]) == {0}, found["output"]
        assert its == pytest.approx(weights[0], abs=4e-3)


@needs_units
def test_doges_gradient_survives_the_cast(corpus: TokenCorpus, tmp_path: Path) -> None:
    """The step is the one of fp32: Adam's first is the sign of the gradient it is handed."""
    rule = {"name": "doge", "fields": {"mu": 1e-3, "max_norm": 2.0}}
    asked = {dtype: settings(corpus, steps=1, rule=rule) | {"dtype": dtype} for dtype in ("float32", "bfloat16")}
    single, half = run_worlds(*((tmp_path / dtype, 1, each) for dtype, each in asked.items()))
    assert half["exit"] == [0], half["output"]
    before: Any = build_model(ModelConfig(**MODEL), corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, 0).state_dict()
    steps = [torch.cat([torch.tensor(found["state"][name]) - before[name].double().flatten() for name in single["state"]]) for found in (single, half)]
    moved = steps[0].abs() > 2e-4
    assert float((steps[0].sign() == steps[1].sign())[moved].double().mean()) > 0.95
