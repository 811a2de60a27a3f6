"""What a user can get wrong before any text is read: one line that names the place and the remedy, exit status 2, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.cli import main
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, load_experiment, parse_experiment
from chameleon_ray.mixture import Mixture
from chameleon_ray.pipeline import base_job
from chameleon_ray.training.loop import check_job
from tests.corpora import make_corpus
from tests.experiments import Refused, document, edited
from tests.fakes import make_context
from tests.families import publish


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("seed", "seeds"),
        ("base/stesp", "steps"),
        ("base/model/layer", "layers"),
        ("corpus/row_token", "row_tokens"),
        ("corpus/tokenizer/train/vocab_sise", "vocab_size"),
        ("corpus/domains/web/file", "files"),
        ("corpus/domains_from/python_enviroment", "python_environment"),
        ("embedding/layers", "layer"),
        ("resources/num_worker", "num_workers"),
        ("methods/chameleon/temprature", "temperature"),
        ("methods/chameleon/ridge/absolut", "absolute"),
    ],
)
def test_unknown_key_is_named_with_the_nearest_known_one(refused: Refused, tmp_path: Path, path: str, near: str) -> None:
    message = refused("mix", "--method", "uniform", content=edited(document(tmp_path), path, 3))
    assert message.startswith(f"{tmp_path / 'experiment.yaml'}: {path.replace('/', '.')}: unknown key (value 3); remove it or correct its spelling")
    assert f"did you mean {near!r}?" in message


@pytest.mark.parametrize(
    ("path", "value"),
    [("methods/chamelion", {}), ("methods/mine", {"method": "chamelion"})],
)
def test_unknown_method_in_the_file(refused: Refused, tmp_path: Path, path: str, value: Any) -> None:
    message = refused("compare", content=edited(document(tmp_path), path, value))
    assert f"{path.replace('/', '.')}: unknown method 'chamelion'; known: uniform, proportional, fixed, chameleon" in message
    assert "did you mean 'chameleon'?" in message


@pytest.mark.parametrize("command", [["mix"], ["extend", "--proxy", "nowhere", "--corpus", "corpus.yaml"]])
def test_unknown_method_on_the_command_line(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus.yaml").write_text("domains: {new: {files: [web.jsonl]}}\n")
    message = refused(*command[:1], *command[1:], "--method", "chamelion")
    assert message.startswith("--method: ")
    assert "did you mean 'chameleon'?" in message


def test_unknown_preset(refused: Refused, tmp_path: Path) -> None:
    message = refused("mix", content=edited(document(tmp_path), "base/model", {"preset": "82m"}))
    assert "base.model: unknown preset '82m'; known: cpu-tiny, " in message
    assert "did you mean '82M'?" in message


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("name", "two words", "name: "),
        ("seeds", "first", "seeds: "),
        ("seeds", [1, 2, 1], "seeds: seeds must differ"),
        ("seeds", [], "seeds: expected at least one (found [])"),
        ("seeds", [-1], "seeds.0: Input should be greater than or equal to 0"),
        ("storage", 3, "storage: Input should be a valid string (found 3)"),
        ("base", None, "base: missing; add it"),
        ("base", 3, "base: expected a section with keys such as model, steps, batch_rows (found 3)"),
        ("base/steps", "many", "base.steps: Input should be a valid integer"),
        ("base/steps", 2.5, "base.steps: Input should be a valid integer"),
        ("base/steps", 0, "base: steps 0 leaves a fresh model, which has learned nothing; give at least 1"),
        ("proxy/batch_rows", -1, "proxy.batch_rows: Input should be greater than or equal to 1 (found -1)"),
        ("base/learning_rate", "fast", "base.learning_rate: Input should be a valid number"),
        ("base/learning_rate", float("nan"), "base.learning_rate: Input should be a finite number (found nan)"),
        ("base/min_learning_rate", 1.0, "base: min_learning_rate 1.0 exceeds learning_rate"),
        ("base/micro_batch_rows", 3, "base: batch_rows 4 is not a multiple of micro_batch_rows 3"),
        ("base/warmup_steps", 4, "base: warmup_steps 4 must be under steps 4"),
        ("base/zero_stage", 4, "base.zero_stage: "),
        ("base/model/heads", 3, "base.model: width 8 is not divisible by heads 3"),
        ("base/model", {"layers": 2}, "base.model: give preset, or all of layers, heads and width"),
        ("base/model/preset", "82M", "base.model: give either preset or layers, heads and width"),
        ("corpus", [1], "corpus: "),
        ("corpus/domains", {}, "corpus: give either domains or domains_from"),
        ("corpus/domains/web", None, "corpus.domains.web: "),
        ("corpus/domains/web", {"files": []}, "corpus.domains.web: give either files or huggingface"),
        ("corpus/domains/web/files", "web.jsonl", "corpus.domains.web.files: expected a list, as [web.jsonl] (found 'web.jsonl')"),
        ("corpus/domains/all", {"files": ["web.jsonl"]}, "corpus.domains.all"),
        ("corpus/domains/..", {"files": ["web.jsonl"]}, "corpus.domains..."),
        ("corpus/domains/" + "漢" * 100, {"files": ["web.jsonl"]}, "corpus.domains.漢"),
        ("corpus/tokenizer", {}, "corpus.tokenizer: give either train"),
        ("corpus/tokenizer/train/vocab_size", 10, "corpus.tokenizer.train.vocab_size: Input should be greater than or equal to 300"),
        ("corpus/max_repetition", 0, "corpus.max_repetition: "),
        ("embedding/layer", "top", "embedding.layer: "),
        ("embedding/layer", 0, "embedding.layer: "),
        ("resources/num_workers", 0, "resources.num_workers: "),
        ("methods", {}, "methods: list at least one method"),
        ("methods", ["uniform"], "methods: expected a section of names and their values (found ['uniform'])"),
        ("methods/chameleon/prior", {"web": 0.5}, "methods.chameleon: prior: sum to 0.5, not 1; divide each by the sum"),
        ("methods/chameleon/floor", -1, "methods.chameleon.floor: Input should be greater than or equal to 0"),
        ("methods/chameleon/cap", 2, "methods.chameleon: cap is for stage: finetune with temperature: {relative: …}"),
        ("proxy/model", {"pretrained": "x", "preset": "1M"}, "found pretrained and preset: write model: {pretrained: x}, or set the others to null"),
        ("proxy/model", {"preset": "1M", "allow_remote_code": True}, "proxy.model: allow_remote_code is for a pretrained model; remove it"),
        ("proxy", {"model": {"pretrained": "x"}, "steps": 0, "stop": {}}, "proxy: stop: a model that is taken as it is (steps 0) has no training to end"),
        ("base", {"model": {"pretrained": "x"}, "steps": 0}, "base: steps 0 trains nothing, so that no mixture would show; give at least 1"),
        ("methods/chameleon/variant", "papr", "methods.chameleon.variant: Input should be 'calibrated', 'paper' or 'released' (found 'papr')"),
        ("methods/chameleon/ridge", {"absolute": 1, "relative": 1}, "methods.chameleon.ridge: give exactly one of absolute, relative, energy"),
        ("methods/chameleon/ridge", 10, "methods.chameleon.ridge: expected a section with keys such as absolute, relative, energy (found 10)"),
        ("sweep", {"each": {"methods.chamelon.floor": [0, 1]}}, "sweep: methods.chamelon.floor is of a method that is not here"),
        ("methods/fixed", {}, "methods.fixed: give either weights or preset"),
        ("methods/fixed/weights", {"web": -0.5, "code": 1.5}, "methods.fixed: weights.web: -0.5 is not a weight; give a finite number"),
        ("methods/fixed/weights", {"web": float("nan"), "code": 1.0}, "methods.fixed: weights.web: nan is not a weight; give a finite number"),
        ("methods/fixed/weights", {"web": 0.3, "code": 0.3}, "methods.fixed: weights: sum to 0.6, not 1; divide each by the sum"),
        ("methods/fixed/weights", {}, "methods.fixed: weights: empty; give one weight per domain"),
        ("methods/fixed/weights", {"web": "half", "code": 0.5}, "methods.fixed.weights.web: Input should be a valid number"),
        ("methods/fixed", {"preset": "slimpajama_chamelion"}, "did you mean 'slimpajama_chameleon'?"),
    ],
)
def test_wrong_value(refused: Refused, tmp_path: Path, path: str, value: Any, expected: str) -> None:
    message = refused("compare", content=edited(document(tmp_path), path, value))
    assert message.startswith(f"{tmp_path / 'experiment.yaml'}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("storage", "ftp://host/runs", "storage: address 'ftp://host/runs' is not supported; use a local path, s3://… or gs://…"),
        ("corpus/domains/web/files", ["nowhere/*.jsonl"], "corpus.domains.web.files[0]: 'nowhere/*.jsonl' matches no file; give a local path"),
        ("corpus/domains/web/heldout", ["nowhere/*.jsonl"], "corpus.domains.web.heldout[0]: 'nowhere/*.jsonl' matches no file"),
        ("corpus/domains/web/files", ["web.csv"], "whose format is unknown; known: .jsonl, .json, .txt"),
        ("corpus/domains/web/files", ["${NOT_SET_ANYWHERE}/a.jsonl"], "corpus.domains.web.files[0]: environment variable NOT_SET_ANYWHERE"),
        ("corpus/domains/web/heldout", ["web.jsonl"], "web.jsonl is also in files; a file is held out or trained on"),
        ("corpus/tokenizer", {"pretrained": "/nowhere/at/all"}, "corpus.tokenizer.pretrained: '/nowhere/at/all' cannot be loaded"),
    ],
)
def test_what_the_file_points_at(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: Any, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.csv").write_text("text\nwords\n")
    assert expected in refused("compare", content=edited(document(tmp_path), path, value))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("base.steps", "override 'base.steps': expected key.sub=value"),
        ("=3", "override '=3': expected key.sub=value"),
        ("base..steps=3", "override 'base..steps=3': expected key.sub=value"),
        ("name.x=3", "override 'name.x=3': name holds 'small', not a section"),
        ("base.steps=[1", "override 'base.steps=[1': the value is not valid YAML"),
        ("base.stepz=3", "base.stepz: unknown key (value 3)"),
        ("basee.steps=3", "did you mean 'base'?"),
        ("base.steps=", "base.steps: missing; add it"),
    ],
)
def test_wrong_override(refused: Refused, override: str, expected: str) -> None:
    assert expected in refused("mix", override)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a mapping of keys to values, found NoneType"),
        ("- web\n", "expected a mapping of keys to values, found list"),
        ("name: [1\nbase: 3\n", "line 2 not valid YAML"),
        ("name: !!python/object:os.system x\n", "line 1 not valid YAML"),
        ("name: first\nname: second\n", "line 2 not valid YAML"),
    ],
)
def test_what_is_no_experiment_file(refused: Refused, tmp_path: Path, text: str, expected: str) -> None:
    message = refused("compare", text=text)
    assert message.startswith(f"{tmp_path / 'experiment.yaml'}: ")
    assert expected in message


def test_unknown_key_of_a_hugging_face_source(refused: Refused, tmp_path: Path) -> None:
    message = refused("mix", content=edited(document(tmp_path), "corpus/domains/web", {"huggingface": {"path": "somewhere", "splitt": "train"}}))
    assert "corpus.domains.web.huggingface.splitt: unknown key (value 'train')" in message
    assert "did you mean 'split'?" in message


def test_a_domain_listed_twice_is_not_dropped_silently(refused: Refused, tmp_path: Path) -> None:
    text = yaml.safe_dump(document(tmp_path), sort_keys=False)
    message = refused("mix", "--method", "uniform", text=text.replace("    code:\n", "    web:\n"))
    assert "web" in message


def test_missing_experiment_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", "nowhere.yaml"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: nowhere.yaml: cannot be read (No such file or directory); give the path of a YAML file\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such mixture file; `chameleon mix"),
        ("{", "not valid JSON"),
        ("[]", "no object 'weights'"),
        ('{"weights": {}}', "weights: empty; give one weight per domain"),
        ('{"weights": {"web": -1, "code": 2}}', "weights.web: -1 is not a weight; give a finite number that is at least 0"),
        ('{"weights": {"web": NaN, "code": 1}}', "weights.web: nan is not a weight"),
        ('{"weights": {"web": "1"}}', "weights.web: '1' is not a weight"),
        ('{"weights": {"web": 0.3, "code": 0.3}}', "weights: sum to 0.6, not 1; divide each by the sum"),
        ('{"weights": {"web": 1.0}, "wieghts": 1}', "unknown key 'wieghts'; known: method, weights"),
        ('{"weights": {"web": 1.0}, "cost": {"euros": 1}}', "cost"),
        ('{"weights": {"web": 1.0}, "cost": 3}', "cost"),
        ('{"weights": {"web": 1.0}, "warnings": 3}', "warnings"),
        ('{"weights": {"web": 1.0}, "scores": 3}', "scores"),
        ('{"weights": {"web": 0.5, "web": 1.0}}', "web"),
    ],
)
def test_broken_mixture_file(refused: Refused, tmp_path: Path, text: str | None, expected: str) -> None:
    file = tmp_path / "mixture.json"
    if text is not None:
        file.write_text(text)
    message = refused("train", "--mixture", str(file))
    assert message.startswith(str(file))
    assert expected in message


def test_a_folder_is_no_mixture_file(refused: Refused, tmp_path: Path) -> None:
    assert refused("train", "--mixture", str(tmp_path)).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("domain: {new: {files: [web.jsonl]}}\n", "domains: missing"),
        ("domains: [new]\n", "domains: "),
        ("domains: {new: {files: [nowhere/*.jsonl]}}\n", "domains.new.files[0]: 'nowhere/*.jsonl' matches no file"),
        ("domains: {new: {file: [web.jsonl]}}\n", "domains.new.file: unknown key"),
        ("domains: {new: 3}\n", "domains.new: "),
        ("domains: {new: {files: ['${NOT_SET_ANYWHERE}/a.jsonl']}}\n", "environment variable NOT_SET_ANYWHERE is not set"),
        ("domains: {new: {files: [web.jsonl]}}\nrow_token: 8\n", "row_token"),
        ("domains: [\n", "not valid YAML"),
    ],
)
def test_broken_file_of_new_domains(refused: Refused, proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("new.yaml").write_text(text)
    assert expected in refused("extend", "--proxy", proxy, "--corpus", "new.yaml", "--only")


def test_a_mistake_in_a_file_of_overrides_names_it_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document(tmp_path)))
    (tmp_path / "more.yaml").write_text("base.steps: many\n")
    with pytest.raises(UserError, match=rf"^{tmp_path}/mine.yaml with {tmp_path}/more.yaml: base.steps: "):
        load_experiment(tmp_path / "mine.yaml", [f"@{tmp_path}/more.yaml"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"web": 12, "code": 5})


@pytest.fixture(scope="module")
def proxy(corpus: TokenCorpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that can be used."""
    return publish("llama", corpus, tmp_path_factory.mktemp("proxy"))


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return parse_experiment(document(tmp_path))


