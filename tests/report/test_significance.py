"""The paired bootstrap where the answer is known, and what the page makes of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from chameleon_ray.artifacts import DocumentLosses
from chameleon_ray.evaluation.losses import mean_nats, mean_perplexity
from chameleon_ray.report import significance
from chameleon_ray.report.comparison_tables import significance_table, significance_text
from chameleon_ray.report.significance import by_pair, paired_bootstrap

NAMES = ("books", "code")


def world(
    draws: np.random.Generator, num_seeds: int, seed_sd: float, document_sd: float, shift: float = 0.0, num_documents: int = 60
) -> dict[tuple[str, int], dict[str, DocumentLosses]]:
    """Methods a and b on the same documents; b is `shift` nats worse. Noise: of every run, and of every method and document."""
    document = np.arange(num_documents)
    of_run = {(method, seed): draws.normal(0, seed_sd) for method in "ab" for seed in range(num_seeds)}
    found: dict[tuple[str, int], dict[str, DocumentLosses]] = {run: {} for run in of_run}
    for name in NAMES:
        tokens = draws.integers(50, 400, num_documents)
        hardness = draws.normal(3, 0.5, num_documents)
        for method in "ab":
            taste = draws.normal(0, document_sd, num_documents) + (shift if method == "b" else 0.0)
            for seed in range(num_seeds):
                found[method, seed][name] = DocumentLosses(document, tokens * (hardness + taste + of_run[method, seed]), tokens)
    return found


def permuted(losses: DocumentLosses, draws: np.random.Generator) -> DocumentLosses:
    order = draws.permutation(len(losses.document))
    return DocumentLosses(losses.document[order], losses.nats[order], losses.tokens[order])


def test_differences_are_those_of_the_means_over_seeds():
    losses = world(np.random.default_rng(0), 3, 0.02, 0.05, shift=0.1)
    for pair in paired_bootstrap(losses, seed=0, draws=50):
        mean = {"mean_perplexity": mean_perplexity, "mean_loss_nats": mean_nats}[pair.metric]
        by_hand = np.mean([mean(losses["a", seed]) - mean(losses["b", seed]) for seed in range(3)])
        assert (pair.first, pair.second, pair.num_seeds) == ("a", "b", 3)
        assert pair.difference == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_equal_models_hold_zero(num_seeds):
    losses = world(np.random.default_rng(0), num_seeds, 0.0, 0.0)
    pairs = paired_bootstrap(losses, seed=0)
    assert len(pairs) == 2
    assert all((pair.difference, pair.low, pair.high, pair.excludes_zero) == (0, 0, 0, False) for pair in pairs)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_shift_excludes_zero_and_lies_in_the_interval(num_seeds):
    losses = world(np.random.default_rng(0), num_seeds, 0.001, 0.05, shift=0.1)
    _, nats = paired_bootstrap(losses, seed=0)
    assert nats.excludes_zero
    assert nats.low < -0.1 < nats.high < 0
    assert nats.turned().low == -nats.high
    assert nats.turned().excludes_zero


def test_documents_are_paired_by_number_and_not_by_place():
    losses = world(np.random.default_rng(0), 3, 0.01, 0.05)
    draws = np.random.default_rng(1)
    mixed = {run: {name: permuted(loss, draws) for name, loss in by_domain.items()} for run, by_domain in losses.items()}
    assert paired_bootstrap(mixed, seed=0) == paired_bootstrap(losses, seed=0)


def test_pairing_cancels_what_documents_do_to_both():
    losses = world(np.random.default_rng(0), 1, 0.0, 0.001)
    _, nats = paired_bootstrap(losses, seed=0)
    unpaired = math.hypot(*(losses["a", 0][name].stderr_nats for name in NAMES)) / 2
    assert nats.high - nats.low < unpaired / 20


def test_models_measured_on_different_documents_are_refused():
    losses = world(np.random.default_rng(0), 1, 0.0, 0.0)
    other = losses["b", 0]["books"]
    losses["b", 0]["books"] = DocumentLosses(other.document + 1, other.nats, other.tokens)
    with pytest.raises(AssertionError, match="different documents"):
        paired_bootstrap(losses, seed=0)


def test_same_seed_same_interval_whatever_the_chunks(monkeypatch):
    losses = world(np.random.default_rng(0), 3, 0.01, 0.05)
    found = paired_bootstrap(losses, seed=4)
    assert found != paired_bootstrap(losses, seed=5)
    monkeypatch.setattr(significance, "MAX_COUNTS", 60 * 7)
    for pair, again in zip(found, paired_bootstrap(losses, seed=4), strict=True):
        assert (again.low, again.high) == (pytest.approx(pair.low, abs=1e-12), pytest.approx(pair.high, abs=1e-12))


def test_a_third_method_changes_no_interval():
    losses = world(np.random.default_rng(0), 3, 0.01, 0.05)
    third = {("c", seed): losses["a", seed] for seed in range(2)}
    pairs = by_pair(paired_bootstrap({**third, **losses}, seed=0), "mean_loss_nats")
    alone = by_pair(paired_bootstrap(losses, seed=0), "mean_loss_nats")
    assert pairs["a", "b"].low == pytest.approx(alone["a", "b"].low, abs=1e-12)
    assert pairs["c", "b"].num_seeds == 2


def test_methods_without_a_seed_in_common_are_no_pair():
    losses = world(np.random.default_rng(0), 1, 0.0, 0.0)
    assert paired_bootstrap({("a", 0): losses["a", 0], ("b", 1): losses["b", 0]}, seed=0) == []
    assert paired_bootstrap({}, seed=0) == []


@pytest.mark.parametrize(
    ("num_seeds", "seed_sd", "document_sd", "least"),
    [(1, 0.0, 0.1, 0.90), (2, 0.02, 0.0, 0.86), (3, 0.02, 0.0, 0.90), (3, 0.0, 0.1, 0.88), (3, 0.02, 0.1, 0.90), (5, 0.02, 0.0, 0.90)],
)
def test_intervals_cover_the_truth_about_as_often_as_they_say(num_seeds, seed_sd, document_sd, least):
    draws = np.random.default_rng(7)
    covered = [
        all(not pair.excludes_zero for pair in paired_bootstrap(world(draws, num_seeds, seed_sd, document_sd), seed=trial, draws=400)[1:])
        for trial in range(200)
    ]
    assert least <= np.mean(covered) <= 0.99


def test_table_is_antisymmetric_and_marks_what_excludes_zero():
    pairs = paired_bootstrap(world(np.random.default_rng(0), 3, 0.001, 0.05, shift=0.1), seed=0)
    table = significance_table(pairs, "mean_loss_nats", ("b", "not evaluated", "a"))
    assert table.columns == ("row − column", "b", "a")
    (_, none, worse), (_, better, _) = table.rows
    assert none.text == "–"
    assert (worse.text.removesuffix("*"), worse.best) == (better.text.removesuffix("*").removeprefix("−"), False)
    assert better.text.startswith("−") and better.text.endswith("*") and better.best
    assert " to " in better.detail


def test_text_says_what_was_resampled():
    three, one = (paired_bootstrap(world(np.random.default_rng(0), num_seeds, 0.01, 0.05), seed=0, draws=20) for num_seeds in (3, 1))
    assert "the 3 seeds that both methods have" in significance_text(three, 0)
    assert "only documents are resampled" in significance_text(one, 0)
    assert "nothing about another seed" in significance_text([*three, replace(one[0], second="c")], 0)
