"""Tables of comparisons whose methods share seeds, for `analysis/results`: what differences they can find, the weights, perplexities, paired intervals.

Every method is fitted anew with every seed. The power table says how far a difference between two mixtures moves from seed to seed (standard deviation of
the paired differences on valid, and what it is at most with 95 % confidence), and the smallest difference that so many pairs find four times in five at the
5 % level (two-sided t test), by the one and by the other: to be read before the comparison.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy.optimize import brentq
from scipy.special import nctdtr
from scipy.stats import chi2
from scipy.stats import t as student

from analysis.pieces import BEFORE, Pieces, pieces_of
from chameleon_ray.backend import Backend
from chameleon_ray.evaluation.losses import mean_nats
from chameleon_ray.experiment import Experiment
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.pipeline import Comparison
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.ray_progress import Reporter
from chameleon_ray.report.intervals import METRICS
from chameleon_ray.report.page import table_markdown
from chameleon_ray.report.paper import transfer_table
from chameleon_ray.report.significance import by_pair, paired_differences

REPOSITORY = Path(__file__).resolve().parents[1]
KEPT = REPOSITORY / "analysis" / "results" / "pieces"

PAIRS = (3, 4, 6, 8)
Losses = Mapping[tuple[str, int, str], float]  # (method, seed, domain) -> nats per token


def seed_by_seed(
    experiment: Callable[[Sequence[int]], Experiment], seeds: Sequence[int], run: Callable[[Experiment, Backend], Comparison], together: bool, kept: Path
) -> None:
    """Run an experiment with every seed, keep what was found beside what earlier calls found (with other seeds, perhaps on other machines), and print
    everything as Markdown after each.

    Args:
        together: all seeds in one run, which fills the machine better where runs are short, on one sample of text and with one tokenizer.
        kept: the folder of what is kept, by the experiment's name.
    """
    os.environ["RAY_DEDUP_LOGS"] = "1"
    for chosen in [list(seeds)] if together else [[seed] for seed in seeds]:
        settings = experiment(chosen)
        found = run(settings, RayBackend(settings.storage, settings.resources, Reporter(Console(stderr=True))))
        folder, pieces = kept / settings.name, pieces_of(found, setting_of(settings, found.data.corpus.vocab_size))
        pieces = Pieces.load(folder).with_newer(pieces) if folder.exists() else pieces
        pieces.save(folder)
        changed = transfer_table(found.data)
        failed = [f"Failed: {label}: {why}" for label, why in found.data.failures.items()]
        print("\n\n".join([document(pieces), *([table_markdown(changed)] if changed else []), *failed, f"Report: {found.report}"]), end="\n\n", flush=True)


def parser_of(description: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """What every command line here takes: settings in any place, seeds (numbers with commas between) and where results lie."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: [int(each) for each in text.split(",")], default=list(seeds))
    parser.add_argument("--together", action="store_true", help="all seeds in one run, not one after the other")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where losses and weights are kept, by the experiment's name")
    return parser


def document(pieces: Pieces) -> str:
    """Everything as Markdown."""
    valid, losses = losses_of(pieces, "valid"), losses_of(pieces, "test")
    labels = [label for label in pieces.methods if shared_seeds(losses, label, pieces.seeds)]
    parts = [
        f"{pieces.setting}; seeds {pieces.seeds}{_precisions(pieces)}.",
        _on_valid(valid, labels, pieces.names(targets=False)),
        _power(valid, labels, pieces.seeds),
        _weights(pieces, labels),
        _perplexities(pieces, losses, labels),
    ]
    return "\n\n".join([*parts, _paired(pieces, labels)])


def losses_of(pieces: Pieces, split: str) -> Losses:
    """Losses on a split of every base model and of the model before; the mean over domains is domain "all"."""
    targets = pieces.names(targets=True)
    kept: dict[tuple[str, int, str], float] = {}
    for (label, seed), by_domain in pieces.runs(split).items():
        kept |= {(label, seed, name): loss.mean_nats for name, loss in by_domain.items()}
        kept[label, seed, "all"] = mean_nats({name: loss for name, loss in by_domain.items() if name not in targets})
    return kept


def setting_of(experiment: Experiment, vocab_size: int) -> str:
    """What runs have in common that may stand in one table."""
    base, length = experiment.base, experiment.corpus.row_tokens
    tokens = base.steps * base.batch_rows * length
    if base.model.pretrained is None:
        parameters = Architecture.gpt2(base.model, vocab_size, length).num_parameters
        trained = f"From scratch, {parameters:,} parameters, {tokens / parameters:.3g} tokens a parameter"
    else:
        trained = f"LoRA of rank {base.model.lora.rank}" if base.model.lora else "All weights"
    rate = f"learning rate {base.learning_rate:g} to {base.min_learning_rate:g}"
    return f"{trained}: {base.steps} steps of {base.batch_rows} rows of {length} tokens ({tokens:,} tokens), {rate}"


