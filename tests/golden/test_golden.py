"""A result that changes needs a new version: its digest would else stand for two different things."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chameleon_ray.identity import VERSIONS
from tests.golden.results import FILE, results

STORED = json.loads(FILE.read_text())
# Other processors round differently: training and pooling in fp32 agree to some 1e-6, LightGBM's trees to less.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", STORED)
def test_a_result_changes_only_with_its_version(name: str, tmp_path: Path) -> None:
    version, values = results(tmp_path)[name]()
    stored = STORED[name]
    same = len(values) == len(stored["values"]) and np.allclose(values, stored["values"], rtol=TOLERANCE, atol=TOLERANCE)
    anew = "write the results anew with `python -m tests.golden.results`"
    assert version == stored["version"], f"{name}: stored for {stored['version']}, computed by {version}; {anew}"
    assert same, f"{name}: another result under the same version; raise the version of what makes it (identity.VERSIONS, or `version` of it), then {anew}"


def test_everything_with_a_version_is_stored(tmp_path: Path) -> None:
    """But for what has no numbers of its own: which models are the beginning of one run, what tells models of others apart, and what a report shows."""
    assert list(STORED) == list(results(tmp_path))
    kinds = {part.split()[0] for entry in STORED.values() for part in entry["version"].split(", ")}
    assert VERSIONS.keys() - kinds == {"family", "foreign", "report"}
