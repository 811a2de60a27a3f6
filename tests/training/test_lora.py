"""Adapters beside a frozen model: resumed exactly, cut over ranks, merged, counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from chameleon_ray.artifacts import TokenCorpus, TrainedModel
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import LoraConfig, TrainingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.models.adapters import adapter_parameters
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.models.build import build_model
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.load import load_losses, load_to_train, load_truncated
from chameleon_ray.models.memory import state_bytes
from chameleon_ray.models.pretrained import open_pretrained
from chameleon_ray.training.checkpoint import load_tree
from chameleon_ray.training.loop import check_job
from chameleon_ray.training.micro_batch import MicroBatch
from chameleon_ray.training.steps import Worker
from tests.corpora import make_corpus
from tests.families import publish
from tests.training.worlds import run_world, run_worlds

WEIGHTS = {"alpha": 0.5, "beta": 0.3, "gamma": 0.2}
CPU = Hardware(torch.device("cpu"), torch.float32, "test")
LORA: dict[str, Any] = {"rank": 4, "alpha": 16}
LLAMA_MAPS = "self_attn.q_proj, self_attn.k_proj, self_attn.v_proj, self_attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def published(family: str, corpus: TokenCorpus, folder: Path) -> str:
    """A base of two blocks of a family; of GPT-2's tied and with `Conv1D`, as this project trains them."""
    if family != "gpt2":
        return publish(family, corpus, folder, layers=2)
    from chameleon_ray.config import ModelConfig
    from chameleon_ray.corpus.tokenizer import load_tokenizer, save_tokenizer

    model: Any = build_model(ModelConfig(layers=2, heads=2, width=32), corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, 0)
    model.save_pretrained(folder)
    save_tokenizer(*load_tokenizer(corpus.tokenizer_address), str(folder))
    return str(folder)


def settings(corpus: TokenCorpus, start: str, stage: int = 0, lora: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    training = {
        "model": {"pretrained": start, "lora": lora or LORA},
        "steps": 8,
        "batch_rows": 8,
        "learning_rate": 5e-3,
        "min_learning_rate": 5e-4,
        "zero_stage": stage,
        "checkpoint_every_steps": 4,
    }
    return {"corpus": corpus.address, "weights": WEIGHTS, "training": training, "start": start, **others}


def job(corpus: TokenCorpus, start: str, lora: LoraConfig | None, tmp_path: Path) -> TrainJob:
    training = TrainingConfig.model_validate({"model": {"pretrained": start, "lora": lora}, "steps": 2, "batch_rows": 4})
    return TrainJob("base", training, WEIGHTS, 0, start=open_pretrained(start, str(tmp_path), "start"))


@pytest.mark.parametrize(("family", "stage"), [("gpt2", 0), ("llama", 1), *(pytest.param("llama", stage, marks=pytest.mark.long) for stage in (0, 2, 3))])
def test_adapters_go_on_the_same_whether_interrupted_or_not(family: str, stage: int, corpus: TokenCorpus, tmp_path: Path) -> None:
    start, ranks = published(family, corpus, tmp_path / "start"), 1 if stage == 0 else 2
    asked = settings(corpus, start, stage)
    whole, killed = run_worlds((tmp_path / "whole", ranks, asked), (tmp_path / "killed", ranks, {**asked, "die_after": 6}))
    assert whole["exit"] == [0] * ranks, whole["output"]
    assert 9 in killed["exit"], killed["output"]
    resumed = run_world(tmp_path / "killed", ranks, **asked)
    assert resumed["exit"] == [0] * ranks, resumed["output"]
    assert resumed["begun"] == [0, 4] and resumed["state"] == whole["state"] and resumed["curve"] == whole["curve"]
    assert whole["curve"][-1]["loss"] < whole["curve"][0]["loss"]
    for shard in (tmp_path / "killed" / "checkpoint").rglob("*.pt"):
        with safe_open(shard, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys() if name != "tree"]  # noqa: SIM118
        assert sum(torch.Size(shape).numel() for shape in shapes) <= 3.2 * adapter_parameters(LoraConfig(**LORA), open_pretrained(start, str(tmp_path), "x"))


def test_two_ranks_train_the_adapters_of_one(corpus: TokenCorpus, tmp_path: Path) -> None:
    asked = settings(corpus, published("llama", corpus, tmp_path / "start"))
    asked["training"]["learning_rate"], asked["training"]["min_learning_rate"] = 5e-4, 5e-5
    one, two = run_worlds((tmp_path / "one", 1, asked), (tmp_path / "two", 2, asked))
    assert one["rows"] == two["rows"] and one["state"].keys() == two["state"].keys()
    assert max(abs(a - b) for name in one["state"] for a, b in zip(one["state"][name], two["state"][name], strict=True)) < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "llama_tied"])
