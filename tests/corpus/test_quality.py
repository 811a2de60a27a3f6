"""What a domain's text shows without a model: boilerplate, shuffled words and noise against prose."""

from __future__ import annotations

import numpy as np
import pytest

from chameleon_ray.corpus.quality import ALL_BYTES, LEAST_BYTES, SAMPLE_BYTES, quality_of, sample_bytes

RANDOM = np.random.default_rng(0)
VOCABULARY = ["".join(RANDOM.choice(list("etaoinshrdlu"), RANDOM.integers(2, 9))) for _ in range(2000)]
ZIPF = 1 / np.arange(1, 2001)


def written(words: int) -> str:
    return " ".join(RANDOM.choice(VOCABULARY, words, p=ZIPF / ZIPF.sum()))


PAGE = written(120)
TEXTS = {
    "prose": [written(150) for _ in range(80)],
    "boilerplate": [f"Dear {VOCABULARY[i]}, {PAGE} No. {i}.\n{PAGE}, {VOCABULARY[2 * i]}!" for i in range(80)],
    "noise": ["".join(RANDOM.choice(list("abcdefghijklmnopqrstuvwxyz0123456789+/"), 900)) for _ in range(80)],
}


def test_a_page_with_changed_names_is_told_from_prose() -> None:
    found = {name: quality_of(texts) for name, texts in TEXTS.items()}
    assert found["prose"].repeated < 0.01 < 0.9 < found["boilerplate"].repeated
    assert found["noise"].compression < 1.7 < found["prose"].compression < 4 < 20 < found["boilerplate"].compression
    assert found["prose"].sample_bytes == len("\n".join(TEXTS["prose"]).encode())


def test_neither_layout_nor_numbers_hide_a_copy() -> None:
    first = "On 12 May 1845 the ship left port; its master, two mates and nine men were never seen again."
    second = "on 3 may 1901  The ship left PORT\n its master two mates AND nine men were never seen again (2)"
    assert quality_of([first, second]).repeated == 1.0
    assert quality_of([first + " " + first]).repeated == 0.0, "within one document nothing is a copy"
    assert quality_of(["too short", "for a passage"]).repeated == 0.0


def test_the_order_of_documents_changes_nothing() -> None:
    texts = [*TEXTS["prose"][:10], *TEXTS["boilerplate"][:10]]
    assert quality_of(texts).repeated == quality_of(texts[::-1]).repeated


@pytest.mark.parametrize("k", [1, 7, 1000, 10_000, 100_000])
def test_samples_of_many_domains_fit_in_memory(k: int) -> None:
    assert k * sample_bytes(k) <= 1.1 * ALL_BYTES and LEAST_BYTES <= sample_bytes(k) <= SAMPLE_BYTES
