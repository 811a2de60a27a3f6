"""Targets: text that is measured and never trained on has a table of its own and enters no average."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from chameleon_ray.counts import Quality
from chameleon_ray.evaluation.measurements import perplexity_measurements
from chameleon_ray.report import ReportData, corpus_tables, tables, write_report
from chameleon_ray.report.numbers import perplexity_numbers
from chameleon_ray.report.verdict import verdict
from tests.report.conftest import corpus, document_losses

NAMES = ("books", "code")


@pytest.fixture
def with_target(many_methods) -> ReportData:
    """Chameleon is ahead of uniform on both domains, and as far behind on the target."""
    both = replace(corpus((*NAMES, "letters")), names=NAMES, targets=("letters",))
    shifts = {"uniform": 0.0, "chameleon": -0.1}
    losses = document_losses((*NAMES, "letters"), shifts)
    turned = {
        (method, seed): {"test": {**found["test"], "letters": losses["chameleon" if method == "uniform" else "uniform", seed]["test"]["letters"]}}
        for (method, seed), found in losses.items()
    }
    measured = pa.concat_tables(perplexity_measurements(method, seed, found, both) for (method, seed), found in turned.items())
    return many_methods(names=NAMES, shifts=shifts, num_seeds=3, losses=turned, measurements=measured, corpus=both)


def test_targets_have_a_table_and_enter_no_average(with_target: ReportData) -> None:
    table = tables.unseen_table(with_target)
    assert table is not None and [row[0].text for row in table.rows] == ["letters", "letters, bits per byte"]
    uniform, chameleon = table.rows[0][1:]
    assert uniform.best and not chameleon.best and chameleon.text.endswith(" *") and "excludes zero" in table.note
    assert [row[0].text for row in tables.perplexity_table(with_target).rows[:3]] == ["books", "code", "average perplexity"]
    assert "better on 2 of 2 domains" in verdict(with_target) and "% better" in verdict(with_target)
    found = perplexity_numbers(with_target).to_pylist()
    assert {row["domain"] for row in found} == {*NAMES, "letters", "all"}
    average = next(row for row in found if row["domain"] == "all" and row["method"] == "chameleon")
    each = [row["loss_nats"] for row in found if row["domain"] in NAMES and row["method"] == "chameleon"]
    assert average["loss_nats"] == pytest.approx(sum(each) / 2)


def test_the_page_shows_unseen_text_and_bits_per_byte(with_target: ReportData, tmp_path: Path) -> None:
    write_report(with_target, str(tmp_path))
    text = (tmp_path / "report.md").read_text()
    assert "Text that no model was trained on" in text and "| letters |" in text and "in bits per byte of UTF-8" in text and "| letters (target) |" in text


def test_what_text_shows_of_its_quality_is_a_table(make_data) -> None:
    plain = corpus(NAMES)
    sampled = replace(plain, domains={name: replace(counts, quality=Quality(1 << 20, 2.71, 0.013)) for name, counts in plain.domains.items()})
    data = make_data({"uniform": [[20, 40]]}, names=NAMES, corpus=sampled)
    looked = replace(data.mixtures["chameleon"], details={**data.mixtures["chameleon"].details, "quality": {"books": {"structure": 0.456}, "code": {}}})
    table = corpus_tables.quality_table(replace(data, mixtures={"chameleon": looked}))
    assert table is not None and [[cell.text for cell in row] for row in table.rows] == [["books", "2.71", "0.013", "0.46"], ["code", "2.71", "0.013", "–"]]
    assert corpus_tables.quality_table(make_data({"uniform": [[20, 40]]}, names=NAMES)) is None


def test_without_targets_there_is_no_table(make_data) -> None:
    assert tables.unseen_table(make_data({"uniform": [[20, 40]]})) is None
