"""What the commands print: the report's own tables on a terminal."""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from typing import TYPE_CHECKING

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from chameleon_ray.mixing.swarm import MEAN
from chameleon_ray.mixture import Mixture
from chameleon_ray.report.formatting import count, duration, fixed, measured, number, power
from chameleon_ray.settings import listed

MOST_MODELS = 12  # whose folders are printed; the report has all

if TYPE_CHECKING:
    from chameleon_ray.dry_run import Forecast
    from chameleon_ray.mixing.judge import Interval, Verdict
    from chameleon_ray.pipeline import Comparison
    from chameleon_ray.ray_doctor import Examination
    from chameleon_ray.report.tables import Table


def show_comparison(console: Console, found: Comparison) -> None:
    """Mixtures with error bars, perplexity per domain, costs, the verdict and the report's address."""
    from chameleon_ray.report import tables
    from chameleon_ray.report.paper import transfer_table
    from chameleon_ray.report.verdict import findings, verdict, warnings

    shown = (("Mixture", tables.mixture_table), ("Test perplexity", tables.perplexity_table), ("Cost of each mixture", tables.cost_table))
    for title, table in shown:
        _show(console, title, table(found.data))
        if title == "Test perplexity" and (unseen := tables.unseen_table(found.data)) is not None:
            _show(console, "Unseen text", unseen)
    if (change := transfer_table(found.data)) is not None:
        _show(console, "What the change of domains took", change)
    for label, mixture in found.data.mixtures.items():
        for made_by in mixture.explanation[:1]:
            _say(console, f"{label}: {made_by}")
    for warning in warnings(found.data):
        _say(console, f"warning: {warning}", "yellow")
    for name, told in found.data.failures.items():
        _say(console, f"failed: {name}: {told}", "red")
    _say(console, verdict(found.data), "bold")
    for sentence in findings(found.data):
        _say(console, sentence)
    if len(found.data.addresses) <= MOST_MODELS:
        for (label, seed), address in found.data.addresses.items():
            console.print(f"model: {label}, seed {seed}: {address}", markup=False, soft_wrap=True, highlight=False)
    else:
        _say(console, f"models: where the {len(found.data.addresses)} base models lie stands at the end of the report")
    console.print(f"report: {found.report}", markup=False, soft_wrap=True, highlight=False)


def show_forecast(console: Console, found: Forecast) -> None:
    """What a command would do: what is done, and of the rest tokens, operations, memory of a worker, disk and time."""
    grid = Grid(title="What would be done", title_justify="left")
    grid.add_column("", overflow="fold")
    for column in ("tokens", "FLOPs", "memory", "disk", "time"):
        grid.add_column(column, justify="right")
    part = ""
    lines = groupby(found.steps, key=lambda step: (step.item.part, step.item.what))
    for (of, what), steps in ((key, list(group)) for key, group in lines):
        if of != part:
            part = of
            grid.add_row(escape(part), style="bold")
        left = [step for step in steps if not step.item.is_done]
        runs = f" ({len(steps)} times{f', {len(steps) - len(left)} done' if 0 < len(left) < len(steps) else ''})" if len(steps) > 1 else ""
        sums = [sum(getattr(step.item, field) for step in left) for field in ("tokens", "flops", "disk_bytes")]
        most = max((step.item.memory_bytes for step in left), default=0)
        cells = _forecast_cells(sums[0], sums[1], most, sums[2], sum(step.seconds for step in left)) if left else ["done", "", "", "", ""]
        grid.add_row(f"  {escape(what)}{runs}", *cells)
    missing = found.missing
    sums = [sum(getattr(item, field) for item in missing) for field in ("tokens", "flops", "disk_bytes")]
    grid.add_section()
    grid.add_row("all that is missing", *_forecast_cells(sums[0], sums[1], found.memory_bytes, sums[2], found.seconds), style="bold")
    console.print(grid)
    if missing:
        told = "memory is the most that one process takes (reading: all together), disk what is kept"
        _say(console, f"Time by {found.how}, with what it takes to start things; {told}.")
    else:
        _say(console, "Everything is done: the command returns at once.")


