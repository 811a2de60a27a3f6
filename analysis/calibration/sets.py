"""The embeddings that Chameleon's constants are chosen on: proxies of several sizes and lengths, a really pretrained one, and several sets of domains."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.experiment import Experiment
from chameleon_ray.fitting import MixtureJob
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.ray_progress import Reporter
from chameleon_ray.settings import validate

PRETRAIN7 = ("arxiv", "book", "c4", "cc", "github", "stackexchange", "wikipedia")
PILE_EXTRA = ("europarl", "freelaw", "nih_exporter", "pubmed_central", "ubuntu_irc", "us_speeches")
WIKI7 = ("fr", "de", "it", "es", "pt", "nl", "pl")
STACK7 = ("python", "java", "c", "cpp", "go", "ruby", "php")
FOLDERS = {"pretrain7": PRETRAIN7, "pile_extra": PILE_EXTRA, "wiki7": WIKI7, "stack7": STACK7}


@dataclass(frozen=True)
class Proxy:
    """A model to embed with.

    Attributes:
        model: its shape, or the pretrained one's file (`{smollm2}` stands for that of SmolLM2-135M).
        steps, schedule_steps, batch_rows, learning_rate: how it is trained; 0 steps take it as it is.
        vocab_size: of the tokenizer that is trained; 0 for its own.
        row_tokens, samples: length of a row and rows of a domain that are embedded.
    """

    model: Mapping[str, Any]
    steps: int = 0
    schedule_steps: int | None = None
    batch_rows: int = 16
    learning_rate: float = 2e-3
    vocab_size: int = 0
    row_tokens: int = 256
    samples: int = 512


SMOLLM2 = Proxy({"pretrained": "{smollm2}"}, samples=96)
PROXIES: dict[str, Proxy] = {
    "0.5M, 200 steps": Proxy({"layers": 2, "heads": 4, "width": 128}, 200, 1000, 28, 5e-3, vocab_size=2048, row_tokens=128, samples=1024),
    "0.5M, 1000 steps": Proxy({"layers": 2, "heads": 4, "width": 128}, 1000, 1000, 28, 5e-3, vocab_size=2048, row_tokens=128, samples=1024),
    "1.3M, 200 steps": Proxy({"preset": "cpu-small"}, 200, 800, vocab_size=4096),
    "1.3M, 800 steps": Proxy({"preset": "cpu-small"}, 800, 800, vocab_size=4096),
    "6M, 400 steps": Proxy({"layers": 6, "heads": 8, "width": 256}, 400, vocab_size=4096, learning_rate=1e-3),
    "SmolLM2-135M": SMOLLM2,
}
"""On all thirteen English domains; those of `pretrain7` alone are embedded by the same models."""


def embedding_sets(smollm2: str, storage: str) -> dict[str, Embeddings]:
    """Name -> embeddings. What is in `storage` already is not made again.

    Args:
        smollm2: the GGUF file of SmolLM2-135M.
    Cost: about half an hour on two CPU cores.
    """
    os.environ["RAY_DEDUP_LOGS"] = "1"
    thirteen = {folder: FOLDERS[folder] for folder in ("pretrain7", "pile_extra")}
    found = {name: _embed(_experiment(name, proxy, _domains(thirteen), smollm2, storage)) for name, proxy in PROXIES.items()}
    found["quickstart"] = _embed(_quickstart(storage))
    for folder in ("wiki7", "stack7"):
        found[folder] = _embed(_experiment(folder, SMOLLM2, _domains({folder: FOLDERS[folder]}), smollm2, storage))
    return found


def _domains(folders: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    root = os.environ["CHAMELEON_DATA"]
    return {
        name: {"files": [f"{root}/{folder}/{name}/train.jsonl.zst"], "heldout": [f"{root}/{folder}/{name}/valid.jsonl.zst"]}
        for folder, names in folders.items()
        for name in names
    }


def _experiment(name: str, proxy: Proxy, domains: dict[str, Any], smollm2: str, storage: str) -> Experiment:
    model = {key: value.format(smollm2=smollm2) if isinstance(value, str) else value for key, value in proxy.model.items()}
    tokenizer = {"tokenizer": {"train": {"vocab_size": proxy.vocab_size, "bytes_per_domain": 1_000_000}}} if proxy.vocab_size else {}
    training = {"steps": proxy.steps, "schedule_steps": proxy.schedule_steps, "batch_rows": proxy.batch_rows, "learning_rate": proxy.learning_rate}
    document = {
        "name": "calibration",
        "storage": storage,
        "corpus": {"domains": domains, "row_tokens": proxy.row_tokens, **tokenizer},
        "proxy": {"model": model, **training, "min_learning_rate": proxy.learning_rate / 10},
        "embedding": {"samples_per_domain": proxy.samples},
        "base": {"model": {"preset": "cpu-tiny"}, "steps": 1},
    }
    return validate(Experiment, document, name)


def _quickstart(storage: str) -> Experiment:
    from chameleon_ray.experiment import load_experiment

    return load_experiment("jobs/quickstart.yaml", [f"storage={storage}"])


def _embed(experiment: Experiment) -> Embeddings:
    """The experiment's embeddings, by the steps of `chameleon mix`."""
    backend = RayBackend(experiment.storage, experiment.resources, Reporter(Console(stderr=True)))
    corpus = backend.tokenize(experiment.corpus, experiment.seeds[0], experiment.reads)
    job = MixtureJob.of("chameleon", "", experiment, corpus, backend)
    assert isinstance(job.mixer, Chameleon)
    return job.mixer.embed(job.context(backend)).embeddings
