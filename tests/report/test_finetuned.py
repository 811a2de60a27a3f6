"""The report of a finetuning: the model before, the paper's numbers beside ours; and of changed domains and sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from chameleon_ray.artifacts import Cost
from chameleon_ray.experiment import parse_experiment
from chameleon_ray.mixing.published import PUBLISHED
from chameleon_ray.report import ReportData, tables
from chameleon_ray.report.content import build_report
from chameleon_ray.report.data import BEFORE
from chameleon_ray.report.numbers import perplexity_numbers, sweep_numbers
from chameleon_ray.report.page import to_html, to_markdown
from chameleon_ray.report.paper import (
    FINETUNINGS,
    finetuning_of,
    paper_perplexity_table,
    paper_weight_table,
    pile_perplexity_table,
    pile_table,
    robustness_table,
    transfer_table,
)
from chameleon_ray.report.verdict import findings
from tests.report.conftest import even_losses, measurements, sweep

LANGUAGES = ("fr", "de", "it", "es", "pt", "nl", "pl")


def texts(table: tables.Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


@pytest.fixture
def finetuned(make_data: Callable[..., ReportData]) -> ReportData:
    """Seven languages; alpha_ft is 10 % better than uniform everywhere but in Polish; Polish gets worse by training."""
    before, uniform = [20.0] * 6 + [9.0], [10.0] * 7
    better = [9.0] * 6 + [11.0]
    found = make_data({"uniform": [uniform, uniform], "alpha_ft": [better, better]}, names=LANGUAGES)
    weights = PUBLISHED["wiki40b_chameleon"].weights
    mixtures = {
        "uniform": found.mixtures["uniform"],
        "alpha_ft": replace(found.mixtures["chameleon"], label="alpha_ft", weights=weights, provenance={"settings": {"stage": "finetune"}}),
    }
    base = {"model": {"pretrained": "some/model"}, "steps": 4}
    domains = {name: {"files": ["x"]} for name in LANGUAGES}
    experiment = parse_experiment({"name": "x", "stage": "finetune", "corpus": {"domains": domains}, "base": base, "seeds": [0, 1]})
    return replace(found, experiment=experiment, mixtures=mixtures, before=measurements(LANGUAGES, {BEFORE: [before]}))


def test_the_model_before_training_stands_first(finetuned: ReportData) -> None:
    table = tables.perplexity_table(finetuned)
    assert table.columns == ("domain", BEFORE, "uniform", "alpha_ft")
    rows = {row[0]: row[1:] for row in texts(table)}
    assert rows["fr"] == ["20.00 ± 0.50", "10.00", "9.000"] and rows["average perplexity"][0] == "18.43 ± 0.50"
    assert rows["domains better than before"] == ["–", "6 of 7", "6 of 7"] and rows["domains better than uniform"] == ["–", "–", "6 of 7"]
    assert "Before training: the model that all of them go on from; ± over documents." in table.note and "2 seeds" in table.note
    first = perplexity_numbers(finetuned).to_pylist()[0]
    assert (first["method"], first["change_percent"], first["num_seeds"]) == (BEFORE, None, 1)


def test_the_papers_table_compares_the_seeds_that_all_have(finetuned: ReportData) -> None:
    paper = finetuning_of(finetuned)
    assert paper is not None

    def measured_with(seeds: Mapping[str, Sequence[int]]) -> list[str]:
        rows = [row for row in finetuned.measurements.to_pylist() if row["seed"] in seeds[row["method"]]]
        different = {**rows[0], "method": "uniform", "seed": 7, "value": 1e6}
        later = [
            {**different, **{key: row[key] for key in ("domain", "metric")}}
            for row in rows
            if row["method"] == "uniform" and row["seed"] == min(seeds["uniform"])
        ]
        table = paper_perplexity_table(replace(finetuned, measurements=pa.Table.from_pylist([*rows, *later], finetuned.measurements.schema)), paper)
        return [*(cell.text for cell in table.rows[-2]), *(cell.text for cell in table.rows[-1]), table.note]

    average, own, _, told, _, wins, note = measured_with({"uniform": [0], "alpha_ft": [0, 1]})
    assert (average, told, wins) == ("average", "better than uniform", "6 of 7 (7 of 7)") and own.startswith("10.00")
    assert note.endswith("Of the seeds that all have: 0.")
    *_, wins, note = measured_with({"uniform": [0], "alpha_ft": [1]})
    assert wins == "–" and note.endswith("No seed is common to all: means of different runs.")


def test_what_training_harms_is_said_at_the_top(finetuned: ReportData) -> None:
    told = findings(finetuned)
    assert (
        told[0] == "uniform: from an average perplexity of 18.43 before training to 10.00 after it, 45.7 % better; higher than before on pl (9.000 to 10.00)."
    )
    assert told[1].endswith("higher than before on pl (9.000 to 11.00).")
    before = even_losses(LANGUAGES, {BEFORE: [[8.0] * 7]})[BEFORE, 0]
    losses = even_losses(LANGUAGES, {"uniform": [[10.0] * 7, [10.2] * 7]})
    harmed = replace(finetuned, before=measurements(LANGUAGES, {BEFORE: [[8.0] * 7]}), before_losses=before, losses=losses)
    told = findings(harmed)[0]
    assert "8.000 before training to 10.00 after it, 25.0 % worse: training on this mixture harms, significant; higher than before on fr" in told
    noisy = replace(harmed, losses=even_losses(LANGUAGES, {"uniform": [[7.0] * 7, [13.0] * 7]}))
    assert "25.0 % worse, within the noise; higher than before on fr" in findings(noisy)[0]


def test_the_paper_s_numbers_stand_beside_ours(finetuned: ReportData) -> None:
    found = finetuning_of(finetuned)
    assert found is not None and found.title == "Wiki40b"
    table = paper_perplexity_table(finetuned, found)
    assert table.columns == ("domain", "uniform", "alpha_FT (alpha_ft)")
    rows = {row[0]: row[1:] for row in texts(table)}
    assert rows["fr"] == ["10.00 (6.86)", "9.000 (6.51)"] and rows["average"] == ["10.00 (9.39)", "9.286 (8.58)"]
    assert rows["better than uniform"] == ["–", "6 of 7 (7 of 7)"]
    weights = paper_weight_table(finetuned, found)
    assert weights is not None and texts(weights)[-1] == ["L1 distance to the paper's", "–", "0.000"]
    other = replace(finetuned, experiment=finetuned.experiment.model_copy(update={"stage": "pretrain"}))
    assert finetuning_of(other) is None


def test_the_paper_s_tables_are_as_printed() -> None:
    for found, averages in zip(FINETUNINGS, ((9.39, 8.58, 9.94), (22.02, 17.18, 21.17)), strict=True):
        assert found.names == set(PUBLISHED[found.weights].raw)
        for column, average in zip(found.perplexity.values(), averages, strict=True):
            assert sum(column.values()) / 7 == pytest.approx(average, abs=0.006)


def test_the_page_of_a_finetuning_has_everything(finetuned: ReportData) -> None:
    report = build_report(finetuned)
    assert [section.title for section in report.sections][:3] == ["Mixture", "Perplexity per domain", "Beside the paper: Wiki40b"]
    assert "6 of 7 (7 of 7)" in to_html(report) and BEFORE in to_markdown(report)


def test_a_change_of_domains_is_charged_by_what_came_on_top(many_methods: Callable[..., ReportData]) -> None:
    data = many_methods()
    assert transfer_table(data) is None
    document = data.experiment.model_dump(mode="json")
    moved = parse_experiment({**document, "transfer": {"domains": {"books": {"files": ["x"]}}}})
    ledger = {"proxy": Cost(1000, 1e15, 1.0, 1e15), "old": Cost(10, 1e12, 0.1, 2e12), "new": Cost(5, 5e11, 0.1, 1e12)}
    chameleon = replace(data.mixtures["chameleon"], ledger=ledger, there_before=("proxy", "old"), provenance={"embedded_rows": {"news": 3, "web": 2}})
    table = transfer_table(replace(data, experiment=moved, mixtures={**data.mixtures, "chameleon": chameleon}))
    assert table is not None
    rows = {row[0]: row[1:] for row in texts(table)}
    assert rows["chameleon"] == ["5", "5", "1.00e+12", "1.00", "5.00e+11", "1.00", "4.62e+15 (1)"]
    assert rows["doremi"] == ["–", "41,000,000", "1.34e+18", "1,340,000", "1.90e+18", "3,800,000", "1.34e+18 (290)"]
    assert rows["uniform"] == ["–", "0", "0", "0", "0", "0", "–"]


def test_a_sweep_of_one_key_at_a_time_has_a_figure_for_each(many_methods: Callable[..., ReportData]) -> None:
    data = many_methods()
    document: dict[str, Any] = {**data.experiment.model_dump(mode="json"), "sweep": {"each": {"proxy.steps": [10, 20], "embedding.layer": [1]}}}
    points = ["proxy.steps=10", "proxy.steps=20", "embedding.layer=1"]
    rows = [{**row, "point": points[i // len(data.names)]} for i, row in enumerate(sweep(data.names).to_pylist())]
    table = type(sweep(data.names)).from_pylist(rows)
    report = build_report(replace(data, experiment=parse_experiment(document), sweep=table))
    (section,) = [section for section in report.sections if section.title == "Sweep"]
    assert [getattr(block, "title", None) for block in section.blocks[1:]] == ["Weights against proxy.steps", "Weights against embedding.layer"]
    own = {"chameleon": {name: row["weight"] for name, row in zip(data.names, rows, strict=False)}}
    first, *_, last = sweep_numbers(table, own)
    assert (first["l1"], first["spearman"]) == (0.0, None) and last["l1"] == pytest.approx(0.1)


def test_the_paper_s_own_robustness_stands_beside_a_sweep_of_its_domains(many_methods: Callable[..., ReportData]) -> None:
    assert robustness_table(many_methods()) is None
    table = robustness_table(many_methods(names=("arxiv", "book", "cc", "c4", "github", "stackexchange", "wikipedia")))
    assert table is not None
    rows = {row[0]: row[1:] for row in texts(table)}
    assert rows["1k steps"] == ["0.109", "0.96", "0.999"] and rows["lam = 100"][0] == "0.093" and len(rows) == 10
    sums = {name: float(row[2]) for name, row in rows.items()}
    assert sums["5k steps"] == 0.967 and sums["60M"] == 0.98 and rows["5k steps"][0] == "0.086", "misprinted digits are renormalised, and their sum is said"
    assert all(abs(each - 1) < 0.002 for name, each in sums.items() if name not in ("5k steps", "60M", "lam = 1"))


def test_weights_of_the_pile_stand_beside_those_that_are_printed(many_methods: Callable[..., ReportData]) -> None:
    data = many_methods(names=("github", "papers", "other"))
    document = data.experiment.model_dump(mode="json")
    methods = {"uniform": {}, "chameleon": {}, "human": {"method": "fixed", "preset": "pile_human", "names": {"papers": "arxiv", "other": None}}}
    moved = parse_experiment({**document, "transfer": {"domains": {"github": {"files": ["x"]}}}, "methods": methods})
    table = pile_table(replace(data, experiment=moved))
    assert table is not None and table.columns[:5] == ("domain", "chameleon, paper", "human, paper", "doremi, paper", "doge, paper")
    assert [row[1] for row in texts(table)] == ["0.00973", "0.0380", "–"]
    perplexities = pile_perplexity_table(replace(data, experiment=moved))
    assert perplexities is not None and perplexities.columns == ("domain", "doremi", "doge", "chameleon", "regmix")
    rows = {row[0]: row[1:] for row in texts(perplexities)}
    assert [cell.split()[-1] for cell in rows["github"]] == ["(5.84)", "(4.90)", "(6.16)", "(9.95)"] and "other" not in rows
    assert [cell.split()[-1] for cell in rows["average of these"]] == ["(9.97)", "(7.84)", "(7.95)", "(13.07)"]
