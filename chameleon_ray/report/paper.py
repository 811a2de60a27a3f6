"""What the Chameleon paper (ICML 2025) printed of finetuning and of changed domains, beside what came out here: tables 4, 6, 7, 12 and 14 to 19.

Values are as printed; averages are computed from them (table 6 prints 9.43 for its uniform column, whose mean is 9.39).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from chameleon_ray.mixing.published import PUBLISHED, PublishedWeights
from chameleon_ray.mixing.regression import spearman
from chameleon_ray.report.data import BASELINE, ReportData
from chameleon_ray.report.formatting import DASH, count, fixed, measured, number, power, ratio
from chameleon_ray.report.numbers import AVERAGE, chameleon_label, domains_won, evaluated, l1_distance, reported
from chameleon_ray.report.statistics import SeedMean, summarise
from chameleon_ray.report.tables import Table, text_row
from chameleon_ray.settings import listed

FINETUNED, PRETRAINED = "alpha_FT", "alpha_PT"


@dataclass(frozen=True)
class Finetuning:
    """One of the paper's two finetuning experiments, with a 684M model that was trained on the Pile.

    Attributes:
        title, tables, weight_table: what it is called, and where its numbers and its weights stand.
        perplexity: uniform, alpha_FT and alpha_PT -> domain -> test perplexity.
        weights: name of the preset with its alpha_FT.
    """

    title: str
    tables: str
    weight_table: str
    perplexity: Mapping[str, Mapping[str, float]]
    weights: str

    @property
    def names(self) -> frozenset[str]:
        """Its domains."""
        return frozenset(self.perplexity[BASELINE])


def _columns(names: str, uniform: tuple[float, ...], finetuned: tuple[float, ...], pretrained: tuple[float, ...]) -> dict[str, dict[str, float]]:
    columns = {BASELINE: uniform, FINETUNED: finetuned, PRETRAINED: pretrained}
    return {column: dict(zip(names.split(), values, strict=True)) for column, values in columns.items()}


FINETUNINGS = (
    Finetuning(
        "Wiki40b",
        "tables 6 and 18",
        "table 16",
        _columns(
            "fr de it es pt nl pl",
            (6.86, 10.12, 13.29, 8.41, 8.00, 13.98, 5.07),
            (6.51, 8.78, 12.42, 8.04, 7.78, 12.30, 4.21),
            (7.14, 10.85, 14.42, 8.70, 8.14, 15.05, 5.31),
        ),
        "wiki40b_chameleon",
    ),
    Finetuning(
        "Stack",
        "tables 7 and 19",
        "table 17",
        _columns(
            "python java c cpp go ruby php",
            (19.98, 19.27, 28.24, 25.16, 30.25, 21.78, 9.45),
            (16.53, 15.53, 22.58, 21.09, 19.26, 17.83, 7.43),
            (20.11, 19.32, 25.02, 23.83, 28.66, 21.75, 9.47),
        ),
        "stack_chameleon",
    ),
)


# Tables 12 and 14: Chameleon's weights on SlimPajama, at its own setting (2k steps of an 82M proxy, lam = 10, 4k samples) and with one thing changed.
_OWN_SETTING = (0.083, 0.164, 0.202, 0.247, 0.082, 0.149, 0.073)
_OTHER_SETTINGS = {
    "1k steps": (0.088, 0.149, 0.174, 0.281, 0.096, 0.137, 0.074),
    "5k steps": (0.072, 0.174, 0.188, 0.220, 0.094, 0.137, 0.082),
    "10k steps": (0.096, 0.158, 0.195, 0.251, 0.083, 0.136, 0.080),
    "60M": (0.084, 0.158, 0.170, 0.271, 0.073, 0.152, 0.072),
    "124M": (0.087, 0.157, 0.169, 0.288, 0.072, 0.153, 0.074),
    "210M": (0.093, 0.165, 0.170, 0.259, 0.089, 0.145, 0.078),
    "lam = 1": (0.080, 0.159, 0.178, 0.243, 0.097, 0.152, 0.081),
    "lam = 100": (0.087, 0.173, 0.201, 0.258, 0.057, 0.128, 0.095),
    "2k samples": (0.079, 0.165, 0.193, 0.253, 0.079, 0.138, 0.093),
    "8k samples": (0.081, 0.170, 0.209, 0.241, 0.066, 0.143, 0.090),
}
# Table 4: what the change to the Pile took, in FLOPs, by method; and test perplexity on it, in the order of table 15's domains.
EXTRA_FLOPS = {"human": 0.0, "doremi": 1.34e18, "doge": 6.68e17, "chameleon": 4.62e15, "regmix": 3.5e18}
_PILE_PERPLEXITY = {
    "human": (9.76, 5.52, 12.82, 34.69, 14.12, 5.92, 39.36, 35.94, 22.93, 47.59, 43.19, 17.87, 9.76, 10.41, 36.12, 17.22, 28.70),
    "doremi": (14.11, 6.27, 9.96, 24.77, 16.20, 5.84, 38.36, 29.68, 25.89, 36.43, 32.85, 24.19, 9.43, 11.48, 32.10, 21.19, 25.95),
    "doge": (10.78, 4.52, 9.39, 11.62, 17.99, 4.90, 39.57, 29.87, 26.81, 44.56, 58.17, 25.62, 8.10, 11.79, 23.20, 20.08, 40.42),
    "chameleon": (9.73, 5.31, 7.77, 28.18, 15.04, 6.16, 33.28, 27.02, 24.12, 34.63, 34.90, 21.87, 7.36, 11.25, 29.34, 18.25, 24.68),
    "regmix": (16.19, 19.26, 12.06, 131.80, 18.66, 9.95, 34.43, 29.80, 28.69, 51.71, 32.30, 23.20, 13.80, 18.96, 20.71, 22.05, 29.32),
}


def transfer_table(data: ReportData) -> Table | None:
    """What each method took beyond what was there when the domains changed, and how many times Chameleon's; None where they did not change."""
    if data.experiment.transfer is None or not data.mixtures:
        return None
    reference = chameleon_label(data)
    unit = data.mixtures[reference].extra if reference is not None else None
    stands_for = {label: column for column, label in _pile_columns(data).items()}
    rows = []
    for label, mixture in data.mixtures.items():
        extra, cells = mixture.extra, []
        for field in ("paper_flops", "flops"):
            value, one = getattr(extra, field), getattr(unit, field, 0.0)
            cells += [power(value), ratio(value / one if one else None)]
        embedded = mixture.provenance.get("embedded_rows")
        shown = DASH if embedded is None else count(round(math.fsum(embedded.values())))
        printed = EXTRA_FLOPS[stands_for[label]] if label in stands_for else None
        theirs = DASH if printed is None else f"{power(printed)} ({printed / EXTRA_FLOPS['chameleon']:.0f})"
        rows.append(text_row(label, (shown, count(extra.tokens), *cells, theirs)))
    note = (
        f"What came on top when the domains changed: of {reference or 'a method that embeds'} the rows of domains that are new, by the proxy that was there, "
        "and a look at the quality of the text; the others train anew. Of several fits all together. In the paper's convention and as all matrix products; "
        "the last column is what the paper had on the Pile (table 4), and in brackets how many times Chameleon's."
    )
    columns = ("mixture", "rows embedded", "tokens", "FLOPs, paper", "ratio", "FLOPs, all", "ratio", "FLOPs, paper's table 4")
    return Table(columns, tuple(rows), note)


