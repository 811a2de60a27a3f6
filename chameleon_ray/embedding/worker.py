"""What an actor does with the rows it is sent: it knows nothing of Ray, and imports torch only once it is made, so that the driver need not."""

from __future__ import annotations

from typing import Any

import numpy as np

from chameleon_ray import storage
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.corpus.chunks import ChunkReader
from chameleon_ray.embedding.groups import group_sums

FORWARD_TOKENS = {"cpu": 4096, "cuda": 65536}


class EmbedWorker:
    """Holds the truncated model; turns the rows of a chunk into group sums."""

    def __init__(self, corpus: TokenCorpus, folder: str, layer: int, use_gpu: bool, threads: int) -> None:
        import torch

        from chameleon_ray.models.hardware import detect
        from chameleon_ray.models.load import load_truncated
        from chameleon_ray.models.pooling import MeanHiddenState

        torch.set_num_threads(threads)
        hardware = detect(use_gpu)
        self._chunks = ChunkReader(corpus)
        self._forward_tokens = FORWARD_TOKENS[hardware.device.type]
        self._embed = MeanHiddenState(load_truncated(storage.local_directory(folder), layer, hardware), layer)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = self._chunks.read(batch)
        step = max(1, self._forward_tokens // rows.tokens.shape[1])
        vectors = [self._embed(rows.tokens[i : i + step], rows.length[i : i + step]).numpy() for i in range(0, len(rows), step)]
        sums, counts = group_sums(np.concatenate(vectors), rows.document)
        return {"number": batch["number"], "domain": batch["domain"], "sums": sums[None], "counts": counts[None]}