def load(folder: Path, weights: dict[str, float]) -> Mixture:
    (folder / "mixture.json").write_text(json.dumps({"weights": weights}))
    return Mixture.load(str(folder / "mixture.json"))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"web": 0.5, "cod": 0.5}, "domain 'cod' is only in the mixture; the corpus has web, code"),
        ({"web": 0.5, "code": 0.25, "book": 0.25}, "domain 'book' is only in the mixture; the corpus has web, code"),
        ({"web": 1.0}, "domain 'code' is only in the corpus"),
    ],
)
def test_a_mixture_of_other_domains(tmp_path: Path, corpus: TokenCorpus, experiment: Experiment, weights: dict[str, float], expected: str) -> None:
    with pytest.raises(UserError) as refusal:
        base_job(experiment, corpus, load(tmp_path, weights), seed=0)
    assert expected in str(refusal.value)


def test_a_weight_of_zero_is_allowed(tmp_path: Path, corpus: TokenCorpus, experiment: Experiment) -> None:
    job = base_job(experiment, corpus, load(tmp_path, {"code": 0.0, "web": 1.0}), seed=0)
    check_job(job, corpus, world_size=2)
    assert dict(job.weights) == {"web": 1.0, "code": 0.0}


def test_a_repetition_cap_without_a_budget(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"corpus\.max_repetition: .* there is no budget; add budget: \{tokens: N\} \(a base model of this experiment draws \d+\)"
    ):
        parse_experiment(edited(document(tmp_path), "corpus/max_repetition", 0.5))


