"""Changed sets of domains by a trained proxy: every kind of change, what is embedded for it and what is not, and a comparison with a transferred proxy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from chameleon_ray.corpus_config import CorpusChanges
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.mixing.text_quality import GLANCE_TOKENS
from chameleon_ray.mixture import Mixture
from chameleon_ray.pipeline import compare, extend, mix
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.settings import validate
from tests.ray.test_end_to_end import run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("session")]


@pytest.fixture(scope="module")
def proxy(experiment: Experiment) -> Mixture:
    return mix(experiment, "chameleon", RayBackend(experiment.storage, experiment.resources, Reporter.silent()))


@pytest.fixture
def extended(experiment_file: Path, proxy: Mixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`chameleon extend` with some changes: exit status, the mixture or what standard error said."""

    def extend(changes: dict[str, Any], *more: str, then: dict[str, Any] | None = None) -> tuple[int, Any]:
        arguments: list[Any] = []
        for i, each in enumerate([changes, then] if then else [changes]):
            (tmp_path / f"changes{i}.yaml").write_text(yaml.safe_dump({"domains": each}))
            arguments += ["--corpus", tmp_path / f"changes{i}.yaml"]
        status, out, err = run(capsys, "extend", experiment_file, "--proxy", proxy.provenance["proxy_address"], *arguments, "--json", *more)
        return status, json.loads(out) if status == 0 else err.strip().splitlines()[-1]

    return extend


def source(texts: Path, name: str) -> dict[str, Any]:
    return {"files": [str(texts / f"{name}.jsonl")]}


def halves(texts: Path, name: str, folder: Path) -> dict[str, Any]:
    lines = (texts / f"{name}.jsonl").read_text().splitlines()
    found = {}
    for part, mine in (("first", lines[:60]), ("second", lines[60:])):
        (folder / f"{part}.jsonl").write_text("\n".join(mine) + "\n")
        found[part] = {"files": [str(folder / f"{part}.jsonl")]}
    return found


def test_names_change_and_nothing_is_embedded(extended: Any, experiment: Experiment, proxy: Mixture, passed: list[tuple[str, int]]) -> None:
    before = sorted(Path(experiment.storage, "embeddings").iterdir())
    status, found = extended({"cooking": {"rename": "recipes"}, "letters": None})
    assert status == 0 and list(found["weights"]) == ["numbers", "cooking"] and not passed
    assert found["provenance"]["embedded_rows"] == {} and found["extra"]["tokens"] == 0 and found["extra"]["flops"] == 0
    assert sorted(Path(experiment.storage, "embeddings").iterdir()) == before
    assert found["domains"]["cooking"]["tokens"] == proxy.domains["recipes"].tokens


@pytest.mark.long
def test_a_proxy_that_has_not_embedded_the_known_domains_embeds_them_for_the_change(extended: Any, passed: list[tuple[str, int]]) -> None:
    status, found = extended({"cooking": {"rename": "recipes"}, "letters": None}, "embedding.samples_per_domain=16")
    assert status == 0 and found["provenance"]["embedded_rows"] == {"cooking": 16, "numbers": 16, "letters (left out)": 16}
    assert [rows for _, rows in passed] == [48] and found["extra"]["tokens"] >= 48 * 32
    assert extended({"cooking": {"rename": "recipes"}, "letters": None}, "embedding.samples_per_domain=16")[1]["extra"]["tokens"] == 0


def test_new_domains_alone_are_embedded(
    extended: Any, experiment: Experiment, proxy: Mixture, texts: Path, tmp_path: Path, passed: list[tuple[str, int]]
) -> None:
    before = set(Path(experiment.storage, "embeddings").iterdir())
    changes = {}
    for name, words in (("new", "sun moon star cloud rain wind snow"), ("newer", "oak elm ash fir yew pine larch")):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": f"{words} {i} " * 20}) for i in range(60)) + "\n")
        changes[name] = {"files": [str(tmp_path / f"{name}.jsonl")]}
    status, found = extended({"new": changes["new"]})
    assert status == 0 and list(found["weights"]) == ["recipes", "letters", "numbers", "new"]
    (rows,) = found["provenance"]["embedded_rows"].values()
    assert 0 < rows <= experiment.embedding.samples_per_domain and [each for _, each in passed] == [rows]
    samples, row_tokens = proxy.provenance["samples"], experiment.corpus.row_tokens
    assert {name: found["provenance"]["samples"][name] for name in samples} == samples, "the others' rows are those that were embedded before"
    assert rows * row_tokens <= found["extra"]["tokens"] <= rows * row_tokens + GLANCE_TOKENS, "what is new, and a look at its text"
    assert len(set(Path(experiment.storage, "embeddings").iterdir()) - before) == 1
    status, later = extended({"new": changes["new"]}, then={"letters": None, "newer": changes["newer"], "sky": {"rename": "new"}})
    assert status == 0 and list(later["weights"]) == ["recipes", "numbers", "sky", "newer"]
    assert list(later["provenance"]["embedded_rows"]) == ["newer"] and [each for _, each in passed] == [rows, later["provenance"]["embedded_rows"]["newer"]]
    assert later["extra"]["tokens"] <= passed[-1][1] * row_tokens + GLANCE_TOKENS, "what the first change took is not charged again"
    assert later["scores"]["sky"] != found["scores"]["new"] and later["domains"]["sky"] == found["domains"]["new"]


