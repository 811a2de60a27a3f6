"""One function per picture; each draws the numbers of one table of `numbers.py` and returns a figure.

Pictures are narrow and grow downwards, so that they can be read on a phone, with names beside horizontal rows that never overlap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from chameleon_ray.report.numbers import AVERAGE
from chameleon_ray.report.styles import GREY, WIDTH_INCHES, Style, short

MAX_ANNOTATED_DOMAINS = 10
IGNORED_CURVE_START = 0.05
MAX_MARKED_STEPS = 12
MAX_THICK_BARS = 80


def mixture_figure(numbers: pa.Table, names: Sequence[str], labels: Sequence[str], styles: Mapping[str, Style]) -> Figure:
    """Grouped bars of the weights with standard errors; the dashed line is uniform."""
    num_domains = len(set(numbers["domain"].to_pylist()))
    figure, axes = _bars(numbers, names, labels, styles, "weight", "weight_stderr")
    line = axes.axvline(1 / num_domains, color=GREY, linestyle="--", linewidth=1.2)
    axes.set_xlim(left=0)
    axes.set_xlabel("fraction of training tokens")
    _legend(figure, [*(_patch(styles[label]) for label in labels), line], [*labels, "uniform"])
    return figure


def change_figure(numbers: pa.Table, names: Sequence[str], labels: Sequence[str], styles: Mapping[str, Style]) -> Figure:
    """Grouped bars of the change in test perplexity from uniform, percent, with standard errors over paired seeds."""
    figure, axes = _bars(numbers, [*names, AVERAGE], labels, styles, "change_percent", "change_percent_stderr")
    axes.axvline(0, color=GREY, linewidth=1.2)
    axes.axhline(len(names) - 0.5, color=GREY, linewidth=0.6)
    axes.set_yticks(range(len(names) + 1), [*(short(name) for name in names), "average"])
    axes.set_xlabel("change of perplexity from uniform, %\n← better        worse →")
    _legend(figure, [_patch(styles[label]) for label in labels], labels)
    return figure


def affinity_figure(numbers: pa.Table, names: Sequence[str], method: str) -> Figure:
    """Heat map of one method's cosine-normalised affinity matrix."""
    values = {(row["domain"], row["other"]): row["cosine"] for row in numbers.to_pylist() if row["method"] == method}
    matrix = np.array([[values[name, other] for other in names] for name in names], dtype=np.float64)
    size = len(names)
    figure = Figure(figsize=(WIDTH_INCHES, WIDTH_INCHES), layout="constrained")
    axes = figure.add_subplot()
    negative = bool(np.nanmin(matrix, initial=0.0) < 0)
    look: dict[str, Any] = {"cmap": "PuOr", "norm": TwoSlopeNorm(0, -1, 1)} if negative else {"cmap": "cividis"}
    image = axes.imshow(matrix, **look)
    axes.spines[:].set_visible(False)
    fontsize = 9 if size <= 20 else 6
    axes.set_xticks(range(size), [short(name) for name in names], rotation=90, fontsize=fontsize)
    axes.set_yticks(range(size), [short(name) for name in names], fontsize=fontsize)
    axes.tick_params(length=0)
    if size <= MAX_ANNOTATED_DOMAINS:
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                luminance = float(np.dot(image.to_rgba(np.array([value]))[0, :3], (0.299, 0.587, 0.114)))
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="black" if luminance > 0.5 else "white")
    figure.colorbar(image, ax=axes, shrink=0.5, location="bottom", label="cosine of domain embeddings").outline.set_visible(False)
    return figure


def embedding_figure(numbers: pa.Table, names: Sequence[str], styles: Mapping[str, Style], projection: str) -> Figure:
    """Group means in the plane, one colour and marker per domain; no axis has a unit."""
    figure = Figure(figsize=(WIDTH_INCHES, WIDTH_INCHES + 0.25 * math.ceil(len(names) / 2)), layout="constrained")
    axes = figure.add_subplot()
    domains = np.asarray(numbers["domain"].to_pylist())
    plane = np.column_stack([numbers["x"].to_numpy(), numbers["y"].to_numpy()])
    for name in names:
        style, own = styles[name], plane[domains == name]
        axes.scatter(own[:, 0], own[:, 1], s=20, color=style.color, marker=style.marker, alpha=0.8, linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f"{projection} 1")
    axes.set_ylabel(f"{projection} 2")
    handles = [Line2D([], [], color=styles[name].color, marker=styles[name].marker, linestyle="") for name in names]
    _legend(figure, handles, names)
    return figure


