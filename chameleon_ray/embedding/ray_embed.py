"""Domain embeddings on Ray Data: rows stream through actors that hold the truncated proxy, and only sums and counts leave them."""

from __future__ import annotations

import time

import numpy as np

from chameleon_ray.artifacts import NUM_GROUPS, Cost, Embeddings, TokenCorpus
from chameleon_ray.config import EmbeddingConfig, Resources
from chameleon_ray.corpus.chunks import chunks_of
from chameleon_ray.corpus.ray_stream import stream
from chameleon_ray.embedding.worker import EmbedWorker
from chameleon_ray.errors import UserError
from chameleon_ray.progress import Reporter

CHUNK_ROWS = 64


def embed(
    folder: str,
    layer: int,
    corpus: TokenCorpus,
    spec: EmbeddingConfig,
    resources: Resources,
    reporter: Reporter,
    per_token: Cost,
    digest: str,
    pool_actors: int | None = None,
) -> Embeddings:
    """One embedding per domain, from at most `spec.samples_per_domain` train rows each.

    Args:
        folder: address of a model in Hugging Face layout, with the corpus's tokenizer.
        layer: index into hidden_states.
        per_token: what one token takes, without the seconds.
        digest: of the embeddings, for their ledger.
    Raises:
        UserError: a domain without rows; an embedding that is not finite.
    """
    started = time.perf_counter()
    chunks = chunks_of(corpus, [folder], ["train"], CHUNK_ROWS, spec.samples_per_domain)
    arguments = {
        "folder": folder,
        "layer": layer,
        "use_gpu": bool(resources.gpus_per_worker),
        "threads": resources.cpus_per_worker,
    }
    with reporter.stage(f"embedding {len(corpus.names)} domains at layer {layer}") as stage:
        results = stream(corpus, chunks, EmbedWorker, arguments, resources, stage, pool_actors)
    index = {name: i for i, name in enumerate(corpus.names)}
    width = results[0]["sums"].shape[1]
    sums, counts = np.zeros((len(index), NUM_GROUPS, width)), np.zeros((len(index), NUM_GROUPS), np.int64)
    for result in results:
        sums[index[result["domain"]]] += result["sums"]
        counts[index[result["domain"]]] += result["counts"]
    bad = [name for name, i in index.items() if not np.isfinite(sums[i]).all()]
    if bad:
        raise UserError(f"the embedding of domain {bad[0]!r} is not finite; the model in {folder} diverged: train it again with a lower proxy.learning_rate")
    tokens = int(counts.sum()) * corpus.row_tokens
    cost = Cost(tokens, per_token.flops * tokens, time.perf_counter() - started, per_token.paper_flops * tokens)
    return Embeddings(corpus.names, sums, counts, layer, {digest: cost})