@pytest.mark.long
def test_rows_of_a_target_are_counted_when_they_are_embedded(extended: Any, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "aim.jsonl").write_text("\n".join(json.dumps({"text": f"sun moon star cloud rain wind snow {i} " * 20}) for i in range(40)) + "\n")
    aimed = (f"corpus.targets={{aim: {{files: [{tmp_path / 'aim.jsonl'}]}}}}", "methods.chameleon={variant: paper, targets: {aim: 4.0}}")
    status, found = extended({"letters": None}, *aimed)
    assert status == 0, found
    assert found["provenance"]["embedded_rows"]["aim (target)"] > 0 and found["extra"]["flops"] > 0
    status, again = extended({"letters": None}, *aimed)
    assert status == 0 and again["provenance"]["embedded_rows"] == {} and again["extra"]["flops"] == 0
    assert again["weights"] == found["weights"]


def test_domains_are_merged_by_how_much_text_they_have(extended: Any, proxy: Mixture) -> None:
    status, found = extended({"prose": {"merge": ["recipes", "letters"]}})
    assert status == 0 and list(found["weights"]) == ["numbers", "prose"]
    assert found["provenance"]["embedded_rows"] == {}
    tokens = {name: size.tokens for name, size in proxy.domains.items()}
    assert found["domains"]["prose"]["tokens"] == tokens["recipes"] + tokens["letters"]


def test_a_split_domain_s_parts_are_embedded_and_must_cover_it(extended: Any, texts: Path, tmp_path: Path) -> None:
    parts = halves(texts, "letters", tmp_path)
    status, found = extended({"letters": {"split": parts}})
    assert status == 0 and list(found["weights"]) == ["recipes", "numbers", "first", "second"]
    assert set(found["provenance"]["embedded_rows"]) == {"first", "second"}
    lines = (texts / "letters.jsonl").read_text().splitlines()
    for part, mine in (("first", lines[:40]), ("second", lines[40:70])):
        Path(parts[part]["files"][0]).write_text("\n".join(mine) + "\n")
    status, told = extended({"letters": {"split": parts}})
    assert status == 2 and told.startswith("error: corpus file: domains.letters: its parts (first, second) have ")
    assert "a split covers its parent" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"x": {"rename": "nothing"}},
            "error: corpus file: domains.x renames 'nothing' but the experiment has no such domain; it has recipes, letters, numbers",
        ),
        (
            {"letters": {"split": {"a": {"files": ["/nowhere/a.jsonl"]}, "b": {"files": ["/nowhere/b.jsonl"]}}}},
            "error: corpus file: domains.letters.split.a.files[0]: '/nowhere/a.jsonl' matches no file; "
            "give a local path, s3://… or gs://… (wildcards *, ? and **)",
        ),
        (dict.fromkeys(("recipes", "letters", "numbers")), "error: corpus file: every domain is left out; keep or add at least one"),
    ],
)
def test_changes_that_cannot_be_are_one_line(extended: Any, changes: dict[str, Any], told: str) -> None:
    assert extended(changes) == (2, told)


def test_a_proxy_with_another_tokenizer_is_refused_with_the_remedy(
    experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], experiment: Experiment
) -> None:
    from tests.corpora import make_corpus
    from tests.families import publish

    other = publish("llama", make_corpus(tmp_path / "corpus"), tmp_path / "model", context=32)
    (tmp_path / "changes.yaml").write_text("domains: {letters: null}\n")
    status, _, err = run(capsys, "extend", experiment_file, "--proxy", other, "--corpus", tmp_path / "changes.yaml")
    line = err.strip().splitlines()[-1]
    assert status == 2 and line.startswith("error: ") and f"set corpus.tokenizer: {{pretrained: {other}}}" in line


@pytest.mark.long
def test_a_comparison_takes_its_proxy_from_other_domains(experiment: Experiment, texts: Path, tmp_path: Path, passed: list[tuple[str, int]]) -> None:
    document = experiment.model_dump(mode="json")
    old = {name: document["corpus"]["domains"][name] for name in ("recipes", "letters")}
    document |= {"storage": str(tmp_path / "runs"), "transfer": {"domains": {**old, "gone": document["corpus"]["domains"]["numbers"]}}}
    document["corpus"]["domains"] = {"food": old["recipes"], "letters": old["letters"], "first": halves(texts, "numbers", tmp_path)["first"]}
    document["methods"] = {"uniform": {}, "chameleon": {"targets": {"letters": 1.1}}, "doremi": {"proxy": {"steps": 4}}}
    moved = parse_experiment(document)
    backend = RayBackend(moved.storage, moved.resources, Reporter.silent())
    found = compare(moved, backend)
    chameleon, doremi = (found.data.mixtures[label] for label in ("chameleon", "doremi"))
    assert list(chameleon.provenance["embedded_rows"]) == ["first"] and chameleon.there_before
    assert 0 < chameleon.extra.flops < 0.2 * chameleon.cost.flops and doremi.extra == doremi.cost
    proxy = backend.find_model(chameleon.provenance["proxy_address"], 32, "proxy")
    assert set(proxy.weights) == {"recipes", "letters", "gone"} and proxy.tokenizer_sha256 == found.data.corpus.tokenizer_sha256
    assert "What came on top when the domains changed" in Path(found.report).read_text()
    assert compare(moved, backend).report == found.report
    seen = len(passed)
    again = extend(moved, proxy.address, validate(CorpusChanges, {"domains": {"meals": {"rename": "food"}}}, ""), backend)
    assert list(again.weights) == ["letters", "first", "meals"] and len(passed) == seen, "what the comparison embedded is there"
    assert again.provenance["embedded_rows"] == {} and again.extra.flops == 0
