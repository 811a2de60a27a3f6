"""An experiment file without mistakes, and how a test puts one in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Refused = Callable[..., str]


def document(folder: Path) -> dict[str, Any]:
    """An experiment file without mistakes."""
    (folder / "web.jsonl").write_text('{"text": "some words"}\n')

    def training() -> dict[str, Any]:
        return {"model": {"layers": 1, "heads": 2, "width": 8}, "steps": 4, "batch_rows": 4}

    return {
        "name": "small",
        "storage": str(folder / "runs"),
        "corpus": {
            "domains": {name: {"files": [str(folder / "web.jsonl")]} for name in ("web", "code")},
            "tokenizer": {"train": {"vocab_size": 300}},
            "row_tokens": 16,
        },
        "proxy": training(),
        "base": training(),
        "methods": {"uniform": {}},
    }


def edited(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The document with one value replaced or added; sections are made as needed."""
    *parents, last = path.split("/")
    node = content
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return content
