"""What the tables of paired runs are made of: runs that are kept and put together, how small a difference pairs find, which seeds are paired, and the
command lines that are documented."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy.stats import t as student

from analysis import finetune, transfer
from analysis.kept import Kept, Setting, kept_of
from analysis.pairs import document, setting_of, shared_seeds, smallest
from chameleon_ray.backend import Backend
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import load_experiment
from chameleon_ray.pipeline import Comparison
from chameleon_ray.report import ReportData
from tests.report.conftest import document_losses

NAMES = ("a", "b", "c")


SETTING = {"training": "All weights", "start": "abc", "methods": {"uniform": {}, "chameleon": {"ridge": 1}}}


@pytest.fixture
def found(make_data: Callable[..., ReportData]) -> Callable[..., Kept]:
    """What a comparison with some seeds finds: chameleon loses `shift` nats a token more than uniform on test, all lose 1 on valid; c is a target, and the
    model before loses as much as uniform does with seed 0."""
    data = make_data({"uniform": [[9.0] * 3], "chameleon": [[8.0] * 3]}, names=NAMES)

    def made(seeds: list[int], setting: dict[str, Any] = SETTING, shift: float = -0.04, without: Sequence[tuple[str, int]] = (), **changes: Any) -> Kept:
        losses = document_losses(NAMES, {"uniform": 0.0, "chameleon": shift}, num_seeds=4, **changes)
        mine = {run: of_run for run, of_run in losses.items() if run[1] in seeds and run not in without}
        fits = {(label, seed): data.mixtures[label] for label, seed in losses}
        for seed in seeds:
            weights = {"a": 0.2 + seed / 100, "b": 0.8 - seed / 100, "c": 0.0}
            fits["chameleon", seed] = replace(data.mixtures["chameleon"], weights=weights)
        corpus = replace(data.corpus, domains={**data.corpus.domains}, targets=("c",))
        precisions = {run: "bf16" if run[1] == 3 else "fp32" for run in mine}
        of = replace(data, corpus=corpus, losses=mine, precisions=precisions, before_losses=losses["uniform", 0])
        return kept_of(Comparison(of, fits, {}, ""), setting)

    return made


def test_what_is_kept_one_seed_at_a_time_is_the_whole(found: Callable[..., Kept], tmp_path: Path) -> None:
    kept = None
    for seeds in ([2], [0], [1]):
        newer = found(seeds, shift=0.5)
        (kept.with_newer(newer) if kept else newer).save(tmp_path / "kept")
        kept = Kept.load(tmp_path / "kept")
    assert kept is not None
    for seeds in ([0, 1], [2]):
        kept = kept.with_newer(found(seeds))  # the newer ones count
    kept.save(tmp_path / "kept")
    kept = Kept.load(tmp_path / "kept")
    assert kept is not None and kept.seeds == [0, 1, 2] and kept.names(targets=True) == ["c"] and kept.names(targets=False) == ["a", "b"]
    text = document(kept)
    assert text == document(found([0, 1, 2]))
    assert text.startswith("All weights; seeds [0, 1, 2], fp32.\n\nValid, mean nats (average perplexity): before training 1.0000")
    assert "| uniform | 0.333 | 0.333 | 0.333 |" in text
    assert "| chameleon | 0.210 ± 0.006 | 0.790 ± 0.006 | 0.000 |" in text, "mean over three fits and its standard error"
    assert "| chameleon | 0.200 ± 0.012 | 0.800 ± 0.012 | 0.000 ± 0.012 |" in document(found([0])), "of one fit, its own"
    assert "| better than uniform |  |  | 2 |" in text, "of the two domains; the target is not one of them"


def test_a_seed_counts_where_both_methods_have_it(found: Callable[..., Kept]) -> None:
    kept = found([0, 1]).with_newer(found([2], without=[("chameleon", 2)])).with_newer(found([3], without=[("uniform", 3)]))
    text = document(kept)
    assert "seeds [0, 1, 2, 3], fp32 [0, 1, 2], bf16 [3]." in text
    assert "| chameleon | 0.205 ± 0.005 |" in text, "the fit of seed 3 has nothing to be compared with"
    again = kept.with_newer(found([2]))
    assert ("chameleon", 2) in again.runs("test") and ("uniform", 2) in again.runs("test")
    assert len(kept.with_newer(found([1], without=[("chameleon", 1)])).runs("test")) == len(kept.runs("test")), "what failed this time is still there"


def test_runs_that_are_set_otherwise_or_saw_other_text_are_not_mixed(found: Callable[..., Kept]) -> None:
    kept = found([0])
    with pytest.raises(UserError, match=r'had another start \("abc", and now "xyz"\); give it another name'):
        kept.with_newer(found([1], {**SETTING, "start": "xyz"}))
    with pytest.raises(UserError, match=r"another methods.chameleon "):
        kept.check({**SETTING, "methods": {"chameleon": {"ridge": 2}, "other": {}}})
    kept.check({**SETTING, "methods": {"other": {}}})
    with pytest.raises(UserError, match="measured on other documents or in other tokens"):
        kept.with_newer(found([1], num_documents=59))


def test_the_content_of_a_model_counts_and_not_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_DATA", "/data")
    models = {"/one": "abc", "/two": "abc", "/three": "xyz"}

    def setting(base: str) -> Setting:
        experiment = load_experiment(finetune.REPOSITORY / "jobs" / "finetune_wiki40b.yaml", [f"base.model.pretrained={base}"])
        backend = cast(Backend, SimpleNamespace(find_model=lambda name, *_: SimpleNamespace(digest=models[name])))
        return setting_of(experiment, backend)

    assert setting("/one") == setting("/two") != setting("/three")
    assert json.loads(json.dumps(setting("/one"))) == setting("/one"), "what is kept is read back as it was"


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
