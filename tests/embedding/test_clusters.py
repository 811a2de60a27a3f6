"""Clusters of planted structure, at few and at ten thousand; what is tiny, alike or empty; words and names; what a hundred thousand would take."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from chameleon_ray.corpus_config import check_domain_name
from chameleon_ray.embedding import clusters
from chameleon_ray.embedding.clusters import Directions, MiniBatches, SearchSize, begin, merged, names_of, nearest, telling_words, vocabulary, words_of


def planted(k: int, documents: int, p: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around k centres that share a large mean, and which centre each has."""
    generator = np.random.default_rng(seed)
    label = generator.permutation(np.arange(documents) % k)
    centres = generator.standard_normal((k, p))
    return (20 + centres[label] + noise * generator.standard_normal((documents, p))).astype(np.float32), label


@pytest.mark.parametrize("k, documents, p, noise", [(3, 300, 16, 0.5), (7, 3000, 128, 1.0), (40, 4000, 64, 0.6), (400, 8000, 96, 0.4)])
def test_planted_clusters_are_found(k: int, documents: int, p: int, noise: float) -> None:
    vectors, label = planted(k, documents, p, noise)
    directions = Directions.of(vectors, k)
    assert directions is not None and directions.axes.shape == (p, min(64, max(8, k + 1)))
    found, similar = nearest(directions(vectors), begin(directions(vectors), k, 0))
    assert adjusted_rand_score(label, found) > 0.95
    assert (similar <= 1 + 1e-5).all() and similar.mean() > 0.5


@pytest.mark.long
def test_ten_thousand_clusters_on_one_machine() -> None:
    k = 10_000
    vectors, label = planted(k, 4 * k, 96, 0.2)
    directions = Directions.of(vectors, k)
    assert directions is not None
    points = directions(vectors)
    batches = MiniBatches(begin(points, k, 0), 0)
    for start in range(0, len(points), 1000):
        batches.add(points[start : start + 1000])
    found, _ = nearest(points, batches.centres())
    assert adjusted_rand_score(label, found) > 0.8  # begun at documents drawn at random, four to a cluster
    sizes = np.bincount(found, minlength=k)
    target = merged(batches.centres(), sizes, 2.0)
    assert len(np.unique(target[target >= 0])) > 0.8 * k
    assert np.bincount(target[target >= 0], sizes[target >= 0], k)[np.unique(target[target >= 0])].min() >= 2


def test_what_a_hundred_thousand_clusters_would_take() -> None:
    small, large = SearchSize.of(2_000_000, 10_000, 768), SearchSize.of(10_000_000, 100_000, 768)
    assert large.sample_documents == 400_000
    assert large.driver_bytes < 2.5e9 and small.driver_bytes < 0.8e9
    # Two passes of ten million documents by a hundred thousand centres in 64 dimensions, on one thread of 30 GFLOP/s.
    assert 2 * 2 * 64 * 1e12 < large.operations < 3e14 and large.operations / 30e9 < 3 * 3600
    assert SearchSize.of(5000, 7, 128).operations < 1e10


def test_mini_batches_follow_documents_that_the_sample_did_not_show() -> None:
    vectors, label = planted(5, 20_000, 32, 0.8)
    directions = Directions.of(vectors, 5)
    assert directions is not None
    points = directions(vectors)
    begun = begin(points[:20], 5, 1)
    batches = MiniBatches(begun, 0)
    for start in range(0, len(points), 300):
        batches.add(points[start : start + 300])
    centres = batches.centres()
    assert np.allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    means = clusters.unit(np.stack([points[label == each].mean(axis=0) for each in range(5)]))
    assert (means @ centres.T).max(axis=1).min() > 0.99
    assert (means @ begun.T).max(axis=1).min() < (means @ centres.T).max(axis=1).min()


def test_the_same_vectors_give_the_same_clusters_whatever_the_threads() -> None:
    vectors, _ = planted(12, 2000, 64, 0.7)

    def centres() -> np.ndarray:
        directions = Directions.of(vectors, 12)
        assert directions is not None
        batches = MiniBatches(begin(directions(vectors), 12, 3), 3)
        batches.add(directions(vectors))
        return batches.centres()

    with threadpool_limits(1):
        one = centres()
    with threadpool_limits(2):
        assert np.array_equal(one, centres())


def test_vectors_that_are_all_the_same_have_no_directions() -> None:
    same = np.tile(np.linspace(1, 2, 16, dtype=np.float32), (50, 1))
    assert Directions.of(same, 3) is None
    rounding = same * (1 + 1e-6 * np.random.default_rng(0).standard_normal(same.shape)).astype(np.float32)
    assert Directions.of(rounding, 3) is None
    assert Directions.of(np.zeros((5, 4), np.float32), 2) is None


