"""What the tables of paired runs are made of: how small a difference pairs find, which seeds are paired, and the command lines that are documented."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from analysis import finetune, transfer
from analysis.pairs import shared_seeds, smallest


@pytest.mark.parametrize("pairs", [3, 8])
def test_the_smallest_difference_is_found_four_times_in_five(pairs: int) -> None:
    drawn = np.random.default_rng(0).normal(smallest(pairs), 1.0, (40_000, pairs))
    found = np.abs(drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / pairs**0.5)) > student.ppf(0.975, pairs - 1)
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_seeds_are_paired_with_uniform() -> None:
    losses = {(label, seed, "all"): 1.0 for label, seed in (("uniform", 0), ("uniform", 2), ("other", 0), ("other", 1), ("other", 2))}
    assert shared_seeds(losses, "other", [0, 1, 2]) == [0, 2]


def test_settings_follow_options_on_the_command_line() -> None:
    asked = finetune.parser().parse_intermixed_args(["wiki7", "--base", "x", "--seeds", "0,1", "name=y", "base.steps=2"])
    assert asked.seeds == [0, 1] and asked.overrides == ["name=y", "base.steps=2"]
    asked = transfer.parser().parse_intermixed_args(["scratch", "--seeds", "0,1", "base.steps=2"])
    assert asked.piece == "scratch" and asked.overrides == ["base.steps=2"]


def test_pairs_of_changed_domains_are_of_what_needs_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_DATA", "/data")
    for piece, base in (("scratch", None), ("going-on", "/model")):
        found = transfer.transferred(piece, transfer.settings_of(piece, base))
        assert list(found.methods) == ["uniform", "human", "chameleon"] and found.fit_every_seed and found.transfer
        assert found.base.model.pretrained == found.corpus.tokenizer.pretrained == base
    assert len(transfer.transferred("methods", []).methods) == 6
