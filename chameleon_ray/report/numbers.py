"""The numbers under every table and picture, one long-form table each; these are the Parquet files beside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chameleon_ray.report.data import BASELINE, ReportData
from chameleon_ray.report.statistics import Score, common_seeds, paired_change_percent, paired_difference, summarise

AVERAGE = "all"
MAX_CURVE_POINTS = 150

Scores = dict[tuple[str, str, str], dict[int, Score]]

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
        ("stderr_over", pa.string()),
        ("num_seeds", pa.int64()),
        ("change_percent", pa.float64()),
        ("change_percent_stderr", pa.float64()),
    ]
)
AFFINITY_SCHEMA = pa.schema([("method", pa.string()), ("domain", pa.string()), ("other", pa.string()), ("raw", pa.float64()), ("cosine", pa.float64())])
SPECTRUM_SCHEMA = pa.schema([("method", pa.string()), ("index", pa.int64()), ("eigenvalue", pa.float64()), ("share", pa.float64())])
COST_SCHEMA = pa.schema([("method", pa.string()), ("tokens", pa.int64()), ("flops", pa.float64()), ("seconds", pa.float64())])


def reported_scores(scores: pa.Table) -> Scores:
    """(method, domain, metric) -> seed -> score, of the test split only."""
    kept = scores.filter((pc.field("task") == "perplexity") & (pc.field("split") == "test"))
    found: Scores = {}
    for row in kept.select(["method", "domain", "metric", "seed", "value", "stderr"]).to_pylist():
        stderr = row["stderr"]
        score = Score(row["value"], stderr if stderr is not None and math.isfinite(stderr) else None)
        found.setdefault((row["method"], row["domain"], row["metric"]), {})[row["seed"]] = score
    return found


def evaluated(data: ReportData) -> tuple[str, ...]:
    """Methods whose base models were evaluated on the test split, in the order of the report."""
    found = {method for method, _, _ in reported_scores(data.scores)}
    return tuple(label for label in data.labels if label in found)


def domains_won(data: ReportData, label: str) -> int:
    """Domains where the method's test perplexity is under uniform's, on average over the seeds that both have."""
    scores = reported_scores(data.scores)
    return sum(paired_difference(scores[label, name, "perplexity"], scores[BASELINE, name, "perplexity"]).mean < 0 for name in data.names)


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
    """Perplexity and loss per method and domain, mean over seeds; the last row of a method, domain "all", is the mean over domains.

    `change_percent` is the change of the perplexity from uniform, seed by seed; negative is better; null without a seed in common.
    """
    scores = reported_scores(data.scores)
    rows = []
    for label in evaluated(data):
        for domain, perplexity, loss in (*((name, "perplexity", "loss_nats") for name in data.names), (AVERAGE, "mean_perplexity", "mean_loss_nats")):
            found, baseline = scores[label, domain, perplexity], scores.get((BASELINE, domain, perplexity), {})
            perplexity_estimate, loss_estimate = summarise(found), summarise(scores[label, domain, loss])
            change = paired_change_percent(found, baseline) if label != BASELINE and common_seeds(found, baseline) else None
            rows.append(
                {
                    "method": label,
                    "domain": domain,
                    "perplexity": perplexity_estimate.mean,
                    "perplexity_stderr": perplexity_estimate.stderr,
                    "loss_nats": loss_estimate.mean,
                    "loss_nats_stderr": loss_estimate.stderr,
                    "stderr_over": perplexity_estimate.over,
                    "num_seeds": perplexity_estimate.num_seeds,
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


def cost_numbers(data: ReportData) -> pa.Table:
    """What every mixture took."""
    rows = [
        {"method": label, "tokens": mixture.cost.tokens, "flops": mixture.cost.flops, "seconds": mixture.cost.seconds}
        for label, mixture in data.mixtures.items()
    ]
    return pa.Table.from_pylist(rows, schema=COST_SCHEMA)