def test_a_document_at_the_mean_has_no_direction_and_a_cluster_all_the_same() -> None:
    vectors = np.array([[1, 0], [-1, 0], [0, 0]], np.float32)
    directions = Directions.of(vectors, 2)
    assert directions is not None
    points = directions(vectors)
    assert not points[2].any() and np.isfinite(points).all()
    assert nearest(points, points[:2])[0].tolist() == [0, 1, 0]


def test_tiny_clusters_go_into_the_nearest_the_smallest_first() -> None:
    centres = clusters.unit(np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, 0]]))
    assert merged(centres, np.array([10, 1, 10, 2, 0]), 5).tolist() == [0, 0, 2, 2, -1]
    assert merged(centres, np.array([1, 1, 1, 1, 1]), 2).tolist() != [0, 1, 2, 3, 4]
    assert len(set(merged(centres, np.array([1, 1, 1, 1, 1]), 100).tolist())) == 1
    assert merged(centres, np.array([4, 4, 4, 4, 4]), 4).tolist() == [0, 1, 2, 3, 4]


@given(st.lists(st.integers(0, 20), min_size=2, max_size=12), st.integers(1, 30))
def test_merging_keeps_all_documents_and_leaves_nothing_tiny_but_a_single_cluster(sizes: list[int], least: int) -> None:
    centres = clusters.unit(np.random.default_rng(0).standard_normal((len(sizes), 3)))
    target = merged(centres, np.array(sizes), least)
    assert ((target >= 0) == (np.array(sizes) > 0)).all()
    left = np.unique(target[target >= 0])
    total = [sum(size for size, into in zip(sizes, target.tolist(), strict=True) if into == each) for each in left.tolist()]
    assert sum(total) == sum(sizes)
    assert len(left) <= 1 or min(total) >= least
    assert all(target[each] == each for each in left)


def test_words_that_tell_a_cluster_are_frequent_in_it_and_rare_elsewhere() -> None:
    texts = [["the stove and the onion"] * 5 + ["the butter onion"] * 4, ["the letter of a friend"] * 6, ["the onion and the letter"] * 2]
    words = vocabulary(text for kind in texts for text in kind)
    counts = np.array([[sum(word in words_of(text) for text in kind) for word in words] for kind in texts])
    first, second, third = telling_words(sp.csr_array(counts), [len(kind) for kind in texts], words)
    assert first[:2] == ["stove", "butter"] and "onion" in first and second[:2] == ["friend", "letter"]
    assert "butter" not in second and set(third) <= {"the", "onion", "and", "letter"}
    assert telling_words(sp.csr_array((2, 0)), [1, 1], []) == [[], []]
    assert telling_words(sp.csr_array(counts[:1]), [9], words) == [[]]  # nothing to be told from


def test_a_word_that_every_cluster_has_tells_none() -> None:
    # "the" stands in all documents of all clusters, the other words in few of one.
    counts = np.array([[900, 60, 0, 0, 0, 0], *[[900, 0, 60, 60, 60, 60]] * 8])
    assert telling_words(sp.csr_array(counts), [900] * 9, ["the", "ale", "tax", "law", "sea", "war"])[0] == ["ale"]


def test_words_are_runs_of_letters_in_any_script() -> None:
    assert words_of("Der Fluß, die 12 Ströme; def __init__(self): x1 été") == {"der", "fluß", "die", "ströme", "def", "init", "self", "été"}
    assert max(map(len, words_of("字" * 100))) == 24


@given(st.lists(st.lists(st.text(alphabet="aß字", min_size=1, max_size=24), max_size=4), max_size=6), st.sampled_from(["", "de/", "字" * 15 + "/"]))
def test_names_fit_and_differ(words: list[list[str]], prefix: str) -> None:
    names = names_of(words, prefix, {"all"})
    assert len(set(names)) == len(names) == len(words)
    assert all(name.startswith(prefix[:-1]) and len(name) <= 100 and check_domain_name(name) == name for name in names)


def test_names_are_the_first_words() -> None:
    used = {"all", "tax"}
    found = names_of([["law", "court", "judge", "trial"], [], ["law", "court", "judge"], ["all"], ["tax"]], "", used)
    assert found == ["law-court-judge", "2", "law-court-judge-2", "all-2", "tax-2"] and used > set(found)
    assert names_of([["law", "court"]], "de/", used) == ["de"]
    long = "字" * 40 + "/"
    assert len({*names_of([[], []], long, used), *names_of([[], []], long, used)}) == 4
