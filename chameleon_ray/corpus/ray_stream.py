"""Rows of a corpus through a pool of actors that hold a model, with Ray Data: the one way that models meet rows outside training.

What an actor returns carries the number of its chunk; the driver puts results in that order before it reduces them, so that neither the
number of actors nor the order of arrival changes a bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import Resources
from chameleon_ray.corpus.rows import RowReader, Rows
from chameleon_ray.progress import Stage
from chameleon_ray.ray_session import pool_size, quiet_data


@dataclass(frozen=True)
class Chunk:
    """Consecutive stored rows of one domain and split for one model; `number` is the place of the result."""

    number: int
    model: str
    split: str
    domain: str
    start: int
    stop: int


def chunks_of(corpus: TokenCorpus, models: Sequence[str], splits: Sequence[str], chunk_rows: int, rows_at_most: int | None = None) -> list[Chunk]:
    """Cut the first rows (they are stored shuffled) of every domain into chunks, model by model."""
    spans = []
    for model, split in itertools.product(models, splits):
        for name, rows in corpus.rows(split).items():
            used = min(rows, rows_at_most or rows)
            spans += [(model, split, name, start, min(start + chunk_rows, used)) for start in range(0, used, chunk_rows)]
    return [Chunk(number, *span) for number, span in enumerate(spans)]


def stream(
    corpus: TokenCorpus,
    chunks: Sequence[Chunk],
    worker: type,
    arguments: dict[str, Any],
    resources: Resources,
    stage: Stage,
    pool_actors: int | None = None,
) -> list[dict[str, Any]]:
    """Send chunks through a pool of `worker` actors.

    Args:
        worker: a class called with a batch of one row, the fields of a `Chunk`, that returns a batch of one row with the chunk's `number`.
        arguments: of the class's constructor, beside `corpus`.
        pool_actors: at most so many actors; by default as many as the cluster has room for.
    Returns:
        One dictionary per chunk, in the order of the chunks.
    """
    quiet_data()
    actors = min(pool_actors or pool_size(resources), len(chunks))
    items = [asdict(chunk) for chunk in chunks]
    data = ray.data.from_items(items, override_num_blocks=len(items))
    gpus: dict[str, Any] = {"num_gpus": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    results = data.map_batches(
        worker,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=actors),
        fn_constructor_kwargs={"corpus": corpus, **arguments},
        num_cpus=resources.cpus_per_worker,
        **gpus,
    )
    found: dict[int, dict[str, Any]] = {}
    for row in results.iter_rows():
        found[int(row["number"])] = row
        stage.update("chunks", len(found), len(chunks))
    assert len(found) == len(chunks), f"{len(found)} of {len(chunks)} chunks came back"
    return [found[number] for number in range(len(chunks))]


class ChunkReader:
    """An actor's access to the rows of the chunks it is sent. Actors read for themselves: memory-mapped rows cost less than passing them around."""

    def __init__(self, corpus: TokenCorpus) -> None:
        self._corpus = corpus
        self._readers: dict[str, RowReader] = {}

    def read(self, batch: dict[str, Any]) -> Rows:
        """The rows of the one chunk in a batch."""
        split = str(batch["split"][0])
        reader = self._readers.get(split) or self._readers.setdefault(split, RowReader(self._corpus, split))
        return reader.read(str(batch["domain"][0]), np.arange(batch["start"][0], batch["stop"][0]))
