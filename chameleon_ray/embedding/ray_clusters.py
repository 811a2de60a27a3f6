"""Domains of text that nobody labelled, on Ray Data: documents are read and sorted by hash, embedded by actors, divided into clusters, and written down again
with the names of their clusters.

Passes, each a stream of tasks over buckets of documents: `DocumentWorker` embeds them, `assign` finds the cluster of each and counts words, `write_documents`
writes them. Between the first and the second the driver finds the centres; it holds a sample of the vectors, and then one bucket's at a time.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray

from chameleon_ray import storage
from chameleon_ray.artifacts import Cost, TrainedModel
from chameleon_ray.config import Resources
from chameleon_ray.corpus.heldout import BYTES_PER_TOKEN
from chameleon_ray.corpus.ray_read import Reading, read_into_buckets
from chameleon_ray.corpus.ray_stream import through_pool
from chameleon_ray.corpus.ray_tasks import Task, run_tasks
from chameleon_ray.corpus.sources import Source, documents_of
from chameleon_ray.corpus_config import CLUSTERS, CorpusConfig, check_documents
from chameleon_ray.counts import Excerpt
from chameleon_ray.embedding.clusters import PASSES, TINY, WORD_DOCUMENTS, Array, Directions, MiniBatches, begin, merged, names_of, sample_of, telling_words
from chameleon_ray.embedding.documents import (
    LINES,
    DocumentSpec,
    DocumentWorker,
    assign,
    choose_words,
    read_vectors,
    read_words,
    write_documents,
)
from chameleon_ray.errors import UserError
from chameleon_ray.progress import Phase, Reporter
from chameleon_ray.records import write_table
from chameleon_ray.settings import listed
from chameleon_ray.tensors import read_tensors, write_tensors

LEAST_ROWS = 8  # of text that a cluster must have
OTHER = "other"  # values of the column that have too little text to be domains
WAITING = 32  # buckets whose words are added up at a time
TABLE = pa.schema(
    [
        ("name", pa.string()),
        ("source", pa.string()),
        ("words", pa.list_(pa.string())),
        ("documents", pa.int64()),
        ("text_bytes", pa.int64()),
        ("lines", pa.list_(pa.string())),
    ]
)


def find_clusters(
    config: CorpusConfig,
    sources: Sequence[Source],
    model: TrainedModel,
    layer: int,
    seed: int,
    address: str,
    resources: Resources,
    reporter: Reporter,
    per_token: Cost,
    pool_actors: int | None = None,
) -> dict[str, Any]:
    """Divide the documents of the sources into `k` clusters (of each value of `within`), and write them at `address`; what the record is to hold. The folder
    `scratch` there may then be removed.

    Args:
        config: the corpus whose domains are to be found; with the sources of its documents.
        model: embeds the documents, by its hidden state at `layer`, which takes `per_token`.
    Raises:
        UserError: unreadable input, fewer documents than clusters, documents that are all alike, a model that has diverged.
    """
    assert config.domains_from is not None and config.domains_from.clusters is not None
    k, started = config.domains_from.clusters.k, time.perf_counter()
    within = config.domains_from.clusters.within is not None
    with reporter.phase("finding domains among the documents") as phase:
        reading, contents = read_into_buckets(documents_of(config), sources, storage.join(address, "scratch", "pieces"), phase)
        spec = DocumentSpec(address, contents, model.address, config.row_tokens, config.text_column)
        least_bytes = LEAST_ROWS * config.row_tokens * BYTES_PER_TOKEN
        if not within:
            check_documents(reading.stats[contents.names[0]].documents, k)
        likely_tokens = sum(reading.stats[name].text_bytes for name in contents.names) / BYTES_PER_TOKEN
        tokens = _embed(spec, layer, model.allow_remote_code, resources, phase, per_token.flops * likely_tokens, pool_actors)
        _divide(spec, k, seed, within, phase)
        clusters = _count(spec, sum(reading.stats[name].documents for name in contents.names), phase)
        pool = next(name for name in _pool_names() if name not in {*contents.names, *config.targets})
        names, left_out = _name(spec, clusters, within, least_bytes, pool, config.targets)
        written = list(run_tasks([Task(write_documents, (spec, bucket)) for bucket in range(spec.buckets)], phase, "write"))
    addresses = (spec.documents_address(bucket).rpartition("/")[2] for bucket in range(spec.buckets))
    files = {name: found["size_bytes"] for name, found in zip(addresses, written, strict=True) if found["size_bytes"]}
    cost = Cost(tokens, per_token.flops * tokens, time.perf_counter() - started, per_token.paper_flops * tokens)
    if left_out:
        reporter.say(f"left out: {left_out:,} documents of values of {config.domains_from.clusters.within!r} that have too little text for a domain together")
    reporter.say(f"{len(names)} domains among {int(clusters.documents.sum()):,} documents: {listed(names)}")
    return {"files": files, "domain_column": spec.domain_column, "sources": _sources(reading, pool), "cost": asdict(cost)}


def _embed(spec: DocumentSpec, layer: int, allow_remote_code: bool, resources: Resources, phase: Phase, flops: float, pool_actors: int | None) -> int:
    """Write the vectors of all documents; how many tokens that took, of those that were not there."""
    parts = itertools.product(range(spec.buckets), range(spec.parts))
    missing = [place for place in parts if not storage.exists(spec.vectors_address(*place))]
    arguments = {
        "spec": spec,
        "layer": layer,
        "use_gpu": bool(resources.gpus_per_worker),
        "threads": resources.cpus_per_worker,
        "allow_remote_code": allow_remote_code,
    }
    items = [{"number": number, "bucket": bucket, "part": part} for number, (bucket, part) in enumerate(missing)]
    return sum(int(row["tokens"]) for _, row in through_pool(items, DocumentWorker, arguments, resources, phase, "embed", flops, pool_actors)) if items else 0


def _vectors(spec: DocumentSpec) -> Iterator[tuple[Array, NDArray[np.int64]]]:
    for bucket in range(spec.buckets):
        vectors, labels = read_vectors(spec, bucket)
        if not np.isfinite(vectors).all():
            told = f"the model in {spec.model} gives embeddings that are not finite: it has diverged"
            raise UserError(f"{CLUSTERS}.embed: {told}; take another, or train it longer")
        yield vectors, labels


def _divide(spec: DocumentSpec, k: int, seed: int, within: bool, phase: Phase) -> None:
    """Find the centres of every label's clusters, and write them with the directions that they lie in."""
    if storage.exists(spec.spaces_address):
        return
    sample, is_all = _sample(spec, k)
    spaces: dict[str, NDArray[Any]] = {}
    moving: dict[int, tuple[Directions, MiniBatches]] = {}
    for number, (label, vectors) in enumerate(sorted(sample.items())):
        phase.update("divide", number, len(sample))
        if not within:
            check_documents(len(vectors), k)
        most = min(k, len(vectors))
        directions = Directions.of(vectors, most)
        if directions is None and not within:
            raise UserError(f"{CLUSTERS}: the documents are all alike to the model in {spec.model}, nothing divides them; add others, or list domains yourself")
        if directions is None or most == 1:
            p = vectors.shape[1]
            directions, centres = Directions(np.zeros(p), np.zeros((p, 1))), np.zeros((1, 1), np.float32)
        else:
            centres = begin(directions(vectors), most, seed)
            if not is_all:
                moving[label] = directions, MiniBatches(centres, seed)
        spaces |= {f"{label}.mean": directions.mean, f"{label}.axes": directions.axes, f"{label}.centres": centres}
    for each in range(PASSES if moving else 0):
        for bucket, (vectors, labels) in enumerate(_vectors(spec)):
            phase.update("divide", each * spec.buckets + bucket, PASSES * spec.buckets)
            for label, (directions, batches) in moving.items():
                batches.add(directions(vectors[labels == label]))
    spaces |= {f"{label}.centres": batches.centres() for label, (_, batches) in moving.items()}
    counts = [len(spaces.get(f"{label}.centres", ())) for label in range(len(spec.contents.names))]
    write_tensors(spec.spaces_address, {**spaces, "first": np.cumsum([0, *counts])})


