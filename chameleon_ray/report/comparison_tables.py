"""Tables beyond one number per domain and method: pairs of methods, weights over a proxy's steps, sweeps, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from chameleon_ray.report.data import ReportData
from chameleon_ray.report.formatting import DASH, count, duration, fixed, interval_decimals, number, plural, power
from chameleon_ray.report.numbers import DRIFT_PARTS, drift_numbers, sweep_numbers
from chameleon_ray.report.significance import PairedDifference, by_pair
from chameleon_ray.report.tables import Cell, Table, text_row

METRIC_TITLES = {"mean_perplexity": "average perplexity", "mean_loss_nats": "mean loss in nats per token"}


def significance_table(pairs: Sequence[PairedDifference], metric: str, labels: Sequence[str]) -> Table:
    """Row minus column for every pair of methods, with intervals; what excludes zero has an asterisk, a row that is better is emphasised."""
    found = by_pair(pairs, metric)
    shown = [label for label in labels if any(label in pair for pair in found)]
    rows = ((Cell(row), *(_difference(found.get((row, column))) for column in shown)) for row in shown)
    note = (
        f"Row minus column, {METRIC_TITLES[metric]} of the test split; negative means that the row is better. With the 95 % interval. "
        "* Significant: the interval excludes zero; emphasised where the row is the better one."
    )
    return Table(("row − column", *shown), tuple(rows), note)


def significance_text(pairs: Sequence[PairedDifference], refitted: bool) -> str:
    """What the intervals cover, and what they do not say."""
    num_pairs = len({(pair.first, pair.second) for pair in pairs})
    sizes = sorted({pair.num_seeds for pair in pairs})
    if not any(pair.has_interval for pair in pairs):
        return "A domain has a single test document, and nothing says how far its documents lie apart: no difference has an interval, none is significant."
    text = "A difference is significant when its 95 % interval excludes zero, and within the noise when it does not. "
    if sizes == [1]:
        text += "There is one seed, so only documents count: the interval says how far other held-out documents would move it, and nothing about another seed"
    else:
        seeds = plural(sizes[-1], "seed") if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} seeds"
        text += f"It is averaged over the {seeds} that both methods have, on the same documents; the interval says how far other seeds of the base models "
        text += "and other held-out documents would move it (jackknife over documents, Student's t for few seeds and few documents)"
        if sizes[0] == 1:
            text += "; that of a pair with one seed in common speaks of documents only, and says nothing about another seed"
    if refitted and sizes[-1] > 1:
        text += ". Every mixture was fitted anew with every seed, so that other seeds mean other fits too. "
    else:
        text += ". It does not cover the mixtures themselves: each was fitted once, with the first seed. "
    text += f"The domain with the fewest test documents has {count(pairs[0].fewest_documents)}."
    if num_pairs > 1:
        text += f" There are {num_pairs} pairs: even if all methods were equal, one interval in twenty would exclude zero."
    return text


def drift_table(histories: pa.Table) -> Table:
    """How far the weights of every method still went after a tenth and after half of the proxy's steps."""
    found = {(row["method"], row["part"]): row for row in drift_numbers(histories).to_pylist()}
    rows = []
    for label in dict.fromkeys(histories["method"].to_pylist()):
        cells = [found.get((label, part)) for part in DRIFT_PARTS]
        last = next((count(cell["last_step"]) for cell in cells if cell), DASH)
        rows.append(text_row(label, (last, *(f"{fixed(cell['l1_to_end'], 3)} (step {count(cell['step'])})" if cell else DASH for cell in cells))))
    note = "L1 distance (0 to 2) of the weights at the recorded step nearest to that part of the steps from those at the last step."
    return Table(("method", "steps", "from a tenth to the end", "from half to the end"), tuple(rows), note)


def failure_table(data: ReportData) -> Table:
    """What could not be run, and why."""
    return Table(("run", "what went wrong"), tuple(text_row(run, (reason,)) for run, reason in data.failures.items()), is_text=True)


def sweep_table(sweep: pa.Table, names: Sequence[str], own: Mapping[str, Mapping[str, float]]) -> Table:
    """Weights at every point of a sweep, how near they are to the same method's at the experiment's own settings (`own`), and the cost; `names` come first, in
    their order."""
    present = dict.fromkeys(sweep["domain"].to_pylist())
    shown = [*(name for name in names if name in present), *(name for name in present if name not in names)]
    rows = []
    for entry in sweep_numbers(sweep, own):
        weights = (number(entry["weights"].get(name), 3) for name in shown)
        cost = (count(entry["tokens"]), power(entry["flops"]), duration(entry["seconds"]))
        correlation = DASH if entry["spearman"] is None else fixed(entry["spearman"], 2)
        rows.append(text_row(entry["point"], (entry["label"], *weights, fixed(entry["l1"], 3), correlation, *cost)))
    columns = ("point", "method", *shown, "L1", "rank correlation", "tokens", "FLOPs", "wall time")
    note = (
        "Fraction of training tokens by domain; L1 distance to the weights of the same method at the experiment's own settings, and rank correlation with them "
        "over domains; FLOPs of all matrix products."
    )
    return Table(columns, tuple(rows), note, long_names=True)


def _difference(pair: PairedDifference | None) -> Cell:
    if pair is None:
        return Cell(DASH)
    if not pair.has_interval:
        return Cell(number(pair.difference), detail="no interval")
    decimals = interval_decimals(pair.low, pair.high)
    star = "*" if pair.excludes_zero else ""
    return Cell(f"{fixed(pair.difference, decimals)}{star}", best=pair.high < 0, detail=f"{fixed(pair.low, decimals)} to {fixed(pair.high, decimals)}")
