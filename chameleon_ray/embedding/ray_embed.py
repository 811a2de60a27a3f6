"""Domain embeddings on Ray Data: rows stream through actors that hold the truncated proxy, and only sums and counts leave them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from chameleon_ray.artifacts import Cost, Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.config import EmbeddingConfig, Resources
from chameleon_ray.corpus.chunks import Chunk, chunks_of, embedded_rows
from chameleon_ray.corpus.ray_stream import stream
from chameleon_ray.embedding.groups import accumulate
from chameleon_ray.embedding.worker import EmbedWorker, chunk_rows
from chameleon_ray.errors import UserError
from chameleon_ray.progress import Reporter


def embed(
    model: TrainedModel,
    layer: int,
    corpus: TokenCorpus,
    spec: EmbeddingConfig,
    resources: Resources,
    reporter: Reporter,
    per_token: Cost,
    digest: str,
    pool_actors: int | None = None,
    names: Sequence[str] | None = None,
) -> Embeddings:
    """One embedding per domain, from at most `spec.samples_per_domain` train rows each.

    Args:
        model: in Hugging Face layout, with the corpus's tokenizer.
        layer: index into hidden_states.
        per_token: what one token takes, without the seconds.
        digest: of the embeddings, for their ledger.
        names: domains, or targets, of which the valid rows are taken; by default all domains.
    Raises:
        UserError: a domain without rows; an embedding that is not finite.
    """
    started = time.perf_counter()
    stored = embedded_rows(corpus, names)
    used = [min(rows, spec.samples_per_domain) for rows in stored.values()]
    split = "valid" if set(stored) <= set(corpus.targets) else "train"
    chunks = chunks_of(corpus, [model.address], [split], chunk_rows(used), spec.samples_per_domain, stored)
    arguments = {
        "folder": model.address,
        "allow_remote_code": model.allow_remote_code,
        "layer": layer,
        "use_gpu": bool(resources.gpus_per_worker),
        "threads": resources.cpus_per_worker,
        "precision": spec.precision,
    }
    precisions: set[str] = set()

    def parts(results: Iterable[tuple[Chunk, dict[str, Any]]]) -> Iterator[tuple[str, int, Any, Any]]:
        for chunk, result in results:
            precisions.add(str(result["precision"]))
            yield chunk.domain, chunk.number, result["sums"], result["counts"]

    what = "targets" if split == "valid" else "domains"
    with reporter.phase(f"embedding {len(stored)} {what} at layer {layer}") as phase:
        results = stream(corpus, chunks, EmbedWorker, arguments, resources, phase, per_token.flops * sum(used) * corpus.row_tokens, pool_actors)
        expected = dict.fromkeys(stored, 0) | Counter(chunk.domain for chunk in chunks)
        sums, counts = accumulate(expected, parts(results))
    bad = next((name for name, found in zip(stored, sums, strict=True) if not np.isfinite(found).all()), None)
    if bad:
        raise UserError(
            f"the embedding of domain {bad!r} is not finite: the model in {model.address} has diverged; train it with a lower proxy.learning_rate, or take "
            "another one"
        )
    tokens = int(counts.sum()) * corpus.row_tokens
    cost = Cost(tokens, per_token.flops * tokens, time.perf_counter() - started, per_token.paper_flops * tokens)
    return Embeddings(tuple(stored), sums, counts, layer, {digest: cost}, tuple(sorted(precisions)))
