"""The numbers under every table and picture, one long-form table each; these are the Parquet files beside the page."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chameleon_ray.mixing.regression import spearman
from chameleon_ray.mixing.simplex import effective_number
from chameleon_ray.report.data import BASELINE, BEFORE, ReportData
from chameleon_ray.report.significance import PairedDifference
from chameleon_ray.report.statistics import Measurement, common_seeds, mean_change_percent, mean_difference, summarise

AVERAGE = "all"
CHAMELEON = "chameleon"
COSTS = ("tokens", "seconds", "paper_flops", "flops")
MAX_CURVE_POINTS = 150

Measurements = dict[tuple[str, str, str], dict[int, Measurement]]

MIXTURE_SCHEMA = pa.schema(
    [("method", pa.string()), ("domain", pa.string()), *((column, pa.float64()) for column in ("weight", "weight_stderr", "score", "score_stderr"))]
)
PERPLEXITY_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("domain", pa.string()),
        ("perplexity", pa.float64()),
        ("perplexity_stderr", pa.float64()),
        ("loss_nats", pa.float64()),
        ("loss_nats_stderr", pa.float64()),
        ("bits_per_byte", pa.float64()),
        ("bits_per_byte_stderr", pa.float64()),
        ("stderr_over", pa.string()),
        ("num_seeds", pa.int64()),
        ("documents", pa.int64()),
        ("change_percent", pa.float64()),
        ("change_percent_stderr", pa.float64()),
    ]
)
AFFINITY_SCHEMA = pa.schema([("method", pa.string()), ("domain", pa.string()), ("other", pa.string()), ("raw", pa.float64()), ("cosine", pa.float64())])
SPECTRUM_SCHEMA = pa.schema([("method", pa.string()), ("index", pa.int64()), ("eigenvalue", pa.float64()), ("share", pa.float64())])
COST_SCHEMA = pa.schema(
    [("method", pa.string()), ("tokens", pa.int64()), *((column, pa.float64()) for column in (*COSTS[1:], *(f"{column}_ratio" for column in COSTS)))]
)
EPOCH_SCHEMA = pa.schema([("method", pa.string()), ("domain", pa.string()), ("epochs", pa.float64()), ("of", pa.string())])
SPREAD_SCHEMA = pa.schema([("method", pa.string()), ("l1_to_uniform", pa.float64()), ("effective_domains", pa.float64())])
DRIFT_SCHEMA = pa.schema([("method", pa.string()), ("last_step", pa.int64()), ("part", pa.float64()), ("step", pa.int64()), ("l1_to_end", pa.float64())])
DRIFT_PARTS = (0.1, 0.5)
SIGNIFICANCE_SCHEMA = pa.schema(
    [
        *((column, pa.string()) for column in ("first", "second", "metric")),
        *((column, pa.float64()) for column in ("difference", "low", "high")),
        ("num_seeds", pa.int64()),
        ("fewest_documents", pa.int64()),
        ("excludes_zero", pa.bool_()),
    ]
)


def reported(measurements: pa.Table) -> Measurements:
    """(method, domain, metric) -> seed -> measurement, of the test split only."""
    kept = measurements.filter((pc.field("task") == "perplexity") & (pc.field("split") == "test"))
    found: Measurements = {}
    for row in kept.select(["method", "domain", "metric", "seed", "value", "stderr", "documents"]).to_pylist():
        stderr = row["stderr"]
        measurement = Measurement(row["value"], stderr if stderr is not None and math.isfinite(stderr) else None, row["documents"])
        found.setdefault((row["method"], row["domain"], row["metric"]), {})[row["seed"]] = measurement
    return found


def evaluated(data: ReportData) -> tuple[str, ...]:
    """Methods whose base models were evaluated on the test split, in the order of the report."""
    found = {method for method, _, _ in reported(data.measurements)}
    return tuple(label for label in data.labels if label in found)


def chameleon_label(data: ReportData) -> str | None:
    """The method that costs are compared with: the first of Chameleon's that was fitted, or a mixture that says that it is of Chameleon; None without any."""
    said = [label for label, mixture in data.mixtures.items() if mixture.provenance.get("method") == CHAMELEON]
    return next((label for label in (*data.experiment.chameleons, *said) if label in data.mixtures), None)


def domains_won(data: ReportData, label: str, seeds: Collection[int] | None = None) -> int | None:
    """Measured domains where the method's test perplexity is under uniform's, on average over the seeds that both have, or over those of them that are given;
    None where there are none."""
    by_seed = reported(data.measurements)

    def of(each: str, name: str, metric: str = "perplexity") -> dict[int, Measurement]:
        return {seed: found for seed, found in by_seed.get((each, name, metric), {}).items() if seeds is None or seed in seeds}

    if not common_seeds(*(of(each, AVERAGE, "mean_perplexity") for each in (label, BASELINE))):
        return None
    return sum(mean_difference(of(label, name), of(BASELINE, name)).mean < 0 for name in data.measured)


