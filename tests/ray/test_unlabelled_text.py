"""Domains that nobody labelled, from the text to the weights: found by a proxy, by a column, by a pretrained model; the same for any number of workers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_rand_score

from chameleon_ray import storage
from chameleon_ray.artifacts import Clusters, TokenCorpus, TrainedModel
from chameleon_ray.config import EmbeddingConfig, Resources
from chameleon_ray.corpus.buckets import Contents
from chameleon_ray.corpus.layout import Layout
from chameleon_ray.corpus.sources import TEXT
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.discovery import read_corpus
from chameleon_ray.embedding import clusters, ray_clusters
from chameleon_ray.embedding.documents import DocumentSpec
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.pipeline import mix
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.tensors import write_tensors
from tests.ray.conftest import TEXTS

pytestmark = pytest.mark.usefixtures("session")
MODEL = {"layers": 2, "heads": 2, "width": 32}
TRAINING = {"model": MODEL, "steps": 40, "batch_rows": 8, "learning_rate": 1e-2, "min_learning_rate": 1e-3}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of three kinds in one folder, none of them labelled but in the column `kind`, copies among them."""
    folder = tmp_path_factory.mktemp("mixed")
    chance = random.Random(7)
    documents = [
        {"text": " ".join(chance.choices(words.split(), k=chance.randint(20, 120))), "kind": name, "half": f"{name[0]}{i % 2}"}
        for name, words in TEXTS.items()
        for i in range(150)
    ]
    documents += documents[:10]
    chance.shuffle(documents)
    for number in range(3):
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents[number::3]))
    return folder


def experiment_of(mixed: Path, runs: Path, clusters: dict[str, Any] | None = None, **corpus: Any) -> Experiment:
    section = {
        "domains_from": {"clusters": {"k": 3, "of": [f"{mixed}/*.jsonl"], **(clusters or {})}},
        "tokenizer": {"train": {"vocab_size": 400, "bytes_per_domain": 100_000}},
        "row_tokens": 32,
        "heldout_tokens": 2048,
        **corpus,
    }
    embedding = {"samples_per_domain": 64}
    return parse_experiment(
        {"name": "found", "storage": str(runs), "corpus": section, "proxy": TRAINING, "embedding": embedding, "base": TRAINING, "seeds": [0]}
    )


def backend_of(experiment: Experiment, workers: int | None = None) -> RayBackend:
    return RayBackend(experiment.storage, Resources(), Reporter.silent(), pool_actors=workers)


def labelled(corpus: TokenCorpus) -> dict[str, str]:
    """Text -> domain, as the files of the clusters have it."""
    assert corpus.clusters is not None
    found: dict[str, str] = {}
    for address in Clusters.load(corpus.clusters).files:
        table = pq.read_table(address)
        found |= dict(zip(table["text"].to_pylist(), table["domain"].to_pylist(), strict=True))
    return found


