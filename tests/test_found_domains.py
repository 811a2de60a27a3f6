"""What is known of all the text of domains that were found among documents which were read in part."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from chameleon_ray.artifacts import Clusters, Cost
from chameleon_ray.counts import DomainCounts, Excerpt, SplitCounts
from chameleon_ray.records import write_record, write_table

NAMES = ("law", "food")


def clusters_at(folder: Path, source: Excerpt | None) -> Clusters:
    rows = [
        {"name": name, "source": "text", "words": [name], "documents": count, "text_bytes": 100 * count, "lines": []}
        for name, count in (("law", 300), ("food", 100))
    ]
    write_table(f"{folder}/clusters.parquet", pa.Table.from_pylist(rows))
    sources = {} if source is None else {"text": vars(source)}
    content = {"files": {"part-0000000.parquet": 7}, "domain_column": "domain", "sources": sources, "cost": vars(Cost())}
    write_record(str(folder), "clusters", "0" * 12, content)
    return Clusters.load(str(folder))


def domains() -> dict[str, DomainCounts]:
    none = SplitCounts(0, 0, 0, ())
    train = {"law": SplitCounts(300, 9000, 30_000, (9,)), "food": SplitCounts(100, 3000, 10_000, (3,))}
    return {name: DomainCounts(train[name], none, none, train[name].text_bytes, 0, {}, 5.0) for name in NAMES}


def test_each_has_its_share_of_what_was_not_read(tmp_path: Path) -> None:
    found = clusters_at(tmp_path, Excerpt(40_000, 2, 50, 4_000_000, 1_200_000, 60_000)).estimated(domains())
    assert {name: counts.available_tokens for name, counts in found.items()} == pytest.approx({"law": 900_000, "food": 300_000})
    # The source's own 5 %, and the chance of 400 documents to fall into a part of a quarter of them.
    relative = math.hypot(0.05, math.sqrt(0.75 / (0.25 * 400)))
    assert found["food"].excerpt is not None and found["food"].excerpt.stderr_tokens == pytest.approx(300_000 * relative)
    assert found["food"].excerpt.share == pytest.approx(0.01)


def test_what_was_read_whole_is_known(tmp_path: Path) -> None:
    clusters = clusters_at(tmp_path, None)
    assert clusters.estimated(domains()) == domains()
    assert clusters.files == {f"{tmp_path}/documents/part-0000000.parquet": 7}


def test_a_source_that_tells_no_size_leaves_none_known(tmp_path: Path) -> None:
    found = clusters_at(tmp_path, Excerpt(40_000, 2, 50, None, None, None)).estimated(domains())
    assert {counts.available_tokens for counts in found.values()} == {None}
    other = replace(domains()["law"])
    assert clusters_at(tmp_path, Excerpt(40_000, 2, 50, 4e6, 1e6, None)).estimated({"target": other})["target"].excerpt is None
