"""A person's two commands on ten terabytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.ten_terabytes import SMALL, run


@pytest.mark.long
def test_weights_of_ten_terabytes_are_found_from_megabytes(tmp_path: Path) -> None:
    store, told = run(tmp_path, *SMALL)
    assert store.text_bytes > 1e13 and store.sent_bytes < 2e9
    assert "4 domains by folder or file name" in told and "read in part, as much as is needed" in told
