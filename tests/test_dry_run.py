"""What a command would do: planned by the code that does it, nothing started or written, in numbers that the run itself would record."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.benchmarks import synthetic
from chameleon_ray.cli import main
from chameleon_ray.corpus_config import load_changes
from chameleon_ray.dry_backend import READING_BYTES, DryBackend, Item
from chameleon_ray.dry_run import forecast, plan_compare, plan_evaluate, plan_extend, plan_mix, plan_train
from chameleon_ray.embedding.clusters import SearchSize
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.mixture import Mixture
from chameleon_ray.models.devices import DEVICES
from chameleon_ray.pace import Pace, measured_pace, processes_of, stated_pace
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend

MODEL = {"layers": 2, "heads": 2, "width": 32}
TRAINING = {"model": MODEL, "steps": 20, "batch_rows": 8}
KINDS = ("law", "food", "code")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    chance = random.Random(0)
    for kind in KINDS:
        words = [f"{kind}{i}" for i in range(50)]
        documents = [" ".join(chance.choices(words, k=chance.randint(40, 160))) for _ in range(100)]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps({"text": text, "kind": kind}) + "\n" for text in documents))
    return folder


def document(texts: Path, runs: Path, **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": "planned",
        "storage": str(runs),
        "corpus": {
            "domains": {kind: {"files": [f"{texts}/{kind}.jsonl"]} for kind in KINDS},
            "tokenizer": {"train": {"vocab_size": 400}},
            "row_tokens": 32,
            "heldout_tokens": 512,
        },
        "proxy": TRAINING,
        "base": {**TRAINING, "steps": 30},
        "embedding": {"samples_per_domain": 16},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) and key in content and key != "methods" else value
    return content


def planned(experiment: Experiment, label: str | None = None, device: str | None = None) -> DryBackend:
    dry = DryBackend(RayBackend(experiment.storage, experiment.resources, Reporter.silent()), DEVICES[device] if device else None)
    if label is None:
        plan_compare(experiment, dry)
    else:
        plan_mix(experiment, label, dry)
    return dry


def by_part(dry: DryBackend) -> dict[str, list[Item]]:
    found = defaultdict(list)
    for item in dry.items:
        found[item.part].append(item)
    return dict(found)


def test_nothing_is_started_and_nothing_written(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(RayBackend, "_start", None)
    file = tmp_path / "planned.yaml"
    file.write_text(yaml.safe_dump(document(texts, tmp_path / "runs")))
    stated = ["--dry-run", "--mfu", "0.4", "--device", "H100"]
    for arguments in (["compare", str(file), *stated], ["mix", str(file), *stated], ["compare", str(file), *stated, "--json"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code in (0, None)
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found["seconds"] > 0 and found["how"] == "0.4 of the peak of 1 H100"
    assert {step["part"] for step in found["steps"]} == {"text", "chameleon", "base models", "report"}
    assert any("all that is missing" in line for line in lines)
    assert not (tmp_path / "runs").exists()


def test_every_method_says_what_it_takes(texts: Path, tmp_path: Path) -> None:
    methods: dict[str, Any] = {
        "uniform": {},
        "proportional": {},
        "chameleon": {},
        "paper": {"method": "chameleon", "variant": "paper"},
        "doremi": {},
        "doge": {},
        "regmix": {"num_proxies": 64, "proxy": {"steps": 5}},
    }
    parts = by_part(planned(parse_experiment(document(texts, tmp_path, methods=methods, seeds=[0, 1]))))
    kinds = {part: [item.kind for item in items] for part, items in parts.items()}
    # DoReMi's reference is Chameleon's proxy, and so is the other variant's: what is shared counts once. What takes nothing is not there.
    assert kinds == {
        "text": ["read"],
        "chameleon": ["train", "forward", "forward"],
        "doremi": ["train"],
        "doge": ["train"],
        "regmix": ["swarm"],
        "base models": ["trial"] * 14 + ["measure"] * 14,
        "report": ["report"],
    }
    (swarm,) = parts["regmix"]
    assert swarm.count == 64 and swarm.tokens > 64 * 5 * 8 * 32
    proxy, doge, doremi = parts["chameleon"][0], parts["doge"][0], parts["doremi"][0]
    assert proxy.tokens == doge.tokens == 20 * 8 * 32 and proxy.group == doge.group != doremi.group
    assert doremi.flops == pytest.approx(4 / 3 * proxy.flops, rel=0.05) and doge.flops > proxy.flops


def test_sweeps_and_refits_are_planned_too(texts: Path, tmp_path: Path) -> None:
    content = document(texts, tmp_path, seeds=[0, 1], fit_every_seed=True, sweep={"grid": {"proxy.steps": [10, 20]}})
    parts = by_part(planned(parse_experiment(content)))
    trained = [item for items in parts.values() for item in items if item.kind == "train"]
    assert len(trained) == 4  # two seeds, 10 and 20 steps; the second point is the experiment itself
    assert sorted(item.tokens for item in trained) == [10 * 8 * 32] * 2 + [20 * 8 * 32] * 2


def test_swarms_of_other_settings_and_seeds_are_other_swarms(texts: Path, tmp_path: Path) -> None:
    swarm = {"method": "regmix", "num_proxies": 64, "target": "law"}
    methods = {"short": {**swarm, "proxy": {"steps": 5}}, "long": {**swarm, "proxy": {"steps": 9}}, "same": {**swarm, "target": "food", "proxy": {"steps": 5}}}
    dry = planned(parse_experiment(document(texts, tmp_path, methods=methods, seeds=[0, 1], fit_every_seed=True)))
    assert [item.kind for item in dry.items].count("swarm") == 4


def test_runs_on_the_way_of_longer_ones_take_nothing(texts: Path, tmp_path: Path) -> None:
    content = document(texts, tmp_path, proxy={"schedule_steps": 20, "warmup_steps": 2}, sweep={"grid": {"proxy.steps": [10, 20]}})
    dry = planned(parse_experiment(content))
    assert [item.tokens for item in dry.items if item.kind == "train"] == [20 * 8 * 32]
    assert any("10 steps of 8 rows, on the way of a longer run" in item.what for item in dry.items)


def test_what_cannot_be_fitted_is_left_out_and_the_rest_planned(texts: Path, tmp_path: Path) -> None:
    parts = by_part(planned(parse_experiment(document(texts, tmp_path, methods={"uniform": {}, "doremi": {"proxy": {"batch_rows": 2}}}))))
    (left_out,) = parts["doremi"]
    assert left_out.what.startswith("left out: methods.doremi.proxy.batch_rows: batches of 2 rows cannot show all 3 domains") and left_out.is_done
    assert [item.what for item in parts["base models"] if item.kind == "trial"] == ["uniform: 30 steps of 8 rows"]


def test_what_the_command_refuses_its_plan_refuses(texts: Path, tmp_path: Path) -> None:
    content = document(texts, tmp_path, base={"batch_rows": 7}, proxy={"batch_rows": 14}, resources={"num_workers": 2})
    with pytest.raises(UserError, match=r"base\.batch_rows: 7 is not a multiple of resources\.num_workers 2"):
        planned(parse_experiment(content))


def test_a_budget_is_held_against_all_the_text_and_not_against_what_is_read(texts: Path, tmp_path: Path) -> None:
    content = document(texts, tmp_path, budget={"tokens": 30_000})
    content["corpus"] |= {
        "tokens_per_domain": 300,
        "heldout_tokens": 64,
        "max_repetition": 2,
        "tokenizer": {"train": {"vocab_size": 400, "bytes_per_domain": 1000}},
    }
    dry = planned(parse_experiment(content))
    (read,) = (item for item in dry.items if item.kind == "read")
    assert read.tokens < 6000 and not any("left out" in item.what for item in dry.items)


def test_train_evaluate_and_extend_are_planned(texts: Path, tmp_path: Path) -> None:
    experiment = parse_experiment(document(texts, tmp_path / "runs"))
    dry = DryBackend(RayBackend(experiment.storage, experiment.resources, Reporter.silent()))
    plan_train(experiment, Mixture("fixed", {"law": 0.5, "food": 0.3, "code": 0.2}), dry)
    assert [item.kind for item in dry.items] == ["read", "train"] and dry.items[1].part == "base models"
    with pytest.raises(UserError, match="is only in the corpus"):
        plan_train(experiment, Mixture("fixed", {"law": 0.5, "poems": 0.5}), dry)
    with pytest.raises(UserError, match="need a method that weighs embeddings"):
        plan_extend(experiment, "nowhere", [load_changes(_changes(texts, tmp_path))], "uniform", dry)
    model, corpus = tmp_path / "model", synthetic.make_corpus(str(tmp_path / "corpus"), 3, 4, 32)
    synthetic.make_model(str(model), experiment.proxy.model, corpus)
    content = document(texts, tmp_path / "runs")
    content["corpus"]["tokenizer"] = {"pretrained": str(model)}
    experiment = parse_experiment(content)
    dry = DryBackend(RayBackend(experiment.storage, experiment.resources, Reporter.silent()))
    plan_evaluate(experiment, str(model), dry)
    assert [item.kind for item in dry.items] == ["read", "forward"]
    dry = DryBackend(RayBackend(experiment.storage, experiment.resources, Reporter.silent()))
    plan_extend(experiment, str(model), [load_changes(_changes(texts, tmp_path))], "chameleon", dry)
    assert [item.kind for item in dry.items].count("read") == 2 and not (tmp_path / "runs").exists()


def test_a_pretrained_proxy_that_is_taken_as_it_is(texts: Path, tmp_path: Path) -> None:
    corpus = synthetic.make_corpus(str(tmp_path / "corpus"), 3, 4, 32)
    synthetic.make_model(str(tmp_path / "model"), parse_experiment(document(texts, tmp_path)).proxy.model, corpus)
    content = document(texts, tmp_path / "runs", methods={"chameleon": {}})
    content["proxy"] = {"model": {"pretrained": str(tmp_path / "model")}, "steps": 0}
    del content["corpus"]["tokenizer"]
    parts = by_part(planned(parse_experiment(content)))
    assert [item.kind for item in parts["chameleon"]] == ["forward", "forward"]
    parameters = (tmp_path / "model" / "model.safetensors").stat().st_size / 4
    assert all(2 * parameters < item.memory_bytes < 1 << 30 for item in parts["chameleon"]), "parameters, and what rows take"
    assert parts["text"][0].memory_bytes == READING_BYTES


def _changes(texts: Path, folder: Path) -> Path:
    path = folder / "more.yaml"
    path.write_text(yaml.safe_dump({"domains": {"more": {"files": [f"{texts}/law.jsonl"]}, "food": None}}))
    return path


def test_domains_that_are_yet_to_be_found(texts: Path, tmp_path: Path) -> None:
    content = document(texts, tmp_path)
    content["corpus"] |= {"domains": {}, "domains_from": {"clusters": {"k": 4, "of": [f"{texts}/*.jsonl"]}}}
    parts = by_part(planned(parse_experiment(content), "chameleon"))
    assert [(item.kind, item.what.split(":")[0]) for item in parts["text"]] == [
        ("read", "1 domain, read and tokenized"),
        ("train", "proxy"),
        ("forward", "4 clusters"),
        ("read", "4 domains, read and tokenized"),
    ]
    assert parts["text"][0].text_bytes == pytest.approx(parts["text"][2].text_bytes, rel=0.1)
    found = parts["text"][2]
    documents = round(found.tokens / parse_experiment(content).corpus.row_tokens)
    assert documents > 10 and found.shape and found.memory_bytes >= SearchSize.of(documents, 4, found.shape.width).driver_bytes
    content["constraints"] = {"domains": {"stove-onion-salt": {"max": 0.3}}}  # a name that is known once they are found
    assert len(planned(parse_experiment(content)).items) > 6
    dry = DryBackend(RayBackend(str(tmp_path), parse_experiment(content).resources, Reporter.silent()))
    plan_train(parse_experiment(content), Mixture("fixed", {"stove-onion-salt": 0.2, "court-law-tax": 0.8}), dry)
    assert dry.guessed and [item.kind for item in dry.items] == ["read", "train", "forward", "read", "train"]
    content["corpus"]["domains_from"]["clusters"]["within"] = "kind"
    assert by_part(planned(parse_experiment(content), "chameleon"))["text"][2].what.startswith("12 clusters")


def test_domains_by_a_column_are_seen_at_a_first_look(texts: Path, tmp_path: Path) -> None:
    content = document(texts, tmp_path)
    content["corpus"] |= {"domains": {}, "domains_from": {"files": [f"{texts}/*.jsonl"], "domain_column": "kind"}, "tokens_per_domain": 500}
    (read, *_) = planned(parse_experiment(content), "chameleon").items
    assert read.what == "3 domains, read and tokenized"
    (tmp_path / "large").mkdir()
    for kind in KINDS:  # files of one domain each, longer than what is looked at of a source
        line = (texts / f"{kind}.jsonl").read_text()
        (tmp_path / "large" / f"{kind}.jsonl").write_text(line * 12)
    content["corpus"]["domains_from"]["files"] = [f"{tmp_path}/large/*.jsonl"]
    assert planned(parse_experiment(content), "chameleon").items[0].what == "3 domains, read and tokenized"
    content["corpus"]["domains_from"]["only"] = ["law", "food"]
    assert planned(parse_experiment(content), "chameleon").items[0].what.startswith("2 domains")


def test_memory_and_time_of_gpus_that_are_not_here(texts: Path, tmp_path: Path) -> None:
    base = {"model": {"preset": "684M"}, "steps": 10_000, "batch_rows": 128}
    content = document(texts, tmp_path, base=base, resources={"num_workers": 8, "gpus_per_worker": 1})
    content["corpus"] |= {"row_tokens": 512, "tokenizer": {"train": {"vocab_size": 50257}}}
    content |= {"seeds": [0], "methods": {"uniform": {}}}
    experiment = parse_experiment(content)
    found = {}
    for device in ("H100", "L4"):
        dry = planned(experiment, device=device)
        trial = next(item for item in dry.items if item.kind == "trial")
        assert trial.memory_bytes < DEVICES[device].memory_bytes
        found[device] = forecast(dry, stated_pace(dry.items, experiment.resources, 0.4, DEVICES[device]))
        hours = trial.flops / (8 * 0.4 * DEVICES[device].peak_flops("auto")) / 3600
        assert found[device].seconds / 3600 == pytest.approx(hours, rel=0.3)
    assert found["L4"].seconds > 5 * found["H100"].seconds
    assert "of 8 L4" in found["L4"].how


def test_what_goes_on_side_by_side_takes_the_time_of_one() -> None:
    items = [Item("base models", "a", "report", 1, False, beside=4)] * 4
    pace = Pace("", {}, 2, 1, 2, 1.0)
    dry = DryBackend.__new__(DryBackend)
    dry.items, dry.parts = items, []
    assert forecast(dry, pace).seconds == pytest.approx(pace.session_seconds + 2 * pace.seconds(items[0]))
    assert processes_of(Item("", "", "trial", 1, False, beside=4), 2, 3) == 6
    assert processes_of(Item("", "", "swarm", 1, False, count=3), 8, 1) == 3


def test_a_rate_is_measured_by_real_steps(texts: Path, tmp_path: Path) -> None:
    experiment = parse_experiment(document(texts, tmp_path))
    dry = planned(experiment, "chameleon")
    dry.items = [item for item in dry.items if item.kind != "train"]
    pace = measured_pace(dry.items, experiment.resources)
    assert len(pace.rates) == 2 and all(1e6 < rate < 1e13 for rate in pace.rates.values())
    assert 0.1 < pace.start_seconds < 120
    found = forecast(dry, pace)
    assert found.seconds > sum(step.seconds for step in found.steps) > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--mfu", "0.4"], "--mfu: a share of a peak needs the device that has it"),
        (["--device", "H100"], "give both, as --mfu 0.4 --device H100"),
        (["--mfu", "40", "--device", "H100"], "--mfu: 40 is no share of a peak; give one from 0 to 1"),
        (["--mfu", "0.4", "--device", "H10"], "--device: 'H10' is not known; known: A10G"),
        (["resources.num_workers=512"], "state one with --mfu 0.4 --device H100"),
        (["resources.gpus_per_worker=1"], "one run takes 1 GPU and this machine has"),
    ],
)
def test_what_no_time_can_be_said_of(texts: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "planned.yaml"
    file.write_text(yaml.safe_dump(document(texts, tmp_path / "runs", proxy={"batch_rows": 512}, base={"batch_rows": 512})))
    with pytest.raises(SystemExit) as stopped:
        main(["mix", str(file), "--dry-run", *arguments])
    assert stopped.value.code == 2
    told = capsys.readouterr()
    assert message in " ".join(told.err.split()) and not told.out


def test_rates_are_for_plans_alone(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "planned.yaml"
    file.write_text(yaml.safe_dump(document(texts, tmp_path / "runs")))
    with pytest.raises(SystemExit) as stopped:
        main(["mix", str(file), "--mfu", "0.4", "--device", "H100"])
    assert stopped.value.code == 2 and "--mfu: is for --dry-run" in capsys.readouterr().err


def test_a_finetuning_and_a_transfer_are_planned(texts: Path, tmp_path: Path) -> None:
    corpus = synthetic.make_corpus(str(tmp_path / "corpus"), 3, 4, 32)
    synthetic.make_model(str(tmp_path / "model"), parse_experiment(document(texts, tmp_path)).proxy.model, corpus)
    content = document(texts, tmp_path / "runs", stage="finetune")
    content["base"] = {**TRAINING, "model": {"pretrained": str(tmp_path / "model"), "lora": {"rank": 4}}}
    del content["corpus"]["tokenizer"], content["proxy"]
    lora = planned(parse_experiment(content))
    trials = [item for item in lora.items if item.kind == "trial"]
    assert len(trials) == 3 and [item.kind for item in lora.items].count("forward") >= 2, "embedded once, and measured before training"
    content["base"]["model"]["lora"] = None
    whole = [item for item in planned(parse_experiment(content)).items if item.kind == "trial"]
    assert all(less.flops < more.flops and less.disk_bytes < more.disk_bytes for less, more in zip(trials, whole, strict=True))

    moved = document(texts, tmp_path / "runs", transfer={"domains": {"law": {"files": [f"{texts}/law.jsonl"]}, "old": {"files": [f"{texts}/food.jsonl"]}}})
    parts = by_part(planned(parse_experiment(moved)))
    assert [item.kind for item in parts["text"]] == ["read", "read"], "the proxy's domains and those to weigh"
    assert [item.what for item in parts["chameleon"] if item.what.startswith("embedding")] == ["embedding at layer 1", "embedding 1 of them at layer 1"]
    assert not (tmp_path / "runs").exists()


def test_a_split_is_planned_though_how_much_text_there_is_can_only_be_guessed(texts: Path, tmp_path: Path) -> None:
    corpus = synthetic.make_corpus(str(tmp_path / "corpus"), 3, 4, 32)
    content = document(texts, tmp_path / "runs")
    synthetic.make_model(str(tmp_path / "model"), parse_experiment(content).proxy.model, corpus)
    content["corpus"]["tokenizer"] = {"pretrained": str(tmp_path / "model")}
    lines = (texts / "law.jsonl").read_text().splitlines()
    for part, mine in (("civil", lines[:70]), ("penal", lines[70:])):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(mine) + "\n")
    parts = {part: {"files": [str(tmp_path / f"{part}.jsonl")]} for part in ("civil", "penal")}
    (tmp_path / "changes.yaml").write_text(yaml.safe_dump({"domains": {"law": {"split": parts}, "meals": {"rename": "food"}}}))
    experiment = parse_experiment(content)
    dry = DryBackend(RayBackend(experiment.storage, experiment.resources, Reporter.silent()))
    plan_extend(experiment, str(tmp_path / "model"), [load_changes(str(tmp_path / "changes.yaml"))], "chameleon", dry)
    assert [item.kind for item in dry.items].count("read") == 2
    with pytest.raises(UserError, match=r"domains\.law is a change of the experiment's domains, and --only takes the new domains alone"):
        plan_extend(experiment, str(tmp_path / "model"), [load_changes(str(tmp_path / "changes.yaml"))], "chameleon", dry, only=True)
