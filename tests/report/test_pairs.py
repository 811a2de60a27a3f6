"""What the tables of paired runs are made of: pieces that are kept and put together, how small a difference pairs find, which seeds are paired, and the
command lines that are documented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from analysis import finetune, transfer
from analysis.pairs import document, shared_seeds, smallest
from analysis.pieces import Pieces, pieces_of
from chameleon_ray.errors import UserError
from chameleon_ray.pipeline import Comparison
from chameleon_ray.report import ReportData
from tests.report.conftest import document_losses

NAMES = ("a", "b", "c")


@pytest.fixture
def piece(make_data: Callable[..., ReportData]) -> Callable[..., Pieces]:
    """What a comparison with some seeds finds; on test chameleon loses .04 nats a token less than uniform, on valid all lose 1."""
    losses = document_losses(NAMES, {"uniform": 0.0, "chameleon": -0.04}, num_seeds=4)
    data = make_data({"uniform": [[9.0] * 3], "chameleon": [[8.0] * 3]}, names=NAMES)

    def made(seeds: list[int], setting: str = "All weights", names: tuple[str, ...] = NAMES) -> Pieces:
        found = {
            (label, seed): {split: {name: by_domain[name] for name in names} for split, by_domain in of_run.items()}
            for (label, seed), of_run in losses.items()
            if seed in seeds
        }
        fits = {(label, seed): data.mixtures[label] for label, seed in found}
        return pieces_of(Comparison(replace(data, losses=found, precisions=dict.fromkeys(found, "fp32")), fits, {}, ""), setting)

    return made


def test_pieces_put_together_are_the_whole(piece: Callable[..., Pieces], tmp_path: Path) -> None:
    whole = piece([0, 1, 2])
    for seeds in ([0], [2], [1], [2]):
        newer = piece(seeds)
        newer = Pieces.load(tmp_path / "kept").with_newer(newer) if (tmp_path / "kept").exists() else newer
        newer.save(tmp_path / "kept")
    kept = Pieces.load(tmp_path / "kept")
    assert kept.seeds == [0, 1, 2] and kept.methods == ["uniform", "chameleon"] and kept.names(targets=True) == []
    assert document(kept) == document(whole)
    expected = f"All weights; seeds [0, 1, 2], fp32.\n\nValid, mean nats (average perplexity): uniform 1.0000 ({np.e:.2f}, seeds [0, 1, 2]), "
    assert document(kept).startswith(expected)
    assert "| better than uniform |  | 3 |" in document(kept)


def test_pieces_of_another_setting_or_other_text_are_not_mixed(piece: Callable[..., Pieces]) -> None:
    with pytest.raises(UserError, match=r"had another setting \(All weights\), and this has: LoRA; give it another name"):
        piece([0]).with_newer(piece([1], "LoRA"))
    with pytest.raises(UserError, match="measured on other documents or in other tokens"):
        piece([0]).with_newer(piece([1], names=NAMES[:2]))


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
