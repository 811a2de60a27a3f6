"""Tables of a comparison whose methods share seeds, for `analysis/results`: what differences it can find, the weights, perplexities, paired intervals.

The power table says how far a difference between two mixtures moves from seed to seed (standard deviation of the paired differences on valid, and what it
is at most with 95 % confidence), and the smallest difference that so many pairs find four times in five at the 5 % level (two-sided t test), by the one and by
the other: to be read before the comparison.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich.console import Console
from scipy.optimize import brentq
from scipy.special import nctdtr
from scipy.stats import chi2
from scipy.stats import t as student

from chameleon_ray.backend import Backend
from chameleon_ray.experiment import Experiment
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.pipeline import Comparison
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.ray_progress import Reporter
from chameleon_ray.report.intervals import METRICS
from chameleon_ray.report.page import table_markdown
from chameleon_ray.report.paper import transfer_table
from chameleon_ray.report.significance import by_pair
from chameleon_ray.report.tables import mixture_table

PAIRS = (3, 4, 6, 8)
Losses = Mapping[tuple[str, int, str], float]  # (method, seed, domain) -> nats per token


def seed_by_seed(
    experiment: Callable[[Sequence[int]], Experiment], seeds: Sequence[int], run: Callable[[Experiment, Backend], Comparison], together: bool = False
) -> None:
    """Run an experiment with its first seed, then with two, and so on, and print everything as Markdown after each, so that hours of work may be cut in
    pieces: what an earlier call finished is found, where its list of seeds is the beginning of this one. The first seed decides corpus and order of rows.

    Args:
        together: all seeds in one run, which fills the machine better where runs are short.
    """
    os.environ["RAY_DEDUP_LOGS"] = "1"
    for count in range(len(seeds) if together else 1, len(seeds) + 1):
        settings = experiment(seeds[:count])
        found = run(settings, RayBackend(settings.storage, settings.resources, Reporter(Console(stderr=True))))
        print(document(settings, found), end="\n\n", flush=True)


def parser_of(description: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """What every command line here takes: settings in any place, seeds (numbers with commas between) and where results lie."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: [int(each) for each in text.split(",")], default=list(seeds))
    parser.add_argument("--together", action="store_true", help="all seeds in one run, not one after the other")
    parser.add_argument("--storage", default="runs")
    return parser


def document(experiment: Experiment, found: Comparison) -> str:
    """Everything as Markdown."""
    valid, losses = losses_of(found, "valid"), losses_of(found, "test")
    labels = [label for label in experiment.methods if shared_seeds(losses, label, experiment.seeds)]
    parts = [
        _setting(experiment, found.data.corpus.vocab_size),
        _on_valid(valid, labels, found.data.measured),
        _power(valid, labels, experiment.seeds),
        table_markdown(mixture_table(found.data)),
        _perplexities(found, losses, labels, experiment.seeds),
    ]
    changed = transfer_table(found.data)
    failed = [f"Failed: {label}: {why}" for label, why in found.data.failures.items()]
    return "\n\n".join([*parts, _paired(found, labels), *([table_markdown(changed)] if changed else []), *failed, f"Report: {found.report}"])


def losses_of(found: Comparison, split: str) -> dict[tuple[str, int, str], float]:
    """Losses on a split of every base model, and of the model before as method "before"; the mean over domains is domain "all"."""
    kept = {}
    tables = [(found.data.measurements, None), *([(found.data.before, "before")] if found.data.before else [])]
    for table, name in tables:
        for row in table.to_pylist():
            if row["split"] == split and row["metric"] in ("loss_nats", "mean_loss_nats"):
                kept[name or row["method"], row["seed"], row["domain"]] = row["value"]
    return kept


def _setting(experiment: Experiment, vocab_size: int) -> str:
    base, length = experiment.base, experiment.corpus.row_tokens
    tokens = base.steps * base.batch_rows * length
    if base.model.pretrained is None:
        parameters = Architecture.gpt2(base.model, vocab_size, length).num_parameters
        trained = f"From scratch, {parameters:,} parameters, {tokens / parameters:.3g} tokens a parameter"
    else:
        trained = f"LoRA of rank {base.model.lora.rank}" if base.model.lora else "All weights"
    fits = "; every method fitted anew with every seed" if experiment.fit_every_seed else ""
    return (
        f"{trained}: {base.steps} steps of {base.batch_rows} rows of {length} tokens ({tokens:,} tokens), learning rate {base.learning_rate:g} "
        f"to {base.min_learning_rate:g}; seeds {list(experiment.seeds)}{fits}."
    )


