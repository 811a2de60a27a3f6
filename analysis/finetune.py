"""Finetuning under uniform weights, alpha_FT and alpha_PT, a seed at a time: the tables of `analysis/results/finetune.md`.

    CHAMELEON_DATA=… python -m analysis.finetune wiki7 --base FOLDER_OR_GGUF --seeds 0 1 2 [key=value …]

Every seed is a run of its own that a later call finds finished, so that hours of work may be cut in pieces; whatever is finished is tabulated. The power
table says how far a difference between two mixtures moves from seed to seed (standard deviation of the paired differences), and the smallest difference
that so many pairs find four times in five at the 5 % level (two-sided t test): to be read before the comparison.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy.stats import t as student

from chameleon_ray.experiment import Experiment, load_experiment
from chameleon_ray.pipeline import Comparison, finetune
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.ray_progress import Reporter
from chameleon_ray.report.intervals import METRICS
from chameleon_ray.report.significance import by_pair

REPOSITORY = Path(__file__).resolve().parents[1]
JOBS = {"wiki7": "finetune_wiki40b", "stack7": "finetune_stack"}
PAIRS = (3, 4, 6, 8)
Losses = Mapping[tuple[str, int, str], float]  # (method, seed, domain) -> nats per token


def main() -> None:
    """Run what is missing of the seeds that are asked for, and print the tables of all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", choices=JOBS)
    parser.add_argument("overrides", nargs="*", help="settings, key=value")
    parser.add_argument("--base", required=True, help="the model to finetune: a folder, a GGUF file or a hub name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--storage", default="runs")
    options = parser.parse_args()
    os.environ["RAY_DEDUP_LOGS"] = "1"
    common = [f"@{REPOSITORY}/jobs/local/{options.text}.yaml", f"base.model.pretrained={options.base}", f"storage={options.storage}", *options.overrides]
    job = REPOSITORY / "jobs" / f"{JOBS[options.text]}.yaml"
    for count in range(1, len(options.seeds) + 1):
        experiment = load_experiment(job, [*common, f"seeds={options.seeds[:count]}"])
        found = finetune(experiment, RayBackend(experiment.storage, experiment.resources, Reporter(Console(stderr=True))))
    print(document(experiment, found))


def document(experiment: Experiment, found: Comparison) -> str:
    """Everything as Markdown."""
    valid, losses = losses_of(found, "valid"), losses_of(found, "test")
    labels = [label for label in experiment.methods if (label, experiment.seeds[0], "all") in losses]
    parts = [_setting(experiment), _power(valid, labels, experiment.seeds), _weights(found), _perplexities(found, losses, labels, experiment.seeds)]
    return "\n\n".join([*parts, _paired(found, labels)]) + f"\n\nReport: {found.report}\n"


def losses_of(found: Comparison, split: str) -> dict[tuple[str, int, str], float]:
    """Losses on a split of every base model, and of the model before as method "before"; the mean over domains is domain "all"."""
    kept = {}
    tables = [(found.data.measurements, None), *([(found.data.before, "before")] if found.data.before else [])]
    for table, name in tables:
        for row in table.to_pylist():
            if row["split"] == split and row["metric"] in ("loss_nats", "mean_loss_nats"):
                kept[name or row["method"], row["seed"], row["domain"]] = row["value"]
    return kept


def _setting(experiment: Experiment) -> str:
    base, rows = experiment.base, experiment.base.batch_rows
    tokens = base.steps * rows * experiment.corpus.row_tokens
    lora = f"LoRA of rank {base.model.lora.rank}" if base.model.lora else "all weights"
    rate = f"learning rate {base.learning_rate:g} to {base.min_learning_rate:g}"
    return f"{lora}, {base.steps} steps of {rows} rows of {experiment.corpus.row_tokens} tokens ({tokens:,} tokens), {rate}; seeds {list(experiment.seeds)}."


def _power(losses: Losses, labels: Sequence[str], seeds: Sequence[int]) -> str:
    """Paired differences from uniform in percent of geometric-mean perplexity: their mean, spread over seeds, and what more pairs would find."""
    lines = ["| valid, against uniform, % of geometric-mean perplexity | mean | SD of a pair | SE |" + "".join(f" {n} pairs find |" for n in PAIRS)]
    lines.append("|---" * (4 + len(PAIRS)) + "|")
    for label in labels:
        if label == "uniform" or len(seeds) < 2:
            continue
        pairs = np.array([100 * math.expm1(losses[label, seed, "all"] - losses["uniform", seed, "all"]) for seed in seeds])
        spread = float(pairs.std(ddof=1))
        smallest = [spread / math.sqrt(n) * (student.ppf(0.975, n - 1) + student.ppf(0.8, n - 1)) for n in PAIRS]
        cells = [f"{pairs.mean():+.2f}", f"{spread:.2f}", f"{spread / math.sqrt(len(seeds)):.2f}", *(f"{each:.2f}" for each in smallest)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _weights(found: Comparison) -> str:
    labels, names = list(found.data.mixtures), found.data.names
    lines = ["| weights | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label in labels:
        mixture = found.data.mixtures[label]
        errors = mixture.weights_stderr or {}
        lines.append(f"| {label} | " + " | ".join(f"{mixture.weights[n]:.3f}" + (f" ± {errors[n]:.3f}" if n in errors else "") for n in names) + " |")
    return "\n".join(lines)


def _perplexities(found: Comparison, losses: Losses, labels: Sequence[str], seeds: Sequence[int]) -> str:
    """Per domain, mean over seeds, with the standard error of the paired difference from uniform where there is one."""
    first = seeds[0]
    lines = ["| test perplexity | before | " + " | ".join(labels) + " |", "|---" * (len(labels) + 2) + "|"]
    for name in found.data.measured:
        cells = [f"{math.exp(losses['before', first, name]):.2f}"]
        for label in labels:
            values = np.exp([losses[label, seed, name] for seed in seeds])
            against = values - np.exp([losses["uniform", seed, name] for seed in seeds])
            error = f" ({against.mean():+.2f} ± {against.std(ddof=1) / math.sqrt(len(seeds)):.2f})" if label != "uniform" and len(seeds) > 1 else ""
            cells.append(f"{values.mean():.2f}{error}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = {label: np.mean([[losses[label, seed, name] for name in found.data.measured] for seed in seeds], axis=0) for label in labels}
    before = np.array([losses["before", first, name] for name in found.data.measured])
    everything = [before, *(means[label] for label in labels)]
    lines.append("| average | " + " | ".join(f"{np.exp(each).mean():.2f}" for each in everything) + " |")
    lines.append("| mean nats | " + " | ".join(f"{each.mean():.4f}" for each in everything) + " |")
    wins = [str(int((means[label] < means["uniform"]).sum())) if label != "uniform" else "" for label in labels]
    lines.append("| better than uniform | | " + " | ".join(wins) + " |")
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


if __name__ == "__main__":
    main()
