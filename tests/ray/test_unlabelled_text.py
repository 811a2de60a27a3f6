"""Domains that nobody labelled, from the text to the weights: found by a proxy, by a column, by a pretrained model; the same for any number of workers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_rand_score

from chameleon_ray import storage
from chameleon_ray.artifacts import Clusters, TokenCorpus
from chameleon_ray.config import Resources
from chameleon_ray.discovery import read_corpus
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.pipeline import mix
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from tests.ray.conftest import TEXTS

pytestmark = pytest.mark.usefixtures("session")
MODEL = {"layers": 2, "heads": 2, "width": 32}
TRAINING = {"model": MODEL, "steps": 60, "batch_rows": 8, "learning_rate": 1e-2, "min_learning_rate": 1e-3}


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


def by_text_of(line: str, by_text: dict[str, str]) -> str:
    (name,) = {name for text, name in by_text.items() if text.startswith(line.rstrip("…"))}
    return name


def test_what_was_found_is_weighed_like_any_other_domain(found: tuple[Experiment, TokenCorpus]) -> None:
    experiment, corpus = found
    mixture = mix(experiment, "chameleon", backend_of(experiment))
    assert set(mixture.weights) == set(corpus.names) and sum(mixture.weights.values()) == pytest.approx(1)
    assert not storage.is_folder(f"{corpus.clusters}/scratch")


def test_the_same_is_found_by_any_number_of_workers_from_files_in_any_order(found: tuple[Experiment, TokenCorpus], mixed: Path, tmp_path: Path) -> None:
    _, corpus = found
    lines = [line for path in sorted(mixed.glob("*.jsonl"), reverse=True) for line in path.read_text().splitlines()]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "all.jsonl").write_text("\n".join(lines[7:] + lines[:7]) + "\n")
    experiment = experiment_of(tmp_path / "texts", tmp_path / "runs")
    again = read_corpus(experiment, backend_of(experiment, workers=1))
    assert labelled(again) == labelled(found[1]) and again.names == corpus.names


def test_a_column_is_divided_within_its_values(mixed: Path, found: tuple[Experiment, TokenCorpus], tmp_path: Path) -> None:
    experiment = experiment_of(mixed, Path(found[0].storage), {"k": 2, "within": "kind"})
    corpus = read_corpus(experiment, backend_of(experiment))
    kinds, by_text = truth(mixed, "kind"), labelled(corpus)
    assert all(by_text[text].startswith(f"{kinds[text]}/") for text in kinds)
    assert len(corpus.names) == 6
    assert {row["source"] for row in Clusters.load(str(corpus.clusters)).table().to_pylist()} == set(TEXTS)


def test_more_clusters_than_documents_is_one_line(mixed: Path, found: tuple[Experiment, TokenCorpus]) -> None:
    experiment = experiment_of(mixed, Path(found[0].storage), {"k": 1000})
    with pytest.raises(UserError, match=r"clusters\.k: 1,000 clusters of 460 documents; a cluster needs several"):
        read_corpus(experiment, backend_of(experiment))


def test_documents_all_alike_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    lines = [json.dumps({"text": "the same words again and again " * 40 + ("." if i else "")}) for i in range(2)]
    (tmp_path / "texts" / "0.jsonl").write_text("\n".join(lines) + "\n")
    experiment = experiment_of(tmp_path / "texts", tmp_path / "runs", {"k": 2})
    with pytest.raises(UserError, match=r"all alike"):
        read_corpus(experiment, backend_of(experiment))
