"""Weights from a fiftieth of the text against weights from all of it, with the same proxy: `python -m analysis.sampling` with CHAMELEON_DATA set.

The train text of `pretrain7` is dealt to 200 files a domain. A proxy is trained on all of it; then samples of 2 % are drawn, each time with other names of the
files and hence other files and documents, embedded with that proxy and weighed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from chameleon_ray.artifacts import Embeddings, TokenCorpus
from chameleon_ray.backend import Reads
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixture import Mixture
from chameleon_ray.pipeline import mix
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend

DOMAINS = ("arxiv", "book", "c4", "cc", "github", "stackexchange", "wikipedia")
FILES, SHARE, DRAWS = 200, 0.02, 10
HELDOUT_TOKENS = 500
MODEL = {"layers": 4, "heads": 4, "width": 128}


def deal(data: Path, folder: Path) -> None:
    """The documents of every domain as files of a few each."""
    for name in DOMAINS:
        (folder / name).mkdir(parents=True)
        with (data / "pretrain7" / name / "train.jsonl.zst").open("rb") as stored:
            lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(stored), encoding="utf-8").readlines()
        chance = np.random.default_rng(list(name.encode()))
        for number, part in enumerate(np.array_split(chance.permutation(len(lines)), FILES)):
            content = "".join(lines[i] for i in part).encode()
            (folder / name / f"{number:03d}.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(content))


def renamed(folder: Path, target: Path, draw: int) -> None:
    """The same files under names that put them in another order."""
    for path in folder.rglob("*.zst"):
        name = hashlib.sha256(f"{draw} {path.name}".encode()).hexdigest()[:12]
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        (target / path.parent.name / f"{name}.jsonl.zst").hardlink_to(path)


def experiment_of(folder: Path, storage: str) -> Experiment:
    """A proxy on all of the text."""
    training = {"model": MODEL, "steps": 200, "batch_rows": 16, "learning_rate": 2.0e-3, "min_learning_rate": 2.0e-4}
    corpus = {
        "domains": {name: {"files": [f"{folder}/{name}/*"]} for name in DOMAINS},
        "tokenizer": {"train": {"vocab_size": 4096, "bytes_per_domain": 1_000_000}},
        "row_tokens": 128,
        "heldout_tokens": HELDOUT_TOKENS,
        "tokens_per_domain": None,
    }
    embedding = {"samples_per_domain": 100_000}
    return parse_experiment({"name": "sampling", "storage": storage, "corpus": corpus, "proxy": training, "embedding": embedding, "base": training})


def weighed(experiment: Experiment, backend: RayBackend, proxy: str, corpus: TokenCorpus) -> tuple[Mixture, Embeddings]:
    """Weights of a corpus's domains by a proxy that is there."""
    embeddings = backend.embed(backend.open_model(proxy, corpus), corpus, experiment.embedding)
    return Chameleon().weigh(embeddings, corpus.tokens()), embeddings


def main() -> None:
    """Print a Markdown table of all draws."""
    parser = argparse.ArgumentParser(prog="python -m analysis.sampling")
    parser.add_argument("--storage", default="runs")
    storage = parser.parse_args().storage
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        deal(Path(os.environ["CHAMELEON_DATA"]), whole)
        experiment = experiment_of(whole, storage)
        backend = RayBackend(storage, experiment.resources, Reporter())
        proxy = str(mix(experiment, "chameleon", backend).provenance["proxy_address"])
        full = backend.tokenize(experiment.corpus, 0, None)
        all_of_it, _ = weighed(experiment, backend, proxy, full)
        tokens = round(SHARE * min(counts.train.tokens for counts in full.domains.values()))
        rows = [_row(experiment, backend, proxy, whole, Path(scratch) / str(draw), draw, tokens, all_of_it) for draw in range(DRAWS)]
    z = np.array([[row["z"][name] for name in DOMAINS] for row in rows])
    print(f"Read of each domain: {np.mean([row['share'] for row in rows]):.3f} of its text ({tokens:,} train tokens wanted, held-out text beside).\n")
    print(f"| | {' | '.join(DOMAINS)} |\n|---|{'---|' * len(DOMAINS)}")
    print(f"| all of it | {' | '.join(f'{all_of_it.weights[n]:.3f} ± {(all_of_it.weights_stderr or {})[n]:.3f}' for n in DOMAINS)} |")
    for row in rows:
        print(f"| draw {row['draw']} | {' | '.join(row['weights'][n] for n in DOMAINS)} |")
    by_domain = dict(zip(DOMAINS, np.sqrt((z**2).mean(axis=0)).round(2).tolist(), strict=True))
    within = f"within two {100 * (np.abs(z) <= 2).mean():.0f} %, largest {np.abs(z).max():.2f}"
    print(f"\nDifferences in combined standard errors: root mean square {np.sqrt((z**2).mean()):.2f}, {within}; by domain {json.dumps(by_domain)}.")


def _row(experiment: Experiment, backend: RayBackend, proxy: str, whole: Path, folder: Path, draw: int, tokens: int, all_of_it: Mixture) -> dict[str, Any]:
    renamed(whole, folder, draw)
    section = experiment.corpus.model_dump(exclude={"domains", "tokenizer"})
    domains = {name: {"files": (f"{folder}/{name}/*",)} for name in DOMAINS}
    corpus = backend.tokenize(CorpusConfig.model_validate({**section, "domains": domains, "tokenizer": {"pretrained": proxy}}), 0, Reads(tokens))
    mixture, _ = weighed(experiment, backend, proxy, corpus)
    shutil.rmtree(folder)
    ours, theirs = mixture.weights_stderr or {}, all_of_it.weights_stderr or {}
    z = {name: (mixture.weights[name] - all_of_it.weights[name]) / np.hypot(ours[name], theirs[name]) for name in DOMAINS}
    shares = [excerpt.share for counts in corpus.domains.values() if (excerpt := counts.excerpt) and excerpt.share]
    return {"draw": draw, "weights": {n: f"{mixture.weights[n]:.3f} ± {ours[n]:.3f}" for n in DOMAINS}, "z": z, "share": float(np.mean(shares))}


if __name__ == "__main__":
    main()