def _on_valid(losses: Losses, labels: Sequence[str], names: Sequence[str]) -> str:
    """What settings are chosen by."""
    told = []
    for label in (*(["before"] if any(key[0] == "before" for key in losses) else []), *labels):
        seeds = sorted({seed for other, seed, _ in losses if other == label})
        nats = np.array([[losses[label, seed, name] for name in names] for seed in seeds])
        with_seeds = "" if label == "before" else f", seeds {seeds}"
        told.append(f"{label} {nats.mean():.4f} ({np.exp(nats).mean():.2f}{with_seeds})")
    return f"Valid, mean nats (average perplexity): {', '.join(told)}."


def _power(losses: Losses, labels: Sequence[str], seeds: Sequence[int]) -> str:
    """Paired differences from uniform in percent of geometric-mean perplexity: their mean, spread over seeds, and what more pairs would find."""
    lines = ["| valid, against uniform, % of geometric-mean perplexity | mean | SD of a pair | SE |" + "".join(f" {n} pairs find |" for n in PAIRS)]
    lines.append("|---" * (4 + len(PAIRS)) + "|")
    for label in labels:
        shared = shared_seeds(losses, label, seeds)
        if label == "uniform" or len(shared) < 2:
            continue
        pairs = np.array([100 * math.expm1(losses[label, seed, "all"] - losses["uniform", seed, "all"]) for seed in shared])
        spread, n = float(pairs.std(ddof=1)), len(pairs)
        most = spread * math.sqrt((n - 1) / chi2.ppf(0.05, n - 1))
        found = (f"{smallest(n) * spread:.2f} to {smallest(n) * most:.2f}" for n in PAIRS)
        cells = [f"{pairs.mean():+.2f}", f"{spread:.2f}, at most {most:.2f}", f"{spread / math.sqrt(n):.2f}", *found]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def smallest(pairs: int, power: float = 0.8) -> float:
    """The difference, in standard deviations of a pair, that a two-sided t test of so many pairs at the 5 % level finds with this probability."""
    critical = student.ppf(0.975, pairs - 1)

    def missed(shift: float) -> float:
        return float(nctdtr(pairs - 1, shift, critical)) - (1 - power)  # found on the wrong side: next to never

    return float(brentq(missed, 0.1, 10.0)) / math.sqrt(pairs)


def shared_seeds(losses: Losses, label: str, seeds: Sequence[int]) -> list[int]:
    """The seeds with which both a method and uniform weights were trained and measured."""
    return [seed for seed in seeds if (label, seed, "all") in losses and ("uniform", seed, "all") in losses]


def _perplexities(found: Comparison, losses: Losses, labels: Sequence[str], seeds: Sequence[int]) -> str:
    """Per domain, mean over the seeds that a method shares with uniform, with the standard error of the paired difference where there is one."""
    before = {key: value for key, value in losses.items() if key[0] == "before"}
    columns = [*(["before"] if before else []), *labels]
    lines = ["| test perplexity | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    shared = {label: shared_seeds(losses, label, seeds) for label in labels} | {"before": sorted({seed for _, seed, _ in before})}
    for name in (*found.data.measured, *found.data.corpus.targets):
        cells = []
        for label in columns:
            values = np.exp([losses[label, seed, name] for seed in shared[label]])
            cells.append(f"{values.mean():.2f}")
            if label not in ("uniform", "before") and len(values) > 1:
                against = values - np.exp([losses["uniform", seed, name] for seed in shared[label]])
                cells[-1] += f" ({against.mean():+.2f} ± {against.std(ddof=1) / math.sqrt(len(values)):.2f})"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    nats = {label: np.array([[losses[label, seed, name] for name in found.data.measured] for seed in shared[label]]) for label in columns}
    lines.append("| average | " + " | ".join(f"{np.exp(nats[label]).mean():.2f}" for label in columns) + " |")
    lines.append("| mean nats | " + " | ".join(f"{nats[label].mean():.4f}" for label in columns) + " |")
    uniform = {label: np.mean([[losses["uniform", seed, name] for name in found.data.measured] for seed in shared[label]], axis=0) for label in labels}
    wins = {label: str(int((nats[label].mean(axis=0) < uniform[label]).sum())) for label in labels if label != "uniform"}
    lines.append("| better than uniform | " + " | ".join(wins.get(label, "") for label in columns) + " |")
    return "\n".join(lines)


def _paired(found: Comparison, labels: Sequence[str]) -> str:
    """95 % intervals over seeds and documents, as the report has them."""
    lines = ["| against uniform | average perplexity | mean nats |", "|---|---|---|"]
    for label in (label for label in labels if label != "uniform"):
        cells = []
        for metric, digits in zip(METRICS, (2, 4), strict=True):
            pair = by_pair(found.data.differences, metric)[label, "uniform"]
            cells.append(f"{pair.difference:+.{digits}f} [{pair.low:+.{digits}f}, {pair.high:+.{digits}f}]")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
