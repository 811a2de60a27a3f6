"""What was counted of each domain of a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SplitCounts:
    """One domain in one split. `text_bytes` is what its tokens were as text, in UTF-8; `shard_rows` gives the rows of each shard file, their sum is `rows`."""

    documents: int
    tokens: int
    text_bytes: int
    shard_rows: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.shard_rows)


@dataclass(frozen=True)
class Quality:
    """What a sample of a domain's train text shows without a model (corpus/quality.py).

    Attributes:
        sample_bytes: how much was looked at.
        compression: bytes of text to a byte compressed.
        repeated: share of passages of eight words that another document of the domain has too.
    """

    sample_bytes: int
    compression: float
    repeated: float


@dataclass(frozen=True)
class Excerpt:
    """What was read of a domain that was not read whole, and how much train text all of it has.

    Attributes:
        read_bytes: text that was read, in `files_read` of the source's `num_files` files.
        text_bytes: of all text, an estimate; None where the source does not tell how much there is.
        tokens: of all text to train on, an estimate: as many to a byte as in what was read. None with `text_bytes`.
        stderr_tokens: its standard error, from how files and stretches of them differ; None where there is too little to tell.
        share: of the text that was read; None with `text_bytes`.
    """

    read_bytes: int
    files_read: int
    num_files: int
    text_bytes: float | None
    tokens: float | None
    stderr_tokens: float | None
    share: float | None = field(init=False)

    def __post_init__(self) -> None:
        share = None if self.text_bytes is None else self.read_bytes / max(self.text_bytes, self.read_bytes)
        object.__setattr__(self, "share", share)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Excerpt:
        """Back from the plain values of all attributes."""
        return cls(**{name: value for name, value in fields.items() if name != "share"})


@dataclass(frozen=True)
class DomainCounts:
    """One domain of a corpus. `skipped` counts unreadable documents by reason, `duplicates` exact copies left out, `unused_heldout` documents
    that are held out and not measured: they are over the bound, or alone. A domain with too little text to be measured has no rows in valid and test.
    A target has no `quality`, since nothing of it is trained on. `excerpt` is there where only some of the domain's text was read.
    """

    train: SplitCounts
    valid: SplitCounts
    test: SplitCounts
    text_bytes: int
    duplicates: int
    skipped: Mapping[str, int]
    unigram_entropy_nats: float
    unused_heldout: int = 0
    quality: Quality | None = None
    excerpt: Excerpt | None = None

    @property
    def is_measured(self) -> bool:
        """Whether there is held-out text to measure."""
        return self.valid.rows > 0 and self.test.rows > 0

    @property
    def available_tokens(self) -> float | None:
        """Tokens that there are to train on: of a domain that was not read whole an estimate, None where nothing tells."""
        return self.train.tokens if self.excerpt is None else self.excerpt.tokens

    def split(self, name: str) -> SplitCounts:
        counts = getattr(self, name)
        assert isinstance(counts, SplitCounts)
        return counts


@dataclass(frozen=True)
class DomainSize:
    """How much train text a domain has."""

    tokens: int
    documents: int
    mean_tokens_per_document: float