def _sample(spec: DocumentSpec, k: int) -> tuple[dict[int, Array], bool]:
    """The vectors of some documents of every label, those of the first buckets, and whether these are all."""
    most = sample_of(k, len(spec.contents.names))
    kept: dict[int, Array] = {}
    taken, is_all = Counter[int](), True
    for vectors, labels in _vectors(spec):
        for label in np.unique(labels).tolist():
            mine = vectors[labels == label][: most - taken[label]]
            is_all &= len(mine) == (labels == label).sum()
            rows = kept.setdefault(label, np.empty((most, vectors.shape[1]), np.float32))  # memory is taken as rows are filled
            rows[taken[label] : taken[label] + len(mine)] = mine
            taken[label] += len(mine)
        if len(taken) == len(spec.contents.names) and min(taken.values()) == most:
            is_all = False
            break
    return {label: rows[: taken[label]] for label, rows in kept.items()}, is_all


@dataclass(frozen=True)
class _Counted:
    """What the clusters hold, [c] each, before tiny ones are merged: documents, bytes of text, and the [similarity, line] of those nearest to their centres."""

    documents: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    lines: dict[int, list[list[Any]]]


def _count(spec: DocumentSpec, total: int, phase: Phase) -> _Counted:
    """Args:
    total: documents, about.
    """
    for _ in run_tasks([Task(choose_words, (spec,))], phase, "words"):
        pass
    first = read_tensors(spec.spaces_address)["first"]
    documents, text_bytes = np.zeros((2, first[-1]), np.int64)
    lines: dict[int, list[list[Any]]] = defaultdict(list)
    share = min(1.0, WORD_DOCUMENTS / max(1, total))
    for result in run_tasks([Task(assign, (spec, bucket, share)) for bucket in range(spec.buckets)], phase, "assign"):
        for cluster, count in result["documents"].items():
            documents[int(cluster)] += count
            text_bytes[int(cluster)] += result["bytes"][cluster]
            lines[int(cluster)] = sorted([*lines[int(cluster)], *result["lines"][cluster]], reverse=True)[:LINES]
    return _Counted(documents, text_bytes, lines)


