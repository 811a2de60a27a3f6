"""A domain that is trained on and not measured: a dash in the tables, out of every average, named in a warning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_ray.report import ReportData, corpus_tables, tables, write_report
from chameleon_ray.report.content import build_report
from chameleon_ray.report.numbers import perplexity_numbers
from chameleon_ray.report.page import to_markdown
from chameleon_ray.report.verdict import findings, verdict, warnings
from tests.fakes import leave_unmeasured
from tests.report.conftest import corpus, curves, document_losses, measurements

NAMES = ("books", "code", "notes")
MEASURED = ("books", "code")
PERPLEXITIES = {"uniform": [[20, 40], [22, 42]], "chameleon": [[18, 42], [20, 42]]}


@pytest.fixture
def data(make_data) -> ReportData:
    return make_data(
        {}, names=NAMES, corpus=leave_unmeasured(corpus(NAMES), "notes"), measurements=measurements(MEASURED, PERPLEXITIES), curves=curves({}, NAMES)
    )


def test_the_table_has_a_dash_and_averages_what_is_measured(data):
    table = tables.perplexity_table(data)
    assert [[cell.text for cell in row] for row in table.rows[:4]] == [
        ["books", "21.0 ± 1.0", "19.0 ± 1.0"],
        ["code", "41.0 ± 1.0", "42.00"],
        ["notes", "–", "–"],
        ["average perplexity", "31.0 ± 1.0", "30.50 ± 0.50"],
    ]
    assert [cell.text for cell in table.rows[6]] == ["domains better than uniform", "–", "1 of 2"]
    assert "Averages are arithmetic means over the 2 measured domains." in table.note
    assert set(perplexity_numbers(data)["domain"].to_pylist()) == {*MEASURED, "all"}


def test_everything_measured_reads_as_before(make_data):
    assert "arithmetic means over domains." in tables.perplexity_table(make_data(PERPLEXITIES)).note
    assert warnings(make_data(PERPLEXITIES)) == []


def test_sentences_count_measured_domains_and_a_warning_names_the_others(data):
    assert "better on 1 of 2 measured domains" in verdict(data)
    assert warnings(data) == [
        "Trained on and not measured, because fewer than two distinct documents could be held out: notes. Averages are over the other 2 domains."
    ]


def test_undertrained_models_are_told_by_measured_domains(make_data):
    bad = measurements(MEASURED, {"uniform": [[2000, 40]]})
    found = warnings(make_data({}, names=NAMES, corpus=leave_unmeasured(corpus(NAMES), "notes"), measurements=bad))
    assert "On 1 of 2 measured domains" in found[-1]


def test_many_unmeasured_domains_are_counted(make_data):
    names = tuple(f"d{i:02d}" for i in range(12))
    data = make_data({}, names=names, corpus=leave_unmeasured(corpus(names), *names[2:]), measurements=measurements(names[:2], PERPLEXITIES))
    assert ": d02, d03, d04, d05, d06, d07, 4 more. Averages" in warnings(data)[0]


def test_pairs_and_findings_are_of_measured_domains(many_methods):
    names = ("books", "code", "news", "web")
    shifts = {"uniform": 0.0, "chameleon": -0.04, "doge": -0.06}
    losses = document_losses(names[:3], shifts)
    data = many_methods(names, shifts, corpus=leave_unmeasured(corpus(names), "web"), losses=losses)
    assert any("measured domains" in text for text in findings(data))
    whole = many_methods(names[:3], shifts, losses=losses)
    assert data.differences == whole.differences


def test_the_page_is_written_and_its_counts_are_zero(data, tmp_path: Path):
    page = Path(write_report(data, str(tmp_path)))
    assert "Trained on and not measured" in page.read_text()
    text = to_markdown(build_report(data))
    assert "Measured are 2 domains of 3." in text
    assert "1,200 / 0 / 0" in text


def test_held_out_documents_over_the_bound_are_counted(make_data):
    made = corpus(NAMES)
    made = replace(made, domains={**made.domains, "books": replace(made.domains["books"], unused_heldout=1234)})
    table = corpus_tables.corpus_table(make_data({}, names=NAMES, corpus=made))
    assert [row[5].text for row in table.rows] == ["2 empty, 1,234 held-out", "2 empty", "2 empty"]
    assert "over the bound of 1,048,576 tokens, or alone in their domain" in table.note