def epoch_numbers(data: ReportData) -> pa.Table:
    """How often every domain is read under every mixture: in the budget, or without one by a base model, of the rows that it has. Where nothing tells how much
    there is of a domain it is left out."""
    rows = []
    for label, mixture in data.mixtures.items():
        drawn = data.base_of(label).rows
        stored = data.corpus.rows()
        of = "base model" if data.experiment.budget is None else "budget"
        found = mixture.epochs if of == "budget" else {name: mixture.weights[name] * drawn / stored[name] for name in data.names if stored[name]}
        rows += [{"method": label, "domain": name, "epochs": times, "of": of} for name, times in found.items()]
    return pa.Table.from_pylist(rows, EPOCH_SCHEMA)


def mixture_numbers(data: ReportData) -> pa.Table:
    """Weight and score of every domain under every method, with standard errors where the method has them."""

    def values(mapping: Mapping[str, float] | None, name: str) -> float | None:
        return None if mapping is None else mapping[name]

    rows = [
        {
            "method": label,
            "domain": name,
            "weight": mixture.weights[name],
            "weight_stderr": values(mixture.weights_stderr, name),
            "score": values(mixture.scores, name),
            "score_stderr": values(mixture.scores_stderr, name),
        }
        for label, mixture in data.mixtures.items()
        for name in data.names
    ]
    return pa.Table.from_pylist(rows, schema=MIXTURE_SCHEMA)


def perplexity_numbers(data: ReportData) -> pa.Table:
    """Perplexity, loss and bits per byte per method and measured domain and target, mean over seeds; the last row of a method, domain "all", is the mean over
    domains.

    First comes the model that base models went on from, if they did. `documents` is how many of the test split stand behind a number. `change_percent` is
    the change of the perplexity from uniform, seed by seed; negative is better; null without a seed in common.
    """
    by_seed = reported(data.measurements) | (reported(data.before) if data.before else {})
    rows = []
    for label in (*((BEFORE,) if data.before else ()), *evaluated(data)):
        for domain in (*data.corpus.heldout, AVERAGE):
            mean = "mean_" if domain == AVERAGE else ""
            found, baseline = by_seed[label, domain, f"{mean}perplexity"], by_seed.get((BASELINE, domain, f"{mean}perplexity"), {})
            perplexity_estimate = summarise(found)
            loss_estimate, bits_estimate = (summarise(by_seed[label, domain, f"{mean}{metric}"]) for metric in ("loss_nats", "bits_per_byte"))
            is_compared = label not in (BASELINE, BEFORE) and common_seeds(found, baseline)
            change = mean_change_percent(found, baseline) if is_compared else None
            rows.append(
                {
                    "method": label,
                    "domain": domain,
                    "perplexity": perplexity_estimate.mean,
                    "perplexity_stderr": perplexity_estimate.stderr,
                    "loss_nats": loss_estimate.mean,
                    "loss_nats_stderr": loss_estimate.stderr,
                    "bits_per_byte": bits_estimate.mean,
                    "bits_per_byte_stderr": bits_estimate.stderr,
                    "stderr_over": perplexity_estimate.over,
                    "num_seeds": perplexity_estimate.num_seeds,
                    "documents": next(iter(found.values())).documents,
                    "change_percent": change.mean if change else None,
                    "change_percent_stderr": change.stderr if change else None,
                }
            )
    return pa.Table.from_pylist(rows, schema=PERPLEXITY_SCHEMA)


def affinity_numbers(data: ReportData) -> pa.Table:
    """Omega of every method that has one: raw, and divided by the norms of both domains (null where a norm is 0)."""
    rows: list[dict[str, Any]] = []
    for label, mixture in data.mixtures.items():
        if "affinity" not in mixture.details:
            continue
        names, raw = mixture.details["affinity"]["names"], np.asarray(mixture.details["affinity"]["values"], dtype=np.float64)
        squares = np.clip(np.diag(raw), 0, None)
        for i, domain in enumerate(names):
            for j, other in enumerate(names):
                scale = math.sqrt(squares[i] * squares[j])
                rows.append({"method": label, "domain": domain, "other": other, "raw": raw[i, j], "cosine": raw[i, j] / scale if scale > 0 else None})
    return pa.Table.from_pylist(rows, schema=AFFINITY_SCHEMA)


def spectrum_numbers(data: ReportData) -> pa.Table:
    """Eigenvalues of Omega, largest first, and their share of the trace."""
    rows = []
    for label, mixture in data.mixtures.items():
        eigenvalues = np.sort(np.asarray(mixture.details.get("eigenvalues", ()), dtype=np.float64))[::-1]
        trace = eigenvalues.sum()
        for index, value in enumerate(eigenvalues, start=1):
            rows.append({"method": label, "index": index, "eigenvalue": value, "share": value / trace if trace > 0 else None})
    return pa.Table.from_pylist(rows, schema=SPECTRUM_SCHEMA)


def curve_window_steps(curves: pa.Table) -> int:
    """Steps that one point of a loss curve averages, so that no curve has more than MAX_CURVE_POINTS points."""
    last = pc.max(curves["step"]).as_py() or 1
    return max(1, math.ceil(last / MAX_CURVE_POINTS))


