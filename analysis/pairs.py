"""Tables of comparisons whose methods share seeds, for `analysis/results`: what differences they can find, the weights, perplexities, paired intervals.

Every seed is a run of its own: text in another order, methods fitted anew.

The power table says how far a difference between two mixtures moves from seed to seed on the valid documents that there are (standard deviation of the
paired differences, and what it is at most with 95 % confidence), and the smallest difference that so many pairs find four times in five at the 5 % level
(two-sided t test), by the one and by the other: to be read before the comparison. It says nothing of other documents: the intervals of the comparison do, and
are wider for it, the more so the fewer documents a domain has.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy.optimize import brentq
from scipy.special import nctdtr
from scipy.stats import chi2
from scipy.stats import t as student

from analysis.kept import Kept, Setting, kept_of
from chameleon_ray.backend import Backend
from chameleon_ray.corpus.sources import combined, plan_sources
from chameleon_ray.discovery import domains_before
from chameleon_ray.evaluation.losses import mean_nats
from chameleon_ray.experiment import Experiment
from chameleon_ray.identity import NOT_IN_DIGEST, VERSIONS
from chameleon_ray.mixing.method import Method
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.pipeline import Comparison
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.ray_progress import Reporter
from chameleon_ray.report.data import BEFORE
from chameleon_ray.report.intervals import METRICS
from chameleon_ray.report.page import table_markdown
from chameleon_ray.report.paper import transfer_table
from chameleon_ray.report.significance import by_pair, paired_differences

REPOSITORY = Path(__file__).resolve().parents[1]
KEPT = REPOSITORY / "analysis" / "results" / "kept"

PAIRS = (3, 4, 6, 8)
# Kinds of artifacts on the way to a loss.
MEASURED_WITH = ("tokenizer", "corpus", "model", "proxy", "embeddings", "glance", "mixture", "losses")
Means = Mapping[tuple[str, int, str], float]  # (method, seed, domain) -> nats per token


def seed_by_seed(experiment: Callable[[Sequence[int]], Experiment], seeds: Sequence[int], run: Callable[[Experiment, Backend], Comparison], kept: Path) -> None:
    """Run an experiment with every seed, one after the other, keep what was found beside what earlier calls found (with other seeds, perhaps on other
    machines), and print everything as Markdown after each.

    Args:
        kept: the folder of what is kept, by the experiment's name.
    Raises:
        UserError: what is kept by this name was set otherwise, before anything is trained; or was measured on other documents, and nothing more is kept.
    """
    os.environ["RAY_DEDUP_LOGS"] = "1"
    for seed in seeds:
        settings = experiment([seed])
        backend = RayBackend(settings.storage, settings.resources, Reporter(Console(stderr=True)))
        folder, setting = kept / settings.name, setting_of(settings, backend, text_of(settings))
        if earlier := Kept.load(folder):
            earlier.check(setting)
        found = run(settings, backend)
        changed = transfer_table(found.data)
        failed = [f"Failed: {label}: {why}" for label, why in found.data.failures.items()]
        print("\n\n".join([f"Report: {found.report}", *failed, *([table_markdown(changed)] if changed else [])]), end="\n\n", flush=True)
        newer = kept_of(found, setting)
        earlier = Kept.load(folder)  # another run may have kept more since
        whole = earlier.with_newer(newer) if earlier else newer
        whole.save(folder, newer.seeds)
        print(document(whole), end="\n\n", flush=True)


def parser_of(description: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """What every command line here takes: settings in any place, seeds (numbers with commas between) and where results lie."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: [int(each) for each in text.split(",")], default=list(seeds))
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where losses and weights are kept, by the experiment's name")
    return parser


def document(kept: Kept) -> str:
    """Everything as Markdown."""
    valid, losses = means_of(kept, "valid"), means_of(kept, "test")
    labels = [label for label in kept.methods if shared_seeds(losses, label, kept.seeds)]
    parts = [
        f"{kept.setting['training']}; seeds {kept.seeds}{_precisions(kept)}.",
        _on_valid(valid, labels, kept.names(targets=False)),
        _power(valid, labels, kept.seeds),
        _weights(kept, losses, labels),
        _documents(kept),
        _perplexities(kept, losses, labels),
        _paired(kept, labels),
    ]
    return "\n\n".join(part for part in parts if part)


def means_of(kept: Kept, split: str) -> Means:
    """Losses on a split of every base model and of the model before; the mean over domains is domain "all"."""
    targets = kept.names(targets=True)
    found: dict[tuple[str, int, str], float] = {}
    for (label, seed), by_domain in kept.runs(split).items():
        found |= {(label, seed, name): loss.mean_nats for name, loss in by_domain.items()}
        found[label, seed, "all"] = mean_nats({name: loss for name, loss in by_domain.items() if name not in targets})
    return found


