"""Finetuning end to end: a GPT-2 layout base that this project trained, whole, and a Llama with LoRA; before and after, embedded once, merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from chameleon_ray import finetune
from chameleon_ray.artifacts import TrainedModel
from chameleon_ray.backend import TrainJob
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, load_experiment, parse_experiment
from chameleon_ray.mixing.text_quality import GLANCE_TOKENS
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.load import load_losses
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.report.data import BEFORE
from tests.families import publish
from tests.ray.test_end_to_end import NAMES, run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("session")]


def silent(experiment: Experiment) -> RayBackend:
    return RayBackend(experiment.storage, experiment.resources, Reporter.silent())


def written(document: dict[str, Any], folder: Path) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finetuning(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny experiment of the finetuning stage, without its base."""
    folder = tmp_path_factory.mktemp("finetuning")
    corpus = experiment.corpus.model_dump(mode="json", include={"domains", "row_tokens"})
    base = {"steps": 12, "batch_rows": 6, "learning_rate": 1e-2, "min_learning_rate": 1e-3}
    return {"name": "tuned", "stage": "finetune", "storage": str(folder / "runs"), "corpus": corpus, "base": base, "embedding": {"samples_per_domain": 64}}


@pytest.fixture(scope="module")
def own_base(experiment: Experiment) -> str:
    """A base model of this project's own layout, trained on two of the three domains."""
    backend = silent(experiment)
    corpus = backend.tokenize(experiment.corpus, 0, experiment.reads)
    job = TrainJob("base", experiment.base, {"recipes": 0.5, "letters": 0.5, "numbers": 0.0}, 0)
    return backend.train_many(corpus, [job])[0].address


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.corpora import make_corpus

    folder = tmp_path_factory.mktemp("llama")
    return publish("llama", make_corpus(folder / "corpus"), folder / "model", context=32)


