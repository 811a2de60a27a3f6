"""Domains that were found among documents: their words, sizes, shares, weights and opening lines, and the sources that they were found in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chameleon_ray.counts import Excerpt
from chameleon_ray.report import cluster_tables, write_report
from tests.report.conftest import corpus

NAMES = ("de/haus-baum", "de/recht", "fr/droit-loi")


def found(names: Sequence[str]) -> pa.Table:
    rows = [
        {
            "name": name,
            "source": name.partition("/")[0],
            "words": name.partition("/")[2].split("-"),
            "documents": 1000 * (i + 1),
            "text_bytes": 2_500_000 * (i + 1),
            "lines": [f"{name} begins <so> {line}" for line in range(3)],
        }
        for i, name in enumerate(names)
    ]
    return pa.Table.from_pylist(rows)


def test_two_levels_words_and_lines(make_data, tmp_path: Path) -> None:
    data = make_data({"uniform": [[20, 40, 60]], "chameleon": [[20, 40, 60]]}, names=NAMES, clusters=found(NAMES))
    sources, sizes, words = cluster_tables.cluster_tables(data, cluster_tables.cluster_numbers(data))
    weights = data.mixtures["chameleon"].weights
    german = f"{weights[NAMES[0]] + weights[NAMES[1]]:.3f}"
    assert [cell.text for cell in sources.rows[0]] == ["de", "2", "66.7 %", "0.667", german]
    assert [row[0].text for row in sources.rows] == ["de", "fr"]
    assert {row[0].text for row in sizes.rows} == set(NAMES)
    # Within a source the largest weight first; shares by tokens, of which the made-up corpus has as many in every domain.
    ordered = [row[0].text for row in sizes.rows]
    assert ordered[:2] == sorted(NAMES[:2], key=lambda name: -weights[name]) and ordered[2] == NAMES[2]
    assert all(row[3].text == "33.3 %" for row in sizes.rows)
    first = next(row for row in words.rows if row[0].text == NAMES[0])
    assert first[1].text == "haus baum" and first[2].detail == f"{NAMES[0]} begins <so> 1\n{NAMES[0]} begins <so> 2"
    write_report(data, str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "Domains that were found" in page and "begins &lt;so&gt; 2" in page
    kept = pq.read_table(tmp_path / "numbers" / "clusters.parquet").to_pylist()
    assert sum(row["share"] for row in kept) == pytest.approx(1) and kept[0]["weight: chameleon"] == weights[NAMES[0]]


def test_shares_are_of_all_text_where_it_was_read_in_part(make_data) -> None:
    plain = corpus(NAMES)
    tokens = dict(zip(NAMES, (1e9, 1e9, 2e9), strict=True))
    sampled = {name: replace(plain.domains[name], excerpt=Excerpt(2_500_000, 1, 9, 4e9, tokens[name], None)) for name in NAMES}
    data = make_data({"uniform": [[20, 40, 60]]}, names=NAMES, corpus=replace(plain, domains=sampled), clusters=found(NAMES))
    assert cluster_tables.cluster_numbers(data)["share"].to_pylist() == pytest.approx([0.25, 0.25, 0.5])


def test_of_many_the_heaviest_are_shown(make_data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_tables, "MAX_SHOWN", 2)
    names = [f"text{i}" for i in range(3)]
    table = found(names).set_column(1, "source", pa.array(["text"] * 3))
    data = make_data({"uniform": [[20, 40, 60]], "chameleon": [[20, 40, 60]]}, names=names, clusters=table)
    sizes, words = cluster_tables.cluster_tables(data, cluster_tables.cluster_numbers(data))
    assert len(sizes.rows) == len(words.rows) == 2 and "Shown are the 2 with the largest weights of 3" in sizes.note


def test_a_report_of_domains_that_were_given_has_no_such_section(make_data, tmp_path: Path) -> None:
    write_report(make_data({"uniform": [[20, 40, 60]]}, names=NAMES), str(tmp_path))
    assert "Domains that were found" not in (tmp_path / "report.html").read_text()
