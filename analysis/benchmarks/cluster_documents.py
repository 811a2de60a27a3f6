"""Documents per second that domains are found among, over those of embedding them alone.

Everything that `find_clusters` does for one more document counts: reading it, sorting it by hash, tokenizing and embedding it, k-means, its words, and writing
it down; what a search takes whatever its size (actors that import torch) does not, since two sizes are measured and their difference counts. Embedding alone is
the bare truncated forward pass over tokens that are ready, in one process with all threads, in the same batches: documents of like length together.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.benchmarks import synthetic
from analysis.benchmarks.measure import Outcome, interleaved, main, ratios
from chameleon_ray.artifacts import TrainedModel
from chameleon_ray.config import ModelConfig, Resources
from chameleon_ray.corpus.tokenizer import Encoder, load_tokenizer
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.embedding.documents import CHUNK_DOCUMENTS
from chameleon_ray.models.architecture import middle_layer
from chameleon_ray.models.hardware import detect
from chameleon_ray.models.load import load_truncated
from chameleon_ray.models.memory import FORWARD_TOKENS
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.ray_session import cluster_cpus, start_ray

BOUND = 0.9
KINDS, K = 8, 8
SMALL, LARGE, ROW_TOKENS = 256, 2304, 512


def write_texts(folder: Path, documents: int) -> list[str]:
    """Documents of eight kinds, in one file; the texts."""
    kinds = [synthetic.DomainText(kind) for kind in range(KINDS)]
    texts = [kinds[i % KINDS].document() for i in range(documents)]
    folder.mkdir()
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    return texts


def search_seconds(folder: Path, model: TrainedModel, row_tokens: int, storage: str) -> float:
    """Wall seconds of one search."""
    corpus = {
        "domains_from": {"clusters": {"k": K, "of": [f"{folder}/*.jsonl"], "embed": model.address}},
        "tokenizer": {"pretrained": model.address},
        "row_tokens": row_tokens,
    }
    backend = RayBackend(storage, Resources(), Reporter.silent())
    started = time.perf_counter()
    backend.find_clusters(CorpusConfig.model_validate(corpus), model, "middle", 0, None)
    return time.perf_counter() - started


def batches_of(texts: list[str], folder: str, row_tokens: int) -> list[np.ndarray]:
    """Token rows as the actors batch them."""
    tokens = [found[:row_tokens] for found in Encoder(load_tokenizer(folder)[0]).encode(texts)]
    batches = []
    for start in range(0, len(tokens), CHUNK_DOCUMENTS):
        waiting = sorted(tokens[start : start + CHUNK_DOCUMENTS], key=lambda found: -len(found))
        while waiting:
            longest = len(waiting[0])
            count = max(1, FORWARD_TOKENS["cpu"] // longest)
            some, waiting = waiting[:count], waiting[count:]
            rows = np.zeros((len(some), longest), np.int64)
            for row, found in zip(rows, some, strict=True):
                row[: len(found)] = found
            batches.append(rows)
    return batches


def run(quick: bool) -> Outcome:
    """Searches of two sizes and the bare forward pass over their difference, in turns."""
    start_ray()
    small, large, row_tokens, repetitions = (64, 192, 64, 1) if quick else (SMALL, LARGE, ROW_TOKENS, 3)
    config = ModelConfig(preset="cpu-tiny" if quick else "cpu-medium")
    threads = cluster_cpus()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = synthetic.make_corpus(f"{scratch}/corpus", KINDS, 4, row_tokens)
        synthetic.make_model(f"{scratch}/model", config, corpus)
        model = RayBackend(f"{scratch}/found", Resources(), Reporter.silent()).find_model(f"{scratch}/model", row_tokens, "model")
        texts = {count: write_texts(Path(scratch) / str(count), count) for count in (small, large)}
        layer = middle_layer(config.shape[0])
        truncated = load_truncated(model.address, layer, detect(use_gpu=False))
        batches = [torch.from_numpy(rows) for rows in batches_of(texts[large][small:], model.address, row_tokens)]
        turns = iter(range(2 * repetitions))

        def search() -> float:
            seconds = [search_seconds(Path(scratch) / str(count), model, row_tokens, f"{scratch}/runs{next(turns)}") for count in (small, large)]
            return (large - small) / (seconds[1] - seconds[0])

        @torch.inference_mode()
        def alone() -> float:
            truncated(input_ids=batches[0], use_cache=False)
            started = time.perf_counter()
            for rows in batches:
                truncated(input_ids=rows, use_cache=False).last_hidden_state.mean(dim=1)
            return (large - small) / (time.perf_counter() - started)

        found = interleaved({"search": search, "alone": alone}, repetitions)
    each = ratios(found["search"], found["alone"])
    ratio = statistics.median(each)
    layers, heads, width = config.shape
    fields: dict[str, Any] = {
        "model": {"preset": config.preset, "layers": layers, "heads": heads, "width": width, "layer": layer},
        "documents": [small, large],
        "row_tokens": row_tokens,
        "threads": threads,
        "search_documents_per_second": statistics.median(found["search"]),
        "alone_documents_per_second": statistics.median(found["alone"]),
        "ratios": each,
    }
    return Outcome(ratio, BOUND, ratio >= BOUND, fields)


if __name__ == "__main__":
    main("cluster_documents", run)