def _pool_names() -> Iterator[str]:
    """What the values that have too little text to be domains may be called together."""
    return itertools.chain([OTHER], (f"{OTHER}-{number}" for number in itertools.count(2)))


def _merge(
    spec: DocumentSpec, clusters: _Counted, within: bool, least_bytes: int, pool: str
) -> tuple[NDArray[np.int64], list[tuple[str, list[int]]], NDArray[np.int64]]:
    """Where the documents of every cluster go, -1 of one that is empty or left out; by source the clusters that stay; the clusters that are left out.

    Values of the column with too little text come together in a pool, and where that has too little as well they are left out.
    """
    spaces = read_tensors(spec.spaces_address)
    first = spaces["first"]
    target, rare, stay = np.full(first[-1], -1), np.zeros(0, np.int64), []
    for label, (start, stop) in enumerate(itertools.pairwise(first.tolist())):
        sizes = clusters.text_bytes[start:stop]
        if within and 0 < sizes.sum() < least_bytes:
            rare = np.concatenate([rare, start + np.flatnonzero(sizes)])
        elif sizes.any():
            found = merged(spaces[f"{label}.centres"], sizes, max(TINY * sizes.sum() / len(sizes), least_bytes))
            target[start:stop] = np.where(found >= 0, found + start, -1)
            stay.append((spec.contents.names[label], (start + np.flatnonzero(found == np.arange(len(found)))).tolist()))
    if clusters.text_bytes[rare].sum() < least_bytes:
        return target, stay, rare
    target[rare] = rare[0]
    return target, [*stay, (pool, [int(rare[0])])], np.zeros(0, np.int64)


