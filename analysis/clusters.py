"""Domains whose labels are hidden, found again: `python -m analysis.clusters [wiki7 all]` with CHAMELEON_DATA set; prints Markdown.

A proxy is trained on all of the text as one domain, embeds the documents, and divides them into as many clusters as there are domains. `wiki7`: seven
languages; `all`: the 21 domains of `pretrain7`, `stack7` and `wiki7`. The adjusted Rand index is 0 for a division at random and 1 for the one that was hidden.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import zstandard
from sklearn.metrics import adjusted_rand_score

from chameleon_ray.artifacts import Clusters
from chameleon_ray.corpus.documents import document_hash, normalise
from chameleon_ray.discovery import read_corpus
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend

SETS = {"wiki7": ("wiki7",), "all": ("pretrain7", "stack7", "wiki7")}
MODEL = {"layers": 4, "heads": 4, "width": 128}
STEPS = 1000


def documents(data: Path, folders: tuple[str, ...]) -> dict[bytes, str]:
    """Hash of every document's text -> the domain that it is of; those that are of several are left out."""
    found: dict[bytes, str] = {}
    several: set[bytes] = set()
    for path in sorted(path for folder in folders for path in (data / folder).glob("*/train.jsonl.zst")):
        label = f"{path.parent.parent.name}/{path.parent.name}"
        with path.open("rb") as stored:
            for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(stored), encoding="utf-8"):
                key = document_hash(normalise(json.loads(line)["text"]))
                if found.setdefault(key, label) != label:
                    several.add(key)
    return {key: label for key, label in found.items() if key not in several}


def experiment_of(data: Path, folders: tuple[str, ...], k: int, storage: str, steps: int) -> Experiment:
    """One proxy, and clusters of all documents."""
    training = {"model": MODEL, "steps": steps, "batch_rows": 16, "learning_rate": 2.0e-3, "min_learning_rate": 2.0e-4}
    corpus = {
        "domains_from": {"clusters": {"k": k, "of": [f"{data}/{folder}/*/train.jsonl.zst" for folder in folders]}},
        "tokenizer": {"train": {"vocab_size": 4096, "bytes_per_domain": 4_000_000}},
        "row_tokens": 256,
        "heldout_tokens": 16384,
    }
    return parse_experiment({"name": "clusters", "storage": storage, "corpus": corpus, "proxy": training, "base": training})


def confusions(hidden: Mapping[bytes, str], files: Clusters) -> tuple[float, dict[str, Counter[str]]]:
    """The adjusted Rand index, and of every cluster how many documents it has of each domain."""
    labels, clusters = [], []
    for address in files.files:
        table = pq.read_table(address)
        for text, name in zip(table["text"].to_pylist(), table[files.domain_column].to_pylist(), strict=True):
            if (label := hidden.get(document_hash(text))) is not None:
                labels.append(label)
                clusters.append(name)
    counts: dict[str, Counter[str]] = {}
    for label, name in zip(labels, clusters, strict=True):
        counts.setdefault(name, Counter())[label] += 1
    return float(adjusted_rand_score(labels, clusters)), counts


def main() -> None:
    """Print a table of every set that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m analysis.clusters")
    parser.add_argument("sets", nargs="*", default=list(SETS))
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    data = Path(os.environ["CHAMELEON_DATA"])
    for name in given.sets:
        hidden = documents(data, SETS[name])
        k = len(set(hidden.values()))
        experiment = experiment_of(data, SETS[name], k, given.storage, given.steps)
        corpus = read_corpus(experiment, RayBackend(experiment.storage, experiment.resources, Reporter()))
        assert corpus.clusters is not None
        found = Clusters.load(corpus.clusters)
        index, counts = confusions(hidden, found)
        total = sum(each.total() for each in counts.values())
        print(f"## {name}: {k} domains, {total:,} documents, adjusted Rand index {index:.3f}\n")
        print("| cluster | documents | MB | of which |\n|---|---|---|---|")
        for row in sorted(found.table().to_pylist(), key=lambda row: -row["documents"]):
            mixed = ", ".join(f"{label} {count:,}" for label, count in counts[row["name"]].most_common(5))
            print(f"| {row['name']} | {row['documents']:,} | {row['text_bytes'] / 1e6:.2f} | {mixed} |")
        print(f"\nEmbedding: {found.cost.tokens:,} tokens; the whole search {found.cost.seconds:.0f} s.\n", flush=True)


if __name__ == "__main__":
    main()
