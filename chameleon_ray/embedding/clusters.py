"""Clusters of documents: directions that tell documents apart, spherical k-means in mini-batches, tiny clusters merged, and words that tell a cluster.

Vectors of documents are centred, projected on their d principal directions, divided there by the square root of their standard deviation and brought to length
1. Between clusters of similar spread k-means needs k - 1 directions, and more of them add what has nothing to do with clusters: d = k + 1, from 8 to 64.

Everything is computed on one thread and in the order in which documents come, so that the same vectors give the same clusters, whatever the number of workers.

Sources: I. Dhillon and D. Modha, Concept decompositions for large sparse text data, 2001 (spherical k-means); D. Sculley, Web-scale k-means clustering, 2010
(mini-batches); C. Ding and X. He, K-means clustering via principal component analysis, 2004 (k - 1 directions); G. Salton and C. Buckley, Term-weighting
approaches in automatic text retrieval, 1988 (words by TF-IDF, with clusters in the place of documents).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

Array = NDArray[np.float32]
Indices = NDArray[np.int64]
LEAST_DIRECTIONS, MOST_DIRECTIONS = 8, 64
SAME = 1e-4  # of their mean's length: vectors that differ by less are the same but for rounding
MAX_CAREFUL = 256  # so many clusters are begun ten times; up to MAX_SEEDED once, far from each other; beyond, at documents drawn at random
MAX_SEEDED = 2048
STARTS = 10
ROUNDS, FEW_ROUNDS = 25, 5
SAMPLE_DOCUMENTS, PER_CLUSTER = 1 << 17, 4  # that centres are begun with: of all sources together, and at least so many for each cluster
PASSES = 2  # over all documents, where the sample is not all of them
BATCH_DOCUMENTS = 4096
TINY = 0.05  # of the mean size of a cluster
CHUNK_NUMBERS, CHUNK_DOCUMENTS = 1 << 24, 8192
NAME_WORDS, SHOWN_WORDS = 3, 8
MOST_CHARACTERS, MOST_BYTES = 90, 190  # of a name, with room for a number
WORD = re.compile(r"[^\W\d_]{3,24}")
MAX_VOCABULARY = 1 << 17
WORD_DOCUMENTS = 1 << 18  # of all, whose words are counted
WORDS_OF_A_DOCUMENT = 80  # about, of its first thousand characters
LEAST_DOCUMENTS = 2  # that a word stands in


@dataclass(frozen=True)
class Directions:
    """Where documents are compared: `mean` [p] of their vectors, `axes` [p, d]."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: Array, k: int) -> Directions | None:
        """From a sample of documents, [n, p], for k clusters; None where all are the same."""
        n, p = vectors.shape
        mean, moment = vectors.mean(axis=0, dtype=np.float64), np.zeros((p, p))
        with threadpool_limits(1):
            for start in range(0, n, CHUNK_DOCUMENTS):
                centred = vectors[start : start + CHUNK_DOCUMENTS] - mean
                moment += centred.T @ centred
            values, axes = np.linalg.eigh(moment / n)
        largest_first = slice(None, -1 - num_directions(k), -1)
        values, axes = values[largest_first], axes[:, largest_first]
        kept = values > (SAME**2 * (mean @ mean + values[0]))
        if not kept.any():
            return None
        axes = axes[:, kept] * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])[kept]
        return cls(mean, axes / values[kept] ** 0.25)

    def __call__(self, vectors: Array) -> Array:
        """[n, p] -> [n, d] of length 1; what lies in the mean stays 0."""
        found = np.empty((len(vectors), self.axes.shape[1]), np.float32)
        with threadpool_limits(1):
            for start in range(0, len(vectors), CHUNK_DOCUMENTS):
                some = slice(start, start + CHUNK_DOCUMENTS)
                found[some] = unit((vectors[some] - self.mean) @ self.axes)
        return found


def num_directions(k: int) -> int:
    """d for k clusters."""
    return min(MOST_DIRECTIONS, max(LEAST_DIRECTIONS, k + 1))


