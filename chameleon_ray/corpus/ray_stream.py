"""Rows of a corpus through a pool of actors that hold a model, with Ray Data: the one way that models meet rows outside training.

What an actor returns carries the number of its chunk; the driver puts results in that order before it reduces them, so that neither the
number of actors nor the order of arrival changes a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import Resources
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.progress import Stage
from chameleon_ray.ray_session import pool_size, quiet_data


@dataclass(frozen=True)
class Chunk:
    """Consecutive stored rows of one domain for one model; `number` is the place of the result."""

    number: int
    model: str
    domain: str
    start: int
    stop: int


def chunks_of(corpus: TokenCorpus, split: str, models: Sequence[str], rows_at_most: int | None, chunk_rows: int) -> list[Chunk]:
    """Cut the first rows (they are stored shuffled) of every domain into chunks, model by model."""
    spans = []
    for model in models:
        for name, rows in corpus.rows(split).items():
            used = min(rows, rows_at_most or rows)
            spans += [(model, name, start, min(start + chunk_rows, used)) for start in range(0, used, chunk_rows)]
    return [Chunk(number, *span) for number, span in enumerate(spans)]


def stream(
    corpus: TokenCorpus, split: str, chunks: Sequence[Chunk], worker: type, arguments: dict[str, Any], resources: Resources, stage: Stage
) -> list[dict[str, Any]]:
    """Send chunks through a pool of `worker` actors.

    Args:
        worker: a class called with one batch, the columns of `_Reader` for one chunk, that returns a dictionary of equally many rows.
        arguments: of the class's constructor.
    Returns:
        One dictionary per chunk, in the order of the chunks.
    """
    quiet_data()
    actors = min(pool_size(resources), len(chunks))
    items = [asdict(chunk) for chunk in chunks]
    data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(_Reader(corpus, split), batch_size=1, num_cpus=0)
    gpus = {"num_gpus": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    results = data.map_batches(
        worker, batch_size=None, compute=ray.data.ActorPoolStrategy(size=actors), fn_constructor_kwargs=arguments, num_cpus=resources.cpus_per_worker, **gpus
    )
    found: dict[int, dict[str, Any]] = {}
    for row in results.iter_rows():
        found[int(row["number"])] = row
        stage.update("chunks", len(found), len(chunks))
    assert len(found) == len(chunks), f"{len(found)} of {len(chunks)} chunks came back"
    return [found[number] for number in range(len(chunks))]


class _Reader:
    """Reads the rows of one chunk; a batch of one row whose columns hold the arrays."""

    def __init__(self, corpus: TokenCorpus, split: str) -> None:
        self._corpus, self._split = corpus, split
        self._reader: RowReader | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._reader = self._reader or RowReader(self._corpus, self._split)
        rows = self._reader.read(str(batch["domain"][0]), np.arange(batch["start"][0], batch["stop"][0]))
        return {**batch, "tokens": rows.tokens[None], "length": rows.length[None], "document": rows.document[None]}

    def __getstate__(self) -> dict[str, Any]:
        return {"_corpus": self._corpus, "_split": self._split, "_reader": None}


