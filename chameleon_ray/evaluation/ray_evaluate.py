"""Held-out loss of many models in one pass over a pool of actors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chameleon_ray.artifacts import DocumentLosses, SplitLosses, TokenCorpus
from chameleon_ray.config import Resources
from chameleon_ray.corpus.chunks import chunks_of
from chameleon_ray.corpus.ray_stream import stream
from chameleon_ray.evaluation.worker import EvaluateWorker
from chameleon_ray.progress import Phase

CHUNK_ROWS = 64


def evaluate(
    models: Sequence[str],
    corpus: TokenCorpus,
    splits: Sequence[str],
    resources: Resources,
    phase: Phase,
    flops: float,
    pool_actors: int | None = None,
    trusted: frozenset[str] = frozenset(),
    rows_at_most: int | None = None,
) -> list[SplitLosses]:
    """Loss of every model (addresses of Hugging Face folders with the corpus's tokenizer) on every measured domain and target of some splits, in the order
    given.

    Args:
        flops: that all of it takes.
        trusted: the models whose own code may be run.
        rows_at_most: of each domain and split; all by default.
    """
    chunks = chunks_of(corpus, models, splits, CHUNK_ROWS, rows_at_most)
    arguments = {"use_gpu": bool(resources.gpus_per_worker), "threads": resources.cpus_per_worker, "trusted": trusted}
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    results = stream(corpus, chunks, EvaluateWorker, arguments, resources, phase, flops, pool_actors)
    for chunk, result in sorted(results, key=lambda pair: pair[0].number):
        found.setdefault((chunk.model, chunk.split, chunk.domain), []).append(result)
    return [{split: {name: _merge(found[model, split, name]) for name in corpus.heldout} for split in splits} for model in models]


def _merge(parts: Sequence[dict[str, Any]]) -> DocumentLosses:
    return DocumentLosses.from_tokens(*(np.concatenate([part[key] for part in parts]) for key in ("document", "nats", "tokens")))
