"""What every variant gives text that is only there to look like a domain: the table of `analysis/results/quality.md`.

    CHAMELEON_DATA=… python -m analysis.twins --smollm2 FILE.gguf --storage runs

Twins of c4 join the seven domains of `pretrain7`: its words in random order within documents; one of its pages repeated with changed names; and lines that a
machine wrote, of random letters and digits. The proxy is SmolLM2-135M as it is. About six minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from rich.console import Console

from chameleon_ray.experiment import Experiment
from chameleon_ray.fitting import MixtureJob
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.text_quality import proxy_losses, text_quality
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.ray_progress import Reporter
from chameleon_ray.settings import validate

DOMAINS = ("arxiv", "book", "c4", "cc", "github", "stackexchange", "wikipedia")
MODEL_OF = "c4"
BYTES = 600_000
VARIANTS: Mapping[str, dict[str, Any]] = {
    "calibrated": {},
    "calibrated, quality": {"quality": True},
    "paper": {"variant": "paper"},
    "released": {"variant": "released"},
}


def main() -> None:
    """Weights of every variant and the measures of every domain, as Markdown; warnings below."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", required=True, help="SmolLM2-135M as a GGUF file")
    parser.add_argument("--storage", default="runs")
    options = parser.parse_args()
    experiment = _experiment(options.smollm2, options.storage, write_twins(Path(options.storage) / "twins"))
    backend = RayBackend(experiment.storage, experiment.resources, Reporter(Console(stderr=True)))
    corpus = backend.tokenize(experiment.corpus, experiment.seeds[0], experiment.reads)
    context = MixtureJob.of("chameleon", "", experiment, corpus, backend).context(backend)
    looked = Chameleon().embed(context)
    proxy, embeddings = looked.proxy, looked.embeddings
    texts = text_quality(corpus, proxy_losses(proxy, corpus, backend)[0])
    found = {label: Chameleon.model_validate(settings).weigh(embeddings, corpus.tokens(), texts) for label, settings in VARIANTS.items()}
    plain = Chameleon().weigh(embeddings.select(DOMAINS))
    print(f"| domain | without twins | {' | '.join(found)} | compression | repeated | structure |\n|---|{'---|' * (len(found) + 4)}")
    for name in corpus.names:
        weights = " | ".join(f"{mixture.weights[name]:.3f}" for mixture in found.values())
        each = texts[name]
        print(f"| {name} | {plain.weights.get(name, 0):.3f} | {weights} | {each.compression:.2f} | {each.repeated:.3f} | {each.structure:.2f} |")
    for warning in found["calibrated"].warnings:
        print(f"\nwarning: {warning}")


def write_twins(folder: Path) -> dict[str, Path]:
    """Name -> a file of documents, written anew."""
    generator = np.random.default_rng(0)
    documents = _documents(MODEL_OF)
    made = {
        "twin: shuffled words": [" ".join(generator.permutation(text.split())) for text in documents],
        "twin: boilerplate": _boilerplate(documents, generator),
        "twin: machine noise": ["\n".join(_line(generator) for _ in range(int(generator.integers(5, 40)))) for _ in documents],
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for i, (name, texts) in enumerate(made.items()):
        paths[name] = folder / f"{i}.jsonl"
        paths[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return paths


def _documents(name: str) -> list[str]:
    """The first documents of a domain's train file, about BYTES of them."""
    path = Path(os.environ["CHAMELEON_DATA"]) / "pretrain7" / name / "train.jsonl.zst"
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        texts = [json.loads(line)["text"] for line in stream.read().splitlines()]
    sizes = np.cumsum([len(text.encode()) for text in texts])
    return texts[: int(np.searchsorted(sizes, BYTES)) + 1]


def _boilerplate(documents: list[str], generator: np.random.Generator) -> list[str]:
    """One page of some 200 words, as often as there are documents, every capitalised word replaced by one from elsewhere."""
    page = next(text for text in documents if 180 <= len(text.split()) <= 260)
    names = sorted({word for text in documents for word in re.findall(r"\b[A-Z][a-z]{3,}\b", text)})
    count = BYTES // len(page.encode())
    return [re.sub(r"\b[A-Z][a-z]{3,}\b", lambda _: names[int(generator.integers(len(names)))], page) for _ in range(count)]


def _line(generator: np.random.Generator) -> str:
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/="))
    return "".join(generator.choice(letters, int(generator.integers(40, 76))))


def _experiment(smollm2: str, storage: str, twins: Mapping[str, Path]) -> Experiment:
    folder = f"{os.environ['CHAMELEON_DATA']}/pretrain7"
    domains: dict[str, Any] = {name: {"files": [f"{folder}/{name}/train.jsonl.zst"], "heldout": [f"{folder}/{name}/valid.jsonl.zst"]} for name in DOMAINS}
    domains |= {name: {"files": [str(path)]} for name, path in twins.items()}
    document = {
        "name": "twins",
        "storage": storage,
        "corpus": {"domains": domains, "row_tokens": 256},
        "proxy": {"model": {"pretrained": smollm2}, "steps": 0},
        "embedding": {"samples_per_domain": 96},
        "base": {"model": {"preset": "cpu-tiny"}, "steps": 1},
    }
    return validate(Experiment, document, "twins")


if __name__ == "__main__":
    main()
