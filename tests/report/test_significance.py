"""Intervals of paired differences where the answer is known, and what the page makes of them."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from scipy.special import stdtrit

from chameleon_ray.artifacts import DocumentLosses
from chameleon_ray.evaluation.losses import mean_nats, mean_perplexity
from chameleon_ray.report.comparison_tables import significance_table, significance_text
from chameleon_ray.report.numbers import significance_numbers
from chameleon_ray.report.significance import by_pair, paired_differences

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
    for pair in paired_differences(losses):
        mean = {"mean_perplexity": mean_perplexity, "mean_loss_nats": mean_nats}[pair.metric]
        by_hand = np.mean([mean(losses["a", seed]) - mean(losses["b", seed]) for seed in range(3)])
        assert (pair.first, pair.second, pair.num_seeds) == ("a", "b", 3)
        assert pair.difference == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_equal_models_hold_zero(num_seeds):
    losses = world(np.random.default_rng(0), num_seeds, 0.0, 0.0)
    pairs = paired_differences(losses)
    assert len(pairs) == 2
    assert all((pair.difference, pair.low, pair.high, pair.excludes_zero) == (0, 0, 0, False) for pair in pairs)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_shift_excludes_zero_and_lies_in_the_interval(num_seeds):
    losses = world(np.random.default_rng(0), num_seeds, 0.001, 0.05, shift=0.1)
    _, nats = paired_differences(losses)
    assert nats.excludes_zero
    assert nats.low < -0.1 < nats.high < 0
    assert nats.turned().low == -nats.high
    assert nats.turned().excludes_zero


def test_documents_are_paired_by_number_and_not_by_place():
    losses = world(np.random.default_rng(0), 3, 0.01, 0.05)
    draws = np.random.default_rng(1)
    mixed = {run: {name: permuted(loss, draws) for name, loss in by_domain.items()} for run, by_domain in losses.items()}
    assert paired_differences(mixed) == paired_differences(losses)


def test_pairing_cancels_what_documents_do_to_both():
    losses = world(np.random.default_rng(0), 1, 0.0, 0.001)
    _, nats = paired_differences(losses)
    unpaired = math.hypot(*(losses["a", 0][name].stderr_nats for name in NAMES)) / 2
    assert nats.high - nats.low < unpaired / 20


def test_models_measured_on_different_documents_are_refused():
    losses = world(np.random.default_rng(0), 1, 0.0, 0.0)
    other = losses["b", 0]["books"]
    losses["b", 0]["books"] = DocumentLosses(other.document + 1, other.nats, other.tokens)
    with pytest.raises(AssertionError, match="different documents"):
        paired_differences(losses)


def test_noise_in_seeds_alone_gives_students_t_interval():
    by_seed = np.array([-0.03, 0.01, -0.02])
    losses = world(np.random.default_rng(0), 3, 0.0, 0.0)
    for seed, shift in enumerate(by_seed):
        losses["a", seed] = {name: replace(loss, nats=loss.nats + shift * loss.tokens) for name, loss in losses["a", seed].items()}
    _, nats = paired_differences(losses)
    half = stdtrit(2, 0.975) * by_seed.std(ddof=1) / math.sqrt(3)
    assert (nats.low, nats.high) == (pytest.approx(by_seed.mean() - half), pytest.approx(by_seed.mean() + half))


def test_noise_in_documents_of_one_length_alone_gives_students_t_interval():
    by_document = np.array([-0.3, -0.1, 0.0, 0.1, 0.3]) + 0.05  # without skewness
    tokens = np.full(5, 10)
    losses = {("a", 0): {"books": DocumentLosses(np.arange(5), (3 + by_document) * tokens, tokens)}}
    losses["b", 0] = {"books": DocumentLosses(np.arange(5), 3.0 * tokens, tokens)}
    _, nats = paired_differences(losses)
    half = stdtrit(4, 0.975) * by_document.std(ddof=1) / math.sqrt(5)
    assert (nats.low, nats.high) == (pytest.approx(0.05 - half), pytest.approx(0.05 + half))


def test_a_rare_document_lengthens_the_interval_on_its_side():
    tokens = np.full(10, 10)
    nats = 30.0 + np.where(np.arange(10) == 3, 8.0, 0.0) + np.arange(10) / 10
    losses = {("a", 0): {"books": DocumentLosses(np.arange(10), nats, tokens)}, ("b", 0): {"books": DocumentLosses(np.arange(10), 3.0 * tokens, tokens)}}
    for pair in paired_differences(losses):
        assert pair.high - pair.difference > 2 * (pair.difference - pair.low) > 0


def test_a_single_document_in_one_domain_leaves_no_interval():
    losses = world(np.random.default_rng(0), 3, 0.0, 0.05, shift=1.0)
    for by_domain in losses.values():
        by_domain["code"] = DocumentLosses(*(column[:1] for column in astuple(by_domain["code"])))
    pairs = paired_differences(losses)
    by_hand = np.mean([mean_nats(losses["a", seed]) - mean_nats(losses["b", seed]) for seed in range(3)])
    assert pairs[1].difference == pytest.approx(by_hand)
    assert all((pair.fewest_documents, pair.has_interval, pair.excludes_zero) == (1, False, False) for pair in pairs)
    assert [(row["low"], row["high"], row["excludes_zero"]) for row in significance_numbers(pairs).to_pylist()] == [(None, None, False)] * 2
    assert significance_table(pairs, "mean_loss_nats", ("a", "b")).rows[0][2].detail == "no interval"
    assert "no difference has an interval" in significance_text(pairs, False)


def test_a_third_method_changes_no_interval():
    losses = world(np.random.default_rng(0), 3, 0.01, 0.05)
    third = {("c", seed): losses["a", seed] for seed in range(2)}
    pairs = by_pair(paired_differences({**third, **losses}), "mean_loss_nats")
    alone = by_pair(paired_differences(losses), "mean_loss_nats")
    assert pairs["a", "b"].low == pytest.approx(alone["a", "b"].low, abs=1e-12)
    assert pairs["c", "b"].num_seeds == 2


def test_methods_without_a_seed_in_common_are_no_pair():
    losses = world(np.random.default_rng(0), 1, 0.0, 0.0)
    assert paired_differences({("a", 0): losses["a", 0], ("b", 1): losses["b", 0]}) == []
    assert paired_differences({}) == []


@pytest.mark.parametrize(
    ("num_seeds", "seed_sd", "document_sd", "least"),
    [(1, 0.0, 0.1, 0.90), (2, 0.02, 0.0, 0.86), (3, 0.02, 0.0, 0.90), (3, 0.0, 0.1, 0.88), (3, 0.02, 0.1, 0.90), (5, 0.02, 0.0, 0.90)],
)
def test_intervals_cover_the_truth_about_as_often_as_they_say(num_seeds, seed_sd, document_sd, least):
    draws = np.random.default_rng(7)
    covered = [all(not pair.excludes_zero for pair in paired_differences(world(draws, num_seeds, seed_sd, document_sd))[1:]) for _ in range(200)]
    assert least <= np.mean(covered) <= 0.99


def test_table_is_antisymmetric_and_marks_what_excludes_zero():
    pairs = paired_differences(world(np.random.default_rng(0), 3, 0.001, 0.05, shift=0.1))
    table = significance_table(pairs, "mean_loss_nats", ("b", "not evaluated", "a"))
    assert table.columns == ("row − column", "b", "a")
    (_, none, worse), (_, better, _) = table.rows
    assert none.text == "–"
    assert (worse.text.removesuffix("*"), worse.best) == (better.text.removesuffix("*").removeprefix("−"), False)
    assert better.text.startswith("−") and better.text.endswith("*") and better.best
    assert " to " in better.detail


def test_text_says_what_an_interval_covers():
    three, one = (paired_differences(world(np.random.default_rng(0), num_seeds, 0.01, 0.05)) for num_seeds in (3, 1))
    assert "the 3 seeds that both methods have" in significance_text(three, False)
    assert "only documents count" in significance_text(one, False)
    for text in (significance_text(three, False), significance_text(one, False)):
        assert "It does not cover the mixtures themselves: each was fitted once, with the first seed." in text
        assert "The domain with the fewest test documents has 60." in text
    assert "Every mixture was fitted anew with every seed" in significance_text(three, True) and "fitted anew" not in significance_text(one, True)
    assert "nothing about another seed" in significance_text([*three, replace(one[0], second="c")], False)
