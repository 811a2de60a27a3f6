"""Sums and counts per document, and their standard errors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from chameleon_ray.artifacts import DocumentLosses
from chameleon_ray.evaluation.losses import document_of_target, mean_nats, mean_perplexity
from chameleon_ray.evaluation.measurements import document_table, losses_by_document, perplexity_measurements
from tests.fakes import make_corpus


def losses(nats: list[float], tokens: list[int]) -> DocumentLosses:
    return DocumentLosses(np.arange(len(nats)), np.array(nats), np.array(tokens))


def test_mean_is_over_tokens_not_over_documents() -> None:
    found = losses([10.0, 2.0], [5, 2])
    assert found.mean_nats == pytest.approx(12 / 7)
    assert found.perplexity == pytest.approx(math.exp(12 / 7))


def test_stderr_by_hand() -> None:
    found = losses([4.0, 2.0, 6.0], [2, 2, 2])
    assert found.stderr_nats == pytest.approx(np.std([2.0, 1.0, 3.0], ddof=1) / math.sqrt(3))
    assert found.stderr_perplexity == pytest.approx(found.perplexity * found.stderr_nats)
    assert math.isnan(losses([4.0], [2]).stderr_nats)


def test_stderr_is_clustered_by_document() -> None:
    rng = np.random.default_rng(0)
    estimates, errors = [], []
    for _ in range(400):
        effect, tokens = rng.normal(3, 0.5, 30), rng.integers(20, 200, 30)
        found = DocumentLosses(np.arange(30), np.array([rng.normal(e, 1, n).sum() for e, n in zip(effect, tokens, strict=True)]), tokens)
        estimates.append(found.mean_nats)
        errors.append(found.stderr_nats)
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.12)


def test_entries_of_a_document_add_up() -> None:
    found = DocumentLosses.from_tokens(np.array([7, 3, 7]), np.array([1.0, 2.0, 4.0]), np.array([1, 1, 2]))
    assert found.document.tolist() == [3, 7]
    assert found.nats.tolist() == [2.0, 5.0]
    assert found.tokens.tolist() == [1, 3]


def test_documents_are_numbered_on_at_their_ends() -> None:
    tokens = np.array([[5, 0, 6, 0, 7]])
    assert document_of_target(tokens, np.array([10]), end_of_document=0).tolist() == [[10, 11, 11, 12, 12]]


def test_both_averages_and_a_round_trip() -> None:
    found = {"valid": {"a": losses([2.0, 3.0], [2, 2]), "b": losses([9.0, 3.0], [3, 3])}, "test": {"a": losses([1.0, 1.5], [1, 1]), "b": losses([4.0], [4])}}
    corpus = make_corpus({"a": 4, "b": 4})  # 4 bytes to a token
    table = perplexity_measurements("chameleon", 3, found, corpus).to_pylist()
    means = {(row["split"], row["metric"]): row["value"] for row in table if row["domain"] == "all"}
    assert means["valid", "mean_loss_nats"] == pytest.approx((1.25 + 2.0) / 2) == mean_nats(found["valid"])
    assert means["valid", "mean_perplexity"] == pytest.approx((math.exp(1.25) + math.exp(2)) / 2) == mean_perplexity(found["valid"])
    assert means["valid", "mean_bits_per_byte"] == pytest.approx((1.25 + 2.0) / 2 / math.log(2) / 4)
    bits = {row["domain"]: row for row in table if (row["split"], row["metric"]) == ("valid", "bits_per_byte")}
    nats = {row["domain"]: row for row in table if (row["split"], row["metric"]) == ("valid", "loss_nats")}
    assert bits["a"]["stderr"] / bits["a"]["value"] == pytest.approx(nats["a"]["stderr"] / nats["a"]["value"])
    single = next(row for row in table if (row["split"], row["domain"], row["metric"]) == ("test", "b", "loss_nats"))
    assert single["stderr"] is None
    assert single["n"] == 4
    of_target = perplexity_measurements("chameleon", 3, found, replace(corpus, names=("a",), targets=("b",))).to_pylist()
    assert {row["domain"] for row in of_target} == {"a", "b", "all"}
    assert next(row["value"] for row in of_target if (row["split"], row["metric"]) == ("valid", "mean_loss_nats")) == 1.25
    again = losses_by_document(document_table(found))
    assert list(again) == ["valid", "test"]
    assert again["valid"]["b"].mean_nats == found["valid"]["b"].mean_nats