def pile_table(data: ReportData) -> Table | None:
    """Weights after the domains changed beside those printed for the Pile (table 15), of the domains that have a printed name; None where no method takes
    weights that are printed for the Pile."""
    printed = _pile_names(data)
    if not printed:
        return None
    columns = ["chameleon", "human", *(column for column in _pile_columns(data) if column not in ("chameleon", "human"))]
    rows = []
    for name in data.names:
        theirs = (number(PUBLISHED[f"pile_{column}"].weights[printed[name]], 3) if name in printed else DASH for column in columns)
        rows.append(text_row(name, (*theirs, *(_weight(data, label, name) for label in data.mixtures))))
    note = "Fraction of training tokens, beside what is printed for the Pile's seventeen domains (table 15, renormalised) where a domain has a printed name."
    return Table(("domain", *(f"{column}, paper" for column in columns), *data.mixtures), tuple(rows), note)


def pile_perplexity_table(data: ReportData) -> Table | None:
    """Test perplexity after the domains changed beside table 4's, of the domains that have a printed name; None where nothing here stands in that table."""
    printed, by_seed = _pile_names(data), reported(data.measurements)
    ours = {column: label for column, label in _pile_columns(data).items() if label in evaluated(data)}
    names = [name for name in data.measured if name in printed]
    if not names or not ours:
        return None
    theirs = {column: dict(zip(PUBLISHED["pile_human"].raw, _PILE_PERPLEXITY[column], strict=True)) for column in ours}
    rows = []
    for name in names:
        found = {column: summarise(by_seed[label, name, "perplexity"]) for column, label in ours.items()}
        rows.append(text_row(name, (f"{measured(each.mean, each.stderr)} ({theirs[column][printed[name]]:.2f})" for column, each in found.items())))
    averages = []
    for column, label in ours.items():
        mean = math.fsum(summarise(by_seed[label, name, "perplexity"]).mean for name in names) / len(names)
        averages.append(f"{fixed(mean, 2)} ({math.fsum(theirs[column][printed[name]] for name in names) / len(names):.2f})")
    rows.append(text_row("average of these", averages))
    note = (
        "Test perplexity here, and in brackets the paper's of the Pile's domain of this name (table 4; 684M models, 10,000 steps). Other text, models and "
        "another tokenizer: compare what a mixture changes, not the values."
    )
    return Table(("domain", *(_titled(column, label) for column, label in ours.items())), tuple(rows), note, 1)