def _forecast_cells(tokens: float, flops: float, memory_bytes: float, disk_bytes: float, seconds: float) -> list[str]:
    sizes = [size_text(size) if size else "" for size in (memory_bytes, disk_bytes)]
    return [f"{tokens / 1e6:,.3g} M" if tokens else "", power(flops) if flops else "", *sizes, duration(seconds) if seconds else ""]


def size_text(size: float) -> str:
    """Bytes as people say them."""
    for unit, each in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= each:
            return f"{size / each:,.3g} {unit}"
    return f"{size / 1e3:,.3g} kB"


def show_mixture(console: Console, mixture: Mixture) -> None:
    """One mixture: weights, scores, errors, cost."""
    grid = Grid(title=f"Mixture {mixture.label!r}: fraction of training tokens", title_justify="left")
    grid.add_column("domain", overflow="fold")
    grid.add_column("weight", justify="right")
    scores = mixture.scores or {}
    if scores:
        grid.add_column("score", justify="right")
    # Beside weights under a prior of the user's what the prior says by itself, of domains that have nothing to do with each other.
    titles = {"prior": "prior", "structureless": "without structure"} if "structureless" in mixture.details else {}
    beside = [mixture.details[key] for key in titles]
    for title in titles.values():
        grid.add_column(title, justify="right")
    if mixture.unconstrained:
        grid.add_column("without limits", justify="right")
    if mixture.epochs:
        grid.add_column("epochs", justify="right")
    for name, weight in mixture.weights.items():
        cells = [measured(weight, (mixture.weights_stderr or {}).get(name))]
        if scores:
            cells.append(measured(scores[name], (mixture.scores_stderr or {}).get(name)))
        cells += [fixed(values[name], 4) for values in beside]
        cells += [fixed(mixture.unconstrained[name], 4)] if mixture.unconstrained else []
        cells += [number(mixture.epochs.get(name), 3)] if mixture.epochs else []
        grid.add_row(escape(name), *cells)
    console.print(grid)
    for sentence in mixture.explanation:
        _say(console, sentence)
    cost = mixture.cost
    console.print(f"cost: {cost.tokens:,} tokens, {power(cost.flops)} FLOPs, {duration(cost.seconds)}", highlight=False)
    if "embedded_rows" in mixture.provenance:
        embedded, extra = mixture.provenance["embedded_rows"], mixture.extra
        what = f"{sum(embedded.values()):,.0f} rows of {listed(list(embedded))} embedded" if embedded else "nothing to embed"
        _say(console, f"for the change: {what}, {extra.tokens:,} tokens, {power(extra.flops)} FLOPs; the other embeddings are kept with the proxy's domains")
    if "proxy_address" in mixture.provenance:
        console.print(f"proxy: {mixture.provenance['proxy_address']}", markup=False, soft_wrap=True, highlight=False)
    for warning in mixture.warnings:
        _say(console, f"warning: {warning}", "yellow")


def show_measurements(console: Console, measurements: pa.Table, title: str, targets: Collection[str] = ()) -> None:
    """Loss and perplexity per domain of one model, valid and test; targets stand below the mean, which is over domains."""
    rows = measurements.to_pylist()
    found = {(row["split"], row["domain"], row["metric"]): (row["value"], row["stderr"]) for row in rows}
    documents = {row["domain"]: row["documents"] for row in rows if row["split"] == "test"}
    caption = "Perplexity on valid and test; on test also the loss in nats per token, bits per byte, and how many documents stand behind."
    grid = Grid(title=title, title_justify="left", title_style="none", caption=caption, caption_justify="left")
    grid.add_column("domain", overflow="fold")
    for column in ("valid", "test", "nats", "bits/byte", "docs"):
        grid.add_column(column, justify="right", no_wrap=True)
    names = [name for name in documents if name != "all"]

    def add(name: str) -> None:
        cells = (("valid", name, "perplexity"), *(("test", name, metric) for metric in ("perplexity", "loss_nats", "bits_per_byte")))
        grid.add_row(name, *(measured(*found[cell]) for cell in cells), count(documents[name]))

    for name in names:
        if name not in targets:
            add(name)
    grid.add_section()
    means = (("valid", "all", "mean_perplexity"), *(("test", "all", f"mean_{metric}") for metric in ("perplexity", "loss_nats", "bits_per_byte")))
    grid.add_row("mean", *(measured(*found[cell]) for cell in means), count(documents["all"]))
    if targets:
        grid.add_section()
    for name in targets:
        add(name)
    console.print(grid)


