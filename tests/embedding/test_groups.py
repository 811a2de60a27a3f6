"""Group sums: kept in memory whatever the number of domains, and reduced as they come without a trace of the order."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_ray import artifacts
from chameleon_ray.artifacts import Cost, Embeddings, group_layout
from chameleon_ray.config import EmbeddingConfig, Resources
from chameleon_ray.embedding import ray_embed, worker
from chameleon_ray.embedding.groups import accumulate, group_of, group_sums
from chameleon_ray.progress import Reporter
from tests.fakes import make_corpus, noisy_embeddings


def test_the_sums_of_many_domains_fit_in_memory() -> None:
    assert [group_layout(k) for k in (7, 12_500)] == [(32, np.float64)] * 2
    assert [group_layout(k) for k in (12_501, 25_000, 25_001, 100_000, 10**6)] == [(n, np.float32) for n in (32, 32, 16, 8, 4)]
    for k in (7, 10_000, 12_501, 60_000, 100_000, 200_000):
        num_groups, dtype = group_layout(k)
        assert k * num_groups * 768 * np.dtype(dtype).itemsize < 2.5e9


def test_groups_nest() -> None:
    document = np.random.default_rng(0).integers(0, 1 << 40, 1000)
    assert np.array_equal(group_of(document) % 8, group_of(document, 8))


def test_joining_merges_groups_to_the_fewest_and_changes_nothing_where_they_agree() -> None:
    generator = np.random.default_rng(0)
    vectors, document = generator.standard_normal((500, 3)), generator.integers(0, 99, 500)

    def part(name: str, num_groups: int) -> Embeddings:
        sums, counts = group_sums(vectors, document, num_groups)
        return Embeddings((name,), sums[None], counts[None], 1, {name: Cost(1)})

    same = Embeddings.concat([part("a", 32), part("b", 32)])
    assert np.array_equal(same.group_sums[1], part("b", 32).group_sums[0]) and same.group_sums.dtype == np.float64
    merged = Embeddings.concat([part("a", 32), part("b", 8)])
    assert merged.names == ("a", "b") and merged.ledger == {"a": Cost(1), "b": Cost(1)}
    assert np.array_equal(merged.group_counts[0], merged.group_counts[1])
    assert merged.group_sums[0] == pytest.approx(merged.group_sums[1])
    assert merged.means[0] == pytest.approx(vectors.mean(axis=0))


def test_joining_many_domains_keeps_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_GROUP_BYTES", 8 * 4 * 5)
    embeddings = noisy_embeddings({f"d{i}": np.arange(3.0) for i in range(5)}, 64, 0.1)
    joined = Embeddings.concat([embeddings.select(["d0", "d1"]), embeddings.select(["d2", "d3", "d4"])])
    assert joined.group_sums.shape == (5, 8, 3) and joined.group_sums.dtype == np.float32
    assert joined.means == pytest.approx(embeddings.means, rel=1e-6)


def test_means_in_any_order_are_the_same_bits() -> None:
    embeddings = noisy_embeddings({f"d{i}": np.arange(5.0) for i in range(600)}, 70, 0.3)
    expected = embeddings.group_sums.sum(axis=1) / embeddings.group_counts.sum(axis=1)[:, None]
    assert np.array_equal(embeddings.means, expected)
    order = np.random.default_rng(0).permutation(600)
    assert np.array_equal(embeddings.means_of(order.tolist()), expected[order])


def test_the_order_of_arrival_changes_no_bit() -> None:
    generator = np.random.default_rng(0)
    num_parts = {"a": 7, "b": 0, "c": 3}
    names = [name for name, count in num_parts.items() for _ in range(count)]
    parts = [(name, i, generator.standard_normal((32, 5)), generator.integers(0, 9, 32)) for i, name in enumerate(names)]
    expected = np.zeros((32, 5))
    for _, _, sums, _ in parts[:7]:
        expected += sums
    for seed in range(20):
        sums, counts = accumulate(num_parts, [parts[i] for i in np.random.default_rng(seed).permutation(len(parts))])
        assert np.array_equal(sums[0], expected)
        assert not sums[1].any() and not counts[1].any()
        assert np.array_equal(counts[2], parts[7][3] + parts[8][3] + parts[9][3])
    with pytest.raises(AssertionError, match="not complete"):
        accumulate(num_parts, parts[:-1])


def test_chunks_are_no_more_than_their_bound_beside_one_per_domain() -> None:
    for k, samples in ((7, 4096), (500, 4096), (10_000, 4096), (3, 10**7)):
        rows = worker.chunk_rows([samples] * k)
        assert rows % worker.CHUNK_ROWS == 0
        assert k * -(-samples // rows) <= k + worker.MAX_CHUNKS
    assert worker.chunk_rows([4096] * 32) == worker.CHUNK_ROWS


def test_embedding_holds_little_beside_its_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    k, width, samples = 40, 512, 8192
    monkeypatch.setattr(worker, "MAX_CHUNKS", 640)
    shape, arrived = (1, 32, width), []

    def results(corpus: Any, chunks: Any, *_: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        # Actors that are two chunks apart deliver neighbours the wrong way round.
        for i in np.arange(len(chunks)).reshape(-1, 2)[:, ::-1].ravel():
            arrived.append(chunks[i])
            sums, counts = np.full(shape, chunks[i].number / 7)[0], np.full(shape[:2], 2)[0]
            yield chunks[i], {"sums": sums, "counts": counts, "precision": "fp32" if chunks[i].number else "bf16"}

    monkeypatch.setattr(ray_embed, "stream", results)
    corpus = make_corpus({f"d{i}": samples for i in range(k)})
    tracemalloc.start()
    model = artifacts.TrainedModel("folder", "", {}, 0, "", Cost())
    found = ray_embed.embed(model, 1, corpus, EmbeddingConfig(samples_per_domain=samples), Resources(), Reporter.silent(), Cost(), "digest")
    assert found.precisions == ("bf16", "fp32"), "those that were computed in, of whatever machine"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(arrived) == 640 and found.group_sums.shape == (k, 32, width)
    assert found.group_sums[1, 0, 0] == sum(chunk.number / 7 for chunk in sorted(arrived, key=lambda chunk: chunk.number) if chunk.domain == "d1")
    # All chunks together are 16 times the result.
    assert peak < 2.5 * found.group_sums.nbytes
