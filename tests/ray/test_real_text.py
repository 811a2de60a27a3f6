"""The seven real domains, where they are at hand: what the manifest counts is what arrives, and the order of domains is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from chameleon_ray import load_experiment, mix
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend

DATA = os.environ.get("CHAMELEON_DATA", "")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("session"),
    pytest.mark.skipif(not DATA, reason="CHAMELEON_DATA is not set: it names the folder with pretrain7/<domain>/{train,valid}.jsonl.zst"),
]
EXPERIMENT = Path(__file__).resolve().parents[2] / "jobs" / "pretrain7.yaml"


def longest_document(corpus: TokenCorpus, name: str) -> int:
    """Tokens of a domain's longest held-out document, which are stored one after the other."""
    longest = 0
    for split in ("valid", "test"):
        rows = RowReader(corpus, split).read(name, np.arange(corpus.domains[name].split(split).rows))
        tokens = np.concatenate([row[:length] for row, length in zip(rows.tokens, rows.length, strict=True)])
        ends = np.flatnonzero(tokens == corpus.end_of_document)
        longest = max(longest, int(np.diff(ends, prepend=-1).max()))
    return longest


@pytest.mark.long
def test_real_domains_become_a_mixture(tmp_path: Path) -> None:
    quick = [
        "proxy.steps=12",
        "proxy.model={layers: 2, heads: 2, width: 32}",
        "embedding.samples_per_domain=16",
        "corpus.tokenizer.train.bytes_per_domain=100000",
    ]
    experiment = load_experiment(EXPERIMENT, [f"storage={tmp_path}", *quick])
    backend = RayBackend(experiment.storage, experiment.resources, Reporter.silent())
    corpus = backend.tokenize(experiment.corpus, experiment.seeds[0], experiment.reads)
    files = {entry["path"]: entry for entry in json.loads(Path(DATA, "MANIFEST.json").read_text())["files"]}
    for name, counts in corpus.domains.items():
        listed = {split: files[f"pretrain7/{name}/{split}.jsonl.zst"]["documents"] for split in ("train", "valid")}
        assert counts.train.documents + counts.duplicates + counts.valid.documents + counts.test.documents == sum(listed.values())
        assert counts.valid.documents + counts.test.documents <= listed["valid"]
        assert abs(counts.valid.tokens - counts.test.tokens) <= longest_document(corpus, name), "each document goes to the half that has less"
        assert counts.skipped == {}
    weights = mix(experiment, "chameleon", backend).weights
    assert tuple(weights) == corpus.names == tuple(experiment.corpus.domains)
    assert abs(sum(weights.values()) - 1) < 1e-9
    assert len(set(weights.values())) == len(weights)