def show_verdict(console: Console, found: Verdict) -> None:
    """What mixtures would score at one model size, against the first of them."""
    correlation = f"rank correlation {found.spearman[found.regressor]:.3f}"
    ordered = f"cross-validated {correlation}" if found.num_runs else f"{correlation} from smaller sizes to the largest that was run"
    source = f"{found.num_runs:,} runs" if found.num_runs else "runs of other sizes"
    grid = Grid(title=f"{found.size}: predicted from {source} by {found.regressor} ({ordered})", title_justify="left", title_style="none")
    grid.add_column("mixture", overflow="fold")
    means = ("mean nats", "average perplexity") if found.target == MEAN else (f"{found.target}, nats", "perplexity")
    for column in (*means, "nats against the first", "perplexity against the first", "nearest run"):
        grid.add_column(column, justify="right")
    for each in found.mixtures:
        changes = [_within(each.nats_change, "+.3f"), _within(each.perplexity_change, "+.1%")]
        distance = fixed(each.distance, 2) + ("" if each.covered and found.mixtures[0].covered else " !")
        grid.add_row(escape(each.mixture) + (" *" if each.unseen else ""), fixed(each.nats.value, 4), fixed(each.perplexity.value, 2), *changes, distance)
    console.print(grid)
    for each in found.mixtures:
        if each.unseen:
            _say(console, f"* {each.mixture}: no run has any of {listed(each.unseen)}; what it does is told by its embedding alone.")
    _say(console, "In brackets the range of nine tenths of regressions on runs drawn anew; distances are L1.")
    outside = [each.mixture for each in found.mixtures if not each.covered]
    if outside and not found.mixtures[0].covered:
        _say(console, f"warning: every change is against {found.mixtures[0].mixture}, which lies outside the runs itself.", "yellow")
    if outside:
        told = f"{', '.join(outside)}: farther from every run than runs are from each other (95 of 100 within {found.usual_distance:.2f}), or evener than all"
        _say(console, f"warning: {told}, so that the ranges speak of the regression's noise, not of how wrong it is so far out.", "yellow")


def _within(value: Interval | None, form: str) -> str:
    return "" if value is None else f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def show_examination(console: Console, found: Examination) -> None:
    """What `doctor` saw, and what to mend."""
    grid = Grid(show_header=False, box=None)
    grid.add_column()
    grid.add_column(overflow="fold")
    for name, value in found.facts.items():
        grid.add_row(escape(name), escape(value))
    console.print(grid)
    for problem in found.problems:
        _say(console, f"problem: {problem}", "red")
    for advice in found.advice:
        _say(console, f"note: {advice}", "yellow")
    console.print("nothing is wrong" if not found.problems else f"{number(len(found.problems))} problem(s)", style="bold")


def _say(console: Console, text: str, style: str | None = None) -> None:
    """A sentence: wrapped between words on a terminal, elsewhere one line, since a width is only guessed there and paths would be cut."""
    console.print(text, style=style, markup=False, emoji=False, soft_wrap=not console.is_terminal)


def _show(console: Console, title: str, table: Table) -> None:
    grid = Grid(title=title, title_justify="left", caption=table.note or None, caption_justify="left")
    for i, column in enumerate(table.columns):
        grid.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    first_summary = len(table.rows) - table.num_summary_rows
    for i, row in enumerate(table.rows):
        if table.num_summary_rows and i == first_summary:
            grid.add_section()
        grid.add_row(*(f"[bold]{escape(cell.text)}[/]" if cell.best else escape(cell.text) for cell in row))
    console.print(grid)