def text_of(experiment: Experiment) -> list[str]:
    """What tells the text of an experiment (of domains that are known) from any other, and that of the proxy's domains where these are others: the content of
    files up to 64 MiB, wherever they lie; of larger ones and remote ones what `storage.fingerprint` and listings tell, which a copy elsewhere may lack."""
    transfer = [] if experiment.transfer is None else [domains_before(experiment)]
    plans = [plan_sources(config, experiment.reads) for config in (experiment.corpus, *transfer)]
    return [combined(f"{source.origin.domain} {source.origin.heldout} {source.fingerprint}" for source in sources) for sources in plans]


def setting_of(experiment: Experiment, backend: Backend, text: Sequence[str]) -> Setting:
    """What runs have in common that may stand in one table: everything but how they are computed and where files and models lie. Of text (`text_of`) and of
    pretrained models of the base and the proxy the content counts, and the versions of what makes results of them."""
    contents: dict[str, str] = {}
    for where, model in (("base", experiment.base.model), ("proxy", experiment.proxy.model)):
        if model.pretrained:
            name, row_tokens = model.pretrained, experiment.corpus.row_tokens
            contents[name] = backend.find_model(name, row_tokens, f"{where}.model.pretrained", model.allow_remote_code).digest
    sections = experiment.model_dump(mode="json", exclude={"name", "seeds", "storage", "sweep", "resources"})
    found = {key: _without_places(value, contents) for key, value in sections.items()}
    methods = {label: {**settings, **_versions(experiment.mixer(label))} for label, settings in found["methods"].items()}
    versions = {kind: VERSIONS[kind] for kind in MEASURED_WITH}
    return {"training": _training(experiment), **found, "methods": methods, "text": list(text), "versions": versions}


def _versions(method: Method) -> dict[str, int]:
    """Of a method, and of the rule by which its proxy is trained where it has one."""
    return {"version": method.version, **({"rule_version": method.rule.version} if method.rule is not None else {})}


def _without_places(value: Any, contents: Mapping[str, str]) -> Any:
    """Of settings, what is read and not where it lies; and nothing of how it is computed."""
    if isinstance(value, Mapping):
        kept = {key: _without_places(each, contents) for key, each in value.items() if key not in (*NOT_IN_DIGEST, "allow_remote_code")}
        files = {key: [_last(each) for each in value[key]] for key in ("files", "heldout", "of") if isinstance(value.get(key), list)}
        name = value.get("pretrained")
        return {**kept, **files, **({"pretrained": contents.get(name, _last(name))} if isinstance(name, str) else {})}
    return [_without_places(each, contents) for each in value] if isinstance(value, list) else value


def _last(address: str) -> str:
    return address.rsplit("/", 1)[-1]


def _training(experiment: Experiment) -> str:
    base, length = experiment.base, experiment.corpus.row_tokens
    tokens = base.rows * length
    if base.model.pretrained is not None:
        trained = f"LoRA of rank {base.model.lora.rank}" if base.model.lora else "All weights"
    else:
        trained = "From scratch"
        if (training := experiment.corpus.tokenizer.train) is not None:
            parameters = Architecture.gpt2(base.model, training.vocab_size, length).num_parameters
            trained = f"From scratch, {parameters:,} parameters, {tokens / parameters:.3g} tokens a parameter"
    rate = f"learning rate {base.learning_rate:g} to {base.min_learning_rate:g}"
    return f"{trained}: {base.steps} steps of {base.batch_rows} rows of {length} tokens ({tokens:,} tokens), {rate}"


def _precisions(kept: Kept) -> str:
    """Those of the base models, with the seeds of each where there are several."""
    found: dict[str, set[int]] = {}
    for row in kept.losses.group_by(["precision", "seed"], use_threads=False).aggregate([]).to_pylist():
        if row["precision"]:
            found.setdefault(row["precision"], set()).add(row["seed"])
    return "".join(f", {precision} {sorted(seeds)}" if len(found) > 1 else f", {precision}" for precision, seeds in found.items())


def _on_valid(losses: Means, labels: Sequence[str], names: Sequence[str]) -> str:
    """What settings are chosen by."""
    told = []
    for label in (*([BEFORE] if any(key[0] == BEFORE for key in losses) else []), *labels):
        seeds = sorted({seed for other, seed, _ in losses if other == label})
        nats = np.array([[losses[label, seed, name] for name in names] for seed in seeds])
        with_seeds = "" if label == BEFORE else f", seeds {seeds}"
        told.append(f"{label} {nats.mean():.4f} ({np.exp(nats).mean():.2f}{with_seeds})")
    return f"Valid, mean nats (average perplexity): {', '.join(told)}."