def _pile_names(data: ReportData) -> dict[str, str]:
    """Domains here -> what the paper's tables of the Pile call them; none where the domains did not change, or no method takes weights printed there."""
    asked = any(str(settings.get("preset", "")).startswith("pile_") for settings in data.experiment.methods.values())
    if data.experiment.transfer is None or not asked:
        return {}
    named: dict[str, str | None] = next((settings["names"] for settings in data.experiment.methods.values() if settings.get("names")), {})
    called = {name: named.get(name, name) for name in data.names}
    return {name: other for name, other in called.items() if other is not None and other in PUBLISHED["pile_chameleon"].raw}


def _pile_columns(data: ReportData) -> dict[str, str]:
    """The column of the paper's table 4 -> the label of the mixture here that stands for it, where there is one."""
    found: dict[str, str | None] = {"human": None, "doremi": None, "doge": None, "chameleon": chameleon_label(data), "regmix": None}
    for label, mixture in data.mixtures.items():
        column = "human" if data.experiment.methods.get(label, {}).get("preset") == "pile_human" else mixture.method
        if column in found and column != "chameleon":
            found[column] = found[column] or label
    return {column: label for column, label in found.items() if label is not None}


def robustness_table(data: ReportData) -> Table | None:
    """How far the paper's own weights moved with one setting (tables 12 and 14); None for domains of other names, or without a sweep."""
    names = tuple(PUBLISHED["slimpajama_chameleon"].raw)
    if data.sweep is None or set(data.names) != set(names) or chameleon_label(data) is None:
        return None
    own, rows = PublishedWeights("tables 12 and 14", dict(zip(names, _OWN_SETTING, strict=True))), []
    for setting, values in _OTHER_SETTINGS.items():
        printed = replace(own, raw=dict(zip(names, values, strict=True)))
        alike = spearman(np.array(values), np.array(_OWN_SETTING))
        rows.append(text_row(setting, (fixed(l1_distance(printed.weights, own.weights), 3), fixed(alike, 2), fixed(printed.raw_sum, 3))))
    note = (
        "The paper's: L1 distance and rank correlation of Chameleon's weights to those at its own setting, from the digits of tables 12 and 14, renormalised: "
        "as printed some do not sum to 1."
    )
    return Table(("the paper's, changed to", "L1", "rank correlation", "printed sum"), tuple(rows), note)


def finetuning_of(data: ReportData) -> Finetuning | None:
    """The paper's experiment on domains of these names, where it has one and a model was finetuned here."""
    if data.experiment.stage != "finetune":
        return None
    return next((each for each in FINETUNINGS if each.names == set(data.names)), None)


def columns_of(data: ReportData) -> dict[str, str]:
    """The paper's column -> the label of the mixture here that stands for it, where there is one: of several the one by the paper's own formula."""
    found = {BASELINE: BASELINE} if BASELINE in data.mixtures else {}
    by_formula = sorted(data.mixtures.items(), key=lambda item: item[1].provenance.get("settings", {}).get("variant") != "paper")
    for label, mixture in by_formula:
        settings = mixture.provenance.get("settings", {})
        if mixture.method == "chameleon" and "stage" in settings:
            found.setdefault(FINETUNED if settings["stage"] == "finetune" else PRETRAINED, label)
    return found


