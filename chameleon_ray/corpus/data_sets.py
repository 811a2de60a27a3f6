"""Hugging Face data sets, on the hub or in a local folder of the same layout: which files they are, and as streams what is in other formats."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard

from chameleon_ray import storage
from chameleon_ray.corpus.formats import JSON_LINES, file_format
from chameleon_ray.corpus_config import HuggingFaceSource
from chameleon_ray.errors import UserError, one_line
from chameleon_ray.hub import refusal, terms_to_accept

# What `datasets` and its file systems raise for a data set, split or file they cannot open or read.
DATASETS_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, EOFError),
    *(zlib.error, zstandard.ZstdError, pa.ArrowException, tarfile.TarError, zipfile.BadZipFile),
)
_PEEKED_BYTES = 1 << 16


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set's split before it is read.

    Attributes:
        address: absolute for a local folder, else its name on the hub.
        files: of the split, local paths or hf:// addresses with their commit; empty where a builder makes the data otherwise.
        folder: what the addresses of the files begin with.
        readable: whether all files are in formats that are read here; otherwise `datasets` streams them.
        options: what opens the split as a stream: name, data_dir, split, revision (a commit where it lies on the hub).
        num_shards: of the stream.
        num_records: of the split, where its card says so.
        builder: identity of a data set that has no files.
    """

    address: str
    files: tuple[str, ...]
    folder: str
    readable: bool
    options: Mapping[str, Any]
    num_shards: int
    num_records: int | None
    builder: str


def find_data_set(where: str, source: HuggingFaceSource) -> DataSet:
    """Look a data set up; nothing of the text is read but the first lines of a file.

    Args:
        where: the setting that names it, for errors.
    Raises:
        UserError: it cannot be opened, or has no such split.
    """
    from datasets import load_dataset_builder

    folder = Path(source.path).expanduser()
    address = str(folder.absolute()) if folder.is_dir() else source.path
    options: dict[str, Any] = {"name": source.name, "data_dir": source.data_dir, "split": source.split, "revision": source.revision}
    try:
        builder = load_dataset_builder(address, source.name, data_dir=source.data_dir, revision=source.revision)
        num_shards = open_stream(address, options).num_shards
    except DATASETS_ERRORS as error:
        mistake = f"{source.path!r} cannot be opened (datasets: {one_line(error)})"
        correct = "correct path, name, data_dir, split or revision"
        if (refused := refusal(error)) is not None:
            terms = terms_to_accept(f"datasets/{source.path}")
            raise UserError(f"{where}: {mistake}; {terms if refused == 'gated' else f'{correct}; of a gated one {terms}'}") from error
        raise UserError(f"{where}: {mistake}; {correct}") from error
    groups = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    chosen = list(groups) if source.split == "all" else source.split.split("+")
    files = tuple(file for split in chosen for file in groups.get(split, ()))
    # A file on the hub is named by its commit. Workers read that commit, even when the data set changes while they do.
    commits = (match[1] for file in files if (match := re.match(r"hf://datasets/[^@]+@([^/]+)/", file)))
    options["revision"] = next(commits, source.revision)
    counted = [builder.info.splits[split].num_examples for split in chosen if builder.info.splits and split in builder.info.splits]
    num_records = sum(counted) if len(counted) == len(chosen) and all(counted) else None
    whole = all(split in groups for split in chosen)
    is_readable = whole and bool(files) and _is_readable(builder, files)
    root = address if folder.is_dir() else re.sub(r"(hf://datasets/[^@]+@[^/]+)/.*", r"\1", files[0]) if files else ""
    return DataSet(address, files, root, is_readable, options, num_shards, num_records, builder.hash or "")


def open_stream(address: str, options: Mapping[str, Any]) -> Any:
    """A split as a stream; raises one of `DATASETS_ERRORS`."""
    from datasets import load_dataset

    return load_dataset(address, options["name"], data_dir=options["data_dir"], split=options["split"], revision=options["revision"], streaming=True)


def _is_readable(builder: Any, files: tuple[str, ...]) -> bool:
    """Whether the files are Parquet or hold a JSON object per line, and nothing is configured beyond that."""
    formats = {file_format(file) for file in files}
    if any(getattr(builder.config, option, None) is not None for option in ("field", "filters", "columns")):
        return False
    if any(found is None or found[0] not in (*JSON_LINES, ".parquet") for found in formats):
        return False
    plain = next((file for file in files if file_format(file) in [(suffix, "") for suffix in JSON_LINES]), None)
    return plain is None or _holds_json_lines(plain)


def _holds_json_lines(address: str) -> bool:
    with storage.open_input(address) as stream:
        first, *rest = stream.read(_PEEKED_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n").split(b"\n", 1)
    if not rest:
        return first.startswith(b"{")
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return first.startswith(b"{") and len(first) > 2  # a broken line is named when it is read
