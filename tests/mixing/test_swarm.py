"""Mixtures of a swarm, and the two files it is kept in."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chameleon_ray.errors import UserError
from chameleon_ray.mixing.swarm import Swarm, draw_mixtures, read_swarm, swarm_files

PRIOR = {"web": 0.6, "books": 0.2, "code": 0.15, "math": 0.04, "news": 0.01}
RATIOS = "run,a,b\n1,0.25,0.75\n2,0.5,0.5\n10,1,0\n"
METRICS = "run,a,b\n1,3.5,2\n2,3,2.5\n10,2,4\n"

Written = Callable[[str, str], tuple[str, str]]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Puts two texts into files and returns their paths."""

    def write(ratios: str, metrics: str) -> tuple[str, str]:
        paths = tmp_path / "ratios.csv", tmp_path / "metrics.csv"
        for path, text in zip(paths, (ratios, metrics), strict=True):
            path.write_text(text)
        return str(paths[0]), str(paths[1])

    return write


def same(first: Swarm, second: Swarm) -> bool:
    return swarm_files(first) == swarm_files(second) and first.runs == second.runs


def test_mixtures_lie_on_the_simplex_without_crumbs_or_twins() -> None:
    mixtures = draw_mixtures(PRIOR, 200, seed=3)
    assert mixtures.shape == (200, 5)
    assert np.abs(mixtures.sum(axis=1) - 1).max() < 1e-12
    assert ((mixtures == 0) | (mixtures >= 1.9e-4)).all()
    assert (mixtures <= np.minimum(15 * np.array(list(PRIOR.values())), 1) + 1e-12).all()
    gaps = np.abs(mixtures[:, None] - mixtures[None]).sum(axis=2) + np.eye(200)
    assert gaps.min() >= 1e-5


def test_mixtures_reach_from_single_domains_to_the_middle() -> None:
    mixtures = draw_mixtures(PRIOR, 500, seed=0)
    assert (mixtures.max(axis=1) > 0.95).any() and (mixtures.max(axis=1) < 0.4).any()
    assert (mixtures > 0.05).any(axis=0).all()


def test_mixtures_depend_on_names_and_seed_only() -> None:
    shuffled = {name: PRIOR[name] for name in ("news", "code", "web", "math", "books")}
    first, second = draw_mixtures(PRIOR, 50, seed=1), draw_mixtures(shuffled, 50, seed=1)
    assert (first[:, [list(PRIOR).index(name) for name in shuffled]] == second).all()
    assert (first == draw_mixtures(PRIOR, 50, seed=1)).all()
    assert not (first == draw_mixtures(PRIOR, 50, seed=2)).all()


def test_a_domain_without_prior_is_never_drawn() -> None:
    assert (draw_mixtures({"a": 0.5, "b": 0.0, "c": 0.5}, 20, seed=0)[:, 1] == 0).all()


def test_hundreds_of_domains_can_be_drawn_and_thousands_say_why_not() -> None:
    assert draw_mixtures({f"d{i}": 1 / 300 for i in range(300)}, 32, seed=0).max() <= 15 / 300 + 1e-12
    with pytest.raises(UserError, match=r"prior: only \d+ distinct mixtures of 3000 domains can be drawn, 10 are wanted"):
        draw_mixtures({f"d{i}": 1 / 3000 for i in range(3000)}, 10, seed=0)


def test_files_are_joined_on_the_run_id(written: Written) -> None:
    swarm = read_swarm(*written(RATIOS, METRICS))
    assert (swarm.runs, swarm.domains, swarm.targets) == (("1", "2", "10"), ("a", "b"), ("a", "b"))
    assert swarm.ratios.tolist() == [[0.25, 0.75], [0.5, 0.5], [1, 0]]
    assert swarm.metrics.tolist() == [[3.5, 2], [3, 2.5], [2, 4]]
    shuffled = "b,run,a\n4,10,2\n\n2,1,3.5\n2.5,2,3\n"
    assert swarm.losses("b").tolist() == read_swarm(*written(RATIOS, shuffled)).losses("b").tolist() == [2, 2.5, 4]


def test_the_order_of_lines_changes_nothing(written: Written) -> None:
    def shuffle(text: str, seed: int) -> str:
        header, *lines = text.splitlines()
        return "\n".join([header, *random.Random(seed).sample(lines, len(lines))])

    swarm = read_swarm(*written(RATIOS, METRICS))
    assert same(swarm, read_swarm(*written(shuffle(RATIOS, 1), shuffle(METRICS, 2))))


def test_headers_of_regmix(written: Written) -> None:
    ratios, metrics = "index,train_a,train_b\n1,0.3,0.7\n2,0.9,0.1\n", "index,metric/a_val_loss,metric/b_val_loss\n2,1,2\n1,3,4\n"
    swarm = read_swarm(*written(ratios, metrics))
    assert (swarm.domains, swarm.targets, swarm.losses("train_a").tolist()) == (("a", "b"), ("a", "b"), [3, 1])


def test_targets_are_found_without_prefixes(written: Written) -> None:
    swarm = read_swarm(*written(RATIOS, METRICS.replace("run,a,b", "run,metric/a_val_loss,train_b")))
    assert [swarm.target(name) for name in ("a", "metric/a_val_loss", "b", "mean")] == ["metric/a_val_loss", "metric/a_val_loss", "train_b", "mean"]
    assert swarm.losses("mean").tolist() == [2.75, 2.75, 3.0]
    doubled = read_swarm(*written(RATIOS, METRICS.replace("run,a,b", "run,metric/a,train_a")))
    with pytest.raises(UserError, match="'metric/a', 'train_a' all match"):
        doubled.losses("a")


