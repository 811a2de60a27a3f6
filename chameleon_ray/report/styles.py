"""Colours and type of the pictures: one look per method and per domain, told apart without colour too."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.figure import Figure

from chameleon_ray.report.data import BASELINE

LineStyle = Literal["-", "--", ":", "-."]

WIDTH_INCHES = 4.6
DOTS_PER_INCH = 200
MAX_NAME_CHARACTERS = 22

# Paul Tol's "bright" scheme, distinct under the common colour deficiencies and on light and dark ground; grey is kept for uniform.
PALETTE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
GREY = "#8C8C8C"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
HATCHES = ("", "///", "...", "xxx")

LIGHT = {"ink": "#1c2024", "ground": "#ffffff", "faint": "#d9dde1"}
DARK = {"ink": "#e4e7ea", "ground": "#171a1d", "faint": "#3a4046"}


@dataclass(frozen=True)
class Style:
    """How one method or domain is drawn in every picture."""

    color: str
    marker: str
    line: LineStyle
    hatch: str


@dataclass(frozen=True)
class Picture:
    """One figure as PNG on light and on dark ground; `title` is its text for those who do not see it."""

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes


def method_styles(labels: Sequence[str]) -> dict[str, Style]:
    """One style per method: grey for uniform, the palette for the others in their order."""
    others = [label for label in labels if label != BASELINE]
    styles = {label: _style(index) for index, label in enumerate(others)}
    return {label: styles.get(label, Style(GREY, "o", "-", "")) for label in labels}


def domain_styles(names: Sequence[str]) -> dict[str, Style]:
    """One style per domain; colour and marker together tell 42 domains apart."""
    return {name: _style(index) for index, name in enumerate(names)}


def short(name: str) -> str:
    """A name that fits beside an axis, on one line."""
    line = " ".join(name.split())
    if len(line) <= MAX_NAME_CHARACTERS:
        return line
    half = (MAX_NAME_CHARACTERS - 1) // 2
    return f"{line[:half]}…{line[-half:]}"


def picture(name: str, title: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    """Draw a figure twice, on light and on dark ground."""
    return Picture(name, title, caption, _png(draw, LIGHT), _png(draw, DARK))


def _style(index: int) -> Style:
    turn = index // len(PALETTE)
    return Style(PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)], LINES[turn % len(LINES)], HATCHES[turn % len(HATCHES)])


def _png(draw: Callable[[], Figure], theme: dict[str, str]) -> bytes:
    ink, ground, faint = theme["ink"], theme["ground"], theme["faint"]
    settings: Any = {
        "font.size": 9.5,
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "hatch.linewidth": 0.6,
        "text.parse_math": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "hatch.color"), ground),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), faint),
    }
    with matplotlib.rc_context(settings):
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
