"""Tables and their numbers against values computed by hand."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import numpy as np
import pyarrow as pa
import pytest

from chameleon_ray.artifacts import DocumentLosses
from chameleon_ray.evaluation.measurements import perplexity_measurements
from chameleon_ray.mixture import Mixture
from chameleon_ray.report import corpus_tables, formatting, tables
from chameleon_ray.report.numbers import affinity_numbers, curve_numbers, domains_won, perplexity_numbers
from chameleon_ray.report.projection import embedding_map, principal_components
from chameleon_ray.report.statistics import Measurement, mean_change_percent, mean_difference, over_seeds, summarise
from chameleon_ray.report.styles import domain_styles, method_styles

# Two seeds, domains (books, code). Means: uniform 21 and 41, average 31; chameleon 19 and 42, average 30.5.
TWO_SEEDS = {"uniform": [[20, 40], [22, 42]], "chameleon": [[18, 42], [20, 42]]}


def texts(table: tables.Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def measured_of(*values: float) -> dict[int, Measurement]:
    return {seed: Measurement(value, 0.5, 60) for seed, value in enumerate(values)}


def test_standard_error_over_seeds_by_hand():
    found = over_seeds([1.0, 2.0, 4.5])
    assert found.mean == pytest.approx(2.5)
    assert found.stderr == pytest.approx(math.sqrt((2.25 + 0.25 + 4.0) / 2 / 3))


def test_one_seed_keeps_the_document_error_and_says_so():
    found = summarise(measured_of(3.0))
    assert (found.mean, found.stderr, found.over) == (3.0, 0.5, "documents")
    assert over_seeds([3.0]).stderr is None


def test_pairs_use_the_seeds_that_both_have():
    first, second = (
        {0: Measurement(10.0, None, 60), 1: Measurement(12.0, None, 60), 2: Measurement(99.0, None, 60)},
        {1: Measurement(16.0, None, 60), 0: Measurement(12.5, None, 60)},
    )
    assert mean_difference(first, second).mean == pytest.approx((-2.5 - 4.0) / 2)
    assert mean_difference(first, second).stderr == pytest.approx(0.75)
    assert mean_change_percent(first, second).mean == pytest.approx((-20 - 25) / 2)


def test_perplexity_numbers_by_hand(make_data):
    rows = {(row["method"], row["domain"]): row for row in perplexity_numbers(make_data(TWO_SEEDS)).to_pylist()}
    books = rows["chameleon", "books"]
    assert (books["perplexity"], books["perplexity_stderr"], books["num_seeds"], books["stderr_over"]) == (19.0, pytest.approx(1.0), 2, "seeds")
    assert books["loss_nats"] == pytest.approx((math.log(18) + math.log(20)) / 2)
    assert books["change_percent"] == pytest.approx((-10 - 100 / 11) / 2)
    assert rows["chameleon", "all"]["perplexity"] == pytest.approx(30.5)
    assert rows["uniform", "all"]["change_percent"] is None
    assert books["documents"] == 61


def test_perplexity_table_by_hand(make_data):
    table = tables.perplexity_table(make_data(TWO_SEEDS))
    assert table.columns == ("domain", "uniform", "chameleon")
    assert texts(table) == [
        ["books", "21.0 ± 1.0", "19.0 ± 1.0"],
        ["code", "41.0 ± 1.0", "42.00"],
        ["average perplexity", "31.0 ± 1.0", "30.50 ± 0.50"],
        ["mean loss, nats per token", "3.378 ± 0.036", "3.340 ± 0.026"],
        ["mean bits per byte", "1.351 ± 0.014", "1.336 ± 0.011"],
        ["domains better than uniform", "–", "1 of 2"],
        ["cost, × chameleon", "0", "1.00"],
    ]
    assert [[cell.best for cell in row[1:]] for row in table.rows[:3]] == [[False, True], [True, False], [False, True]]
    assert "standard error over 2 seeds" in table.note


def test_one_seed_table_names_its_standard_error(make_data):
    table = tables.perplexity_table(make_data({"uniform": [[20, 40]], "chameleon": [[18, 42]]}))
    assert texts(table)[0] == ["books", "20.00 ± 0.50", "18.00 ± 0.50"]
    assert "clustered by document" in table.note
    assert "no error over seeds" in table.note


def test_mixed_numbers_of_seeds_are_named(make_data):
    table = tables.perplexity_table(make_data({"uniform": [[20, 40], [21, 41]], "chameleon": [[18, 42]]}))
    assert "uniform 2 seeds, chameleon 1 seed" in table.note


def test_a_standard_error_over_few_seeds_is_told_from_an_interval(make_data):
    assert "12.7 standard errors each way (Student's t with 2 seeds)" in tables.perplexity_table(make_data(TWO_SEEDS)).note


def test_the_documents_behind_the_numbers_are_told(many_methods):
    data = many_methods(num_seeds=1)
    assert "Test documents: 60 in every domain." in tables.perplexity_table(data).note
    assert {row["documents"] for row in perplexity_numbers(data).to_pylist() if row["domain"] != "all"} == {60}


def test_a_single_document_has_no_error_and_neither_have_the_averages(many_methods):
    data = many_methods(num_seeds=1)
    for losses in data.losses.values():
        losses["test"]["code"] = DocumentLosses(*(column[:1] for column in astuple(losses["test"]["code"])))
    data = replace(data, measurements=pa.concat_tables(perplexity_measurements(*run, losses, data.corpus) for run, losses in data.losses.items()))
    rows = {row["domain"]: row for row in perplexity_numbers(data).to_pylist() if row["method"] == "chameleon"}
    assert [rows[name]["perplexity_stderr"] is None for name in ("books", "code", "news", "web", "all")] == [False, True, False, False, True]
    assert rows["all"]["loss_nats_stderr"] is None
    note = tables.perplexity_table(data).note
    assert "Test documents: 1 (code) to 60 (books) in a domain." in note
    assert "With a single one (code) no error over documents exists, neither there nor for the averages." in note


def test_mixture_score_and_cost_tables(make_data):
    data = make_data(TWO_SEEDS)
    assert texts(tables.mixture_table(data)) == [
        ["books", "0.500", "0.333 ± 0.012"],
        ["code", "0.500", "0.667 ± 0.012"],
        ["L1 distance to uniform", "0.000", "0.333"],
        ["effective number of domains", "2.00", "1.89"],
    ]
    assert texts(tables.score_table(data)) == [["books", "0.250 ± 0.030"], ["code", "0.260 ± 0.030"]]
    assert texts(tables.spectrum_table(data)) == [["1", "6.000 (75.0 %)"], ["2", "2.000 (25.0 %)"], ["effective dimension", "1.250 of 2"]]
    assert texts(tables.cost_table(data)) == [
        ["uniform", "0", "0.0 s", "0", "0", "0", "0"],
        ["chameleon", "2,048,000", "83.2 s", "1.36e+17", "1.00", "1.50e+17", "1.00"],
    ]
    assert texts(tables.phase_table(data)) == [["corpus", "12.3 s"], ["weights", "1 h 02 min"], ["total", "1 h 02 min"]]


def test_corpus_table(make_data):
    row = texts(corpus_tables.corpus_table(make_data(TWO_SEEDS)))[0]
    assert row == ["books", "1,200 / 60 / 61", "640,000 / 32,000 / 33,000", "1,250 / 62 / 64", "3", "2 empty", "7.000"]


def test_methods_without_scores_have_no_score_tables(make_data):
    data = make_data(TWO_SEEDS, mixtures={"uniform": Mixture("uniform", {"books": 0.5, "code": 0.5})})
    assert tables.score_table(data) is None
    assert tables.spectrum_table(data) is None


def test_affinity_is_given_raw_and_normalised(make_data):
    rows = affinity_numbers(make_data(TWO_SEEDS)).to_pylist()
    assert [(row["domain"], row["other"], row["raw"], row["cosine"]) for row in rows[:2]] == [
        ("books", "books", 4.0, 1.0),
        ("books", "code", 1.0, 0.25),
    ]


def test_affinity_of_a_zero_embedding_has_no_cosine(make_data):
    mixture = Mixture("chameleon", {"books": 0.5, "code": 0.5}, details={"affinity": {"names": ["books", "code"], "values": [[0.0, 0.0], [0.0, 2.0]]}})
    rows = affinity_numbers(make_data(TWO_SEEDS, mixtures={"chameleon": mixture})).to_pylist()
    assert [row["cosine"] for row in rows] == [None, None, None, 1.0]


def test_curves_are_means_over_seeds_of_windows():
    rows = [{"method": "m", "seed": seed, "step": step, "domain": "all", "loss": float(step + 100 * seed)} for seed in (0, 1) for step in range(1, 301)]
    found = curve_numbers(pa.Table.from_pylist(rows)).to_pylist()
    assert len(found) == 150
    assert found[0] == {"method": "m", "domain": "all", "step": 2, "loss": 51.5, "low": 1.5, "high": 101.5, "num_seeds": 2}
    assert found[-1]["step"] == 300


def test_few_points_are_projected_by_principal_components(embeddings_of):
    table, projection = embedding_map(embeddings_of(("a", "b", "c"), num_groups=4), seed=0)
    assert projection == "PCA"
    assert table["domain"].to_pylist() == [name for name in "abc" for _ in range(4)]
    assert set(table["samples"].to_pylist()) == {4}


def test_principal_components_keep_distances_of_a_plane():
    plane = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0], [1.0, 2.0]])
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0][:, :2]
    found = principal_components(plane @ turned.T)
    distances = [np.linalg.norm(points[:, None] - points[None], axis=-1) for points in (plane, found)]
    np.testing.assert_allclose(*distances, atol=1e-12)
    assert principal_components(np.ones((3, 1))).shape == (3, 2)


@pytest.mark.long
def test_enough_points_are_projected_by_umap_the_same_each_time(embeddings_of, recwarn):
    made = embeddings_of(("a", "b", "c"), num_groups=6)
    (first, projection), (second, _) = embedding_map(made, seed=3), embedding_map(made, seed=3)
    assert projection == "UMAP"
    assert first.num_rows == 18
    assert first.equals(second)
    assert not [warning for warning in recwarn if "umap" in str(warning.filename)]


def test_every_method_and_domain_has_its_own_look():
    assert len(set(domain_styles([str(i) for i in range(42)]).values())) == 42
    styles = method_styles(["chameleon", "uniform", *map(str, range(20))])
    assert len(set(styles.values())) == 22
    assert styles["uniform"].color == method_styles(["uniform"])["uniform"].color


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (23.414, 0.523, "23.41 ± 0.52"),
        (1234.56, 12.3, "1,235 ± 12"),
        (0.17912, 0.0042, "0.1791 ± 0.0042"),
        (-0.71, 0.05, "−0.710 ± 0.050"),
        (21.5, None, "21.50"),
        (21.5, math.nan, "21.50"),
        (0.0, None, "0"),
        (8.6e-15, None, "8.6e−15"),
        (None, None, "–"),
    ],
)
def test_measured_numbers(value, stderr, text):
    assert formatting.measured(value, stderr) == text


def test_domains_are_won_over_the_seeds_that_are_asked_for(make_data):
    data = make_data({"uniform": [[10.0, 10.0], [10.0, 10.0]], "chameleon": [[9.0, 11.0], [12.0, 7.0]]})
    assert [domains_won(data, "chameleon", seeds) for seeds in (None, {0}, {1}, {7})] == [1, 1, 1, None]
    better = make_data({"uniform": [[10.0, 10.0], [10.0, 10.0]], "chameleon": [[9.0, 9.0], [12.0, 12.0]]})
    assert [domains_won(better, "chameleon", seeds) for seeds in (None, {0}, {1})] == [0, 2, 0]
