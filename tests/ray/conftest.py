"""One Ray session for all tests that need one, started and stopped by us alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chameleon_ray.artifacts import Embeddings, TrainedModel
from chameleon_ray.experiment import Experiment, load_experiment

TEXTS = {
    "recipes": "stir the onion in warm butter until soft then add salt pepper flour milk cheese and bake for half an hour",
    "letters": "dear friend thank you for your kind letter we hope to visit you in spring when roads are dry again yours",
    "numbers": "one plus two equals three and four times five gives twenty while nine minus six leaves three so sum is odd",
}


@pytest.fixture(scope="session")
def session() -> Iterator[None]:
    """A local Ray of two CPUs, without the token that a cluster would ask for."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    from chameleon_ray.ray_session import start_ray

    os.environ.pop("RAY_ADDRESS", None)
    start_ray()
    yield
    ray.shutdown()


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What goes through a model to be embedded, call by call: the model's address and how many rows."""
    from chameleon_ray.embedding import ray_embed

    calls: list[tuple[str, int]] = []
    embed = ray_embed.embed

    def counted(model: TrainedModel, *arguments: Any) -> Embeddings:
        found = embed(model, *arguments)
        calls.append((model.address, int(found.group_counts.sum())))
        return found

    monkeypatch.setattr(ray_embed, "embed", counted)
    return calls


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small domains as jsonl; copies within and across domains."""
    import json
    import random

    folder = tmp_path_factory.mktemp("texts")
    for seed, (name, words) in enumerate(TEXTS.items()):
        chance = random.Random(seed)
        documents = [" ".join(chance.choices(words.split(), k=chance.randint(20, 120))) for _ in range(120)]
        lines = [json.dumps({"text": text, "meta": {"source": name}}) for text in [*documents, documents[0], "a sentence that every domain has"]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def experiment_file(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete experiment of seconds, in a folder of its own."""
    folder = tmp_path_factory.mktemp("experiment")
    model = {"layers": 2, "heads": 2, "width": 32}
    training = {"model": model, "steps": 20, "batch_rows": 8, "learning_rate": 1e-2, "min_learning_rate": 1e-3}
    document = {
        "name": "tiny",
        "seeds": [0],
        "storage": str(folder / "runs"),
        "corpus": {
            "domains": {name: {"files": [str(texts / f"{name}.jsonl")]} for name in TEXTS},
            "tokenizer": {"train": {"vocab_size": 400, "bytes_per_domain": 20000}},
            "row_tokens": 32,
        },
        "proxy": training,
        "base": {**training, "steps": 24},
        "embedding": {"samples_per_domain": 64},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def experiment(experiment_file: Path) -> Experiment:
    return load_experiment(experiment_file)