def test_a_batch_that_does_not_divide_among_the_workers(corpus: TokenCorpus, experiment: Experiment) -> None:
    job = TrainJob("base", experiment.base, {"web": 0.5, "code": 0.5}, 0)
    with pytest.raises(UserError, match=r"^base.batch_rows: 4 is not a multiple of resources.num_workers 3; change one of them$"):
        check_job(job, corpus, world_size=3)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"web": 1.0}, "no weight for domain 'code' of the corpus; add it"),
        ({"web": 0.5, "code": 0.25, "cods": 0.25}, "'cods' is not a domain of the corpus; remove it or rename the domain (did you mean 'code'?)"),
    ],
)
def test_fixed_weights_of_other_domains_are_refused(tmp_path: Path, weights: dict[str, float], expected: str) -> None:
    experiment = parse_experiment(edited(document(tmp_path), "methods/fixed/weights", weights))
    with pytest.raises(UserError) as refusal:
        experiment.mixer("fixed").fit(make_context({"web": 12, "code": 5}))
    assert expected in str(refusal.value)


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any) -> Experiment:
        raise KeyboardInterrupt

    monkeypatch.setattr("chameleon_ray.cli.load_experiment", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(["mix", "experiment.yaml"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"


def test_a_model_that_cannot_be_used_is_told_by_the_command(
    refused: Refused, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    elsewhere = tmp_path_factory.mktemp("models")
    corpus = make_corpus(elsewhere / "corpus")
    pickled, translator = (Path(publish("llama", corpus, elsewhere / name)) for name in ("pickled", "translator"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    T5ForConditionalGeneration(T5Config(vocab_size=320, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)).save_pretrained(translator)
    capsys.readouterr()  # what saving shows of itself
    for folder, told in ((pickled, "no *.safetensors file in "), (translator, "t5 is no decoder with a list of blocks")):
        content = edited(edited(document(tmp_path), "base/model", {"pretrained": str(folder)}), "corpus/tokenizer", {"pretrained": str(folder)})
        assert refused("compare", content=content).startswith(f"base.model.pretrained: {told}")
        assert not list(tmp_path.glob("runs/*")), "nothing was begun"