def curve_numbers(curves: pa.Table) -> pa.Table:
    """Loss curves as drawn: method, domain, step, loss (mean over seeds), low and high (extreme seeds), num_seeds.

    Each seed's losses are first averaged over windows of `curve_window_steps`; `step` is the last of its window.
    """
    window = curve_window_steps(curves)
    index = pc.divide(pc.subtract(curves["step"].cast(pa.int64()), 1), window)
    keys = ["method", "domain", "window"]
    per_seed = curves.append_column("window", index).group_by([*keys, "seed"], use_threads=False).aggregate([("loss", "mean"), ("step", "max")])
    over = per_seed.group_by(keys, use_threads=False).aggregate(
        [("loss_mean", "mean"), ("loss_mean", "min"), ("loss_mean", "max"), ("loss_mean", "count"), ("step_max", "max")]
    )
    table = over.select([*keys[:2], "step_max_max", "loss_mean_mean", "loss_mean_min", "loss_mean_max", "loss_mean_count"])
    return table.rename_columns(["method", "domain", "step", "loss", "low", "high", "num_seeds"]).sort_by(
        [("method", "ascending"), ("domain", "ascending"), ("step", "ascending")]
    )


def spread_numbers(data: ReportData) -> pa.Table:
    """How far every method's weights are from uniform: L1 distance (0 to 2), and the effective number of domains exp(entropy)."""
    rows = []
    for label, mixture in data.mixtures.items():
        weights = [mixture.weights[name] for name in data.names]
        distance = math.fsum(abs(weight - 1 / len(weights)) for weight in weights)
        rows.append({"method": label, "l1_to_uniform": distance, "effective_domains": effective_number(weights)})
    return pa.Table.from_pylist(rows, schema=SPREAD_SCHEMA)


def drift_numbers(histories: pa.Table) -> pa.Table:
    """How far `mean` still went: its L1 distance at a tenth and at half of a method's steps from that at its last step.

    `step` is the recorded step nearest to the part of the steps, the earlier of two; parts that are nearest to the last step itself are left out.
    """
    by_method: dict[str, dict[int, dict[str, float]]] = {}
    for row in histories.select(["method", "step", "domain", "mean"]).to_pylist():
        by_method.setdefault(row["method"], {}).setdefault(row["step"], {})[row["domain"]] = row["mean"]
    rows = []
    for label, by_step in by_method.items():
        last = max(by_step)
        for part in DRIFT_PARTS:
            step = min(sorted(by_step), key=lambda step: abs(step - part * last))
            if step != last:
                rows.append({"method": label, "last_step": last, "part": part, "step": step, "l1_to_end": l1_distance(by_step[step], by_step[last])})
    return pa.Table.from_pylist(rows, schema=DRIFT_SCHEMA)


def sweep_numbers(sweep: pa.Table, own: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One entry per point and method, in their order: point, label, weights (domain -> weight), tokens, flops, seconds, and how near they are to the same
    method's weights at the experiment's own settings: l1 and spearman (rank correlation over domains; None where one of the two does not differ).

    Args:
        own: label -> those weights; of one that has none its first point's stand for them.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sweep.to_pylist():
        head = {key: row[key] for key in ("point", "label", "tokens", "flops", "seconds")}
        found.setdefault((row["point"], row["label"]), {**head, "weights": {}})["weights"][row["domain"]] = row["weight"]
    reference: dict[str, Mapping[str, float]] = dict(own)
    for entry in found.values():
        weights = reference.setdefault(entry["label"], entry["weights"])
        entry["l1"] = l1_distance(entry["weights"], weights)
        both = np.array([[entry["weights"][name], weights[name]] for name in entry["weights"] if name in weights]).T
        entry["spearman"] = spearman(*both) if both.size and (np.ptp(both, axis=1) > 0).all() else None
    return list(found.values())


def significance_numbers(pairs: Sequence[PairedDifference]) -> pa.Table:
    """first - second for every pair of methods and both metrics, with 95 % intervals; null where there is none."""
    unknown = {"low": None, "high": None}
    rows = [{**asdict(pair), **({} if pair.has_interval else unknown), "excludes_zero": pair.excludes_zero} for pair in pairs]
    return pa.Table.from_pylist(rows, schema=SIGNIFICANCE_SCHEMA)


def cost_numbers(data: ReportData) -> pa.Table:
    """What every mixture took, and each quantity divided by the chameleon method's (null where there is none, or where it is 0)."""
    label = chameleon_label(data)
    reference = data.mixtures[label].cost if label is not None else None
    rows = []
    for method, mixture in data.mixtures.items():
        row: dict[str, Any] = {"method": method}
        for column in COSTS:
            value, unit = getattr(mixture.cost, column), getattr(reference, column, 0)
            row |= {column: value, f"{column}_ratio": value / unit if unit else None}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=COST_SCHEMA)


def l1_distance(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """L1; a domain that one of the two lacks has weight 0 there."""
    return math.fsum(abs(first.get(name, 0.0) - second.get(name, 0.0)) for name in first.keys() | second.keys())
