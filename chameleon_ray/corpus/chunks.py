"""Stored rows cut into chunks: the unit in which models meet rows outside training."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.corpus.rows import RowReader, Rows


@dataclass(frozen=True)
class Chunk:
    """Some of the rows of one domain and split, for one model: of `used` rows at even distances among those stored (`even_rows`) those from `start` to
    `stop`. `number` is the place of the result."""

    number: int
    model: str
    split: str
    domain: str
    start: int
    stop: int
    used: int
    stored: int

    def numbers(self) -> NDArray[np.int64]:
        """Of its rows."""
        return even_rows(self.stored, self.used)[self.start : self.stop]


def chunks_of(
    corpus: TokenCorpus,
    models: Sequence[str],
    splits: Sequence[str],
    chunk_rows: int,
    rows_at_most: int | None = None,
    only: Collection[str] | None = None,
) -> list[Chunk]:
    """Cut the rows of every domain into chunks, model by model: of train rows, which are stored shuffled, the first, of held-out ones, which lie document by
    document, some at even distances. `only`: of these domains or targets."""
    spans = []
    for model, split in itertools.product(models, splits):
        for name, rows in corpus.rows(split).items():
            if only is not None and name not in only:
                continue
            used = min(rows, rows_at_most or rows)
            stored = used if split == "train" else rows
            spans += [(model, split, name, start, min(start + chunk_rows, used), used, stored) for start in range(0, used, chunk_rows)]
    return [Chunk(number, *span) for number, span in enumerate(spans)]


def even_rows(stored: int, used: int) -> NDArray[np.int64]:
    """Numbers of so many of the stored rows, at even distances."""
    return np.arange(used) * stored // max(1, used)


def embedded_rows(corpus: TokenCorpus, names: Sequence[str] | None = None) -> dict[str, int]:
    """Rows that embeddings may be taken from: of domains, by default of all, those to train on; of targets their valid ones."""
    train, valid = corpus.rows(), corpus.rows("valid")
    return dict(train) if names is None else {name: valid[name] if name in corpus.targets else train[name] for name in names}


class ChunkReader:
    """An actor's access to the rows of the chunks it is sent. Actors read for themselves: memory-mapped rows cost less than passing them around."""

    def __init__(self, corpus: TokenCorpus) -> None:
        self._corpus = corpus
        self._readers: dict[str, RowReader] = {}

    def read(self, batch: dict[str, Any]) -> Rows:
        """The rows of the one chunk in a batch."""
        chunk = Chunk(**{field.name: batch[field.name][0] for field in fields(Chunk)})
        split = str(chunk.split)
        reader = self._readers.get(split) or self._readers.setdefault(split, RowReader(self._corpus, split))
        return reader.read(str(chunk.domain), chunk.numbers())
