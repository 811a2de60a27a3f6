"""A short measurement: which rows it takes, and that it is told from a whole one."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from chameleon_ray import pipeline
from chameleon_ray.artifacts import Cost, TrainedModel
from chameleon_ray.backend import ProxyLosses, TrainJob
from chameleon_ray.config import Resources, TrainingConfig
from chameleon_ray.corpus import ray_stream
from chameleon_ray.errors import UserError
from chameleon_ray.evaluation.worker import EvaluateWorker
from chameleon_ray.experiment import Sweep, parse_experiment
from chameleon_ray.pipeline import losses_before
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend, _Measure
from chameleon_ray.records import write_record
from chameleon_ray.training import ray_swarm
from chameleon_ray.training.run import Run
from tests.corpora import make_corpus
from tests.families import publish


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks of every pass through a pool of actors, which is in this process here."""
    passes: list[int] = []

    def in_this_process(items: Sequence[dict[str, Any]], worker: type, arguments: dict[str, Any], *_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        passes.append(len(items))
        held = worker(**arguments)
        for item in items:
            found = held({key: np.array([value]) for key, value in item.items()})
            yield item["number"], {key: value[0] for key, value in found.items()}

    monkeypatch.setattr(ray_stream, "through_pool", in_this_process)
    monkeypatch.setattr(RayBackend, "_ray", property(lambda self: SimpleNamespace(start_ray=lambda: False)))
    return passes


def test_a_short_measurement_takes_rows_from_the_whole_split(tmp_path: Path, passes: list[int]) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    backend = RayBackend(str(tmp_path / "runs"), Resources(), Reporter.silent())
    model = backend.open_model(publish("llama", corpus, tmp_path / "model", context=32), corpus)
    short = replace(corpus, measured_tokens=3 * corpus.row_tokens)
    whole, part = (backend.evaluate([model], each, ("test",))[0]["test"] for each in (corpus, short))
    for name, rows in corpus.rows("test").items():
        assert rows > 6 and part[name].tokens.sum() == 3 * (corpus.row_tokens - 1) < whole[name].tokens.sum()
        taken = dict(zip(whole[name].document.tolist(), whole[name].tokens.tolist(), strict=True))
        assert all(tokens <= taken[document] for document, tokens in zip(part[name].document.tolist(), part[name].tokens.tolist(), strict=True))
        assert part[name].document.max() > 0.5 * whole[name].document.max(), "not the beginning alone"
    again = backend.evaluate([model], short, ("test",))[0]["test"]
    assert len(passes) == 2 and all((again[name].nats == part[name].nats).all() for name in part), "what is measured so is not measured again"
    job = TrainJob("base", TrainingConfig.model_validate({"model": {"preset": "cpu-tiny"}, "steps": 1}), dict.fromkeys(corpus.names, 1 / 3), 0)
    places = [backend.places.losses(model.digest, each, ("test",), each.measured_at_most) for each in (corpus, short)]
    assert len({place.address for place in places}) == 2 and all(place.is_complete for place in places)
    assert {backend.places.run(job, each).digest for each in (corpus, short)} == {backend.places.run(job, corpus).digest}, "the models stay the same"


@pytest.mark.parametrize(("factor", "told"), [(1e6, "e\\+0\\d nats a token"), (math.nan, "nan nats a token")])
def test_a_model_past_measuring_is_a_run_that_failed_also_the_second_time(
    tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch, factor: float, told: str
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    folder = publish("llama", corpus, tmp_path / "model", context=32)
    wild = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        wild.lm_head.weight *= factor
    wild.save_pretrained(folder)
    backend = RayBackend(str(tmp_path / "runs"), Resources(), Reporter.silent())
    model = backend.open_model(folder, corpus)
    with pytest.raises(UserError, match=rf"^proxy: its loss on held-out text of '\w+' .*{told}: it has diverged"):
        backend.glance(model, corpus, 2 * corpus.row_tokens)
    training = TrainingConfig.model_validate({"model": {"preset": "cpu-tiny"}, "steps": 1})
    job = TrainJob("base", training, dict.fromkeys(corpus.names, 1 / 3), 0)
    run = backend.places.run(job, corpus)
    shutil.copytree(folder, run.address)
    content = {"weights": {}, "vocab_size": model.vocab_size, "tokenizer_sha256": model.tokenizer_sha256, "details": dict(model.details)}
    write_record(run.address, "model", run.digest, {**content, "cost": asdict(Cost())})
    losses = backend.evaluate([TrainedModel.load(run.address)], corpus, ("valid",))[0]["valid"]
    assert not any(np.isfinite(loss.perplexity) for loss in losses.values())
    told_of = rf"its loss on held-out text of '\w+ \(valid\)' .*{told}: it"
    with pytest.raises(UserError, match=f"^base: {told_of} has diverged"):
        _Measure(backend.root, Resources(), corpus, ("valid",))(job, Reporter.silent())
    going_on = {"name": "x", "corpus": {"domains": {"a": {"files": ["a"]}}}, "base": {"model": {"pretrained": folder}, "steps": 1}, "stage": "finetune"}
    with pytest.raises(UserError, match=f"^base.model.pretrained: {told_of}s weights are broken"):
        losses_before([parse_experiment(going_on)], corpus, backend)
    monkeypatch.setattr("chameleon_ray.pipeline.model_to_evaluate", lambda *_: (model, corpus))
    with pytest.raises(UserError, match=f"^--model: {told_of} has diverged"):
        pipeline.evaluate(parse_experiment(going_on), folder, backend)
    outcome = backend.run_trials("past-measuring", corpus, {"wild": job}, ("valid",))["wild"]
    assert outcome.model is None and outcome.losses is None
    assert re.fullmatch(
        rf"base: its loss on held-out text of '\w+ \(valid\)' .*{told}: it has diverged; lower base\.learning_rate or raise .*", str(outcome.failure)
    )


def test_a_proxy_of_a_swarm_past_measuring_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    job = TrainJob("proxy", TrainingConfig.model_validate({"model": {"preset": "cpu-tiny"}, "steps": 1}), {}, 0, keys={"learning_rate": "methods.r.proxy.x"})
    monkeypatch.setattr("chameleon_ray.training.worker.train_proxy", lambda *_: ProxyLosses("", {"alpha": 3.0, "beta": 1e4}, Cost()))
    with pytest.raises(UserError, match=r"^proxy: its loss on held-out text of 'beta' is 1e\+04 nats a token: it has diverged; lower methods\.r\.proxy\.x"):
        ray_swarm._measure(Run(job, corpus, "digest", str(tmp_path / "proxy")), "valid", 32, False)
    assert not (tmp_path / "proxy").exists(), "nothing is half-written"


def test_fewer_rows_at_a_time_where_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    worker, asked = EvaluateWorker(corpus, use_gpu=False, threads=1), []

    def losses(self: EvaluateWorker, model: Any, tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
        asked.append(len(tokens))
        if len(tokens) > room:
            raise torch.OutOfMemoryError("made up")
        return tokens * 1.0

    monkeypatch.setattr(EvaluateWorker, "_losses", losses)
    rows, room = np.arange(70).reshape(35, 2), 10
    worker._step = 32
    assert (worker._all_losses(None, rows, rows[:, 0]) == rows).all() and asked == [32, 16, 8, 8, 8, 8, 3]
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        worker._all_losses(None, rows, rows[:, 0])


def test_how_models_are_measured_is_no_matter_of_a_sweep() -> None:
    with pytest.raises(ValueError, match=r"corpus.measured_tokens is how all base models are measured"):
        Sweep(each={"corpus.measured_tokens": (1, 2)})