def test_written_files_read_back_to_the_last_digit(tmp_path: Path) -> None:
    ratios = draw_mixtures(PRIOR, 30, seed=0)
    swarm = Swarm(tuple(f"{i:05d}" for i in range(30)), ("web", "train_x", "a,b", "math", "news"), ratios, ("loss, nats",), ratios[:, :1] / 3)
    for name, content in swarm_files(swarm).items():
        (tmp_path / name).write_bytes(content)
    found = read_swarm(str(tmp_path / "ratios.csv"), str(tmp_path / "metrics.csv"))
    assert (found.runs, found.domains, found.targets) == (swarm.runs, swarm.domains, swarm.targets)
    assert found.ratios.tolist() == swarm.ratios.tolist() and found.metrics.tolist() == swarm.metrics.tolist()


def test_rounded_ratios_are_brought_back_to_the_simplex(written: Written) -> None:
    swarm = read_swarm(*written(RATIOS.replace("0.25", "0.24"), METRICS))
    assert swarm.ratios[0].tolist() == [0.24 / 0.99, 0.75 / 0.99]


@pytest.mark.parametrize(
    "ratios, metrics, words",
    [
        ("", METRICS, r"ratios.csv: no column 'run' \(or 'index'\) in the first line; found nothing"),
        (RATIOS.replace("run", "id"), METRICS, "ratios.csv: no column 'run'.* found id, a, b"),
        ("run\n1\n", METRICS, "ratios.csv: no column beside 'run'"),
        (RATIOS.replace("a,b", "a,a"), METRICS, "ratios.csv: column 'a' is given twice"),
        (RATIOS.replace("a,b", "a,"), METRICS, "ratios.csv: column '' is without a name"),
        ("run,a,b\n", METRICS, "ratios.csv: no runs below the header"),
        (RATIOS + "2,0,1\n", METRICS, "ratios.csv: line 5: run '2' appears twice"),
        (RATIOS, METRICS + "1,2,3\n", "metrics.csv: line 5: run '1' appears twice"),
        (RATIOS + ",0,1\n", METRICS, "ratios.csv: line 5: run '' is no id"),
        (RATIOS, METRICS.replace("10,2,4\n", ""), "metrics.csv: run '10' of .*ratios.csv is missing"),
        (RATIOS.replace("2,0.5,0.5\n", ""), METRICS, "ratios.csv: run '2' of .*metrics.csv is missing"),
        (RATIOS.replace("0.25,0.75", "0.25,0.75,0"), METRICS, "ratios.csv: line 2 has 4 cells, the header 3"),
        (RATIOS.replace("0.25", "half"), METRICS, "ratios.csv: run '1' has 'half' for 'a'; a number is needed"),
        (RATIOS, METRICS.replace("3.5", ""), "metrics.csv: run '1' has '' for 'a'; a number is needed"),
        (RATIOS.replace("1,0\n", "1.01,-0.01\n"), METRICS, "ratios.csv: run '10' has -0.01 for 'b'"),
        (RATIOS.replace("0.25", "nan"), METRICS, "ratios.csv: run '1' has nan for 'a'"),
        (RATIOS.replace("0.25", "0.22"), METRICS, "ratios.csv: run '1': ratios sum to 0.97, further than 0.02 from 1"),
    ],
)
def test_files_that_are_refused(written: Written, ratios: str, metrics: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        read_swarm(*written(ratios, metrics))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_not_text(written: Written, tmp_path: Path) -> None:
    ratios, metrics = written(RATIOS, METRICS)
    with pytest.raises(UserError, match="nowhere.csv: no such file"):
        read_swarm(ratios, str(tmp_path / "nowhere.csv"))
    Path(metrics).write_bytes(b"run,a\n1,\xff\n")
    with pytest.raises(UserError, match="metrics.csv: not a CSV file in UTF-8"):
        read_swarm(ratios, metrics)


@pytest.mark.parametrize(
    "target, metrics, words",
    [
        ("boks", "run,books,code\n1,1,2\n2,2,3\n10,1,1\n", r"target 'boks': nothing by that name .* mean, books, code \(did you mean 'books'\?\)"),
        ("b", METRICS.replace("2.5", "nan"), "run '2' has nan for 'b'; leave the run out of both files"),
        ("mean", METRICS.replace("2.5", "inf"), "run '2' has inf for 'b'"),
        ("a", "run,a,b\n1,3,2\n2,3,2.5\n10,3,4\n", "'a' is 3 in every run"),
    ],
)
def test_targets_that_are_refused(written: Written, target: str, metrics: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_swarm(*written(RATIOS, metrics)).losses(target)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run;a;b\n1;0,25;0,75\n", "semicolons"),
        ('"run"\t"a, b"\t"c"\r\n1\t0.25\t0.75\r\n', "tabs"),
        ("index|train_a|train_b\n1|0.25|0.75\n", "bars"),
    ],
)
def test_another_delimiter_is_named(written: Written, text: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        read_swarm(*written(text, METRICS))
    assert str(refused.value).endswith(f"ratios.csv: its columns seem to be separated by {words}; save it as CSV with commas, and points in numbers")


def test_a_failed_run_harms_only_its_own_target(written: Written) -> None:
    assert read_swarm(*written(RATIOS, METRICS.replace("2.5", "nan"))).losses("a").tolist() == [3.5, 3, 2]
