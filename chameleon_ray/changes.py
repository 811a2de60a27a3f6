"""A changed set of domains: what becomes of every domain that is known, and what is new.

A domain that stays, or only gets another name, keeps its embedding; one of several merged domains is the mean of theirs by how much text each has; the parts
of a split one are new text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.corpus_config import DomainChange, DomainConfig
from chameleon_ray.counts import DomainCounts, DomainSize
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.text_quality import TextQuality

FILE = "corpus file"
WHERE = f"{FILE}: domains"
COVERED = 0.02  # of a domain's text: what its parts may have more or less


@dataclass(frozen=True)
class Arrangement:
    """The domains after a change.

    Attributes:
        kept: name -> the known domains that it is made of: itself, the one it was called, or those it was merged from.
        added: name -> where its text comes from.
        parts: domain that was split -> its parts, all of them in `added`.
    """

    kept: Mapping[str, tuple[str, ...]]
    added: Mapping[str, DomainConfig]
    parts: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, changes: Mapping[str, DomainChange | None], known: Sequence[str]) -> Arrangement:
        """What changes make of the known domains.

        Raises:
            UserError: a domain to leave out, rename, merge or split that is not known or is changed twice, or two domains of one name.
        """
        gone: dict[str, str] = {}
        made: dict[str, tuple[str, ...]] = {}
        added: dict[str, DomainConfig] = {}
        parts: dict[str, tuple[str, ...]] = {}

        def take(old: str, name: str, told: str) -> None:
            if old not in known:
                raise UserError(f"{WHERE}.{name} {told} but the experiment has no such domain; it has {', '.join(known)}")
            if old in gone:
                raise UserError(f"{WHERE}.{name} {told}, and {WHERE.rpartition(' ')[2]}.{gone[old]} changes {old!r} too; a domain is changed once")
            gone[old] = name

        def add(name: str, source: DomainConfig, entry: str) -> None:
            if name in added:
                raise UserError(f"{WHERE}.{entry}: two new domains are called {name!r}; choose another name")
            added[name] = source

        for name, change in changes.items():
            if change is None:
                take(name, name, "is null")
            elif change.rename is not None:
                take(change.rename, name, f"renames {change.rename!r}")
                made[name] = (change.rename,)
            elif change.merge:
                for old in change.merge:
                    take(old, name, f"merges {old!r}")
                made[name] = change.merge
            elif change.split:
                take(name, name, "is split")
                parts[name] = tuple(change.split)
                for part, source in change.split.items():
                    add(part, source, name)
            else:
                add(name, change.source, name)
        kept = {name: (name,) for name in known if name not in gone}
        for name in (*made, *added):
            if name in kept or (name in made and name in added):
                raise UserError(
                    f"{WHERE}.{name} is in the experiment already; choose another name, change that one too, or use --only to take the new domains alone"
                )
        return cls({**kept, **made}, added, parts)

    def place(self, name: str) -> str:
        """Where the user wrote of a domain."""
        parents = [parent for parent, parts in self.parts.items() if name in parts]
        return f"domains.{parents[0]}.split.{name}" if parents else f"domains.{name}"


def rearranged(embeddings: Embeddings, kept: Mapping[str, tuple[str, ...]], tokens: Mapping[str, float]) -> Embeddings:
    """The embeddings of domains that are made of known ones.

    The deviations of a merged domain's groups are those of its parts, each counted by its share of the text: it is drawn from them in these shares, and not
    as one text whose samples happened to fall so.

    Args:
        tokens: of the known domains, which say how much of each a merged one has.
    Raises:
        UserError: a merged domain of which it is not known how much text each part has.
    """
    plain = replace(embeddings.select([olds[0] for olds in kept.values()]), names=tuple(kept))
    merged = {i: (name, olds) for i, (name, olds) in enumerate(kept.items()) if len(olds) > 1}
    if not merged:
        return plain
    sums, counts = plain.group_sums.copy(), plain.group_counts.astype(np.float64)
    for i, (name, olds) in merged.items():
        sums[i], counts[i] = _merged(embeddings.select(olds), shares_of(name, olds, tokens))
    return replace(plain, group_sums=sums, group_counts=counts)


def shares_of(name: str, olds: Sequence[str], tokens: Mapping[str, float]) -> dict[str, float]:
    """How much of a merged domain's text each part is."""
    if missing := [old for old in olds if old not in tokens]:
        raise UserError(f"{WHERE}.{name}: how much text there is of {missing[0]!r} is not known, so that it cannot be merged; give the text as a new domain")
    total = math.fsum(tokens[old] for old in olds)
    return {old: tokens[old] / total for old in olds}


