"""What the tables of paired runs are made of: runs that are kept and put together, how small a difference pairs find, which seeds are paired, and the
command lines that are documented."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import t as student

from analysis import finetune, transfer
from analysis.kept import Kept, Setting, kept_of
from analysis.pairs import KEPT, document, seed_by_seed, setting_of, shared_seeds, smallest, text_of
from chameleon_ray.backend import Backend
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, load_experiment, parse_experiment
from chameleon_ray.identity import VERSIONS
from chameleon_ray.pipeline import Comparison
from chameleon_ray.report import ReportData
from tests.fakes import make_corpus
from tests.report.conftest import document_losses

NAMES = ("a", "b", "c")


SETTING = {"training": "All weights", "start": "abc", "methods": {"uniform": {}, "chameleon": {"ridge": 1}}}


@pytest.fixture
def compared(make_data: Callable[..., ReportData]) -> Callable[..., Comparison]:
    """A comparison with some seeds: chameleon loses `shift` nats a token more than uniform on test, all lose 1 on valid; c is a target, and the model before
    loses as much as uniform does with seed 0."""
    data = make_data({"uniform": [[9.0] * 3], "chameleon": [[8.0] * 3]}, names=NAMES)

    def made(
        seeds: Sequence[int],
        shift: float = -0.04,
        without: Sequence[tuple[str, int]] = (),
        corpus: str = "one order",
        precision: str | None = None,
        **changes: Any,
    ) -> Comparison:
        losses = document_losses(NAMES, {"uniform": 0.0, "chameleon": shift}, num_seeds=4, **changes)
        mine = {run: of_run for run, of_run in losses.items() if run[1] in seeds and run not in without}
        fits = {(label, seed): data.mixtures[label] for label, seed in losses}
        for seed in seeds:
            weights = {"a": 0.2 + seed / 100, "b": 0.8 - seed / 100, "c": 0.0}
            fits["chameleon", seed] = replace(data.mixtures["chameleon"], weights=weights)
        experiment = data.experiment.model_copy(update={"seeds": tuple(seeds), "fit_every_seed": True})
        text = replace(data.corpus, digest=corpus, targets=("c",))
        precisions = {run: precision or ("bf16" if run[1] == 3 else "fp32") for run in mine}
        of = replace(data, experiment=experiment, corpus=text, losses=mine, precisions=precisions, before_losses=losses["uniform", 0])
        return Comparison(of, fits, {}, "")

    return made


@pytest.fixture
def found(compared: Callable[..., Comparison]) -> Callable[..., Kept]:
    """What is kept of such a comparison."""
    return lambda seeds, setting=SETTING, **shape: kept_of(compared(seeds, **shape), setting)


def test_all_seeds_may_train_on_one_fit(compared: Callable[..., Comparison]) -> None:
    seeds = compared([0, 1])
    experiment = seeds.data.experiment.model_copy(update={"fit_every_seed": False})
    one = {key: fit for key, fit in seeds.fits.items() if key[1] == 0}
    kept = kept_of(replace(seeds, data=replace(seeds.data, experiment=experiment), fits=one), SETTING)
    assert "| chameleon | 0.200 ± 0.012 | 0.800 ± 0.012 |" in document(kept), "one fit, and its own error"
    both = document(kept.with_newer(kept_of(compared([2]), SETTING)))
    assert "| chameleon | 0.207 ± 0.010 |" in both, "two fits of three seeds"


def test_what_is_kept_one_seed_at_a_time_is_the_whole(found: Callable[..., Kept], tmp_path: Path) -> None:
    kept = None
    for seeds in ([2], [0], [1]):
        newer = found(seeds, shift=0.5)
        (kept.with_newer(newer) if kept else newer).save(tmp_path / "kept", seeds)
        kept = Kept.load(tmp_path / "kept")
    assert kept is not None
    for seeds in ([0, 1], [2]):
        kept = kept.with_newer(found(seeds))  # the newer ones count
    kept.save(tmp_path / "kept", [0, 1, 2])
    kept = Kept.load(tmp_path / "kept")
    assert kept is not None and kept.seeds == [0, 1, 2] and kept.names(targets=True) == ["c"] and kept.names(targets=False) == ["a", "b"]
    text = document(kept)
    assert text == document(found([0, 1, 2]))
    assert text.startswith("All weights; seeds [0, 1, 2], fp32.\n\nValid, mean nats (average perplexity): before training 1.0000")
    assert "| uniform | 0.333 | 0.333 | 0.333 |" in text
    assert "| chameleon | 0.210 ± 0.006 | 0.790 ± 0.006 | 0.000 |" in text, "mean over three fits and its standard error"
    assert "| chameleon | 0.200 ± 0.012 | 0.800 ± 0.012 | 0.000 ± 0.012 |" in document(found([0])), "of one fit, its own"
    assert "| better than uniform |  |  | 2 |" in text, "of the two domains; the target is not one of them"
    assert "Test documents: a 60, b 60, c 60." in text and "average of the" not in text


def test_a_seed_counts_where_both_methods_have_it(found: Callable[..., Kept]) -> None:
    kept = found([0, 1]).with_newer(found([2], without=[("chameleon", 2)])).with_newer(found([3], without=[("uniform", 3)]))
    text = document(kept)
    assert "seeds [0, 1, 2, 3], fp32 [0, 1, 2], bf16 [3]." in text
    assert "| chameleon | 0.205 ± 0.005 |" in text, "the fit of seed 3 has nothing to be compared with"
    again = kept.with_newer(found([2]))
    assert ("chameleon", 2) in again.runs("test") and ("uniform", 2) in again.runs("test")
    assert len(kept.with_newer(found([1], without=[("chameleon", 1)])).runs("test")) == len(kept.runs("test")), "what failed this time is still there"


@pytest.mark.parametrize("other", [{"corpus": "of seed 1"}, {"precision": "bf16"}])
def test_runs_of_another_order_of_the_rows_or_another_number_format_are_no_pair(found: Callable[..., Kept], other: dict[str, str]) -> None:
    kept = found([0, 1]).with_newer(found([1], **other, without=[("chameleon", 1)]))
    assert ("chameleon", 1) not in kept.runs("test") and ("uniform", 1) in kept.runs("test") and ("chameleon", 0) in kept.runs("test")
    assert "| chameleon | 0.200 ± 0.012 |" in document(kept), "of seed 0 alone"


def test_domains_that_one_mixture_leaves_out_have_an_average_without_them(found: Callable[..., Kept]) -> None:
    kept = found([0, 1])
    weights = kept.weights.to_pylist()
    without = [{**row, "weight": 0.0} if (row["method"], row["domain"]) == ("chameleon", "b") else row for row in weights]
    text = document(replace(kept, weights=pa.Table.from_pylist(without, kept.weights.schema)))
    assert "| chameleon | average |" in text and "| chameleon | average of the 1 that all train on |" in text


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
    digests = {"one": "abc", "two": "abc", "three": "abd"}

    def setting(base: str, *overrides: str) -> Setting:
        job = finetune.REPOSITORY / "jobs" / "finetune_wiki40b.yaml"
        experiment = load_experiment(job, [f"@{finetune.REPOSITORY}/jobs/local/wiki7.yaml", f"base.model.pretrained={tmp_path}/{base}", *overrides])
        backend = cast(Backend, SimpleNamespace(find_model=lambda name, *_: SimpleNamespace(digest=digests[Path(name).name])))
        return setting_of(experiment, backend, ["the same text"])

    one = setting("one")
    assert json.loads(json.dumps(one)) == one, "what is kept is read back as it was"
    assert one == setting("two", "base.micro_batch_rows=2", "base.checkpoint_every_steps=3", "storage=/elsewhere", "resources.num_workers=2")
    monkeypatch.setenv("CHAMELEON_DATA", "/elsewhere")
    assert one == setting("one")
    assert one["versions"]["losses"] == VERSIONS["losses"], "what is measured otherwise stands in no table with it"
    for other in (
        {**one, "text": ["other"]},
        setting("three"),
        *(setting("one", key) for key in ("corpus.heldout_tokens=9", "budget.tokens=1000", "base.model.lora.rank=3")),
    ):
        kept = Kept(one, *(pa.table({"method": [], "seed": []}),) * 2)
        with pytest.raises(UserError, match="give it another name"):
            kept.check(other)


def test_text_is_told_by_its_content(tmp_path: Path) -> None:
    def experiment(folder: str, *content: str) -> Experiment:
        (tmp_path / folder).mkdir()
        for name, text in zip(("new.txt", "old.txt"), content, strict=True):
            (tmp_path / folder / name).write_text(text)
        new, old = ({"a": {"files": [str(tmp_path / folder / name)]}} for name in ("new.txt", "old.txt"))
        training = {"model": {"preset": "cpu-tiny"}, "steps": 10}
        return parse_experiment({"name": "x", "corpus": {"domains": new}, "transfer": {"domains": old}, "proxy": training, "base": training})

    one, same, other, older = (experiment(*given) for given in (("1", "a b", "c"), ("2", "a b", "c"), ("3", "a d", "c"), ("4", "a b", "e")))
    assert text_of(one) == text_of(same) and text_of(other)[0] != text_of(one)[0] and text_of(other)[1] == text_of(one)[1] != text_of(older)[1]


KEPT_PIECES = sorted(path.name for path in KEPT.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", KEPT_PIECES)
def test_what_is_kept_beside_the_tables_can_be_added_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command that made it, with the model of others that it names by its content; whoever raises a version has it run again, or sees that nothing
    kept would change and says so in the files."""
    has_text = "CHAMELEON_DATA" in os.environ
    monkeypatch.setenv("CHAMELEON_DATA", os.environ.get("CHAMELEON_DATA", "/data"))
    kept = Kept.load(KEPT / name)
    assert kept is not None and "better than uniform" in document(kept)
    known = kept.setting["base"]["model"]["pretrained"]
    backend = cast(Backend, SimpleNamespace(find_model=lambda *_: SimpleNamespace(digest=known)))
    piece = name.removeprefix("finetune-")
    if piece in finetune.PIECES:
        experiment = finetune.finetuned(piece, "base", [0])
    else:
        of = name.removeprefix("pile13-")
        # A model that goes on takes the mean of the fits that there were of another piece.
        mean = [f"methods.{label}={json.dumps(_without_versions(each))}" for label, each in kept.setting["methods"].items() if label == "chameleon" and known]
        experiment = transfer.transferred(of, [*transfer.overrides_of(of, "base" if known else None), *mean])
    kept.check(setting_of(experiment, backend, text_of(experiment) if has_text else kept.setting["text"]))


