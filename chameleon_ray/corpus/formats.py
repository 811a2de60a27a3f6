"""Which files hold text, and how: told by their names."""

from __future__ import annotations

from pathlib import PurePosixPath

JSON_LINES = (".jsonl", ".json")  # .json holds one object per line, as .jsonl does
PLAIN = (*JSON_LINES, ".txt")  # each also with a compression
COMPRESSIONS = (".gz", ".zst")
KNOWN = f"{', '.join(PLAIN)} (also with {' or '.join(COMPRESSIONS)}), .parquet"
EXPANSION = 4  # bytes of text in a byte that is stored compressed, about


def file_format(address: str) -> tuple[str, str] | None:
    """(format, compression or ""), by the extension; None when it is unknown."""
    path = PurePosixPath(address.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    suffix = PurePosixPath(path.stem).suffix if compression else path.suffix
    return (suffix, compression) if suffix in PLAIN or (suffix == ".parquet" and not compression) else None


def is_plain(address: str) -> bool:
    """Whether a file's bytes are its text: neither compressed nor Parquet. What has no known extension is source code and the like."""
    known = file_format(address)
    return known is None or (known[0] != ".parquet" and not known[1])


def likely_text_bytes(address: str, size_bytes: int) -> int:
    """How much text a file of that size holds, about: at most its size, or so many times as much where it is compressed."""
    return size_bytes * (1 if is_plain(address) else EXPANSION)
