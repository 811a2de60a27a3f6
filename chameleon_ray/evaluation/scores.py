"""Scores in long form: method, seed, task, split, domain, metric, value, stderr, n."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from chameleon_ray.evaluation.losses import DocumentLosses, mean_nats, mean_perplexity

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("domain", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("stderr", pa.float64()),
        ("n", pa.int64()),
    ]
)


def perplexity_scores(method: str, seed: int, split: str, losses: Mapping[str, DocumentLosses]) -> pa.Table:
    """Per domain `loss_nats` and `perplexity` (standard errors clustered by document, n in tokens); for domain "all" both means over domains (n domains)."""
    head = {"method": method, "seed": seed, "task": "perplexity", "split": split}
    rows: list[dict[str, Any]] = []
    for domain, loss in losses.items():
        count = int(loss.tokens.sum())
        rows.append({**head, "domain": domain, "metric": "loss_nats", "value": loss.mean_nats, "stderr": _null(loss.stderr_nats), "n": count})
        rows.append({**head, "domain": domain, "metric": "perplexity", "value": loss.perplexity, "stderr": _null(loss.stderr_perplexity), "n": count})
    nats_error = math.sqrt(math.fsum(loss.stderr_nats**2 for loss in losses.values())) / len(losses)
    perplexity_error = math.sqrt(math.fsum(loss.stderr_perplexity**2 for loss in losses.values())) / len(losses)
    for metric, value, error in (("mean_loss_nats", mean_nats(losses), nats_error), ("mean_perplexity", mean_perplexity(losses), perplexity_error)):
        rows.append({**head, "domain": "all", "metric": metric, "value": value, "stderr": _null(error), "n": len(losses)})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def document_table(split: str, losses: Mapping[str, DocumentLosses]) -> pa.Table:
    """split, domain, document, nats, tokens: what paired comparisons resample."""
    return pa.concat_tables(
        pa.table(
            {
                "split": [split] * len(loss.document),
                "domain": [domain] * len(loss.document),
                "document": loss.document,
                "nats": loss.nats,
                "tokens": loss.tokens,
            }
        )
        for domain, loss in losses.items()
    )


def losses_of(table: pa.Table, split: str) -> dict[str, DocumentLosses]:
    """Read back `document_table`, in its order of domains."""
    rows = table.filter(pa.compute.equal(table["split"], split))
    found = {}
    for domain in rows["domain"].unique().to_pylist():
        part = rows.filter(pa.compute.equal(rows["domain"], domain))
        found[domain] = DocumentLosses(part["document"].to_numpy(), part["nats"].to_numpy(), part["tokens"].to_numpy())
    return found


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
