"""Costs, drift, sweeps and failures against values computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from chameleon_ray.artifacts import Cost
from chameleon_ray.experiment import Experiment
from chameleon_ray.report import tables
from chameleon_ray.report.comparison_tables import drift_table, failure_table, sweep_table
from chameleon_ray.report.numbers import chameleon_label, cost_numbers, drift_numbers, spread_numbers


def texts(table: tables.Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_costs_are_compared_with_chameleon_in_both_conventions(many_methods):
    data = many_methods()
    table = tables.cost_table(data)
    assert table.columns[3:] == ("FLOPs, paper", "ratio", "FLOPs, all", "ratio")
    rows = {row[0]: row[1:] for row in texts(table)}
    assert rows["uniform"] == ["0", "0.0 s", "0", "0", "0", "0"]
    assert rows["chameleon"] == ["2,048,000", "83.2 s", "1.36e+17", "1.00", "1.50e+17", "1.00"]
    assert rows["doge"] == ["20,500,000", "15 min 00 s", "6.68e+17", "4.91", "9.10e+17", "6.07"]
    numbers = {row["method"]: row for row in cost_numbers(data).to_pylist()}
    assert numbers["doremi"]["tokens_ratio"] == pytest.approx(41_000_000 / 2_048_000)
    assert numbers["doremi"]["seconds_ratio"] == pytest.approx(1200 / 83.25)


def test_without_chameleon_there_are_no_ratios(many_methods):
    data = many_methods(shifts={"uniform": 0.0, "doge": -0.1})
    assert tables.cost_table(data).columns == ("mixture", "tokens", "wall time", "FLOPs, paper", "FLOPs, all")
    assert texts(tables.perplexity_table(data))[-1][0] == "domains better than uniform"


def test_a_chameleon_without_cost_has_no_ratio(many_methods):
    data = many_methods()
    free = replace(data, mixtures={**data.mixtures, "chameleon": replace(data.mixtures["chameleon"], ledger={})})
    assert [row[4] for row in texts(tables.cost_table(free))] == ["–"] * 6  # the last row is for all together


def test_what_mixtures_share_is_counted_once(many_methods):
    data = many_methods()
    proxy, whole = Cost(1000, 2e6, 3.0, 1e6), Cost(5000, 10e6, 15.0, 5e6)
    ledgers = {"chameleon": {"run": proxy, "embeddings": Cost(10, 1e3, 0.5, 2e3)}, "doremi": {"run": whole, "own": Cost(5000, 12e6, 16.0, 5e6)}}
    mixtures = {label: replace(data.mixtures[label], ledger=ledger) for label, ledger in ledgers.items()}
    last = texts(tables.cost_table(replace(data, mixtures=mixtures)))[-1]
    assert last[:3] == ["all together", "10,010", "31.5 s"], "the proxy is the beginning of the reference's run"
    assert (last[3], last[5]) == ("1.00e+07", "2.20e+07")


def test_chameleon_is_known_by_its_label_or_its_settings(many_methods):
    data = many_methods(shifts={"uniform": 0.0, "doge": -0.1, "leverage": -0.1})
    assert chameleon_label(data) is None
    methods = {"uniform": {}, "doge": {}, "leverage": {"method": "chameleon"}}
    named = replace(data, experiment=Experiment.model_validate({**data.experiment.model_dump(), "methods": methods}))
    assert chameleon_label(named) == "leverage"
    assert chameleon_label(many_methods()) == "chameleon"


def test_a_snapshot_proxy_has_a_footnote(many_methods):
    data = many_methods()
    own = {"proxy_is_snapshot_of": {"model": "0" * 12, "steps": 2000, "at_step": 200}}
    at_a_point = "chameleon at proxy.steps=500"
    mixtures = {**data.mixtures, **{label: replace(data.mixtures["chameleon"], provenance=own) for label in ("chameleon", at_a_point)}}
    table = tables.cost_table(replace(data, mixtures=mixtures))
    assert [row[0] for row in texts(table)] == ["uniform", "chameleon ¹", "doremi", "doge", "regmix", f"{at_a_point} ¹", "all together"]
    charged = "on the same schedule; its cost is charged up to that step."
    assert table.note.endswith(f"¹ chameleon, {at_a_point}: the proxy is the step-200 checkpoint of a longer run (2,000 steps) {charged}")
    assert "¹" not in tables.cost_table(data).note


def test_main_table_ends_with_the_cost_of_every_method(many_methods):
    rows = texts(tables.perplexity_table(many_methods()))
    assert rows[-2] == ["domains better than uniform", "–", "4 of 4", "0 of 4", "4 of 4", "4 of 4"]
    assert rows[-1] == ["cost, × chameleon", "0", "1.00", "9.85", "4.91", "8.82"]


def test_spread_by_hand(many_methods):
    data = many_methods(names=("a", "b"), shifts={"uniform": 0.0})
    mixture = replace(data.mixtures["uniform"], weights={"a": 1.0, "b": 0.0})
    assert spread_numbers(replace(data, mixtures={"m": mixture})).to_pylist() == [{"method": "m", "l1_to_uniform": 1.0, "effective_domains": 1.0}]


def history(*steps: tuple[int, float]) -> pa.Table:
    rows = [{"method": "m", "step": step, "domain": domain, "weight": 0.0, "mean": mean} for step, a in steps for domain, mean in (("a", a), ("b", 1 - a))]
    return pa.Table.from_pylist(rows)


def test_drift_by_hand():
    table = drift_table(history((1000, 0.9), (100, 0.5), (480, 0.7), (600, 0.8)))
    assert texts(table) == [["m", "1,000", "0.800 (step 100)", "0.400 (step 480)"]]


def test_drift_needs_another_step():
    assert drift_numbers(history((1000, 0.9))).num_rows == 0
    assert texts(drift_table(history((1000, 0.9)))) == [["m", "–", "–", "–"]]


def test_sweep_has_a_row_per_point_and_method(many_methods):
    data = many_methods(names=("books", "code"))
    table = sweep_table(data.sweep, data.names, {"chameleon": {"books": 0.6, "code": 0.4}})
    assert table.columns == ("point", "method", "books", "code", "L1", "rank correlation", "tokens", "FLOPs", "wall time")
    assert texts(table) == [
        ["ridge.relative=0.1, temperature.relative=0.7", "chameleon", "0.500", "0.500", "0.200", "–", "2,048,000", "1.00e+15", "12.5 s"],
        ["ridge.relative=1.0, temperature.relative=0.7", "chameleon", "0.550", "0.450", "0.100", "1.00", "2,048,000", "1.00e+15", "12.5 s"],
        ["ridge.relative=10.0, temperature.relative=0.7", "chameleon", "0.600", "0.400", "0.000", "1.00", "2,048,000", "1.00e+15", "12.5 s"],
    ]


def test_domains_that_only_a_point_of_the_sweep_has_are_shown(many_methods):
    data = many_methods(names=("books", "code"))
    assert sweep_table(data.sweep, ("code",), {}).columns[2:4] == ("code", "books")


def test_failures_are_named(many_methods):
    assert texts(failure_table(many_methods())) == [["doremi, seed 2", "the loss is not a number at step 117; lower base.learning_rate"]]