def test_merged_is_unmerged(family: str, corpus: TokenCorpus, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    start = published(family, corpus, tmp_path / "start")
    found = run_world(tmp_path / "run", 1, **settings(corpus, start))
    assert found["exit"] == [0], found["output"]
    folder = tmp_path / "run" / "model"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == start
    assert TrainedModel.load(str(folder)).details["start"] == open_pretrained(start, str(tmp_path), "start").digest
    assert not (folder / "model.safetensors").exists()
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start), folder)
    tokens = torch.randint(0, corpus.vocab_size, (3, 16))
    with torch.no_grad():
        expected = unmerged(input_ids=tokens, labels=tokens, output_hidden_states=True)
        untouched = AutoModelForCausalLM.from_pretrained(start)(input_ids=tokens, labels=tokens)
        losses = load_losses(str(folder), CPU)(tokens)
        state = load_truncated(str(folder), 1, CPU)(input_ids=tokens).last_hidden_state
    assert losses[:, :-1].mean() == pytest.approx(float(expected.loss), abs=1e-5) != pytest.approx(float(untouched.loss), abs=1e-3)
    assert torch.allclose(state, expected.hidden_states[1], atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_adapters_save_is_counted(family: str, corpus: TokenCorpus, tmp_path: Path) -> None:
    from chameleon_ray.training.worker import make_model

    start = published(family, corpus, tmp_path / "start")
    asked = job(corpus, start, LoraConfig(rank=4), tmp_path)
    worker = Worker(asked, corpus, CPU, MicroBatch(4))
    model = make_model(worker)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == worker.architecture.trained_parameters == adapter_parameters(LoraConfig(rank=4), asked.start)
    model.model.set_attn_implementation("eager")
    tokens = torch.randint(0, corpus.vocab_size, (4, 16))
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    # The first block's maps need no gradient of what goes into them: of two blocks that is something.
    assert counter.get_total_flops() < worker.architecture.training_flops(64, 16) < 1.12 * counter.get_total_flops()
    whole = Architecture.of(job(corpus, start, None, tmp_path), corpus)
    assert worker.architecture.training_flops(64, 16) < 0.85 * whole.training_flops(64, 16)
    assert state_bytes(worker.architecture, 4, 0, 1) < 0.5 * state_bytes(whole, 4, 0, 1)


def test_the_head_is_looked_at_before_blocks_are_compiled(corpus: TokenCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tokens go through the model for that while it is on the CPU, for which nothing should be compiled."""
    from chameleon_ray.training import worker

    asked, seen = job(corpus, published("llama", corpus, tmp_path / "start"), None, tmp_path), []
    monkeypatch.setattr(Worker, "compiled", True)
    monkeypatch.setattr(worker, "compile_blocks", lambda model: seen.append(model.get_output_embeddings()))
    losses = worker.make_model(Worker(asked, corpus, CPU, MicroBatch(4)))
    assert seen == [losses.model.get_output_embeddings()] and type(seen[0]).__name__ == "_LossHead"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_activations_computed_again_give_the_same_gradients(family: str, corpus: TokenCorpus, tmp_path: Path) -> None:
    from chameleon_ray.training.worker import make_model

    asked = job(corpus, published(family, corpus, tmp_path / "start"), LoraConfig(rank=4), tmp_path)
    tokens, found = torch.randint(0, corpus.vocab_size, (4, 16)), []
    for recompute in (False, True):
        model = make_model(Worker(asked, corpus, CPU, MicroBatch(4, recompute))).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
        model(tokens).sum().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad})
    assert found[0].keys() == found[1].keys() and all(torch.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


@pytest.mark.long
def test_adapters_in_bf16_learn_and_are_kept(corpus: TokenCorpus, tmp_path: Path) -> None:
    asked = settings(corpus, published("llama", corpus, tmp_path / "start"), dtype="bfloat16")
    whole, killed = run_worlds((tmp_path / "whole", 1, asked), (tmp_path / "killed", 1, {**asked, "die_after": 6}))
    resumed = run_world(tmp_path / "killed", 1, **asked)
    assert 9 in killed["exit"] and resumed["state"] == whole["state"]
    assert whole["curve"][-1]["loss"] < whole["curve"][0]["loss"]


def test_adapters_beside_adapters(corpus: TokenCorpus, tmp_path: Path) -> None:
    first = published("llama", corpus, tmp_path / "start")
    assert run_world(tmp_path / "once", 1, **settings(corpus, first))["exit"] == [0]
    folder = str(tmp_path / "once" / "model")
    whole = load_to_train(folder)
    tokens = torch.randint(0, corpus.vocab_size, (2, 16))
    with torch.no_grad():
        logits = whole(input_ids=tokens).logits
    whole.save_pretrained(tmp_path / "merged")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=tokens).logits, logits, atol=1e-5)
    assert not whole.config.use_cache and any(parameter.requires_grad for parameter in whole.parameters())
    again = run_world(tmp_path / "twice", 1, **settings(corpus, folder))
    assert again["exit"] == [0], again["output"]
    second = tmp_path / "twice" / "model"
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == folder
    with torch.no_grad():
        expected = PeftModel.from_pretrained(merged, second)(input_ids=tokens).logits
        assert torch.allclose(load_to_train(str(second))(input_ids=tokens).logits, expected, atol=1e-5)
    assert not torch.allclose(expected, logits, atol=1e-3), "the second adapters learned something"


def test_targets_that_match_nothing_are_told_with_those_that_exist(corpus: TokenCorpus, tmp_path: Path) -> None:
    asked = job(corpus, published("llama", corpus, tmp_path / "start"), LoraConfig(targets=("q_proj", "c_attn")), tmp_path)
    with pytest.raises(UserError, match=rf"^base\.model\.lora\.targets: no linear map of .* is called 'c_attn'; there are {LLAMA_MAPS}$"):
        check_job(asked, corpus, 1)
    few = replace(asked, training=TrainingConfig.model_validate({"model": {"pretrained": "x", "lora": {"targets": ["q_proj", "mlp.down_proj"]}}, "steps": 1}))
    assert Architecture.of(few, corpus).adapters == 16 * 2 * (32 + 32 + 48 + 32)


def test_adapters_without_their_model_are_told(corpus: TokenCorpus, tmp_path: Path) -> None:
    start = published("gpt2", corpus, tmp_path / "start")
    assert run_world(tmp_path / "run", 1, **settings(corpus, start))["exit"] == [0]
    Path(start).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"the model that its adapters belong to is not at .*start; put it back, or correct its place in adapter_config\.json"):
        load_losses(str(tmp_path / "run" / "model"), CPU)


def test_a_checkpoint_tree_is_read_back(corpus: TokenCorpus, tmp_path: Path) -> None:
    start = published("gpt2", corpus, tmp_path / "start")
    run_world(tmp_path / "run", 1, **settings(corpus, start, die_after=6))
    (shard,) = (tmp_path / "run" / "checkpoint").rglob("*model_states.pt")
    assert all("lora_" in name for name in load_tree(str(shard))["module"])