def _power(losses: Means, labels: Sequence[str], seeds: Sequence[int]) -> str:
    """Paired differences from uniform in percent of geometric-mean perplexity: their mean, spread over seeds, and what more pairs would find; empty where no
    method has two pairs."""
    most_pairs = max((len(shared_seeds(losses, label, seeds)) for label in labels if label != "uniform"), default=0)
    pairs_asked = sorted({*PAIRS, *([most_pairs] if most_pairs > 2 else [])})
    head = "| valid, over seeds, against uniform, % of geometric-mean perplexity | mean | SD of a pair | SE |"
    lines = [head + "".join(f" {n} pairs find |" for n in pairs_asked)]
    lines.append("|---" * (4 + len(pairs_asked)) + "|")
    for label in labels:
        shared = shared_seeds(losses, label, seeds)
        if label == "uniform" or len(shared) < 2:
            continue
        pairs = np.array([100 * math.expm1(losses[label, seed, "all"] - losses["uniform", seed, "all"]) for seed in shared])
        spread, n = float(pairs.std(ddof=1)), len(pairs)
        most = spread * math.sqrt((n - 1) / chi2.ppf(0.05, n - 1))
        found = (f"{smallest(n) * spread:.2f} to {smallest(n) * most:.2f}" for n in pairs_asked)
        cells = [f"{pairs.mean():+.2f}", f"{spread:.2f}, at most {most:.2f}", f"{spread / math.sqrt(n):.2f}", *found]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def smallest(pairs: int, power: float = 0.8) -> float:
    """The difference, in standard deviations of a pair, that a two-sided t test of so many pairs at the 5 % level finds with this probability."""
    critical = student.ppf(0.975, pairs - 1)

    def missed(shift: float) -> float:
        return float(nctdtr(pairs - 1, shift, critical)) - (1 - power)  # found on the wrong side: next to never

    return float(brentq(missed, 0.1, 10.0)) / math.sqrt(pairs)


def shared_seeds(losses: Means, label: str, seeds: Sequence[int]) -> list[int]:
    """The seeds with which both a method and uniform weights were trained and measured."""
    return [seed for seed in seeds if (label, seed, "all") in losses and ("uniform", seed, "all") in losses]


def _weights(kept: Kept, losses: Means, labels: Sequence[str]) -> str:
    """Means over the fits of shared seeds with the standard error over those that differ (seeds of one run may share one), of fits that are one its own."""
    rows = kept.weights.to_pylist()
    names = list(dict.fromkeys(row["domain"] for row in rows))
    lines = ["| weights | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label in labels:
        shared = shared_seeds(losses, label, kept.seeds)
        fits = {name: [row for row in rows if (row["method"], row["domain"]) == (label, name) and row["seed"] in shared] for name in names}
        weights = np.array([[row["weight"] for row in fits[name]] for name in names])
        different = np.unique(weights.round(9), axis=1)
        n = different.shape[1]
        errors = different.std(axis=1, ddof=1) / math.sqrt(n) if n > 1 else [fits[name][0]["stderr"] or 0.0 for name in names]
        cells = [f"{mean:.3f}" + (f" ± {error:.3f}" if error > 1e-9 else "") for mean, error in zip(weights.mean(axis=1), errors, strict=True)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _documents(kept: Kept) -> str:
    """How many stand behind a test perplexity: the fewer, the wider the intervals."""
    (first, *_) = kept.runs("test").values()
    return "Test documents: " + ", ".join(f"{name} {len(loss.document)}" for name, loss in first.items()) + "."


def _perplexities(kept: Kept, losses: Means, labels: Sequence[str]) -> str:
    """Per domain, mean over the seeds that a method shares with uniform, with the paired difference and its standard error over seeds, where there are two."""
    before = sorted({seed for label, seed, _ in losses if label == BEFORE})
    columns = [*([BEFORE] if before else []), *labels]
    lines = ["| test perplexity (against uniform ± standard error over seeds alone) | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    shared = {label: shared_seeds(losses, label, kept.seeds) for label in labels} | {BEFORE: before}
    measured = kept.names(targets=False)
    for name in (*measured, *kept.names(targets=True)):
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
    uniform = {label: np.array([[losses["uniform", seed, name] for name in measured] for seed in shared[label]]) for label in labels}
    wins = {label: str(int((np.exp(nats[label]).mean(axis=0) < np.exp(uniform[label]).mean(axis=0)).sum())) for label in labels if label != "uniform"}
    lines.append("| better than uniform | " + " | ".join(wins.get(label, "") for label in columns) + " |")
    return "\n".join(lines)


def _paired(kept: Kept, labels: Sequence[str]) -> str:
    """95 % intervals over seeds and documents, as the report has them, on the domains together, on those that every mixture trains on, where these are fewer,
    and on each target."""
    targets, names = kept.names(targets=True), kept.names(targets=False)
    runs = {run: losses for run, losses in kept.runs("test").items() if run[0] != BEFORE}
    absent = {row["domain"] for row in kept.weights.to_pylist() if row["weight"] == 0}
    shared = [name for name in names if name not in absent]
    asked = {"average": names} | ({f"average of the {len(shared)} that all train on": shared} if 0 < len(shared) < len(names) else {})
    asked |= {target: [target] for target in targets}
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