def _name(spec: DocumentSpec, clusters: _Counted, within: bool, least_bytes: int, pool: str, taken: Iterable[str]) -> tuple[list[str], int]:
    """Merge what is tiny, name what is left by its words, and write the table of the clusters and the name of each; the names, and how many documents are left
    out."""
    target, stay, left_out = _merge(spec, clusters, within, least_bytes, pool)
    if sum(len(kept) for _, kept in stay) < 2:
        raise UserError(
            f"{CLUSTERS}: one cluster is left when those with less than {least_bytes:,.0f} bytes of text are merged into the ones nearest to them; "
            "add documents, or lower k or corpus.row_tokens"
        )
    words = json.loads(storage.read_bytes(spec.vocabulary_address))
    counts, members_of = _word_counts(spec, target, len(words)), _members(target)
    by_cluster: list[str | None] = [None] * len(target)
    rows: list[dict[str, Any]] = []
    used = {"all", pool, *taken}
    for source, kept in stay:
        members = [members_of[cluster] for cluster in kept]
        documents = [int(clusters.documents[each].sum()) for each in members]
        telling = telling_words(counts[kept], documents, words)
        names = [pool] if source == pool else names_of(telling, f"{source}/" if within else "", used)
        for cluster, name, told, mine, count in zip(kept, names, telling, members, documents, strict=True):
            for member in mine.tolist():
                by_cluster[member] = name
            sums = {"documents": count, "text_bytes": int(clusters.text_bytes[mine].sum())}
            rows.append({"name": name, "source": source, "words": told, **sums, "lines": [line for _, line in clusters.lines[cluster]]})
    write_table(storage.join(spec.address, "clusters.parquet"), pa.Table.from_pylist(sorted(rows, key=lambda row: row["name"]), schema=TABLE))
    storage.write_bytes(spec.names_address, json.dumps(by_cluster, ensure_ascii=False).encode())
    return [row["name"] for row in rows], int(clusters.documents[left_out].sum())


def _members(target: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Target -> the clusters that go there."""
    order = np.argsort(target, kind="stable")
    return {int(target[mine[0]]): mine for mine in np.split(order, np.flatnonzero(np.diff(target[order])) + 1)}


def _word_counts(spec: DocumentSpec, target: NDArray[np.int64], num_words: int) -> sp.csr_array:
    """[clusters, words] in how many documents of a cluster a word stands."""
    total, waiting = sp.csr_array((len(target), num_words), dtype=np.int64), []
    for bucket in range(spec.buckets):
        waiting.append(read_words(spec, bucket, target, num_words))
        if len(waiting) == WAITING or bucket == spec.buckets - 1:
            total, waiting = sum(waiting, total), []
    return total


def _sources(reading: Reading, pool: str) -> dict[str, dict[str, Any]]:
    """What was read of the sources that were not read whole; of OTHER, which is of several, what was read of all."""
    found = {}
    for name, estimate in reading.estimates.items():
        if estimate.text_bytes == estimate.read_bytes:
            continue
        per_token = reading.bytes_per_token[name]
        tokens = None if estimate.text_bytes is None else estimate.text_bytes / per_token
        stderr = None if math.isnan(estimate.stderr_bytes) else estimate.stderr_bytes / per_token
        found[name] = Excerpt(estimate.read_bytes, estimate.files_read, estimate.num_files, estimate.text_bytes, tokens, stderr)
    if len(found) > 1:
        first = next(iter(found.values()))
        known = [each.text_bytes for each in found.values() if each.text_bytes is not None]
        total = sum(known) if len(known) == len(found) else None
        found[pool] = Excerpt(sum(each.read_bytes for each in found.values()), first.files_read, first.num_files, total, None, None)
    return {name: asdict(each) for name, each in found.items()}
