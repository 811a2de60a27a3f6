"""Mixtures judged by runs: planted laws, what lies too far out, what is refused, and published mixtures on published runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.cli import main
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.judge import judge
from chameleon_ray.mixing.published import PUBLISHED
from chameleon_ray.mixing.runs import ONE_SIZE, THE_RUNS, by_size, joined, runs_of
from chameleon_ray.mixing.swarm import Swarm, draw_mixtures, read_swarm, swarm_files

DATA = os.environ.get("CHAMELEON_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="CHAMELEON_DATA is not set: it names the folder with regmix/test_{mixture,pile_loss}_60m.csv")
NAMES = ("my_a", "my_b", "my_c", "my_d")


def falling(ratios: np.ndarray) -> np.ndarray:
    """[n, 2] losses of my_a and my_b, each by the logarithm of its own share."""
    return 3 - np.array([0.3, 0.1]) * np.log(ratios[:, :2] + 1e-3)


def swarm(n: int = 120, seed: int = 0, losses: Callable[[np.ndarray], np.ndarray] = falling) -> Swarm:
    ratios = draw_mixtures(dict.fromkeys(NAMES, 0.25), n, seed)
    return Swarm(tuple(f"{i:03}" for i in range(n)), NAMES, ratios, ("a", "b"), losses(ratios))


def noisy(ratios: np.ndarray) -> np.ndarray:
    return falling(ratios) + 0.02 * np.random.default_rng(3).standard_normal((len(ratios), 2))


def test_a_planted_law_is_found_and_mixtures_are_compared_with_the_first() -> None:
    mixtures = {"even": dict.fromkeys(NAMES, 0.25), "more of a": {"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.1}}
    found = judge(mixtures, {THE_RUNS: swarm(losses=noisy)}, THE_RUNS)
    truth = falling(np.array([[0.25] * 4, [0.5, 0.3, 0.1, 0.1]]))
    even, more = found.mixtures
    assert found.spearman[found.regressor] == max(found.spearman.values()) > 0.95
    assert [list(each.losses.values()) for each in found.mixtures] == [pytest.approx(row, abs=0.02) for row in truth.tolist()]
    assert even.nats_change is None and even.perplexity_change is None
    change = truth[1].mean() - truth[0].mean()
    assert more.nats_change.low < change < more.nats_change.high < 0
    assert more.nats_change.high - more.nats_change.low < 0.05
    relative = np.exp(truth[1]).mean() / np.exp(truth[0]).mean() - 1
    assert more.perplexity_change.value == pytest.approx(relative, abs=0.02)
    assert even.nats.low < even.nats.value < even.nats.high


def test_one_target_alone_and_domains_that_a_mixture_leaves_out() -> None:
    found = judge({"no b": {"my_a": 0.5, "my_c": 0.5}}, {THE_RUNS: swarm()}, THE_RUNS, target="b")
    (only,) = found.mixtures
    assert list(only.losses) == ["b"] and only.losses["b"] == pytest.approx(3 + 0.1 * np.log(1000), abs=0.1)


def test_what_lies_far_from_all_runs_is_said_to() -> None:
    runs = swarm()
    near = runs.ratios[:, 0] < 0.3
    some = Swarm(tuple(np.array(runs.runs)[near]), runs.domains, runs.ratios[near], runs.targets, runs.metrics[near])
    inside, outside = judge({"inside": dict(zip(NAMES, some.ratios[5], strict=True)), "outside": {"a": 1.0}}, {THE_RUNS: some}, THE_RUNS).mixtures
    assert inside.covered and inside.distance == pytest.approx(0)
    assert not outside.covered and outside.distance > 0.7
    (evener,) = judge({"evener than every run": dict.fromkeys(NAMES, 0.25)}, {THE_RUNS: runs}, THE_RUNS).mixtures
    assert not evener.covered and evener.distance < 0.7


def test_runs_of_one_size_in_several_files_may_share_their_ids() -> None:
    first, second = swarm(60), swarm(60, seed=1)
    turned = Swarm(second.runs, second.domains[::-1], second.ratios[:, ::-1], second.targets[::-1], second.metrics[:, ::-1])
    both = joined([first, turned])
    assert len(set(both.runs)) == 120 and (both.ratios[60:] == second.ratios).all() and (both.metrics[60:] == second.metrics).all()
    with pytest.raises(UserError, match="--swarm: the second of one size: domain 'my_d' is in only one of it and the first"):
        joined([first, Swarm(("0",), NAMES[:3], np.full((1, 3), 1 / 3), ("a", "b"), np.ones((1, 2)))])


def test_a_regression_that_orders_nothing_is_refused() -> None:
    chance = swarm(losses=lambda ratios: np.random.default_rng(0).standard_normal((len(ratios), 2)))
    with pytest.raises(UserError, match=r"--swarm of the runs: no regression orders the runs there are; .* rank correlation of -?0\.\d\d"):
        judge({"even": dict.fromkeys(NAMES, 0.25)}, {THE_RUNS: chance}, THE_RUNS)


def test_a_domain_of_no_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"mixture 'm': 'law', 'code' in no run of the swarm, which has a, b, c, d; give --embeddings"):
        judge({"m": {"a": 0.5, "law": 0.25, "code": 0.25}}, {THE_RUNS: swarm()}, THE_RUNS)
    with pytest.raises(UserError, match=r"mixture 'm': domain 'a' is there twice, with and without the prefix 'my_'; add the two up"):
        judge({"m": {"a": 0.5, "my_a": 0.5}}, {THE_RUNS: swarm()}, THE_RUNS)
    assert judge({"m": {"a": 1.0, "law": 0.0}}, {THE_RUNS: swarm()}, THE_RUNS).mixtures[0].losses


def larger(n: int = 40) -> Swarm:
    """What a mixture does shrinks to a half for a, and to a tenth for b."""
    found = swarm(n, seed=5)
    return replace(found, metrics=np.array([1.5, 2.5]) + falling(found.ratios) * np.array([0.5, 0.1]))


def test_sizes_are_judged_together_and_carried_on_to_others() -> None:
    mixtures = {"much a": {"a": 0.6, "b": 0.1, "c": 0.2, "d": 0.1}, "much b": {"a": 0.1, "b": 0.6, "c": 0.2, "d": 0.1}}
    sizes = {"1M": swarm(80), "100M": larger()}
    small, large, huge = (judge(mixtures, sizes, size, regressor=name) for size, name in (("1M", "additive"), ("100M", "shrinking"), ("1B", "shrinking")))
    assert (small.num_runs, large.num_runs, huge.num_runs) == (80, 40, 0)
    truth = falling(np.array([[0.6, 0.1], [0.1, 0.6]]))
    for found, (a, b) in ((small, (1, 1)), (large, (0.5, 0.1)), (huge, (0.5**1.5, 0.1**1.5))):
        losses = np.array([list(each.losses.values()) for each in found.mixtures])
        assert losses[1] - losses[0] == pytest.approx((truth[1] - truth[0]) * [a, b], rel=0.1)
    assert large.target == "mean" and judge(mixtures, sizes, "1B", "b", "shrinking").target == "b"
    with pytest.raises(UserError, match="--sizes: 'large' is no model size; write parameters as in 1M, 60M, 1.2B"):
        judge(mixtures, {"1M": swarm(80), "large": larger()}, "1M")
    with pytest.raises(UserError, match="--swarm of 2M: target 'b' is in only one of it and the first"):
        judge(mixtures, {"1M": swarm(80), "2M": Swarm(("0",), NAMES, np.full((1, 4), 0.25), ("a",), np.ones((1, 1)))}, "1M")


def embeddings(**rows: list[float]) -> Embeddings:
    return Embeddings(tuple(rows), np.array(list(rows.values()))[:, None], np.ones((len(rows), 1), dtype=np.int64), layer=1)


def test_a_domain_of_no_run_is_judged_by_its_embedding() -> None:
    """c helps a as much as a itself, and is near it; so is e, which no run has."""

    def helped(ratios: np.ndarray) -> np.ndarray:
        return 3 - np.log(ratios[:, [0, 1]] + 0.9 * ratios[:, [2, 3]] + 1e-2)

    near = embeddings(my_a=[0, 0], my_c=[0.1, 0], e=[0, 0.1], my_b=[9, 9], my_d=[9.1, 9])
    mixtures = {"without": {"a": 0.1, "b": 0.9}, "with e": {"a": 0.1, "b": 0.5, "e": 0.4}}
    found = judge(mixtures, {THE_RUNS: swarm(losses=helped)}, THE_RUNS, embeddings=near)
    assert found.regressor == "content" and found.mixtures[0].unseen == () and found.mixtures[1].unseen == ("e",)
    assert found.mixtures[1].losses["a"] < found.mixtures[0].losses["a"] - 0.5
    with pytest.raises(UserError, match=r"mixture 'with e': 'e' in no run of the swarm, which has a, b, c, d; they have no embeddings either"):
        judge(mixtures, {THE_RUNS: swarm()}, THE_RUNS, embeddings=near.select(["my_a", "my_b"]))
    with pytest.raises(UserError, match="--swarm of the runs: regressor 'law' knows nothing of domains that no run has; use content, or best"):
        judge(mixtures, {THE_RUNS: swarm()}, THE_RUNS, regressor="law", embeddings=near)


def test_names_are_compared_without_what_all_domains_begin_with() -> None:
    def helped(ratios: np.ndarray) -> np.ndarray:
        return 3 - np.log(ratios[:, [0, 1]] + 0.9 * ratios[:, [2, 3]] + 1e-2)

    runs = {THE_RUNS: swarm(losses=helped)}
    places = {"a": [0, 0], "c": [0.1, 0], "e": [0, 0.1], "b": [9, 9], "d": [9.1, 9]}
    losses = []
    for mixed, embedded in (("", ""), ("my_", "my_"), ("", "my_"), ("my_", "")):
        mixture = {f"{mixed}{name}": share for name, share in (("a", 0.1), ("b", 0.5), ("e", 0.4))}
        (found,) = judge({"m": mixture}, runs, THE_RUNS, embeddings=embeddings(**{f"{embedded}{name}": row for name, row in places.items()})).mixtures
        assert found.unseen == ("e",)
        losses.append(found.losses["a"])
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-9)
    with pytest.raises(UserError, match="--embeddings: a domain is there twice, with and without the prefix 'my_'"):
        judge({"m": {"a": 1.0}}, runs, THE_RUNS, embeddings=embeddings(a=[0.0], my_a=[1.0]))


def test_embeddings_that_tell_nothing_are_refused_where_they_are_needed() -> None:
    asked, runs = {"m": {"a": 0.5, "e": 0.5}}, {THE_RUNS: swarm()}
    with pytest.raises(UserError, match="--embeddings: none of the swarm's domains a, b, c, d are embedded, so that there is nothing to compare 'e' with"):
        judge(asked, runs, THE_RUNS, embeddings=embeddings(e=[0.0, 1.0], elsewhere=[1.0, 1.0]))
    with pytest.raises(UserError, match="--embeddings: that of 'b' is not finite"):
        judge(asked, runs, THE_RUNS, embeddings=embeddings(a=[0.0], b=[np.nan], e=[1.0]))
    foreign = judge({"m": {"a": 1.0}}, runs, THE_RUNS, embeddings=embeddings(x=[0.0], y=[np.nan]))
    assert "content" not in foreign.spearman, "embeddings of other domains are none"
    far = {"a": [0.0], "b": [1.0], "c": [2.0], "d": [3.0], "e": [0.5]}
    near, with_far = (judge(asked, runs, THE_RUNS, embeddings=embeddings(**far, **more)).mixtures[0].losses for more in ({}, {"x": [1e6], "y": [-1e6]}))
    assert near == with_far, "what no run and no mixture has decides nothing"


def test_a_domain_of_which_all_runs_have_none_is_one_that_no_run_has() -> None:
    runs = swarm()
    columns = np.hstack([runs.ratios, np.zeros((120, 1))])
    with pytest.raises(UserError, match="mixture 'm': 'e' in no run of the swarm, which has a, b, c, d; give --embeddings"):
        judge({"m": {"a": 0.2, "e": 0.8}}, {THE_RUNS: Swarm(runs.runs, (*NAMES, "my_e"), columns, runs.targets, runs.metrics)}, THE_RUNS)


def test_one_size_says_nothing_of_another() -> None:
    asked, runs = {"m": {"a": 1.0}}, {"1M": swarm()}
    for name, told in (("best", "runs of one size tell nothing of another"), ("shrinking", "regressor 'shrinking' learns from models of several sizes")):
        with pytest.raises(UserError, match=f"--at 1B: {told}"):
            judge(asked, runs, "1B", regressor=name)
    assert judge(asked, runs, "1000K", regressor="additive").num_runs == 120, "another spelling of the same size"
    both = by_size([swarm(60), larger(30)], "1M,1000K")
    assert list(both) == ["1M"] and len(both["1M"].runs) == 90


def test_mixtures_that_several_runs_share_do_not_narrow_what_is_covered() -> None:
    once, again = swarm(60), swarm(60)
    twice = joined([once, again])
    near = {"near": dict(zip(NAMES, 0.98 * once.ratios[5] + 0.02 * once.ratios[6], strict=True))}
    found = [judge(near, {THE_RUNS: runs}, THE_RUNS, regressor="log-ridge") for runs in (once, twice)]
    assert found[0].usual_distance == pytest.approx(found[1].usual_distance) and found[0].mixtures[0].covered == found[1].mixtures[0].covered is True


def test_targets_by_any_of_their_names_are_domains_own() -> None:
    runs = swarm()
    for targets in (("a", "b"), ("my_a", "my_b"), ("metric/my_a_val_loss", "metric/my_b_val_loss")):
        _, found = runs_of({ONE_SIZE: replace(runs, targets=targets)})
        assert found.own == (0, 1), targets
    _, plain = runs_of({ONE_SIZE: Swarm(runs.runs, tuple("abcd"), runs.ratios, ("my_a", "my_b"), runs.metrics)})
    assert plain.own == (0, 1)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, content in swarm_files(swarm()).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "even.json").write_text(json.dumps({"weights": dict.fromkeys("abcd", 0.25)}))
    (tmp_path / "tilted.json").write_text(json.dumps({"weights": {"a": 0.7, "b": 0.1, "c": 0.1, "d": 0.1}}))
    return tmp_path


def test_the_command(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as exit_:
        main(["judge", "even.json", "tilted.json", "--swarm", "ratios.csv", "metrics.csv", "--regressor", "log-ridge", "--json"])
    (verdict,) = json.loads(capsys.readouterr().out)
    assert exit_.value.code == 0 and [each["mixture"] for each in verdict["mixtures"]] == ["even", "tilted"]
    assert verdict["mixtures"][1]["nats_change"]["high"] < 0 and verdict["num_runs"] == 120
    with pytest.raises(SystemExit):
        main(["judge", "even.json", "tilted.json", "--swarm", "ratios.csv", "metrics.csv", "--regressor", "log-ridge"])
    printed = capsys.readouterr().out
    assert "predicted from 120 runs by log-ridge" in printed and "tilted" in printed and "%" in printed
    with pytest.raises(SystemExit):
        main(["judge", "even.json", "tilted.json", "--swarm", "ratios.csv", "metrics.csv", "--regressor", "log-ridge", "--target", "a"])
    printed = capsys.readouterr().out
    assert "a, nats" in printed and "average perplexity" not in printed


@pytest.mark.long
def test_the_command_at_a_size_without_runs(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(files)
    for name, content in swarm_files(larger()).items():
        (files / f"large_{name}").write_bytes(content)
    arguments = "even.json tilted.json --swarm ratios.csv metrics.csv --swarm large_ratios.csv large_metrics.csv --sizes 1M,100M --at 1B --regressor"
    with pytest.raises(SystemExit):
        main(["judge", *arguments.split(), "shrinking"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "1M: predicted from 120 runs by shrinking" in printed and "100M: predicted from 40 runs by shrinking" in printed
    assert "1B: predicted from runs of other sizes by shrinking (rank correlation" in printed
    with pytest.raises(SystemExit):
        main(["judge", *arguments.split(), "additive"])
    assert "--at 1B: regressor 'additive' knows only models of a size that was run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, told",
    [
        ("even.json --swarm ratios.csv", "--swarm: 1 files of ratios and 0 of metrics; give both after each --swarm"),
        ("even.json --swarm ratios.csv metrics.csv --swarm ratios.csv metrics.csv", "--sizes: 2 swarms are given; say the model size of each"),
        ("even.json --swarm ratios.csv metrics.csv --sizes 1M,60M", "--sizes: '1M,60M' names 2 sizes for 1 swarms; give one for each"),
        ("even --swarm ratios.csv metrics.csv", "judge: 'even' is neither a .json file nor a published mixture; these are "),
        ("gone.json --swarm ratios.csv metrics.csv", "gone.json: no such mixture file"),
        ("even.json --swarm ratios.csv metrics.csv --regressor tree", "--regressor: unknown regressor 'tree'; known: lightgbm, linear, law, "),
        ("even.json --swarm ratios.csv metrics.csv --target law", "target 'law': nothing by that name was measured"),
        ("even.json even.json --swarm ratios.csv metrics.csv", "judge: two of the mixtures have the same name"),
        ("pile_human --swarm ratios.csv metrics.csv", "mixture 'pile_human': 'arxiv', "),
    ],
)
def test_mistakes_are_one_line(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, told: str) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as exit_:
        main(["judge", *arguments.split()])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and told in error


@needs_data
def test_published_mixtures_on_published_runs() -> None:
    """METHODS: Chameleon's mixture against the others in average perplexity at 60M: human -1 %, DoReMi -15 %, RegMix -36 %."""
    folder = Path(DATA) / "regmix"
    runs = read_swarm(str(folder / "test_mixture_60m.csv"), str(folder / "test_pile_loss_60m.csv"))
    mixtures = {name: PUBLISHED[f"pile_{name}"].weights for name in ("human", "doremi", "regmix", "chameleon")}
    against = {}
    for name in ("human", "doremi", "regmix"):
        found = judge({name: mixtures[name], "chameleon": mixtures["chameleon"]}, {"60M": runs}, "60M", regressor="log-ridge")
        against[name] = found.mixtures[1].perplexity_change.value
        assert found.spearman["log-ridge"] > 0.9
    assert against == pytest.approx({"human": -0.01, "doremi": -0.15, "regmix": -0.36}, abs=0.02)