@dataclass(frozen=True)
class SearchSize:
    """What finding clusters takes of the driver: documents that centres are begun with, memory, and operations of its products."""

    sample_documents: int
    driver_bytes: int
    operations: float

    @classmethod
    def of(cls, documents: int, k: int, width: int, num_sources: int = 1) -> SearchSize:
        """Args:
        k: clusters of each source.
        width: p, of the vectors.
        num_sources: that clusters are found within.
        """
        d = num_directions(k)
        sample = min(documents, num_sources * sample_of(k, num_sources))
        rounds = STARTS * ROUNDS if k <= MAX_CAREFUL else ROUNDS if k <= MAX_SEEDED else FEW_ROUNDS
        passes = PASSES if sample < documents else 0
        centres = 3 * k * num_sources * d * 4
        words = 24 * WORDS_OF_A_DOCUMENT * min(documents, WORD_DOCUMENTS)  # 12 bytes each, twice while they are added up
        memory = max(sample * (width + 2 * d) * 4 + 4 * CHUNK_NUMBERS + 3 * width**2 * 8, words) + centres
        return cls(sample, memory, 2.0 * d * k * (rounds * sample + passes * documents) + 2.0 * width * (width * sample + d * (sample + passes * documents)))


def sample_of(k: int, num_sources: int) -> int:
    """Documents of each source that the centres of its k clusters are begun with."""
    return max(PER_CLUSTER * k, SAMPLE_DOCUMENTS // num_sources)


def unit(vectors: NDArray[np.floating]) -> Array:
    """Vectors brought to length 1, but for those that are 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0).astype(np.float32)


def begin(sample: Array, k: int, seed: int) -> Array:
    """[k, d] centres of a sample of documents, [n, d] of length 1.

    Cost: O(n k d) for each of at most 25 rounds, begun ten times up to 256 clusters.
    """
    with threadpool_limits(1):
        if k > MAX_SEEDED:
            chosen = np.random.default_rng(seed).choice(len(sample), k, replace=False)
            found = KMeans(k, init=sample[chosen], n_init=1, max_iter=FEW_ROUNDS, random_state=seed).fit(sample)
        else:
            found = KMeans(k, n_init=STARTS if k <= MAX_CAREFUL else 1, max_iter=ROUNDS, random_state=seed).fit(sample)
    return unit(found.cluster_centers_)


class MiniBatches:
    """Centres that move with the documents that they are shown, batch after batch, each less the more documents it has met."""

    def __init__(self, centres: Array, seed: int) -> None:
        self._model = MiniBatchKMeans(len(centres), init=centres, n_init=1, batch_size=BATCH_DOCUMENTS, reassignment_ratio=0, random_state=seed)
        self._waiting: list[Array] = []
        self._size = max(BATCH_DOCUMENTS, len(centres))

    def add(self, vectors: Array) -> None:
        """Show documents, [n, d] of length 1; they are used when there are enough of them."""
        self._waiting.append(vectors)
        if sum(map(len, self._waiting)) >= self._size:
            self._step()

    def centres(self) -> Array:
        """[k, d] of length 1, after everything that was shown but a last batch of fewer documents than clusters."""
        if self._waiting:
            self._step()
        return np.asarray(self._model.cluster_centers_, np.float32)

    def _step(self) -> None:
        batch = np.concatenate(self._waiting)
        self._waiting = []
        if len(batch) >= len(self._model.init):
            with threadpool_limits(1):
                self._model.partial_fit(batch)
            self._model.cluster_centers_ = unit(self._model.cluster_centers_)


def nearest(vectors: Array, centres: Array) -> tuple[Indices, Array]:
    """The centre that each vector is nearest to, [n], and their similarity (cosine), [n]."""
    found, similar = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    step = max(1, CHUNK_NUMBERS // len(centres))
    with threadpool_limits(1):
        for start in range(0, len(vectors), step):
            some = slice(start, start + step)
            products = vectors[some] @ centres.T
            found[some] = products.argmax(axis=1)
            similar[some] = np.take_along_axis(products, found[some, None], axis=1)[:, 0]
    return found, similar


def merged(centres: Array, sizes: Indices, least: float) -> Indices:
    """Where the documents of every cluster go, [k]: a cluster under the least size into the one that is nearest, the smallest first; what is empty nowhere, -1.

    Cost: O(m k d) for m clusters that are too small.
    """
    target = np.where(sizes > 0, np.arange(len(sizes)), -1)
    total, alive = sizes.astype(np.float64), sizes > 0
    while alive.sum() > 1 and total[alive].min() < least:
        smallest = int(np.where(alive, total, np.inf).argmin())
        alive[smallest] = False
        with threadpool_limits(1):
            into = int(np.where(alive, centres @ centres[smallest], -np.inf).argmax())
        total[into] += total[smallest]
        target[target == smallest] = into
    return target


def words_of(text: str) -> set[str]:
    """The words of the beginning of a document: runs of letters, of 3 to 24."""
    return {found.lower() for found in WORD.findall(text)}


def vocabulary(texts: Iterable[str]) -> list[str]:
    """The words that stand in several of these texts, at most 131,072, in the order of the alphabet."""
    counts = Counter(word for text in texts for word in words_of(text))
    frequent = [(-count, word) for word, count in counts.items() if count >= LEAST_DOCUMENTS]
    return sorted(word for _, word in sorted(frequent)[:MAX_VOCABULARY])


def telling_words(counts: sp.csr_array, documents: Sequence[int], words: Sequence[str]) -> list[list[str]]:
    """The words that tell each of c clusters from the others, most telling first, at most 8: those with the largest log(1 + n) log(c / m), where n
    documents of the cluster have the word, and m, the number of clusters that have it, is the sum over clusters of the share of documents with the word, over
    the largest of these shares.

    Args:
        counts: [c, v] documents of a cluster that have the word.
        documents: [c] of which words were counted.
    """
    shares = sp.csr_array(sp.diags_array(1 / np.maximum(np.asarray(documents, np.float64), 1)) @ counts)
    largest = np.zeros(counts.shape[1])
    np.maximum.at(largest, shares.indices, shares.data)
    rarity = np.log(np.maximum(counts.shape[0] * largest / np.maximum(shares.sum(axis=0), 1e-300), 1.0))
    found = []
    for cluster in range(counts.shape[0]):
        row = slice(counts.indptr[cluster], counts.indptr[cluster + 1])
        places, scores = counts.indices[row], np.log1p(counts.data[row]) * rarity[counts.indices[row]]
        best = [place for place in np.lexsort((places, -scores))[:SHOWN_WORDS] if scores[place] > 0]
        found.append([words[place] for place in places[best]])
    return found


def names_of(words: Sequence[Sequence[str]], prefix: str, used: set[str]) -> list[str]:
    """A name for each cluster from its first words, none like another or like those that are used, which they then are, as long as the name of a domain can
    be; of the single cluster of a prefix the prefix itself."""
    found = []
    for number, telling in enumerate(words, 1):
        some = [f"{prefix}{'-'.join(telling[:count])}" for count in range(NAME_WORDS, 0, -1) if telling]
        plain = next((name for name in some if _fits(name)), f"{_cut(prefix)}{number}")
        if prefix and len(words) == 1:
            plain = prefix[:-1]
        name, copies = plain, 1
        while name in used:
            copies += 1
            name = f"{plain}-{copies}"
        used.add(name)
        found.append(name)
    return found


def _cut(prefix: str) -> str:
    """As much of a prefix as leaves room for a number."""
    while prefix and not _fits(f"{prefix}0000000"):
        prefix = f"{prefix[:-2]}/"
    return prefix


def _fits(name: str) -> bool:
    return len(name) <= MOST_CHARACTERS and len(quote(name, safe="")) <= MOST_BYTES
