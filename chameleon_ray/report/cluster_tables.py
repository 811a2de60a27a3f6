"""Tables of domains that were found among documents: what each is, how large it is, and what it weighs; and the same of the sources that they were found in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from chameleon_ray.report.data import BASELINE, ReportData
from chameleon_ray.report.formatting import count, fixed, number, plural
from chameleon_ray.report.tables import Cell, Table, text_row

MAX_SHOWN = 200


def cluster_numbers(data: ReportData) -> pa.Table:
    """One row for every domain that was found: name, source, words, documents, text_bytes, lines, share (of all tokens that there are to train on, an estimate
    where the text was read in part; of the bytes where nothing tells), and `weight: LABEL` of every mixture."""
    assert data.clusters is not None
    tokens = data.corpus.tokens()
    rows = [row for row in data.clusters.to_pylist() if row["name"] in data.corpus.domains]
    size = {row["name"]: tokens[row["name"]] if len(tokens) == len(rows) else row["text_bytes"] for row in rows}
    total = sum(size.values())
    weights = {f"weight: {label}": mixture.weights for label, mixture in data.mixtures.items()}
    return pa.Table.from_pylist(
        [{**row, "share": size[row["name"]] / total, **{key: found.get(row["name"]) for key, found in weights.items()}} for row in rows]
    )


def cluster_tables(data: ReportData, found: pa.Table) -> list[Table]:
    """What the sources of the domains weigh, where there are several; the domains' sizes and weights; their words and documents.

    Args:
        found: `cluster_numbers`.
    """
    rows = found.to_pylist()
    labels = tuple(data.mixtures)
    most = next((f"weight: {label}" for label in labels if label != BASELINE), "share")
    rows.sort(key=lambda row: (row["source"], -(row[most] or 0.0), row["name"]))
    several = len({row["source"] for row in rows}) > 1
    shown = sorted(rows, key=lambda row: -(row[most] or 0.0))[:MAX_SHOWN]
    shown = [row for row in rows if row in shown] if len(rows) > MAX_SHOWN else rows
    cut = f" Shown are the {MAX_SHOWN} with the largest weights of {count(len(rows))}; all are in numbers/clusters.parquet." if len(shown) < len(rows) else ""
    return [*([_source_table(rows, labels)] if several else []), _size_table(shown, labels, cut), _word_table(shown)]


def _source_table(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> Table:
    lines = []
    for source in dict.fromkeys(row["source"] for row in rows):
        mine = [row for row in rows if row["source"] == source]
        lines.append(text_row(source, (count(len(mine)), _percent(sum(row["share"] for row in mine)), *(_weight(mine, label) for label in labels))))
    note = "What the domains that were found within each value of the column come to together: share of all text, and weights by method."
    return Table(("value", "domains", "share of text", *labels), tuple(lines), note)


def _size_table(rows: Sequence[dict[str, Any]], labels: Sequence[str], cut: str) -> Table:
    lines = [
        text_row(
            row["name"], (count(row["documents"]), number(row["text_bytes"] / 1e6, 3), _percent(row["share"]), *(_weight([row], label) for label in labels))
        )
        for row in rows
    ]
    note = f"Domains that were found: distinct documents and text that were read of them, their share of all text, and what they weigh by method.{cut}"
    return Table(("domain", "documents", "MB of text", "share of text", *labels), tuple(lines), note, long_names=True)


def _word_table(rows: Sequence[dict[str, Any]]) -> Table:
    lines = []
    for row in rows:
        first, *others = row["lines"] or [""]
        lines.append((Cell(row["name"]), Cell(" ".join(row["words"])), Cell(first, detail="\n".join(others))))
    note = f"Words that tell each of {plural(len(rows), 'domain')} from the others (class-based TF-IDF), and how the documents nearest to its centre begin."
    return Table(("domain", "telling words", "documents"), tuple(lines), note, is_text=True, long_names=True)


def _weight(rows: Sequence[dict[str, Any]], label: str) -> str:
    return number(sum(row[f"weight: {label}"] or 0.0 for row in rows), 3)


def _percent(share: float) -> str:
    return f"{fixed(100 * share, 1)} %"
