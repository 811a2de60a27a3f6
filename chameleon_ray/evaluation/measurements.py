"""What was measured on held-out text, in long form: method, seed, task, split, domain, metric, value, stderr, n, documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from chameleon_ray.artifacts import DocumentLosses, SplitLosses, TokenCorpus
from chameleon_ray.evaluation.losses import bits_per_byte, mean_bits_per_byte, mean_nats, mean_perplexity

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
        ("documents", pa.int64()),
    ]
)


def perplexity_measurements(method: str, seed: int, losses: SplitLosses, corpus: TokenCorpus) -> pa.Table:
    """Per domain and target `loss_nats`, `perplexity` and `bits_per_byte` (standard errors clustered by document, n in tokens); for domain "all" the means of
    each over domains (n domains).

    `documents` is how many stand behind the number. Where a domain has a single one, neither it nor the mean over domains has a standard error: how far
    its documents lie apart is unknown, and an error that left it out would be too small by an unknown amount.
    """
    head = {"method": method, "seed": seed, "task": "perplexity"}
    rows = [row for split, by_domain in losses.items() for row in _rows({**head, "split": split}, by_domain, corpus)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def document_table(losses: SplitLosses) -> pa.Table:
    """split, domain, document, nats, tokens: what paired comparisons take apart."""
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
        for split, by_domain in losses.items()
        for domain, loss in by_domain.items()
    )


def losses_by_document(table: pa.Table) -> SplitLosses:
    """Read back `document_table`, in its order of splits and domains."""
    found: SplitLosses = {}
    for split in table["split"].unique().to_pylist():
        of_split = table.filter(pc.equal(table["split"], split))
        for domain in of_split["domain"].unique().to_pylist():
            part = of_split.filter(pc.equal(of_split["domain"], domain))
            columns = (part[name].to_numpy() for name in ("document", "nats", "tokens"))
            found.setdefault(split, {})[domain] = DocumentLosses(*columns)
    return found


def _rows(head: dict[str, Any], losses: Mapping[str, DocumentLosses], corpus: TokenCorpus) -> list[dict[str, Any]]:
    rows = []
    split = head["split"]
    for domain, loss in losses.items():
        counts = corpus.domains[domain].split(split)
        measured = {**head, "domain": domain, "n": int(loss.tokens.sum()), "documents": len(loss.document)}
        bits, error = (bits_per_byte(nats, counts) for nats in (loss.mean_nats, loss.stderr_nats))
        rows.append({**measured, "metric": "loss_nats", "value": loss.mean_nats, "stderr": _null(loss.stderr_nats)})
        rows.append({**measured, "metric": "perplexity", "value": loss.perplexity, "stderr": _null(loss.stderr_perplexity)})
        rows.append({**measured, "metric": "bits_per_byte", "value": bits, "stderr": _null(error)})
    losses = {name: loss for name, loss in losses.items() if name not in corpus.targets}
    every = {**head, "domain": "all", "n": len(losses), "documents": sum(len(loss.document) for loss in losses.values())}
    rows.append({**every, "metric": "mean_loss_nats", "value": mean_nats(losses), "stderr": _stderr_of_mean([x.stderr_nats for x in losses.values()])})
    rows.append(
        {**every, "metric": "mean_perplexity", "value": mean_perplexity(losses), "stderr": _stderr_of_mean([x.stderr_perplexity for x in losses.values()])}
    )
    stderrs = [bits_per_byte(loss.stderr_nats, corpus.domains[name].split(split)) for name, loss in losses.items()]
    rows.append({**every, "metric": "mean_bits_per_byte", "value": mean_bits_per_byte(losses, corpus, split), "stderr": _stderr_of_mean(stderrs)})
    return rows


def _stderr_of_mean(stderrs: Sequence[float]) -> float | None:
    """Domains are independent: root of the summed squares over their number; None where one of them is unknown."""
    return _null(math.sqrt(math.fsum(stderr**2 for stderr in stderrs)) / len(stderrs))


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