def paper_perplexity_table(data: ReportData, paper: Finetuning) -> Table:
    """Test perplexity here and in the paper, per domain and mixture, and in how many domains a mixture is better than uniform."""
    by_seed, ours = reported(data.measurements), {column: label for column, label in columns_of(data).items() if label in evaluated(data)}
    seeds = {label: set(by_seed[label, AVERAGE, "mean_perplexity"]) for label in ours.values()}
    shared = set.intersection(*seeds.values()) if seeds else set()

    def mean_of(label: str, name: str, metric: str) -> SeedMean:
        return summarise({seed: each for seed, each in by_seed[label, name, metric].items() if seed in (shared or seeds[label])})

    rows = []
    for name in data.measured:
        found = {column: mean_of(label, name, "perplexity") for column, label in ours.items()}
        cells = (f"{measured(each.mean, each.stderr)} ({paper.perplexity[column][name]:.2f})" for column, each in found.items())
        rows.append(text_row(name, cells))
    means = {column: mean_of(label, AVERAGE, "mean_perplexity") for column, label in ours.items()}
    printed = {column: math.fsum(values.values()) / len(values) for column, values in paper.perplexity.items()}
    rows.append(text_row("average", (f"{measured(each.mean, each.stderr)} ({printed[column]:.2f})" for column, each in means.items())))
    if BASELINE in ours:
        rows.append(text_row("better than uniform", (_wins(data, paper, column, label, shared) for column, label in ours.items())))
    different = len({frozenset(each) for each in seeds.values()}) > 1
    of_seeds = [str(seed) for seed in sorted(shared)]
    common = f" Of the seeds that all have: {listed(of_seeds)}." if shared else " No seed is common to all: means of different runs."
    note = (
        f"Test perplexity here, and in brackets that of the paper ({paper.tables}; a 684M model trained on the Pile, 10,000 steps). Other text, another model "
        f"and another tokenizer{_formulae(data, ours)}: compare what a mixture changes, not the values."
        f"{common if different else ''}"
    )
    return Table(("domain", *(_titled(column, label) for column, label in ours.items())), tuple(rows), note, 1 + (BASELINE in ours))


def paper_weight_table(data: ReportData, paper: Finetuning) -> Table | None:
    """Weights here beside the paper's alpha_FT, and how far they are from it; None without a mixture by scores."""
    ours = {column: label for column, label in columns_of(data).items() if column != BASELINE}
    if FINETUNED not in ours:
        return None
    printed = PUBLISHED[paper.weights].weights
    rows = [text_row(name, (number(printed[name], 3), *(_weight(data, label, name) for label in ours.values()))) for name in data.names]
    distances = (fixed(l1_distance(data.mixtures[label].weights, printed), 3) if column == FINETUNED else DASH for column, label in ours.items())
    rows.append(text_row("L1 distance to the paper's", (DASH, *distances)))
    note = f"Fraction of finetuning tokens; the paper's alpha_FT is that of its {paper.weight_table}. Uniform is 0.143." + (
        f" Ours differ in formula too{told}." if (told := _formulae(data, ours)) else ""
    )
    return Table(("domain", f"{FINETUNED}, paper", *(_titled(column, label) for column, label in ours.items())), tuple(rows), note, 1)


def _formulae(data: ReportData, ours: Mapping[str, str]) -> str:
    """Which variants made the weights here, where that is not the paper's own formula."""
    found = {label: data.mixtures[label].provenance.get("settings", {}).get("variant") for column, label in ours.items() if column != BASELINE}
    others = [f"{label} by variant {variant}" for label, variant in found.items() if variant not in (None, "paper")]
    return f" ({', '.join(others)}; the paper's is variant paper)" if others else ""


def _weight(data: ReportData, label: str, name: str) -> str:
    mixture = data.mixtures[label]
    return measured(mixture.weights[name], (mixture.weights_stderr or {}).get(name))


def _titled(column: str, label: str) -> str:
    return column if column == label else f"{column} ({label})"


def _wins(data: ReportData, paper: Finetuning, column: str, label: str, seeds: Collection[int]) -> str:
    if column == BASELINE:
        return DASH
    ours = domains_won(data, label, seeds)
    if ours is None:
        return DASH
    theirs = sum(paper.perplexity[column][name] < paper.perplexity[BASELINE][name] for name in paper.names)
    return f"{ours} of {len(data.measured)} ({theirs} of {len(paper.names)})"
