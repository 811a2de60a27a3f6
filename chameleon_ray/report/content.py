"""The report from top to bottom, as sections of paragraphs, tables, pictures and code; `page.py` writes them down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import yaml

from chameleon_ray.experiment import describe
from chameleon_ray.report import cluster_tables, comparison_tables, corpus_tables, figures, numbers, paper, tables
from chameleon_ray.report.data import BASELINE, ReportData
from chameleon_ray.report.intervals import METRICS
from chameleon_ray.report.projection import MIN_UMAP_POINTS, embedding_map
from chameleon_ray.report.styles import Picture, domain_styles, method_styles, picture
from chameleon_ray.report.tables import Table
from chameleon_ray.report.verdict import findings, verdict, warnings

MAX_DRAWN_DOMAINS = 40


@dataclass(frozen=True)
class Code:
    """Text to show letter by letter, folded away under its title where the page can."""

    title: str
    text: str


Block = str | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """A whole page, and the numbers that lie beside it: file stem -> table."""

    title: str
    verdict: str
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    numbers: Mapping[str, pa.Table] = field(repr=False)


def build_report(data: ReportData) -> Report:
    """All sections that the data allows, and the numbers under them."""
    measured = _numbers(data)
    names = drawn_names(data)
    sections = [
        _failures(data),
        _mixture(data, measured["mixture"], names),
        _clusters(data, measured),
        _perplexity(data, measured["perplexity"], tuple(name for name in names if name in data.measured)),
        _paper(data),
        _significance(data),
        _cost(data),
        _scores(data, measured["affinity"], names),
    ]
    if data.embeddings is not None:
        shown = tuple(name for name in names if name in data.embeddings.names)
        measured["embedding_map"], projection = embedding_map(data.embeddings.select(shown), data.experiment.seeds[0])
        sections.append(_embedding(data, measured["embedding_map"], shown, projection))
    sections += [_histories(data, names), _sweep(data, names), _curves(data, measured["curves"], names), _settings(data)]
    kept = tuple(section for section in sections if section.blocks)
    return Report(data.experiment.name, verdict(data), tuple(findings(data)), tuple(warnings(data)), kept, measured)


def _numbers(data: ReportData) -> dict[str, pa.Table]:
    measured = {
        "mixture": numbers.mixture_numbers(data),
        "spread": numbers.spread_numbers(data),
        "perplexity": numbers.perplexity_numbers(data),
        "affinity": numbers.affinity_numbers(data),
        "spectrum": numbers.spectrum_numbers(data),
        "curves": numbers.curve_numbers(data.curves),
        "costs": numbers.cost_numbers(data),
        "epochs": numbers.epoch_numbers(data),
    }
    if data.clusters is not None:
        measured["clusters"] = cluster_tables.cluster_numbers(data)
    if data.differences:
        measured["significance"] = numbers.significance_numbers(data.differences)
    if data.histories is not None:
        measured |= {"histories": data.histories, "drift": numbers.drift_numbers(data.histories)}
    if data.sweep is not None:
        measured["sweep"] = data.sweep
    return measured


def drawn_names(data: ReportData) -> tuple[str, ...]:
    """The domains that pictures show: all, or those with the largest weight in any mixture when there are too many."""
    if len(data.names) <= MAX_DRAWN_DOMAINS:
        return data.names
    largest = {name: max((mixture.weights[name] for mixture in data.mixtures.values()), default=0.0) for name in data.names}
    chosen = set(sorted(data.names, key=lambda name: -largest[name])[:MAX_DRAWN_DOMAINS])
    return tuple(name for name in data.names if name in chosen)


def _caption(text: str, data: ReportData, names: tuple[str, ...]) -> str:
    if len(names) == len(data.names):
        return text
    return f"{text} Drawn are the {len(names)} domains of {len(data.names)} with the largest weights."


def _failures(data: ReportData) -> Section:
    return Section("failures", "Failures", (comparison_tables.failure_table(data),) if data.failures else ())


def _mixture(data: ReportData, table: pa.Table, names: tuple[str, ...]) -> Section:
    if not data.mixtures:
        return Section("mixture", "Mixture", ())
    labels = [label for label in data.mixtures if label != BASELINE] or list(data.mixtures)
    styles = method_styles(data.labels)
    errors = " Error bars: standard errors." if any(mixture.weights_stderr for mixture in data.mixtures.values()) else ""
    caption = _caption(f"Weight of each domain by method; the dashed line is uniform.{errors}", data, names)
    drawn = picture("mixture", "Weights per domain and method", caption, partial(figures.mixture_figure, table, names, labels, styles))
    priors = tuple(table for table in (tables.prior_table(data),) if table is not None)
    explained = tuple(f"{label}: {' '.join(mixture.explanation)}" for label, mixture in data.mixtures.items() if mixture.explanation)
    epochs = tuple(table for table in (corpus_tables.epochs_table(data),) if table is not None)
    return Section("mixture", "Mixture", (tables.mixture_table(data), drawn, *priors, *explained, *epochs))


def _clusters(data: ReportData, measured: Mapping[str, pa.Table]) -> Section:
    blocks = cluster_tables.cluster_tables(data, measured["clusters"]) if "clusters" in measured else ()
    return Section("clusters", "Domains that were found", tuple(blocks))


def _perplexity(data: ReportData, table: pa.Table, names: tuple[str, ...]) -> Section:
    if not table.num_rows:
        return Section("perplexity", "Perplexity per domain", ())
    blocks: list[Block] = [tables.perplexity_table(data), *(shown for shown in (tables.unseen_table(data), tables.bits_table(data)) if shown is not None)]
    compared = {row["method"] for row in table.to_pylist() if row["change_percent"] is not None}
    labels = [label for label in data.labels if label in compared]
    if labels:
        styles = method_styles(data.labels)
        caption = "Change of the test perplexity from uniform, paired by seed; left is better. Error bars: standard errors over two or more seeds."
        draw = partial(figures.change_figure, table, names, labels, styles)
        if data.measured != data.names:
            caption += f" Measured are {len(data.measured)} domains of {len(data.names)}."
        if len(data.names) > MAX_DRAWN_DOMAINS:
            caption = _caption(caption, data, names)
        blocks.append(picture("perplexity", "Change of perplexity from uniform", caption, draw))
    return Section("perplexity", "Perplexity per domain", tuple(blocks))


def _paper(data: ReportData) -> Section:
    if (pile := paper.pile_table(data)) is not None:
        perplexities = paper.pile_perplexity_table(data)
        return Section("paper", "Beside the paper: the Pile", (*((perplexities,) if perplexities else ()), pile))
    found = paper.finetuning_of(data)
    if found is None or not data.measurements.num_rows:
        return Section("paper", "Beside the paper", ())
    weights = paper.paper_weight_table(data, found)
    return Section("paper", f"Beside the paper: {found.title}", (paper.paper_perplexity_table(data, found), *((weights,) if weights else ())))


def _significance(data: ReportData) -> Section:
    blocks: list[Block] = []
    if pairs := data.differences:
        blocks = [comparison_tables.significance_text(pairs, data.refitted)]
        blocks += [comparison_tables.significance_table(pairs, metric, data.labels) for metric in METRICS]
    return Section("significance", "Differences between methods", tuple(blocks))


def _scores(data: ReportData, affinity: pa.Table, names: tuple[str, ...]) -> Section:
    blocks: list[Block] = [table for table in (tables.score_table(data), tables.spectrum_table(data)) if table is not None]
    for label in dict.fromkeys(affinity["method"].to_pylist()):
        blocks.append(_affinity(data, affinity, names, label))
    return Section("scores", "Scores and spectrum", tuple(blocks))


def _affinity(data: ReportData, affinity: pa.Table, names: tuple[str, ...], label: str) -> Picture:
    caption = (
        f"Affinity matrix of {label}, shown cosine-normalised: each entry of Omega divided by the norms of its two domains. "
        "The raw matrix is in numbers/affinity.parquet."
    )
    name = f"affinity-{list(data.mixtures).index(label)}"
    draw = partial(figures.affinity_figure, affinity, names, label)
    return picture(name, f"Affinity of the domains, {label}", _caption(caption, data, names), draw)


def _embedding(data: ReportData, table: pa.Table, names: tuple[str, ...], projection: str) -> Section:
    assert data.embeddings is not None
    how = f"UMAP, seed {data.experiment.seeds[0]}; distances between far groups mean little"
    if projection == "PCA":
        how = f"first two principal components, because UMAP needs {MIN_UMAP_POINTS} points and there are {table.num_rows}"
    text = f"Each point is the mean embedding of one group of a domain's samples ({how}). Hidden state after layer {data.embeddings.layer}."
    styles = domain_styles(data.names)
    draw = partial(figures.embedding_figure, table, names, styles, projection)
    drawn = picture("embedding_map", "Map of the domain embeddings", _caption(text, data, names), draw)
    return Section("embeddings", "Map of the embeddings", (drawn,))


def _curves(data: ReportData, table: pa.Table, names: tuple[str, ...]) -> Section:
    present = set(table["method"].to_pylist())
    labels = [label for label in data.labels if label in present]
    if not labels:
        return Section("curves", "Loss curves", ())
    styles = method_styles(data.labels)
    window = numbers.curve_window_steps(data.curves)
    how = f"mean over seeds, band from the lowest to the highest seed{f', averaged over {window} steps' if window > 1 else ''}"
    whole = f"Training loss of the whole batch, {how}. Batches of different mixtures hold different text, so a lower curve is not a better model."
    blocks: list[Block] = [picture("curves", "Training loss by method", whole, partial(figures.curve_figure, table, labels, styles))]
    trained = set(table["domain"].to_pylist())
    shown = tuple(name for name in names if name in trained)
    if shown:
        draw = partial(figures.domain_curves_figure, table, shown, labels, styles)
        caption = _caption(f"The same on each domain's share of the batch, {how}.", data, names)
        blocks.append(picture("curves-domains", "Training loss per domain", caption, draw))
    return Section("curves", "Loss curves", tuple(blocks))


def _histories(data: ReportData, names: tuple[str, ...]) -> Section:
    if data.histories is None or not data.histories.num_rows:
        return Section("steps", "Weights against proxy steps", ())
    caption = (
        "Weights as the proxy trains; of methods that learn them step by step, the mean over the steps so far, which is their answer. "
        "The dashed line is uniform; each panel has its own scale."
    )
    draw = partial(figures.history_figure, data.histories, names, len(data.names), domain_styles(data.names))
    drawn = picture("histories", "Weights against the steps of the proxy, by method", _caption(caption, data, names), draw)
    return Section("steps", "Weights against proxy steps", (drawn, comparison_tables.drift_table(data.histories)))


def _sweep(data: ReportData, names: tuple[str, ...]) -> Section:
    if data.sweep is None or not data.sweep.num_rows:
        return Section("sweep", "Sweep", ())
    own = {label: mixture.weights for label, mixture in data.mixtures.items()}
    printed = paper.robustness_table(data)
    blocks: list[Block] = [comparison_tables.sweep_table(data.sweep, data.names, own), *([printed] if printed else [])]
    sweep = data.experiment.sweep
    for i, (key, values) in enumerate(sweep.each.items() if sweep else ()):
        points = {describe({key: value}): describe({key: value}).partition("=")[2] for value in values}
        shown = [entry for entry in numbers.sweep_numbers(data.sweep, own) if entry["point"] in points]
        if shown:
            caption = (
                f"Weights by domain for values of {key}, everything else as it is. Beneath each value L1 distance and rank correlation (ρ) to the weights at "
                "the experiment's own settings, which the dots at the left are."
            )
            draw = partial(figures.sweep_figure, shown, points, key, own, names, domain_styles(data.names))
            blocks.append(picture(f"sweep-{i}", f"Weights against {key}", _caption(caption, data, names), draw))
    return Section("sweep", "Sweep", tuple(blocks))


def _cost(data: ReportData) -> Section:
    change = paper.transfer_table(data)
    blocks: list[Block] = [*([tables.cost_table(data)] if data.mixtures else []), *([change] if change else [])]
    return Section("cost", "Cost", (*blocks, *((tables.phase_table(data),) if data.seconds else ())))


def _settings(data: ReportData) -> Section:
    first, *others = data.experiment.seeds
    fits = "Mixtures: each with the seed of the base model that trains on it; the corpus" if data.refitted else "Mixtures and the corpus"
    seeds = f"Base models: seeds {', '.join(map(str, data.experiment.seeds))}. {fits}: seed {first}." if others else f"Seed {first} throughout."
    methods = {label: mixture.provenance["settings"] for label, mixture in data.mixtures.items() if mixture.provenance.get("settings")}
    blocks: list[Block] = [seeds, Code("The experiment as YAML", _yaml(data.experiment.model_dump(mode="json", exclude_none=True)))]
    if methods:
        blocks.append(Code("Settings of every method, defaults included", _yaml(methods)))
    if data.addresses:
        blocks.append(tables.model_table(data))
    text = tuple(table for table in (corpus_tables.reading_table(data), corpus_tables.quality_table(data)) if table is not None)
    return Section("settings", "Settings", (*blocks, corpus_tables.corpus_table(data), *text, tables.version_table()))


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=100)