def test_a_base_of_our_own_is_finetuned_whole(
    finetuning: dict[str, Any], own_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], passed: list[tuple[str, int]]
) -> None:
    document = {**finetuning, "seeds": [1], "base": {**finetuning["base"], "model": {"pretrained": own_base}}}
    document["sweep"] = {"each": {"methods.alpha_ft.temperature": [{"relative": 0.5}, {"relative": 2.0}], "methods.alpha_ft.ridge": [{"energy": 0.3}]}}
    path = written(document, tmp_path)
    status, out, err = run(capsys, "finetune", path)
    assert status == 0, err
    for word in ("alpha_ft", "alpha_pt", "before training", "higher than before on", "report:"):
        assert word in " ".join(out.split()), word
    found = finetune(load_experiment(path), silent(load_experiment(path)))
    assert set(found.models) == {(label, seed) for label in ("uniform", "alpha_ft", "alpha_pt") for seed in (1,)}
    assert found.data.before is not None and set(found.data.before["method"].to_pylist()) == {BEFORE}
    losses = {(row["domain"], row["split"]): row["value"] for row in found.data.before.to_pylist() if row["metric"] == "loss_nats"}
    after = {
        (row["domain"], row["split"]): row["value"]
        for row in found.data.measurements.to_pylist()
        if row["metric"] == "loss_nats" and (row["method"], row["seed"]) == ("uniform", 1)
    }
    assert losses["numbers", "test"] > losses["recipes", "test"] + 0.2, "the base has never seen numbers"
    assert after["numbers", "test"] < losses["numbers", "test"] - 0.2, "and learns them by finetuning"
    ft, pt = (found.data.mixtures[label] for label in ("alpha_ft", "alpha_pt"))
    assert ft.provenance["proxy"] == pt.provenance["proxy"] == TrainedModel.load(own_base).digest, "the base itself embeds"
    corpus, samples = found.data.corpus, finetuning["embedding"]["samples_per_domain"]
    embedded = sum(min(rows, samples) for rows in corpus.rows().values()) * corpus.row_tokens
    glanced = sum(min(rows, GLANCE_TOKENS // corpus.row_tokens) for rows in corpus.rows("valid").values()) * corpus.row_tokens
    assert ft.cost.tokens == embedded + glanced and TrainedModel.load(own_base).cost.tokens > 0, "what trained the base bought no weights"
    distinct = max(ft.weights, key=lambda name: ft.weights[name])
    assert ft.weights[distinct] > 1 / 3 > pt.weights[distinct], "the odd one out gets more when finetuning"
    assert [address for address, _ in passed] == [own_base], "the sweep embeds once"
    assert found.data.sweep is not None and len(set(found.data.sweep["point"].to_pylist())) == 3
    rows = {label: found.models[label, 1].details["rows_drawn"] for label in ("uniform", "alpha_ft")}
    assert sum(rows["uniform"].values()) == sum(rows["alpha_ft"].values()) == 12 * 6


def test_a_llama_is_finetuned_by_lora_and_merged(
    finetuning: dict[str, Any], llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], passed: list[tuple[str, int]]
) -> None:
    base = {**finetuning["base"], "model": {"pretrained": llama, "lora": {"rank": 4}}, "learning_rate": 1e-3, "precision": "fp32"}
    static = {"method": "fixed", "weights": {"recipes": 0.5, "letters": 0.3, "numbers": 0.2}}
    document = {**finetuning, "base": base, "methods": {"uniform": {}, "alpha_ft": {"method": "chameleon"}, "static": static}}
    status, out, err = run(capsys, "finetune", written(document, tmp_path), "--json")
    assert status == 0, err
    found = {model["label"]: model for model in json.loads(out)["models"]}
    assert set(found) == {"uniform", "alpha_ft", "static"} and passed == [(llama, 3 * 64)], "the Llama itself embeds, once"
    model = found["uniform"]
    assert {row["domain"] for row in json.loads(out)["before"]} == {*NAMES, "all"}
    assert model["trained_parameters"] < 0.2 * model["parameters"] and model["adapters_of"] == llama
    hardware, tokens = Hardware(torch.device("cpu"), torch.float32, "test"), torch.arange(48).view(2, 24)
    losses = load_losses(model["address"], hardware)(tokens)
    status, out, err = run(capsys, "merge", model["address"], "--out", tmp_path / "merged")
    assert status == 0, err
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists() and len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == 320
    with torch.no_grad():
        merged = whole(input_ids=tokens, labels=tokens).loss
    assert losses[:, :-1].mean() == pytest.approx(float(merged), abs=1e-5)
    status, _, err = run(capsys, "merge", model["address"], "--out", tmp_path / "merged")
    assert status == 2 and err.strip().endswith(f"error: --out: {tmp_path}/merged is there already; give a new folder")
    status, out, err = run(capsys, "evaluate", tmp_path / "experiment.yaml", "--model", model["address"])
    assert status == 0 and "Perplexity on valid and test" in out, err


@pytest.mark.long
def test_two_workers_train_the_adapters_of_one(finetuning: dict[str, Any], llama: str, tmp_path: Path) -> None:
    base = {**finetuning["base"], "model": {"pretrained": llama, "lora": {"rank": 4}}, "learning_rate": 1e-3, "precision": "fp32"}
    hardware, tokens = Hardware(torch.device("cpu"), torch.float32, "test"), torch.arange(48).view(2, 24)
    losses = []
    for workers in (1, 2):
        document = {**finetuning, "base": {**base, "zero_stage": 3}, "methods": {"uniform": {}}, "storage": f"{tmp_path}/{workers}"}
        experiment = parse_experiment({**document, "resources": {"num_workers": workers}})
        (model,) = finetune(experiment, silent(experiment)).models.values()
        losses.append(load_losses(model.address, hardware)(tokens))
    assert torch.allclose(*losses, atol=1e-4)


@pytest.mark.long
def test_adapters_of_a_model_that_was_changed_are_refused(finetuning: dict[str, Any], llama: str, tmp_path: Path) -> None:
    import shutil

    from tests.families import family_model

    moved = shutil.copytree(llama, tmp_path / "model")
    base = {**finetuning["base"], "model": {"pretrained": str(moved), "lora": {"rank": 2, "targets": ["q_proj"]}}, "steps": 2}
    experiment = parse_experiment({**finetuning, "storage": str(tmp_path / "runs"), "base": base, "methods": {"uniform": {}}})
    (model,) = finetune(experiment, silent(experiment)).models.values()
    family_model("llama", 320, context=32, seed=7).save_pretrained(moved)
    with pytest.raises(UserError, match=rf"^--model: {moved} is not what it was when the adapters in .* were trained beside it; put that model back"):
        silent(experiment).find_model(model.address, 32, "--model")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("base.model.lora={targets: [c_attn]}", r"error: base.model.lora.targets: no linear map of .* is called 'c_attn'; there are self_attn.q_proj, "),
        (
            "sweep={train_base: true, each: {base.model.lora.targets: [[q_proj], [c_attn]]}}",
            r"error: sweep at base.model.lora.targets=\[c_attn\]: base.model.lora.targets: no linear map of .* is called 'c_attn'",
        ),
        ("corpus.row_tokens=64", r"error: base.model.pretrained: .* reads at most 32 tokens and corpus.row_tokens is 64; lower corpus.row_tokens"),
        ("base.model.pretrained=null", r"error: .*: base.model: stage finetune goes on from a model that is trained already"),
        ("corpus.tokenizer={train: {vocab_size: 400}}", r"error: base.model.pretrained: .* has another tokenizer than the corpus"),
    ],
)
def test_what_cannot_be_finetuned_is_one_line(
    finetuning: dict[str, Any], llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, told: str
) -> None:
    import re

    document = {**finetuning, "storage": str(tmp_path / "runs"), "base": {**finetuning["base"], "model": {"pretrained": llama}}}
    status, _, err = run(capsys, "finetune", written(document, tmp_path), override)
    line = err.strip().splitlines()[-1]
    assert status == 2 and re.match(told, line), line
    assert not (tmp_path / "runs").exists(), "nothing was read"
