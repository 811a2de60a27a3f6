"""What a document is: normalised text of one domain, its identity, and why some text cannot be one."""

from __future__ import annotations

import ast
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Skipped(StrEnum):
    """Why a text is left out and counted; the values are the keys of `DomainCounts.skipped`."""

    INVALID_UTF8 = "invalid_utf8"
    LONE_SURROGATE = "lone_surrogate"
    NUL = "nul"
    EMPTY = "empty"


@dataclass(frozen=True)
class Document:
    """One text to train or measure on: normalised, not empty, encodable as UTF-8, without NUL; `heldout` text never reaches training."""

    domain: str
    heldout: bool
    text: str


@dataclass(frozen=True)
class Skip:
    """A text that cannot be a document."""

    domain: str
    reason: Skipped


@dataclass
class DomainStats:
    """What reading found of one domain, copies included."""

    documents: int = 0
    text_bytes: int = 0
    heldout_documents: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def merge(self, other: DomainStats) -> DomainStats:
        """The statistics of both."""
        reasons = {reason: self.skipped.get(reason, 0) + other.skipped.get(reason, 0) for reason in {**self.skipped, **other.skipped}}
        return DomainStats(self.documents + other.documents, self.text_bytes + other.text_bytes, self.heldout_documents + other.heldout_documents, reasons)

    def add(self, found: Document | Skip) -> None:
        """Count one more."""
        if isinstance(found, Skip):
            self.skipped[str(found.reason)] = self.skipped.get(str(found.reason), 0) + 1
            return
        self.documents += 1
        self.text_bytes += len(found.text.encode())
        self.heldout_documents += found.heldout


def add_up(stats: Iterable[Mapping[str, DomainStats]]) -> dict[str, DomainStats]:
    """The statistics of several, by domain."""
    total: dict[str, DomainStats] = {}
    for each in stats:
        for name, found in each.items():
            total[name] = total.get(name, DomainStats()).merge(found)
    return total


def make_document(
    domain: str, heldout: bool, value: bytes | str | None, replace: Iterable[tuple[str, str]] = (), bytes_literals: bool = False
) -> Document | Skip:
    """The document a stored value holds, with pieces of it replaced, or why it holds none; None, a null in the data, counts as empty.

    Bytes are decoded strictly: replacement characters would train the model on what nobody wrote.

    Args:
        bytes_literals: take text that is written as Python prints bytes for these bytes.
    """
    try:
        text = value.decode() if isinstance(value, bytes) else value or ""
        if bytes_literals and (held := bytes_of_literal(text)) is not None:
            text = held.decode()
        for piece, other in replace:
            text = text.replace(piece, other)
        text = normalise(text)
        text.encode()
    except UnicodeDecodeError:
        return Skip(domain, Skipped.INVALID_UTF8)
    except UnicodeEncodeError:
        return Skip(domain, Skipped.LONE_SURROGATE)
    if "\0" in text:
        return Skip(domain, Skipped.NUL)
    return Document(domain, heldout, text) if text else Skip(domain, Skipped.EMPTY)


def bytes_of_literal(text: str) -> bytes | None:
    """The bytes of a text that is written as Python prints them, b'caf\\xc3\\xa9'; None for any other. Nothing is evaluated but the literal."""
    if not text.startswith(("b'", 'b"')) or not text.endswith(text[1]):
        return None
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, bytes) else None


def normalise(text: str) -> str:
    """The text with differences removed that come from storage, not from the writer; applying it twice changes nothing more.

    - NFC: the same characters reach the tokenizer as the same bytes, whether a system stored them composed or decomposed.
    - CRLF and CR become LF: line ends tell the writer's operating system, which would otherwise separate domains and hide duplicates.
    - Outer white space is stripped: exporters differ in the final newline, and the end-of-document token already marks the border.

    Nothing else: case, inner white space, compatibility characters and control characters are part of the text (code depends on them).
    """
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def document_hash(text: str) -> bytes:
    """The identity of a document: 16 bytes of BLAKE2b over the normalised UTF-8 text. Equal text is the same document, wherever it was stored.

    At 10^9 documents the chance of any two different texts colliding is about 10^-21.
    """
    return hashlib.blake2b(normalise(text).encode(), digest_size=16).digest()
