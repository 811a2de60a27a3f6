"""What tasks and actors do with single documents: one vector each, then the cluster that each belongs to, then the file that says so.

The documents are those of the buckets that reading left, each once, in the order of their hashes: a random one, whatever the files were. Every function writes
files under its own name, and what is done is not done again.
"""

from __future__ import annotations

import heapq
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray

from chameleon_ray import storage
from chameleon_ray.corpus.buckets import BucketDocuments, Contents, read_bucket
from chameleon_ray.corpus.tokenizer import Encoder, load_tokenizer
from chameleon_ray.embedding.clusters import Directions, nearest, vocabulary, words_of
from chameleon_ray.records import done_once
from chameleon_ray.tensors import read_tensors, write_tensors

CHUNK_DOCUMENTS = 256
LEAST_PARTS = 32
CHARACTERS_PER_TOKEN = 8  # at most, of what is tokenized of a document: only its first tokens are embedded
WORD_CHARACTERS = 1000  # of a document, for the words that tell its cluster
VOCABULARY_BUCKETS = 4
LINES, LINE_CHARACTERS = 3, 160
DOMAIN_COLUMN = "domain"


@dataclass(frozen=True)
class DocumentSpec:
    """What every task of one clustering knows: the artifact's address, the documents, the folder of the model that embeds them, how many of a document's
    tokens it reads, and the column that text is written to."""

    address: str
    contents: Contents
    model: str
    row_tokens: int
    text_column: str

    @property
    def buckets(self) -> int:
        return self.contents.layout.buckets

    @property
    def parts(self) -> int:
        """Parts of each bucket that are embedded one by one: of few buckets several, so that there is work for all actors."""
        return max(1, -(-LEAST_PARTS // self.buckets))

    @property
    def domain_column(self) -> str:
        """The column that the name of a document's cluster is written to."""
        return DOMAIN_COLUMN if self.text_column != DOMAIN_COLUMN else f"{DOMAIN_COLUMN}_name"

    def vectors_address(self, bucket: int, part: int) -> str:
        """[n, p] `vectors` of the documents of a part of a bucket, and [n] the place of their `label` among the names of the contents."""
        return self._scratch(f"vectors-{bucket:07d}-{part:02d}")

    def clusters_address(self, bucket: int) -> str:
        """[n] the cluster of every document of a bucket, before tiny ones are merged."""
        return self._scratch(f"clusters-{bucket:07d}")

    def words_address(self, bucket: int) -> str:
        """(`cluster`, `word`, `documents`) of a bucket: in how many documents of a cluster a word stands."""
        return self._scratch(f"words-{bucket:07d}")

    @property
    def spaces_address(self) -> str:
        """By label `{label}.mean`, `{label}.axes` and `{label}.centres`, and `first`, the number of its first cluster."""
        return self._scratch("spaces")

    @property
    def vocabulary_address(self) -> str:
        """The words that are counted, as a JSON list."""
        return self._scratch("vocabulary.json")

    @property
    def names_address(self) -> str:
        """The name of every cluster as a JSON list; null where there are no documents, or they are left out."""
        return self._scratch("names.json")

    def written_address(self, bucket: int) -> str:
        """What was written of a bucket, as JSON."""
        return self._scratch(f"written-{bucket:07d}.json")

    def documents_address(self, bucket: int) -> str:
        """The documents of a bucket and the names of their clusters."""
        return storage.join(self.address, "documents", f"part-{bucket:07d}.parquet")

    def _scratch(self, name: str) -> str:
        return storage.join(self.address, "scratch", name)


class DocumentWorker:
    """An actor that holds a truncated model: writes the vectors of a part of a bucket's documents. While it computes a thread tokenizes what comes next."""

    def __init__(self, spec: DocumentSpec, layer: int, use_gpu: bool, threads: int, allow_remote_code: bool = False) -> None:
        import torch

        from chameleon_ray.models.hardware import detect
        from chameleon_ray.models.load import load_truncated
        from chameleon_ray.models.memory import FORWARD_TOKENS
        from chameleon_ray.models.pooling import MeanHiddenState

        torch.set_num_threads(threads)
        hardware = detect(use_gpu)
        self._spec, self._count = spec, 0
        self._read: tuple[int, BucketDocuments] | None = None  # parts of one bucket come one after the other
        self._tokens = FORWARD_TOKENS[hardware.device.type]
        tokenizer, self._end = load_tokenizer(spec.model)
        self._encoder = Encoder(tokenizer)
        self._embed = MeanHiddenState(load_truncated(storage.local_directory(spec.model), layer, hardware, allow_remote_code), layer)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        bucket, part = int(batch["bucket"][0]), int(batch["part"][0])
        self._count = 0
        if self._read is None or self._read[0] != bucket:
            self._read = bucket, read_bucket(self._spec.contents, bucket, {})
        found = self._read[1].part(part, self._spec.parts)
        place = {name: i for i, name in enumerate(self._spec.contents.names)}
        texts = (text for *_, text in found)
        vectors = [self._vectors(tokens) for tokens in _ahead(lambda: self._next_tokens(texts))]
        labels = np.array([place[name] for _, name, _, _ in found.documents], np.int64)
        stacked = np.concatenate(vectors) if vectors else np.zeros((0, self._embed.width), np.float32)
        write_tensors(self._spec.vectors_address(bucket, part), {"vectors": stacked, "label": labels})
        return {"number": batch["number"], "documents": [len(labels)], "tokens": [self._count]}

    def _next_tokens(self, texts: Iterator[str]) -> list[NDArray[np.uint32]]:
        """The first tokens of the next documents; nothing at the end. A document that has none is its end."""
        most = CHARACTERS_PER_TOKEN * self._spec.row_tokens
        tokens = [found[: self._spec.row_tokens] for found in self._encoder.encode([text[:most] for text in islice(texts, CHUNK_DOCUMENTS)])]
        return [found if len(found) else np.array([self._end], np.uint32) for found in tokens]

    def _vectors(self, tokens: Sequence[NDArray[np.uint32]]) -> NDArray[np.float32]:
        """Documents of like length go together, so that little is padded."""
        lengths = np.array([len(each) for each in tokens])
        self._count += int(lengths.sum())
        found = np.empty((len(tokens), self._embed.width), np.float32)
        waiting = np.argsort(-lengths, kind="stable")
        parts = []
        while len(waiting):
            longest = int(lengths[waiting[0]])
            some, waiting = np.split(waiting, [max(1, self._tokens // longest)])
            rows = np.zeros((len(some), longest), np.int64)
            for row, place in zip(rows, some.tolist(), strict=True):
                row[: lengths[place]] = tokens[place]
            parts.append((some, self._embed(rows, lengths[some])))
        for some, vectors in parts:  # a GPU has them all before the first is waited for
            found[some] = vectors.float().cpu().numpy()
        return found


def _ahead(function: Any) -> Iterator[Any]:
    """What a function gives until it gives nothing, each computed while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(function)
        while found := coming.result():
            coming = pool.submit(function)
            yield found


def read_vectors(spec: DocumentSpec, bucket: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The vectors of a bucket's documents, [n, p], and their labels, [n]."""
    parts = [read_tensors(spec.vectors_address(bucket, part)) for part in range(spec.parts)]
    return np.concatenate([part["vectors"] for part in parts]), np.concatenate([part["label"] for part in parts])


def choose_words(spec: DocumentSpec) -> dict[str, Any]:
    """Write the vocabulary that telling words are taken from: words of the first buckets."""
    if not storage.exists(spec.vocabulary_address):
        found = (read_bucket(spec.contents, bucket, {}) for bucket in range(min(spec.buckets, VOCABULARY_BUCKETS)))
        words = vocabulary(text[:WORD_CHARACTERS] for documents in found for *_, text in documents)
        storage.write_bytes(spec.vocabulary_address, json.dumps(words, ensure_ascii=False).encode())
    return {}


@lru_cache(maxsize=1)
def _spaces(address: str) -> dict[str, NDArray[Any]]:
    return read_tensors(address)


@lru_cache(maxsize=1)
def _word_places(address: str) -> dict[str, int]:
    return {word: place for place, word in enumerate(json.loads(storage.read_bytes(address)))}


def assign(spec: DocumentSpec, bucket: int, word_share: float) -> dict[str, Any]:
    """Write the cluster of every document of a bucket, and count the words of some.

    Args:
        word_share: of the documents whose words are counted.
    Returns:
        By cluster its `documents` and `bytes`, and as `lines` [similarity, line] of those nearest to the centre.
    """
    return done_once(f"{spec.clusters_address(bucket)}.json", lambda: _assign(spec, bucket, word_share))


def _assign(spec: DocumentSpec, bucket: int, word_share: float) -> dict[str, Any]:
    vectors, label = read_vectors(spec, bucket)
    cluster, similar = np.empty(len(label), np.int64), np.empty(len(label), np.float32)
    spaces = _spaces(spec.spaces_address)
    for each in np.unique(label).tolist():
        mine = label == each
        directions = Directions(spaces[f"{each}.mean"], spaces[f"{each}.axes"])
        found, similar[mine] = nearest(directions(vectors[mine]), spaces[f"{each}.centres"])
        cluster[mine] = found + spaces["first"][each]
    sizes: dict[int, int] = defaultdict(int)
    lines: dict[int, list[tuple[float, str]]] = defaultdict(list)
    places = _word_places(spec.vocabulary_address)
    counted: dict[tuple[int, int], int] = defaultdict(int)
    texts = (text for *_, text in read_bucket(spec.contents, bucket, {}))
    for number, (text, mine, likeness) in enumerate(zip(texts, cluster.tolist(), similar.tolist(), strict=True)):
        sizes[mine] += len(text.encode())
        if len(lines[mine]) < LINES or likeness > lines[mine][0][0]:
            (heapq.heappush if len(lines[mine]) < LINES else heapq.heappushpop)(lines[mine], (likeness, opening_line(text)))
        if number < word_share * len(cluster):
            for word in words_of(text[:WORD_CHARACTERS]):
                if (place := places.get(word)) is not None:
                    counted[mine, place] += 1
    write_tensors(spec.clusters_address(bucket), {"cluster": cluster})
    triples = np.array([(mine, place, count) for (mine, place), count in counted.items()], np.int64).reshape(-1, 3)
    write_tensors(spec.words_address(bucket), dict(zip(("cluster", "word", "documents"), np.ascontiguousarray(triples.T), strict=True)))
    ids, documents = np.unique(cluster, return_counts=True)
    return {
        "documents": dict(zip(ids.tolist(), documents.tolist(), strict=True)),
        "bytes": sizes,
        "lines": {mine: sorted(found, reverse=True) for mine, found in lines.items()},
    }


def opening_line(text: str) -> str:
    """How a document begins, in one line."""
    words = " ".join(text[: 4 * LINE_CHARACTERS].split())
    return words if len(words) <= LINE_CHARACTERS else f"{words[: LINE_CHARACTERS - 1].rstrip()}…"


def read_words(spec: DocumentSpec, bucket: int, target: NDArray[np.int64], num_words: int) -> sp.csr_array:
    """[clusters, words] in how many documents a word stands, of a bucket, tiny clusters merged into their targets."""
    found = read_tensors(spec.words_address(bucket))
    place = target[found["cluster"]]
    some = place >= 0
    return sp.csr_array((found["documents"][some], (place[some], found["word"][some])), shape=(len(target), num_words))


def write_documents(spec: DocumentSpec, bucket: int) -> dict[str, Any]:
    """Write the documents of a bucket as a Parquet file, each with the name of its cluster.

    Returns:
        `size_bytes` of the file; 0 where nothing is kept of the bucket, which then has none.
    """
    return done_once(spec.written_address(bucket), lambda: _write_documents(spec, bucket))


def _write_documents(spec: DocumentSpec, bucket: int) -> dict[str, Any]:
    names = json.loads(storage.read_bytes(spec.names_address))
    cluster = read_tensors(spec.clusters_address(bucket))["cluster"]
    buffer = io.BytesIO()
    domains = [names[each] for each in cluster.tolist()]
    if any(domains):
        rows = [(name, text) for name, (*_, text) in zip(domains, read_bucket(spec.contents, bucket, {}), strict=True) if name is not None]
        columns = pa.array([name for name, _ in rows], pa.string()), pa.array([text for _, text in rows], pa.large_string())
        pq.write_table(pa.table(dict(zip((spec.domain_column, spec.text_column), columns, strict=True))), buffer, compression="zstd")
        storage.write_bytes(spec.documents_address(bucket), buffer.getvalue())
    return {"size_bytes": len(buffer.getvalue())}
