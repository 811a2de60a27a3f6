"""Tables of the text: what was read of it, how good it looks, and how often it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chameleon_ray.artifacts import SPLITS
from chameleon_ray.report.data import ReportData
from chameleon_ray.report.formatting import DASH, count, fixed, measured, number
from chameleon_ray.report.numbers import epoch_numbers
from chameleon_ray.report.tables import Table, text_row


def corpus_table(data: ReportData) -> Table:
    """Documents, tokens and rows of every domain and split, and what was left out."""
    rows = []
    for name in (*data.names, *data.corpus.targets):
        counts = data.corpus.domains[name]
        splits = [counts.split(split) for split in SPLITS]
        per_split = (" / ".join(count(getattr(split, field)) for split in splits) for field in ("documents", "tokens", "rows"))
        left_out = {**counts.skipped, "held-out": counts.unused_heldout}
        skipped = ", ".join(f"{count(number_skipped)} {reason}" for reason, number_skipped in left_out.items() if number_skipped) or "0"
        entropy = DASH if name in data.corpus.targets else number(counts.unigram_entropy_nats)
        rows.append(text_row(f"{name} (target)" if name in data.corpus.targets else name, (*per_split, count(counts.duplicates), skipped, entropy)))
    columns = ("domain", "documents", "tokens", "rows", "duplicates", "skipped", "unigram entropy, nats")
    note = f"Documents, tokens and rows are given as {' / '.join(SPLITS)}; a row has {count(data.corpus.row_tokens)} tokens."
    if any(counts.unused_heldout for counts in data.corpus.domains.values()):
        note += f" Held-out documents that are skipped are over the bound of {count(data.experiment.corpus.heldout_tokens)} tokens, or alone in their domain."
    return Table(columns, tuple(rows), f"{note} Vocabulary: {count(data.corpus.vocab_size)} tokens.")


def quality_table(data: ReportData) -> Table | None:
    """What the domains' text shows of its quality; None where nothing was looked at."""
    looked: Mapping[str, Any] = next((mixture.details["quality"] for mixture in data.mixtures.values() if "quality" in mixture.details), {})
    sampled = {name: counts.quality for name in data.names if (counts := data.corpus.domains[name]).quality is not None}
    if not sampled:
        return None
    rows = []
    for name, quality in sampled.items():
        structure = looked.get(name, {}).get("structure")
        rows.append(text_row(name, (fixed(quality.compression, 2), fixed(quality.repeated, 3), DASH if structure is None else fixed(structure, 2))))
    note = (
        "Of a sample of each domain's train text: bytes to a byte compressed; share of passages of eight words that another document of the domain has too; "
        "and 1 - the proxy's loss over the entropy of the domain's token frequencies, 0 where what stands before a token tells nothing of it."
    )
    return Table(("domain", "compression", "repeated", "structure"), tuple(rows), note)


def reading_table(data: ReportData) -> Table | None:
    """Of domains that were not read whole what was read, and what there is; None where all were."""
    found = {name: excerpt for name in data.names if (excerpt := data.corpus.domains[name].excerpt) is not None}
    if not found:
        return None
    rows = []
    for name, excerpt in found.items():
        share = DASH if excerpt.share is None else f"{number(100 * excerpt.share, 3)} %"
        tokens = measured(excerpt.tokens and excerpt.tokens / 1e6, excerpt.stderr_tokens and excerpt.stderr_tokens / 1e6)
        rows.append(text_row(name, (number(excerpt.read_bytes / 1e6, 3), share, f"{count(excerpt.files_read)} of {count(excerpt.num_files)}", tokens)))
    note = (
        "Text that was read of domains that were not read whole, and how many tokens all of it has to train on: an estimate ± its standard error, by the "
        "sizes of the files and by how stretches of them differ. Copies between what was read and what was not are not seen."
    )
    return Table(("domain", "MB read", "of all its text", "files", "tokens in all, millions"), tuple(rows), note)


def epochs_table(data: ReportData) -> Table | None:
    """How often every domain is read under every mixture: in the budget, or where there is none by a base model."""
    rows = epoch_numbers(data).to_pylist()
    if not rows:
        return None
    found = {(row["domain"], row["method"]): row["epochs"] for row in rows}
    lines = [text_row(name, (DASH if found.get((name, label)) is None else number(found[name, label], 3) for label in data.mixtures)) for name in data.names]
    budget = data.experiment.budget
    if budget is None:
        drawn = " and ".join(count(tokens) for tokens in sorted({data.base_of(label).rows * data.corpus.row_tokens for label in data.mixtures}))
        note = f"How often a base model of {drawn} tokens reads what was read of each domain; budget: {{tokens: N}} asks the question for another amount."
    else:
        most = data.experiment.corpus.max_repetition
        note = f"How often each domain is read in the budget of {count(budget.tokens)} tokens{f', at most {most:g} times' if most else ''}."
    return Table(("domain", *data.mixtures), tuple(lines), note)
