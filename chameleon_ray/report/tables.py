"""One function per table of the report; Markdown, HTML and the terminal show the same cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy.special import stdtrit

from chameleon_ray.mixture import total_cost
from chameleon_ray.records import versions
from chameleon_ray.report.data import BASELINE, BEFORE, ReportData
from chameleon_ray.report.formatting import DASH, count, duration, fixed, measured, number, plural, power, ratio
from chameleon_ray.report.numbers import (
    AVERAGE,
    chameleon_label,
    cost_numbers,
    domains_won,
    mixture_numbers,
    perplexity_numbers,
    spectrum_numbers,
    spread_numbers,
)
from chameleon_ray.report.significance import by_pair
from chameleon_ray.settings import listed

MAX_EIGENVALUES = 20


@dataclass(frozen=True)
class Cell:
    """Text of one cell; `best` emphasises it, `detail` stands under it in small type."""

    text: str
    best: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A table to show: the first column names the row; `note` says what the numbers are; the last `num_summary_rows` rows are totals.

    `is_text`: its cells are words, to be aligned on the left. `long_names`: the names of its rows may take several lines.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    num_summary_rows: int = 0
    is_text: bool = False
    long_names: bool = False


def mixture_table(data: ReportData) -> Table:
    """Fraction of training tokens per domain and method; how far from uniform they are, and how many domains they amount to."""
    found = {(row["domain"], row["method"]): row for row in mixture_numbers(data).to_pylist()}
    labels = tuple(data.mixtures)
    rows = []
    for name in data.names:
        cells = (found[name, label] for label in labels)
        rows.append(text_row(name, (_weight(cell["weight"], cell["weight_stderr"]) for cell in cells)))
    spreads = spread_numbers(data).to_pylist()
    rows.append(text_row("L1 distance to uniform", (fixed(spread["l1_to_uniform"], 3) for spread in spreads)))
    rows.append(text_row("effective number of domains", (fixed(spread["effective_domains"], 2) for spread in spreads)))
    errors = " ± standard error, where the method has one." if any(mixture.weights_stderr for mixture in data.mixtures.values()) else ""
    if data.refitted:
        errors = " Means over the fits with every seed ± standard error over these fits (its own where they are one, or one is left); "
        errors += "what else is shown of a fit (spectrum, affinity, weights while a proxy trained) is that of the first."
    note = f"Fraction of training tokens.{errors} Uniform is {number(1 / len(data.names), 3)}. The effective number of domains is exp(entropy)."
    return Table(("domain", *labels), tuple(rows), note, 2)


def prior_table(data: ReportData) -> Table | None:
    """What mixtures under a prior of the user's start from, and what it says by itself; None when every prior is uniform."""
    given = {label: mixture.details for label, mixture in data.mixtures.items() if "structureless" in mixture.details}
    if not given:
        return None
    columns = [(f"{title}, {label}", details[key]) for label, details in given.items() for title, key in (("prior", "prior"), ("by itself", "structureless"))]
    rows = tuple(text_row(name, (fixed(values[name], 4) for _, values in columns)) for name in data.names)
    note = "The prior of each mixture, and what it would give by itself to domains that have nothing to do with each other."
    return Table(("domain", *(title for title, _ in columns)), rows, note)