def _precisions(pieces: Pieces) -> str:
    """Where seeds were trained in different ones."""
    rows = pieces.losses.group_by(["precision", "seed"], use_threads=False).aggregate([]).to_pylist()
    found: dict[str, set[int]] = {}
    for row in rows:
        found.setdefault(row["precision"], set()).add(row["seed"])
    return "".join(f", {precision} {sorted(seeds)}" if len(found) > 2 else f", {precision}" for precision, seeds in found.items() if precision)


def _on_valid(losses: Losses, labels: Sequence[str], names: Sequence[str]) -> str:
    """What settings are chosen by."""
    told = []
    for label in (*([BEFORE] if any(key[0] == BEFORE for key in losses) else []), *labels):
        seeds = sorted({seed for other, seed, _ in losses if other == label})
        nats = np.array([[losses[label, seed, name] for name in names] for seed in seeds])
        with_seeds = "" if label == BEFORE else f", seeds {seeds}"
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


def _weights(pieces: Pieces, labels: Sequence[str]) -> str:
    """Means over fits with the standard error over them, of a single fit its own."""
    rows = pieces.weights.to_pylist()
    names = list(dict.fromkeys(row["domain"] for row in rows))
    lines = ["| weights | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label in labels:
        cells = []
        for name in names:
            fits = [row for row in rows if (row["method"], row["domain"]) == (label, name)]
            weights = np.array([row["weight"] for row in fits])
            error = weights.std(ddof=1) / math.sqrt(len(weights)) if len(weights) > 1 else fits[0]["stderr"]
            cells.append(f"{weights.mean():.3f}" + (f" ± {error:.3f}" if error else ""))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _perplexities(pieces: Pieces, losses: Losses, labels: Sequence[str]) -> str:
    """Per domain, mean over the seeds that a method shares with uniform, with the standard error of the paired difference where there is one."""
    before = sorted({seed for label, seed, _ in losses if label == BEFORE})
    columns = [*([BEFORE] if before else []), *labels]
    lines = ["| test perplexity | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    shared = {label: shared_seeds(losses, label, pieces.seeds) for label in labels} | {BEFORE: before}
    measured = pieces.names(targets=False)
    for name in (*measured, *pieces.names(targets=True)):
        cells = []
        for label in columns:
            values = np.exp([losses[label, seed, name] for seed in shared[label]])
            cells.append(f"{values.mean():.2f}")
            if label not in ("uniform", BEFORE) and len(values) > 1:
                against = values - np.exp([losses["uniform", seed, name] for seed in shared[label]])
                cells[-1] += f" ({against.mean():+.2f} ± {against.std(ddof=1) / math.sqrt(len(values)):.2f})"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    nats = {label: np.array([[losses[label, seed, name] for name in measured] for seed in shared[label]]) for label in columns}
    lines.append("| average | " + " | ".join(f"{np.exp(nats[label]).mean():.2f}" for label in columns) + " |")
    lines.append("| mean nats | " + " | ".join(f"{nats[label].mean():.4f}" for label in columns) + " |")
    uniform = {label: np.mean([[losses["uniform", seed, name] for name in measured] for seed in shared[label]], axis=0) for label in labels}
    wins = {label: str(int((nats[label].mean(axis=0) < uniform[label]).sum())) for label in labels if label != "uniform"}
    lines.append("| better than uniform | " + " | ".join(wins.get(label, "") for label in columns) + " |")
    return "\n".join(lines)


def _paired(pieces: Pieces, labels: Sequence[str]) -> str:
    """95 % intervals over seeds and documents, as the report has them, on the domains together and on each target."""
    targets = pieces.names(targets=True)
    runs = {run: losses for run, losses in pieces.runs("test").items() if run[0] != BEFORE}
    asked = {"average": pieces.names(targets=False), **{target: [target] for target in targets}}
    lines = ["| against uniform | of | perplexity | nats |", "|---|---|---|---|"]
    for title, names in asked.items():
        pairs = paired_differences({run: {name: losses[name] for name in names} for run, losses in runs.items()})
        for label in (label for label in labels if label != "uniform"):
            cells = []
            for metric, digits in zip(METRICS, (2, 4), strict=True):
                pair = by_pair(pairs, metric)[label, "uniform"]
                cells.append(f"{pair.difference:+.{digits}f} [{pair.low:+.{digits}f}, {pair.high:+.{digits}f}]")
            lines.append(f"| {label} | {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
