"""What is printed where there is no terminal: every message is one whole line, however long, and no name is cut."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from chameleon_ray import progress
from chameleon_ray.mixture import Mixture
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_doctor import Examination
from chameleon_ray.terminal import show_examination, show_mixture

LONG = "/storage/with/a/name/that/is/longer/than/eighty/columns/" + "runs/" * 12 + "[1] :warning:"


@pytest.fixture
def piped() -> Console:
    return Console(file=io.StringIO())


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_progress_is_one_line_each(piped: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    reporter = Reporter(piped)
    reporter.say(f"reading {LONG} {LONG}")
    with reporter.phase(f"training {LONG}") as phase:
        phase.update(LONG, 1000, 2000, "loss 1.234")
    expected = [f"reading {LONG} {LONG}", f"training {LONG} …", f"training {LONG}: {LONG} 1,000 of 2,000 loss 1.234", f"training {LONG}: done in 0 s"]
    assert lines(piped) == expected


def test_warnings_are_one_line_each(piped: Console) -> None:
    show_mixture(piped, Mixture("chameleon", {"web": 1.0}, warnings=(f"{LONG} is long",)))
    assert f"warning: {LONG} is long" in lines(piped)


def test_what_doctor_advises_is_one_line_each(piped: Console, tmp_path: Path) -> None:
    show_examination(piped, Examination({"python": LONG.split()[0]}, [f"problem with {LONG}"], [f"advice on {LONG}"]))
    assert [f"problem: problem with {LONG}", f"note: advice on {LONG}"] == lines(piped)[-3:-1]
    assert "".join(line.strip().removeprefix("python").strip() for line in lines(piped)[:-3]) == LONG.split()[0]


def test_long_names_are_not_cut_in_tables(piped: Console) -> None:
    name = "domain_" * 20
    show_mixture(piped, Mixture("chameleon", {name: 0.5, "b": 0.5}))
    cells = "".join(line.split("│")[1].strip() for line in lines(piped) if line.count("│") > 2)
    assert cells == f"{name}b"


def test_sentences_are_wrapped_between_words_on_a_terminal() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=40, color_system=None)
    show_mixture(terminal, Mixture("chameleon", {"web": 1.0}, warnings=("word " * 20,)))
    assert max(map(len, lines(terminal))) <= 40