def perplexity_table(data: ReportData) -> Table:
    """Test perplexity per domain and method, their mean, the mean loss and bits per byte, the domains better than uniform, and what the mixture cost.

    The lowest perplexity of a row is emphasised; a domain that is not measured has dashes.
    """
    found = _perplexities(data)
    labels = tuple(dict.fromkeys(method for _, method in found))
    rows = [_line(name, found, name, "perplexity") if name in data.measured else text_row(name, (DASH for _ in labels)) for name in data.names]
    means = (("average perplexity", "perplexity"), ("mean loss, nats per token", "loss_nats"), ("mean bits per byte", "bits_per_byte"))
    summary = [_line(title, found, AVERAGE, metric) for title, metric in means]
    if BASELINE in labels and len(labels) > 1:
        texts = (DASH if found[AVERAGE, label]["change_percent"] is None else f"{domains_won(data, label)} of {len(data.measured)}" for label in labels)
        summary.append(text_row("domains better than uniform", texts))
    if BEFORE in labels:
        better = (f"{sum(found[name, label]['perplexity'] < found[name, BEFORE]['perplexity'] for name in data.measured)}" for label in labels[1:])
        summary.append(text_row("domains better than before", (DASH, *(f"{wins} of {len(data.measured)}" for wins in better))))
    errors = _error_note({label: found[AVERAGE, label]["num_seeds"] for label in labels if label != BEFORE})
    if BEFORE in labels:
        errors += f" {BEFORE[:1].upper()}{BEFORE[1:]}: the model that all of them go on from; ± over documents."
    note = f"Test split; lower is better. {errors} Averages are arithmetic means over {_averaged(data)}. {_documents_note(found, data.measured)}"
    if (reference := chameleon_label(data)) is not None:
        ratios = {row["method"]: row["paper_flops_ratio"] for row in cost_numbers(data).to_pylist()}
        summary.append(text_row(f"cost, × {reference}", (ratio(ratios.get(label)) for label in labels)))
        note += f" Cost: FLOPs to find the mixture in the paper's convention, divided by those of {reference}."
    return Table(("domain", *labels), (*rows, *summary), note, len(summary))


def bits_table(data: ReportData) -> Table | None:
    """Test loss per domain and method in bits per byte, which models with different tokenizers can be compared in; None where nothing was measured."""
    found = _perplexities(data)
    if not found:
        return None
    rows = [_line(name, found, name, "bits_per_byte") for name in data.measured]
    note = "Test loss in bits per byte of UTF-8, a unit that models with different tokenizers share; lower is better. The mean is over domains."
    return Table(("domain", *dict.fromkeys(method for _, method in found)), (*rows, _line("mean", found, AVERAGE, "bits_per_byte")), note, 1)


def unseen_table(data: ReportData) -> Table | None:
    """Test perplexity and bits per byte of every method on the targets; None without any."""
    found = _perplexities(data)
    if not found or not data.corpus.targets:
        return None
    labels = tuple(dict.fromkeys(method for _, method in found))
    rows, differ = [], False
    for name in data.corpus.targets:
        tested = by_pair(data.unseen[name], "mean_perplexity")
        against = {label for label in labels if (pair := tested.get((label, BASELINE))) is not None and pair.excludes_zero}
        line = _line(name, found, name, "perplexity")
        rows.append((line[0], *(replace(cell, text=f"{cell.text} *") if label in against else cell for label, cell in zip(labels, line[1:], strict=True))))
        rows.append(_line(f"{name}, bits per byte", found, name, "bits_per_byte"))
        differ = differ or bool(against)
    starred = " An asterisk: the 95 % interval of the paired difference from uniform excludes zero." if differ else ""
    note = f"Text that no model was trained on and no average includes: test perplexity, and bits per byte; lower is better.{starred}"
    return Table(("target", *labels), tuple(rows), f"{note} {_documents_note(found, data.corpus.targets, 'target')}")


def score_table(data: ReportData) -> Table | None:
    """The methods' scores per domain (leverage, for Chameleon); None when no method has any."""
    labels = tuple(label for label, mixture in data.mixtures.items() if mixture.scores is not None)
    if not labels:
        return None
    found = {(row["domain"], row["method"]): row for row in mixture_numbers(data).to_pylist()}
    rows = (text_row(name, (measured(found[name, label]["score"], found[name, label]["score_stderr"]) for label in labels)) for name in data.names)
    return Table(("domain", *labels), tuple(rows), "Score of each domain, in the method's own units; Chameleon's is the kernel ridge leverage score.")