def curve_figure(numbers: pa.Table, labels: Sequence[str], styles: Mapping[str, Style]) -> Figure:
    """Training loss of the whole batch, mean over seeds with the band between the extreme seeds."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
    axes = figure.add_subplot()
    _curves(axes, _by_method(numbers, AVERAGE, labels), styles)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, nats per token")
    _legend(figure, [_line(styles[label]) for label in labels], labels)
    return figure


def domain_curves_figure(numbers: pa.Table, names: Sequence[str], labels: Sequence[str], styles: Mapping[str, Style]) -> Figure:
    """The same per domain, one small panel each."""
    num_rows = math.ceil(len(names) / 2)
    figure = Figure(figsize=(WIDTH_INCHES, 1.5 * num_rows + 0.7), layout="constrained")
    panels = figure.subplots(num_rows, 2, sharex=True, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        _curves(axes, _by_method(numbers, name, labels), styles)
        axes.set_title(short(name), loc="left")
        axes.tick_params(labelsize=8)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
        panels[len(names) - 2].tick_params(labelbottom=True)
    figure.supxlabel("step", fontsize=9.5)
    figure.supylabel("training loss, nats per token", fontsize=9.5)
    _legend(figure, [_line(styles[label]) for label in labels], labels)
    return figure


def history_figure(histories: pa.Table, names: Sequence[str], num_domains: int, styles: Mapping[str, Style]) -> Figure:
    """Weights against the steps of the proxy, one panel per method, one line per domain; the dashed line is uniform."""
    rows = histories.to_pylist()
    labels = list(dict.fromkeys(row["method"] for row in rows))
    num_legend_rows = math.ceil((len(names) + 1) / _columns(names))
    panel_inches = 1.9 if len(names) <= 8 else 2.6
    figure = Figure(figsize=(WIDTH_INCHES, panel_inches * len(labels) + 0.18 * num_legend_rows + 0.4), layout="constrained")
    for axes, label in zip(figure.subplots(len(labels), 1, squeeze=False).ravel(), labels, strict=True):
        axes.axhline(1 / num_domains, color=GREY, linestyle="--", linewidth=1.0, zorder=1)
        for name in names:
            points = sorted((row["step"], row["mean"]) for row in rows if row["method"] == label and row["domain"] == name)
            steps, means = np.array(points, dtype=np.float64).reshape(-1, 2).T
            marker = styles[name].marker if len(points) <= MAX_MARKED_STEPS else None
            axes.plot(steps, means, color=styles[name].color, linestyle=styles[name].line, linewidth=1.3, marker=marker, markersize=3)
        axes.set_title(short(label), loc="left")
        axes.set_ylim(bottom=0)
        axes.grid(linewidth=0.6)
        axes.tick_params(labelsize=8)
    figure.supxlabel("step of the proxy", fontsize=9.5)
    figure.supylabel("fraction of training tokens", fontsize=9.5)
    dashed = Line2D([], [], color=GREY, linestyle="--", linewidth=1.0)
    _legend(figure, [*(_line(styles[name]) for name in names), dashed], [*names, "uniform"])
    return figure


def sweep_figure(
    entries: Sequence[Mapping[str, Any]],
    points: Mapping[str, str],
    key: str,
    own: Mapping[str, Mapping[str, float]],
    names: Sequence[str],
    styles: Mapping[str, Style],
) -> Figure:
    """Weights against the values of one key, one panel per method, one line per domain; at the left the method's own.

    Args:
        entries: of `sweep_numbers`, those of this key. points: point -> its value as it is written.
    """
    labels = list(dict.fromkeys(entry["label"] for entry in entries))
    num_legend_rows = math.ceil(len(names) / _columns(names))
    figure = Figure(figsize=(WIDTH_INCHES, 2.5 * len(labels) + 0.18 * num_legend_rows + 0.4), layout="constrained")
    for axes, label in zip(figure.subplots(len(labels), 1, squeeze=False).ravel(), labels, strict=True):
        found = [entry for entry in entries if entry["label"] == label]
        places = np.arange(1, len(found) + 1)
        for name in names:
            style = styles[name]
            values = [entry["weights"].get(name, np.nan) for entry in found]
            axes.plot(places, values, color=style.color, linestyle=style.line, linewidth=1.3, marker=style.marker, markersize=4)
            if label in own:
                axes.plot([0], [own[label].get(name, np.nan)], color=style.color, marker=style.marker, markersize=4)
        near = [f"{entry['l1']:.2f}\nρ {entry['spearman']:.2f}" if entry["spearman"] is not None else f"{entry['l1']:.2f}" for entry in found]
        ticks = [f"{short(points[entry['point']])}\nL1 {told}" for entry, told in zip(found, near, strict=True)]
        axes.set_xticks([0, *places], ["own", *ticks])
        axes.axvline(0.5, color=GREY, linewidth=0.8)
        axes.set_title(short(label), loc="left")
        axes.set_ylim(bottom=0)
        axes.grid(linewidth=0.6)
        axes.tick_params(labelsize=7)
    figure.supxlabel(key, fontsize=9.5)
    figure.supylabel("fraction of training tokens", fontsize=9.5)
    _legend(figure, [_line(styles[name]) for name in names], list(names))
    return figure


def _bars(numbers: pa.Table, names: Sequence[str], labels: Sequence[str], styles: Mapping[str, Style], value: str, stderr: str) -> tuple[Figure, Axes]:
    found = {(row["domain"], row["method"]): row for row in numbers.to_pylist()}
    bar_inches = 0.11 if len(labels) * len(names) <= MAX_THICK_BARS else 0.075
    row_inches = max(0.3, bar_inches * len(labels) + 0.12)
    figure = Figure(figsize=(WIDTH_INCHES, row_inches * len(names) + 1.1), layout="constrained")
    axes = figure.add_subplot()
    thickness = 0.8 / len(labels)
    for index, label in enumerate(labels):
        places = np.arange(len(names)) + (index - (len(labels) - 1) / 2) * thickness
        cells = [found[name, label] for name in names]
        widths = np.array([cell[value] for cell in cells], dtype=np.float64)
        errors = np.array([cell[stderr] for cell in cells], dtype=np.float64)
        axes.barh(places, widths, height=thickness * 0.92, color=styles[label].color, hatch=styles[label].hatch)
        known = np.isfinite(errors)
        ink = matplotlib.rcParams["text.color"]
        axes.errorbar(widths[known], places[known], xerr=errors[known], fmt="none", ecolor=ink, elinewidth=0.8, capsize=1.5)
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.6)
    return figure, axes


def _by_method(numbers: pa.Table, domain: str, labels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {label: [] for label in labels}
    for row in numbers.to_pylist():
        if row["domain"] == domain and row["loss"] is not None and row["method"] in found:
            found[row["method"]].append(row)
    return found


def _curves(axes: Axes, by_method: Mapping[str, list[dict[str, Any]]], styles: Mapping[str, Style]) -> None:
    bounds = []
    band_opacity = 0.2 if len(by_method) <= 2 else 0.1
    for label, rows in by_method.items():
        steps, loss, low, high = (np.array([row[key] for row in rows], dtype=np.float64) for key in ("step", "loss", "low", "high"))
        axes.fill_between(steps, low, high, color=styles[label].color, alpha=band_opacity, linewidth=0)
        axes.plot(steps, loss, color=styles[label].color, linestyle=styles[label].line, linewidth=1.4)
        if len(steps):
            settled = steps >= IGNORED_CURVE_START * steps[-1]
            bounds.append((low[settled].min(), high[settled].max()))
    if bounds:
        bottom, top = min(low for low, _ in bounds), max(high for _, high in bounds)
        margin = 0.05 * (top - bottom) or 0.1
        axes.set_ylim(bottom - margin, top + margin)
    axes.grid(linewidth=0.6)


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    figure.legend(handles, [short(label) for label in labels], loc="outside upper center", ncols=min(_columns(labels), len(labels)), fontsize=9)


def _columns(labels: Sequence[str]) -> int:
    """Columns of a legend that fit the width."""
    return 3 if max((len(short(label)) for label in labels), default=0) <= 13 else 2


def _patch(style: Style) -> Patch:
    return Patch(facecolor=style.color, hatch=style.hatch)


def _line(style: Style) -> Line2D:
    return Line2D([], [], color=style.color, linestyle=style.line)