def _merged(parts: Embeddings, shares: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Group sums [groups, p] and counts [groups] of one domain that its parts have these shares of."""
    share = np.array([shares[name] for name in parts.names])
    samples = parts.group_counts.sum(axis=1)
    counted = share * samples.sum() / samples  # a sample of each part counts so often
    means = parts.means
    counts = counted @ parts.group_counts
    off = parts.group_sums - parts.group_counts[:, :, None] * means[:, None, :]
    return np.tensordot(counted, off, axes=1) + counts[:, None] * (share @ means), counts


def merged_quality(texts: Mapping[str, TextQuality], olds: Sequence[str], shares: Mapping[str, float]) -> TextQuality | None:
    """How good the text of a merged domain is: the mean over its parts by their shares, where all are known."""
    found = [(shares[old], texts[old]) for old in olds if old in texts]
    if len(found) < len(olds):
        return None
    structure = None if any(each.structure is None for _, each in found) else math.fsum(share * (each.structure or 0.0) for share, each in found)
    compression, repeated = (math.fsum(share * getattr(each, field) for share, each in found) for field in ("compression", "repeated"))
    return TextQuality(compression, repeated, structure, sum(each.sample_bytes for _, each in found))


def merged_bytes(parts: Sequence[TextBytes]) -> TextBytes:
    """How much text several domains have together."""
    sizes = [part.size for part in parts]
    whole = None if any(size is None for size in sizes) else math.fsum(size or 0.0 for size in sizes)
    return TextBytes(whole, math.hypot(*(part.stderr for part in parts)), math.fsum(part.copies for part in parts))


def merged_size(sizes: Sequence[DomainSize]) -> DomainSize:
    """How much text several domains have together."""
    tokens, documents = sum(size.tokens for size in sizes), sum(size.documents for size in sizes)
    return DomainSize(tokens, documents, tokens / documents if documents else 0.0)


@dataclass(frozen=True)
class TextBytes:
    """How much text there is to train on, or to hold out of it: None where nothing tells; `stderr` where it is an estimate, `copies` where about so much was
    left out of it as copies."""

    size: float | None
    stderr: float = 0.0
    copies: float = 0.0


def train_bytes(counts: DomainCounts, held_out_apart: bool) -> TextBytes:
    """Of a domain; `held_out_apart`: whether what is held out of it comes from elsewhere: then its bytes are known without copies alone."""
    excerpt, train = counts.excerpt, counts.train
    if excerpt is None and held_out_apart:
        return TextBytes(float(train.text_bytes), copies=counts.duplicates * train.text_bytes / max(1, train.documents))
    if excerpt is None:
        return TextBytes(float(counts.text_bytes))
    if excerpt.text_bytes is None or not excerpt.tokens:
        return TextBytes(None)
    return TextBytes(excerpt.text_bytes, (excerpt.stderr_tokens or 0.0) * excerpt.text_bytes / excerpt.tokens)


def check_covered(name: str, parent: TextBytes, parts: Mapping[str, TextBytes]) -> str | None:
    """Raise `UserError` where the parts of a split domain have less text than it, or more; a sentence where that cannot be told.

    Amounts are compared, not documents: to a fiftieth, since copies and rests of rows are counted differently, or within three standard errors of estimates.
    """
    sizes = [each.size for each in (parent, *parts.values())]
    if any(size is None for size in sizes):
        return f"Whether the parts of {name} ({', '.join(parts)}) have as much text as it has cannot be told: a source does not say how much there is."
    whole, *pieces = [size or 0.0 for size in sizes]
    error = math.sqrt(math.fsum(each.stderr**2 for each in (parent, *parts.values())))
    copies = math.fsum(each.copies for each in (parent, *parts.values()))
    if abs(math.fsum(pieces) - whole) > COVERED * whole + 3 * error + copies:
        raise UserError(
            f"{WHERE}.{name}: its parts ({', '.join(parts)}) have {math.fsum(pieces) / 1e6:,.3g} MB of text and it has {whole / 1e6:,.3g}; a split covers its "
            f"parent: correct the parts, or give them as new domains beside {name}: null"
        )
    return None