def spectrum_table(data: ReportData) -> Table | None:
    """Eigenvalues of the affinity matrix and the effective dimension; None when no method has them."""
    found = {(row["index"], row["method"]): row for row in spectrum_numbers(data).to_pylist()}
    labels = tuple(dict.fromkeys(method for _, method in found))
    if not labels:
        return None
    largest = max(index for index, _ in found)
    shown = range(1, min(largest, MAX_EIGENVALUES) + 1)
    rows = [text_row(str(index), (_eigenvalue(found.get((index, label))) for label in labels)) for index in shown]
    dimensions = [data.mixtures[label].details.get("effective_dimension") for label in labels]
    rows.append(text_row("effective dimension", (f"{number(value)} of {len(data.names)}" if value is not None else DASH for value in dimensions)))
    cut = f" The largest {MAX_EIGENVALUES} of {largest} are shown." if largest > MAX_EIGENVALUES else ""
    note = (
        "Eigenvalues of the affinity matrix as it is scored, and their share of the trace; the effective dimension is the sum of the leverage scores (of those "
        f"without a target).{cut}"
    )
    return Table(("eigenvalue", *labels), tuple(rows), note, 1)


def cost_table(data: ReportData) -> Table:
    """What it took to find each mixture, and how many times the chameleon method's FLOPs; base models are not part of it."""
    reference = chameleon_label(data)
    columns = ["mixture", "tokens", "wall time"]
    for title in ("FLOPs, paper", "FLOPs, all"):
        columns += [title] if reference is None else [title, "ratio"]
    snapshots = [label for label, mixture in data.mixtures.items() if "proxy_is_snapshot_of" in mixture.provenance]
    rows = []
    for row in cost_numbers(data).to_pylist():
        cells = [count(row["tokens"]), duration(row["seconds"])]
        for column in ("paper_flops", "flops"):
            cells += [power(row[column])] if reference is None else [power(row[column]), ratio(row[f"{column}_ratio"])]
        rows.append(text_row(f"{row['method']}{' ¹' if row['method'] in snapshots else ''}", cells))
    several = sum(bool(mixture.cost.tokens) for mixture in data.mixtures.values()) > 1
    if several:
        together, blank = total_cost(mixture.ledger for mixture in data.mixtures.values()), [DASH] if reference is not None else []
        flops = (power(together.paper_flops), *blank, power(together.flops), *blank)
        rows.append(text_row("all together", (count(together.tokens), duration(together.seconds), *flops)))
    note = (
        "Everything needed to get the weights; the base models are not counted. All matrix products are those that were run; the paper's convention "
        "counts embeddings at full depth and leaves out DoReMi's reference passes, DoGE's work on gradients and the output head of RegMix's proxies."
    )
    if data.refitted:
        note += " A mixture's fits with every seed count together."
    if several:
        note += " The last row counts once what several mixtures share."
    if reference is not None:
        note += f" Ratios are to {reference}."
    return Table(tuple(columns), tuple(rows), " ".join([note, *_snapshot_notes(data, snapshots)]), num_summary_rows=int(several))


def phase_table(data: ReportData) -> Table:
    """Wall time per phase."""
    rows = [text_row(phase, (duration(seconds),)) for phase, seconds in data.seconds.items()]
    total = text_row("total", (duration(sum(data.seconds.values())),))
    return Table(("phase", "wall time"), (*rows, total), num_summary_rows=1)


def model_table(data: ReportData) -> Table:
    """Where the base models lie, for whoever evaluates or merges one."""
    rows = (text_row(label, (str(seed), address)) for (label, seed), address in data.addresses.items())
    return Table(("base model", "seed", "folder"), tuple(rows), is_text=True)


def version_table() -> Table:
    """Versions of what computed this."""
    return Table(("package", "version"), tuple(text_row(name, (text,)) for name, text in versions().items()), is_text=True)


def text_row(title: str, texts: Iterable[str]) -> tuple[Cell, ...]:
    """A row of plain cells behind its name."""
    return (Cell(title), *(Cell(text) for text in texts))


