"""What an actor does with the rows it is sent: it knows nothing of Ray, and imports torch only once it is made, so that the driver need not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from chameleon_ray import storage
from chameleon_ray.artifacts import TokenCorpus, group_layout
from chameleon_ray.config import Precision
from chameleon_ray.corpus.chunks import ChunkReader
from chameleon_ray.embedding.groups import group_sums

CHUNK_ROWS = 64
MAX_CHUNKS = 2048


class EmbedWorker:
    """Holds the truncated model; turns the rows of a chunk into group sums."""

    def __init__(
        self, corpus: TokenCorpus, folder: str, layer: int, use_gpu: bool, threads: int, precision: Precision = "auto", allow_remote_code: bool = False
    ) -> None:
        import torch

        from chameleon_ray.models.hardware import detect
        from chameleon_ray.models.load import load_truncated
        from chameleon_ray.models.memory import forward_rows
        from chameleon_ray.models.pooling import MeanHiddenState

        torch.set_num_threads(threads)
        hardware = detect(use_gpu, precision)
        self._precision = hardware.precision
        self._chunks = ChunkReader(corpus)
        self._num_groups, _ = group_layout(len(corpus.names))
        self._forward_rows = forward_rows(hardware, corpus.row_tokens)
        self._embed = MeanHiddenState(load_truncated(storage.local_directory(folder), layer, hardware, allow_remote_code), layer)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = self._chunks.read(batch)
        blocks = [slice(start, min(start + CHUNK_ROWS, len(rows))) for start in range(0, len(rows), CHUNK_ROWS)]
        found = [self._vectors(rows.tokens[block], rows.length[block]) for block in blocks]  # a GPU has them all before the first is waited for
        total = None
        for block, vectors in zip(blocks, found, strict=True):
            sums, counts = group_sums(vectors.cpu().numpy(), rows.document[block], self._num_groups)
            total = (sums, counts) if total is None else (total[0] + sums, total[1] + counts)
        assert total is not None
        return {"number": batch["number"], "sums": total[0][None], "counts": total[1][None], "precision": [self._precision]}

    def _vectors(self, tokens: np.ndarray, length: np.ndarray) -> Any:
        import torch

        step = self._forward_rows
        return torch.cat([self._embed(tokens[i : i + step], length[i : i + step]) for i in range(0, len(tokens), step)])


def chunk_rows(rows: Iterable[int]) -> int:
    """Rows of a chunk, for domains of so many rows: 64, or so many times that as leave no more than 2,048 chunks beside one per domain.

    It follows from the corpus alone, and bounds what the driver may have to hold of chunks whose domain is not complete.
    """
    return CHUNK_ROWS * max(1, -(-sum(rows) // (CHUNK_ROWS * MAX_CHUNKS)))