def _without_versions(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in ("version", "rule_version")}


@pytest.fixture
def seed_after_seed(compared: Callable[..., Comparison], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run seeds whose comparisons are made up, and nothing but these; what is printed."""

    def call(seeds: list[int], meanwhile: Callable[[], None] = lambda: None, **shape: Any) -> str:
        def run(experiment: Experiment, backend: Backend) -> Comparison:
            meanwhile()
            return compared(experiment.seeds, **shape)

        def experiment(seeds: Sequence[int]) -> Experiment:
            document = {
                "name": "made-up",
                "storage": str(tmp_path / "runs"),
                "seeds": list(seeds),
                "corpus": {"domains": {name: {"files": [str(tmp_path / "a.txt")]} for name in NAMES}, "heldout_tokens": 100 + shape.get("num_documents", 60)},
                "proxy": {"model": {"preset": "cpu-tiny"}, "steps": 10},
                "base": {"model": {"preset": "cpu-tiny"}, "steps": 1100},
            }
            return parse_experiment(document)

        (tmp_path / "a.txt").write_text("some text")
        seed_by_seed(experiment, seeds, run, tmp_path / "kept")
        return capsys.readouterr().out

    return call


def test_seeds_are_kept_one_after_the_other(seed_after_seed: Callable[..., str], tmp_path: Path) -> None:
    calls: list[int] = []
    text = seed_after_seed([0, 1], meanwhile=lambda: calls.append(1))
    assert len(calls) == 2 and text.count("Report: ") == 2 and "seeds [0]" in text and "seeds [0, 1]" in text
    assert seed_after_seed([2, 3], meanwhile=lambda: calls.append(1)).count("Report: ") == 2 and len(calls) == 4
    kept = Kept.load(tmp_path / "kept" / "made-up")
    assert kept is not None and kept.seeds == [0, 1, 2, 3]

    with pytest.raises(UserError, match=r"had another corpus .* give it another name"):
        seed_after_seed([4], meanwhile=lambda: calls.append(1), num_documents=59)
    assert len(calls) == 4, "refused before anything is trained"


def test_what_another_run_keeps_meanwhile_stays(seed_after_seed: Callable[..., str], tmp_path: Path) -> None:
    seed_after_seed([0, 1])
    file = tmp_path / "kept" / "made-up" / "seed-000.parquet"

    def other_run() -> None:
        newer = Kept.load(file.parent)
        assert newer is not None
        shifted = newer.losses.set_column(newer.losses.column_names.index("nats"), "nats", pc.add(newer.losses["nats"], 1.0))
        Kept(newer.setting, shifted, newer.weights).save(file.parent, [0])

    before = file.read_bytes()
    text = seed_after_seed([2], meanwhile=other_run)
    assert file.read_bytes() != before
    kept = Kept.load(file.parent)
    assert kept is not None and kept.seeds == [0, 1, 2] and document(kept) in text


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
        found = transfer.transferred(piece, transfer.overrides_of(piece, base))
        assert set(found.methods) == {"uniform", "chameleon"} | ({"human", "paper"} if base is None else set())
        assert found.fit_every_seed == (found.transfer is not None) == (base is None), "a model that goes on takes the mean of the fits"
        assert found.base.model.pretrained == found.corpus.tokenizer.pretrained == base
    assert len(transfer.transferred("methods", []).methods) == 6


def test_a_mixture_is_of_the_same_text_in_another_tokenizer() -> None:
    theirs, ours = make_corpus({"a": 100, "b": 60}), make_corpus({"a": 100, "b": 60})
    halved = replace(ours.domains["b"].train, text_bytes=ours.domains["b"].train.text_bytes // 2)
    ours = replace(ours, domains={**ours.domains, "b": replace(ours.domains["b"], train=halved)})
    found = transfer.in_tokens_of({"a": 0.6, "b": 0.4}, theirs, ours)
    assert found == pytest.approx({"a": 0.6 / 1.4, "b": 0.8 / 1.4}), "a token of b holds half as much text, so that it takes twice as many"