def truth(mixed: Path, column: str) -> dict[str, str]:
    lines = [json.loads(line) for path in sorted(mixed.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return {line["text"]: line[column] for line in lines}


@pytest.fixture(scope="module")
def found(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, TokenCorpus]:
    experiment = experiment_of(mixed, tmp_path_factory.mktemp("found"))
    return experiment, read_corpus(experiment, backend_of(experiment))


def test_kinds_of_text_are_found_and_named_by_their_words(found: tuple[Experiment, TokenCorpus], mixed: Path) -> None:
    _, corpus = found
    by_text, kinds = labelled(corpus), truth(mixed, "kind")
    assert by_text.keys() == kinds.keys()
    texts = sorted(kinds)
    assert adjusted_rand_score([kinds[text] for text in texts], [by_text[text] for text in texts]) > 0.95
    assert len(corpus.names) == 3 and set(corpus.names) == set(by_text.values())
    for name in corpus.names:
        kind = max(TEXTS, key=lambda kind: sum(word in TEXTS[kind].split() for word in name.split("-")))
        assert set(name.split("-")) <= set(TEXTS[kind].split())
    table = Clusters.load(str(corpus.clusters)).table().to_pylist()
    assert [row["name"] for row in table] == list(corpus.names)
    assert sum(row["documents"] for row in table) == 450
    assert all(len(row["lines"]) == 3 and all(by_text_of(line, by_text) == row["name"] for line in row["lines"]) for row in table)


def test_the_tokenizer_is_of_what_the_domains_train_on(found: tuple[Experiment, TokenCorpus], tmp_path: Path) -> None:
    """Which is known once the domains are: what the text as one domain trained its tokenizer on may be held out of them."""
    experiment, corpus = found
    assert corpus.clusters is not None
    section = experiment.corpus.model_dump(exclude_none=True, exclude={"domains_from", "domains", "tokens_per_domain"})
    labels = {"files": [*Clusters.load(corpus.clusters).files], "domain_column": "domain"}
    listed = CorpusConfig.model_validate({**section, "domains_from": labels})
    again = RayBackend(str(tmp_path), Resources(), Reporter.silent()).tokenize(listed, 0)
    assert again.tokenizer_sha256 == corpus.tokenizer_sha256
    assert {name: again.domains[name].train for name in corpus.names} == {name: corpus.domains[name].train for name in corpus.names}


def test_more_clusters_than_documents_are_told_before_anything_is_trained(mixed: Path, tmp_path: Path) -> None:
    experiment = experiment_of(mixed, tmp_path / "runs", {"k": 1000})
    with pytest.raises(UserError, match=r"clusters\.k: 1,000 clusters of 450 documents; a cluster needs several, lower k or add documents"):
        read_corpus(experiment, backend_of(experiment))
    assert not (tmp_path / "runs" / "models").exists()


def by_text_of(line: str, by_text: dict[str, str]) -> str:
    (name,) = {name for text, name in by_text.items() if text.startswith(line.rstrip("…"))}
    return name


@pytest.mark.long
def test_what_was_found_is_weighed_like_any_other_domain(found: tuple[Experiment, TokenCorpus]) -> None:
    experiment, corpus = found
    mixture = mix(experiment, "chameleon", backend_of(experiment))
    assert set(mixture.weights) == set(corpus.names) and sum(mixture.weights.values()) == pytest.approx(1)
    assert not storage.is_folder(f"{corpus.clusters}/scratch")


@pytest.fixture(scope="module")
def proxy(found: tuple[Experiment, TokenCorpus]) -> str:
    """The folder of the proxy that was trained on all of the text."""
    folders = sorted(Path(found[0].storage).glob("models/proxy-*"))
    return next(str(folder) for folder in folders if list(TrainedModel.load(str(folder)).weights) == [TEXT])


@pytest.mark.long
def test_the_same_is_found_by_any_number_of_workers_from_files_in_any_order(mixed: Path, proxy: str, tmp_path: Path) -> None:
    lines = [line for path in sorted(mixed.glob("*.jsonl"), reverse=True) for line in path.read_text().splitlines()]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "all.jsonl").write_text("\n".join(lines[7:] + lines[:7]) + "\n")
    two, one = (
        read_corpus(experiment, backend_of(experiment, workers))
        for experiment, workers in (
            (experiment_of(mixed, tmp_path / "two", {"embed": proxy}), 2),
            (experiment_of(tmp_path / "texts", tmp_path / "one", {"embed": proxy}), 1),
        )
    )
    assert labelled(one) == labelled(two) and one.names == two.names and len(one.names) == 3


@pytest.mark.long
def test_a_column_is_divided_within_its_values_and_rare_ones_are_one_domain(mixed: Path, proxy: str, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    rare = [json.dumps({"text": f"{' '.join(TEXTS['letters'].split()[i:])} again " * 12 + "yours", "kind": f"rare{i % 2}"}) for i in range(2)]
    for path in mixed.glob("*.jsonl"):
        (tmp_path / "texts" / path.name).write_text(path.read_text() + ("\n".join(rare) + "\n" if path.name == "0.jsonl" else ""))
    experiment = experiment_of(tmp_path / "texts", tmp_path / "runs", {"k": 2, "within": "kind", "embed": proxy})
    corpus = read_corpus(experiment, backend_of(experiment))
    kinds, by_text = truth(tmp_path / "texts", "kind"), labelled(corpus)
    assert all(by_text[text] == "other" if kind.startswith("rare") else by_text[text].startswith(f"{kind}/") for text, kind in kinds.items())
    assert len(corpus.names) == 7
    assert {row["source"] for row in Clusters.load(str(corpus.clusters)).table().to_pylist()} == {*TEXTS, "other"}


@pytest.mark.long
def test_more_documents_than_the_sample(mixed: Path, proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "SAMPLE_DOCUMENTS", 40)
    monkeypatch.setattr(clusters, "BATCH_DOCUMENTS", 64)
    (tmp_path / "texts").mkdir()
    for path in mixed.glob("*.jsonl"):  # the column that text lies in has the name that domains would get
        lines = [json.dumps({"domain": json.loads(line)["text"]}) for line in path.read_text().splitlines()]
        (tmp_path / "texts" / path.name).write_text("\n".join(lines) + "\n")
    experiment = experiment_of(tmp_path / "texts", tmp_path / "runs", {"embed": proxy}, text_column="domain")
    corpus = read_corpus(experiment, backend_of(experiment))
    kinds = truth(mixed, "kind")
    found = Clusters.load(str(corpus.clusters))
    assert found.domain_column == "domain_name"
    tables = [pq.read_table(address) for address in found.files]
    by_text = {text: name for table in tables for text, name in zip(table["domain"].to_pylist(), table["domain_name"].to_pylist(), strict=True)}
    assert adjusted_rand_score([kinds[text] for text in sorted(kinds)], [by_text[text] for text in sorted(kinds)]) > 0.9


@pytest.mark.parametrize("rare_bytes, pooled", [(400, False), (900, True)])
def test_values_with_too_little_text_come_together_or_are_left_out(tmp_path: Path, rare_bytes: int, pooled: bool) -> None:
    contents = Contents(str(tmp_path), Layout(1, 1), (), ("law", "tax", "other"), {})
    spec = DocumentSpec(str(tmp_path), contents, "", 32, "text")
    centres = {f"{label}.centres": np.eye(2, 4, dtype=np.float32) for label in range(3)}
    write_tensors(spec.spaces_address, {**centres, "first": np.array([0, 2, 4, 6])})
    text_bytes = np.array([9000, 8000, rare_bytes, 0, rare_bytes, 50])
    target, stay, left_out = ray_clusters._merge(spec, ray_clusters._Counted(text_bytes // 10, text_bytes, {}), True, 1500, "other-2")
    assert stay[0] == ("law", [0, 1]) and target[:2].tolist() == [0, 1] and target[3] == -1
    assert stay[1:] == ([("other-2", [2])] if pooled else []) and left_out.tolist() == ([] if pooled else [2, 4, 5])
    assert target[[2, 4, 5]].tolist() == ([2, 2, 2] if pooled else [-1, -1, -1])


@pytest.mark.long
def test_an_interrupted_search_goes_on_where_it_was(mixed: Path, proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_of(mixed, tmp_path / "runs", {"embed": proxy})
    with monkeypatch.context() as patch:
        patch.setattr(ray_clusters, "_name", None)
        with pytest.raises(TypeError):
            read_corpus(experiment, backend_of(experiment, workers=2))
    assert not list((tmp_path / "runs").rglob("record.json"))
    with monkeypatch.context() as patch:
        patch.setattr(ray_clusters, "DocumentWorker", None)  # nothing is embedded again
        corpus = read_corpus(experiment, backend_of(experiment, workers=1))
    assert len(corpus.names) == 3 and sum(row["documents"] for row in Clusters.load(str(corpus.clusters)).table().to_pylist()) == 450


def test_documents_all_alike_are_one_line(proxy: str, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    lines = [json.dumps({"text": "the same words again and again " * 40 + "." * i}) for i in range(2)]
    (tmp_path / "texts" / "0.jsonl").write_text("\n".join(lines) + "\n")
    experiment = experiment_of(tmp_path / "texts", tmp_path / "runs", {"k": 2, "embed": proxy})
    with pytest.raises(UserError, match=r"clusters: the documents are all alike to the model in .*, nothing divides them; add others"):
        read_corpus(experiment, backend_of(experiment))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"k": 1000}, r"clusters\.k: 1,000 clusters of 460 documents; a cluster needs several, lower k or add documents"),
    ({"of": ["nowhere/*.jsonl"]}, r"clusters\.of\[0\]: 'nowhere/\*\.jsonl' matches no file"),
    ({"within": "nothing"}, r"no 'nothing', found text, kind, half; set corpus\.domains_from\.clusters\.within to one of them"),
    ({"embed": "/nowhere/at/all"}, r"clusters\.embed: "),
]


@pytest.mark.parametrize("changes, message", WRONG)
def test_what_is_wrong_is_told_by_the_keys_that_were_written(mixed: Path, proxy: str, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    experiment = experiment_of(mixed, tmp_path / "runs", {"embed": proxy, **changes})
    with pytest.raises(UserError, match=message):
        read_corpus(experiment, backend_of(experiment))
    assert not list(tmp_path.rglob("record.json"))


def test_a_target_among_the_documents_is_refused(mixed: Path, proxy: str, tmp_path: Path) -> None:
    experiment = experiment_of(mixed, tmp_path / "runs", {"embed": proxy}, targets={"unseen": {"files": [f"{mixed}/1.jsonl"]}})
    with pytest.raises(UserError, match=r"corpus\.targets\.unseen: .* is the text of the documents too; a target is never trained on"):
        read_corpus(experiment, backend_of(experiment))


def test_a_layer_that_the_proxy_does_not_have_is_refused_before_it_is_trained(mixed: Path, tmp_path: Path) -> None:
    experiment = experiment_of(mixed, tmp_path / "runs")
    experiment = experiment.model_copy(update={"embedding": EmbeddingConfig(layer=9)})
    with pytest.raises(UserError, match=r"embedding\.layer: 9, but the proxy has 2 layers"):
        read_corpus(experiment, backend_of(experiment))
    assert not (tmp_path / "runs").exists()