def _perplexities(data: ReportData) -> dict[tuple[str, str], dict[str, Any]]:
    """(domain, method) -> the row of `perplexity_numbers`."""
    return {(row["domain"], row["method"]): row for row in perplexity_numbers(data).to_pylist()}


def _line(title: str, found: Mapping[tuple[str, str], Mapping[str, Any]], domain: str, metric: str) -> tuple[Cell, ...]:
    """A row of one metric of one domain, a cell for each method; the lowest is emphasised."""
    cells = [row for (name, _), row in found.items() if name == domain]
    lowest = min(cell[metric] for cell in cells)
    shown = (Cell(measured(cell[metric], cell[f"{metric}_stderr"]), best=len(cells) > 1 and cell[metric] == lowest) for cell in cells)
    return (Cell(title), *shown)


def _averaged(data: ReportData) -> str:
    return "domains" if data.measured == data.names else f"the {plural(len(data.measured), 'measured domain')}"


def _snapshot_notes(data: ReportData, labels: Iterable[str]) -> list[str]:
    """One sentence for all methods that share a snapshot."""
    sharing: dict[tuple[int, int], list[str]] = {}
    for label in labels:
        longer = data.mixtures[label].provenance["proxy_is_snapshot_of"]
        sharing.setdefault((longer["at_step"], longer["steps"]), []).append(label)
    return [
        f"¹ {', '.join(names)}: the proxy is the step-{count(at_step)} checkpoint of a longer run ({count(steps)} steps) on the same schedule; "
        "its cost is charged up to that step."
        for (at_step, steps), names in sharing.items()
    ]


def _weight(value: float, stderr: float | None) -> str:
    return number(value, 3) if stderr is None else measured(value, stderr)


def _eigenvalue(row: Mapping[str, float | None] | None) -> str:
    if row is None or row["eigenvalue"] is None:
        return DASH
    share = "" if row["share"] is None else f" ({fixed(100 * row['share'], 1)} %)"
    return f"{number(row['eigenvalue'])}{share}"


def _error_note(seeds: Mapping[str, int]) -> str:
    if set(seeds.values()) == {1}:
        return "One seed: ± is the standard error clustered by document, and no error over seeds exists."
    if len(set(seeds.values())) == 1:
        return f"Mean ± standard error over {next(iter(seeds.values()))} seeds, which is no interval: {_t_note(seeds)}."
    numbers = ", ".join(f"{label} {plural(num_seeds, 'seed')}" for label, num_seeds in seeds.items())
    single = "; where there is one seed, ± is the standard error clustered by document" if 1 in seeds.values() else ""
    return f"Mean ± standard error over seeds ({numbers}){single}. Over seeds that is no interval: {_t_note(seeds)}."


def _t_note(seeds: Mapping[str, int]) -> str:
    """How wide 95 % intervals of so many seeds are."""
    sizes = sorted(set(seeds.values()) - {1})
    factors = " and ".join(f"{stdtrit(size - 1, 0.975):.1f}" for size in sizes)
    return f"one of 95 % takes {factors} standard errors each way (Student's t with {' and '.join(map(str, sizes))} seeds)"


def _documents_note(found: Mapping[tuple[str, str], Mapping[str, Any]], names: Sequence[str], what: str = "domain") -> str:
    """How many documents stand behind the perplexities, and where none of them tells how far they lie apart."""
    documents = {domain: row["documents"] for (domain, _), row in found.items() if domain in names}
    fewest, most = (pick(documents, key=lambda name: documents[name]) for pick in (min, max))
    if documents[fewest] == documents[most]:
        text = f"Test documents: {count(documents[most])} in every {what}."
    else:
        text = f"Test documents: {count(documents[fewest])} ({fewest}) to {count(documents[most])} ({most}) in a {what}."
    single = [name for name in names if documents[name] == 1]
    if single:
        text += f" With a single one ({listed(single)}) no error over documents exists{', neither there nor for the averages' if what == 'domain' else ''}."
    return text
