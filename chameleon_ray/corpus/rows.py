"""Shards of fixed-length token rows: how they are written, and random access to them.

A shard is an uncompressed Arrow file, so that reading a row costs a page fault and no copy is made between the workers of a machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chameleon_ray import storage
from chameleon_ray.artifacts import TokenCorpus

Tokens = NDArray[np.uint16 | np.uint32]


@dataclass(frozen=True)
class Rows:
    """n rows: tokens [n, row_tokens], length [n] tokens that are not padding, document [n] (see `TokenCorpus`)."""

    tokens: Tokens
    length: NDArray[np.int32]
    document: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: NDArray[np.integer]) -> Rows:
        """Some of the rows, in the order of the index."""
        return Rows(self.tokens[index], self.length[index], self.document[index])

    @classmethod
    def concat(cls, parts: list[Rows]) -> Rows:
        """Rows of several, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "length", "document")))


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest unsigned type that holds every token."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def write_shard(address: str, domain: str, rows: Rows) -> None:
    """Write the rows of one domain as one Arrow file."""
    count, row_tokens = rows.tokens.shape
    values = pa.array(np.ascontiguousarray(rows.tokens).reshape(-1))
    table = pa.table(
        {
            "domain": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([domain])),
            "tokens": pa.FixedSizeListArray.from_arrays(values, row_tokens),
            "length": pa.array(rows.length),
            "document": pa.array(rows.document),
        }
    )
    with storage.telling(address), storage.open_output(address) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def open_shard(address: str) -> Rows:
    """Map a shard into memory; the arrays are views of the file."""
    with pa.memory_map(storage.local_file(address)) as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
    tokens = table["tokens"].combine_chunks()
    width = tokens.type.list_size
    flat = tokens.flatten().to_numpy(zero_copy_only=True)
    length, document = table["length"].to_numpy(), table["document"].to_numpy()
    return Rows(flat.reshape(-1, width), length, document)


class RowReader:
    """Random access to the rows of one split by (domain, row number); shards are opened when first needed.

    An open shard is one of the 65,530 mappings that Linux gives a process; opening one costs ten times what reading a row does.
    """

    def __init__(self, corpus: TokenCorpus, split: str = "train", open_shards: int = 1 << 14) -> None:
        self._corpus = corpus
        self._split = split
        self._starts = {name: np.concatenate([[0], np.cumsum(corpus.domains[name].split(split).shard_rows)]) for name in (*corpus.names, *corpus.targets)}
        self._open = lru_cache(maxsize=open_shards)(lambda domain, shard: open_shard(corpus.shard_address(split, domain, shard)))

    def read(self, domain: str, rows: NDArray[np.int64]) -> Rows:
        """Copy out some rows of a domain, in the order asked for."""
        starts = self._starts[domain]
        shards = np.searchsorted(starts, rows, side="right") - 1
        tokens = np.empty((len(rows), self._corpus.row_tokens), token_dtype(self._corpus.vocab_size))
        length, document = np.empty(len(rows), np.int32), np.empty(len(rows), np.int64)
        for shard in np.unique(shards):
            where = np.flatnonzero(shards == shard)
            found, inside = self._open(domain, int(shard)), rows[where] - starts[shard]
            tokens[where], length[where], document[where] = found.tokens[inside], found.length[inside], found.document[inside]
        return Rows(tokens, length, document)

    def read_mixed(self, names: tuple[str, ...], domains: NDArray[np.int64], rows: NDArray[np.int64]) -> Rows:
        """Rows of several domains, in the order asked for: `domains` indexes `names`."""
        order = np.argsort(domains, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(domains[order])) + 1)
        found = [self.read(names[domains[part[0]]], rows[part]) for part in parts]
        return Rows.concat(found).take(np.argsort(order, kind="stable"))
