"""What lies at a place that a person names: which files hold text, in which column, and what divides it into domains."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from chameleon_ray import storage
from chameleon_ray.corpus.data_sets import find_data_set
from chameleon_ray.corpus.documents import bytes_of_literal
from chameleon_ray.corpus.formats import KNOWN, file_format, likely_text_bytes
from chameleon_ray.corpus.readers import decompressed
from chameleon_ray.corpus_config import HuggingFaceSource, check_domain_name
from chameleon_ray.errors import UserError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "test", "heldout", "eval"), "heldout"),
}
TEXT_COLUMNS = ("text", "content", "body", "raw_content", "document")
DOMAIN_COLUMNS = ("domain", "source", "subset", "category", "topic", "language", "lang", "set", "dataset", "subreddit", "license")
MAX_STEMS, MAX_VALUES = 64, 200
PEEKED_FILES, PEEKED_RECORDS, PEEKED_BYTES = 4, 200, 1 << 20
SHARD = re.compile(r"([-_.]?(part|shard|chunk|file|split))?[-_.]?\d+([-_.]of[-_.]\d+)?$")


@dataclass(frozen=True)
class Text:
    """Files of one domain: patterns of those to train on and of those to hold out, and how much they hold, about."""

    files: tuple[str, ...]
    heldout: tuple[str, ...]
    num_files: int
    likely_bytes: int


@dataclass(frozen=True)
class Survey:
    """What there is.

    Attributes:
        domains: by name, where folders or names of files divide the text; of a single one where nothing does.
        column: of the domain, where that divides it: then `files` or `data_set` say where it is, and `values` how often each was seen.
        text_column: with the text. bytes_literals: whether that is written as Python prints bytes.
    """

    domains: Mapping[str, Text]
    text_column: str
    column: str | None = None
    values: Mapping[str, int] | None = None
    files: tuple[str, ...] = ()
    data_set: str | None = None
    split: str = "train"
    bytes_literals: bool = False

    @property
    def likely_bytes(self) -> int:
        return sum(text.likely_bytes for text in self.domains.values())


def survey(place: str) -> Survey:
    """Look at a folder, a file or pattern (local, s3://…, gs://…, hf://…), or a data set of the hub by name. A few records of a few files are read.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    path = Path(place).expanduser()
    is_here = "://" in place or path.exists() or any(sign in place for sign in "*?[")
    if not is_here:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not place.startswith("."):
            return _of_data_set(place)
        raise UserError(f"{place}: there is nothing here; give a folder, a file, s3://…, gs://… or the name of a data set on the hub (org/name)")
    files = _files(place)
    readable = [file for file in files if file_format(file.address) is not None]
    if not readable:
        endings = Counter("".join(PurePosixPath(file.address).suffixes[-2:]) or PurePosixPath(file.address).name for file in files)
        found = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5)) or "no files"
        if path.is_dir() and files:
            return _of_data_set(place, f"{place}: no files in known formats (found {found}; known: {KNOWN}), and no data set")
        raise UserError(f"{place}: no files in known formats (found {found}; known: {KNOWN})")
    return _of_files(_root(place, readable), readable)


def _files(place: str) -> list[storage.Stored]:
    """All files under a folder, those of a pattern, or one."""
    if any(sign in place for sign in "*?["):
        return storage.listing(place)
    found = storage.listing(f"{place.rstrip('/')}/**") or storage.listing(place)
    root = place.rstrip("/") if "://" in place else str(Path(place).expanduser().absolute())
    return [file for file in found if not any(part.startswith(".") for part in file.address.removeprefix(root).split("/"))]


def _root(place: str, files: Sequence[storage.Stored]) -> str:
    """The folder that all files lie in."""
    folders = [file.address.split("/")[:-1] for file in files]
    common = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))]
    return "/".join(common)


def _of_files(root: str, files: Sequence[storage.Stored]) -> Survey:
    records = [record for file in _some(files) for record in peek(file.address)]
    text_column = _text_column(records, root) if records else "text"
    literals = _are_literals(records, text_column)
    labels = {file.address: _labels(file.address.removeprefix(f"{root}/")) for file in files}
    nested = [file for file in files if "/" in file.address.removeprefix(f"{root}/")]
    # What lies beside folders of text (a README, a list of files) is no domain.
    for members in (nested, files):
        for level in range(max((len(labels[file.address][0]) for file in members), default=0)):
            groups: dict[str, list[storage.Stored]] = {}
            for file in members:
                groups.setdefault(labels[file.address][0][level] if level < len(labels[file.address][0]) else "", []).append(file)
            if len(groups) < 2 or "" in groups or (members is files and nested):
                continue
            return Survey({name: _text(root, mine, labels) for name, mine in sorted(groups.items())}, text_column, bytes_literals=literals)
    if (column := _domain_column(records, text_column)) is not None:
        values = Counter(value for record in records if (value := _value(record, column)))
        whole = _text(root, files, labels)
        return Survey({"all": whole}, text_column, column, dict(values.most_common()), whole.files, bytes_literals=literals)
    return Survey({"all": _text(root, files, labels)}, text_column, bytes_literals=literals)


def _of_data_set(name: str, otherwise: str = "") -> Survey:
    try:
        found = find_data_set("init", HuggingFaceSource(path=name))
    except UserError as error:
        raise UserError(otherwise or str(error).removeprefix("init: ")) from None
    files = storage.stored(found.files) if found.readable else []
    records = [record for file in _some(files) for record in peek(file.address)]
    text_column = _text_column(records, name) if records else "text"
    text = Text((), (), len(files), sum(likely_text_bytes(file.address, file.size_bytes) for file in files))
    column = _domain_column(records, text_column)
    values = Counter(value for record in records if column and (value := _value(record, column)))
    seen, literals = dict(values.most_common()) if column else None, _are_literals(records, text_column)
    return Survey({"all": text}, text_column, column, seen, data_set=name, bytes_literals=literals)


def _labels(relative: str) -> tuple[list[str], str]:
    """What the folders and the name of a file may say of its domain, from the outermost on, and whether it is to be trained on or held out."""
    *folders, name = relative.split("/")
    known = file_format(name) or ("", "")
    stem = name.lower().removesuffix(known[1]).removesuffix(known[0])
    stem = name[: len(stem)]
    is_document = known[0] == ".txt"
    words = [*folders, *([] if is_document else [stem])]
    split, found = "train", []
    for word in words:
        bare = SHARD.sub("", word) if word == stem else word
        parts = [part for part in re.split(r"[-_.]", bare) if part]
        kinds = [SPLITS[part.lower()] for part in parts if part.lower() in SPLITS]
        if kinds and len(parts) <= len(kinds) + 1:
            split = kinds[-1]
            bare = "-".join(part for part in parts if part.lower() not in SPLITS)
        if bare:
            found.append(bare)
    return found, split


def _text(root: str, files: Sequence[storage.Stored], labels: Mapping[str, tuple[list[str], str]]) -> Text:
    splits: dict[str, list[storage.Stored]] = {"train": [], "heldout": []}
    for file in files:
        splits[labels[file.address][1]].append(file)
    if not splits["train"]:
        splits = {"train": splits["heldout"], "heldout": []}
    train, heldout = (_patterns(root, splits[kind]) for kind in ("train", "heldout"))
    return Text(train, heldout, len(files), sum(likely_text_bytes(file.address, file.size_bytes) for file in splits["train"]))


def _patterns(root: str, files: Sequence[storage.Stored]) -> tuple[str, ...]:
    """Short patterns that match these files and no others; the files themselves where there are none."""
    wanted = {file.address for file in files}
    if len(wanted) <= 1:
        return tuple(sorted(wanted))
    folder = _root(root, files)
    endings = sorted({"".join(file_format(address) or ("",)) for address in wanted})
    common = commonpath([address.rpartition("/")[2] for address in wanted])
    for middle in ("*", f"{common}*", "**/*", "*train*", "**/*train*", "**/train/**/*", "*valid*", "**/*valid*", "**/valid*/**/*", "**/*test*"):
        tried = [f"{folder}/{middle}{ending}" for ending in endings]
        if {file.address for pattern in tried for file in storage.listing(pattern)} == wanted:
            return tuple(tried)
    return tuple(re.sub(r"([*?\[])", r"[\1]", address) for address in sorted(wanted))


def _some(files: Sequence[storage.Stored]) -> Sequence[storage.Stored]:
    """A few files, spread over all."""
    return files[:: max(1, -(-len(files) // PEEKED_FILES))]


def peek(address: str) -> list[dict[str, Any]]:
    """The first records of a file, as they are; none of a text file, or where the beginning cannot be read: what is wrong is told when it is read."""
    suffix, compression = file_format(address) or ("", "")
    if suffix == ".txt":
        return []
    try:
        if suffix == ".parquet":
            with storage.open_input(address) as stream:
                batch = next(pq.ParquetFile(stream, pre_buffer=False).iter_batches(PEEKED_RECORDS))
            return list(batch.to_pylist())
        return list(itertools.islice(_json_records(address, compression), PEEKED_RECORDS))
    except (UserError, ValueError, OSError, StopIteration):
        return []


def _json_records(address: str, compression: str) -> Iterator[dict[str, Any]]:
    with storage.open_input(address) as stream:
        pieces = decompressed(address, compression, iter(lambda: stream.read(1 << 14), b""))
        data = b""
        for piece in pieces:
            data += piece
            if len(data) > PEEKED_BYTES:
                break
            *lines, data = data.split(b"\n")
            yield from (json.loads(line) for line in lines if line.strip())
        if data.strip() and len(data) <= PEEKED_BYTES:
            yield json.loads(data)


def _strings(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every string in a record."""
    for key, value in record.items():
        if isinstance(value, str):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _strings(value, f"{prefix}{key}.")


def _value(record: Mapping[str, Any], column: str) -> str | None:
    return dict(_strings(record)).get(column)


def _text_column(records: Sequence[Mapping[str, Any]], where: str) -> str:
    """The column with the most text; one with a usual name where that has as much as half of it."""
    total: Counter[str] = Counter()
    for record in records:
        for key, value in _strings(record):
            total[key] += len(value)
    if not total:
        raise UserError(f"{where}: no record has a column of strings, found {', '.join(map(str, records[0])) or 'no keys'}; give text in JSON lines or Parquet")
    longest, most = total.most_common(1)[0]
    return next((name for name in TEXT_COLUMNS if total[name] > most / 2), longest)


def _are_literals(records: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether most of the text is written as Python prints bytes."""
    texts = [text for record in records if (text := _value(record, column))]
    return 2 * sum(bytes_of_literal(text) is not None for text in texts) > len(texts)


def _domain_column(records: Sequence[Mapping[str, Any]], text_column: str) -> str | None:
    """A column with few values, each of several records and fit for a name: one with a usual name first, then the one with the fewest values."""
    values: dict[str, Counter[str]] = {}
    for record in records:
        for key, value in _strings(record):
            if key != text_column:
                values.setdefault(key, Counter())[value] += 1
    fit = {}
    for key, found in values.items():
        usual = key.split(".")[-1].lower() in DOMAIN_COLUMNS
        covered = sum(found.values()) == len(records) and 2 <= len(found) <= min(MAX_VALUES, len(records) // (2 if usual else 10))
        if covered and all(_is_name(value) for value in found):
            fit[key] = (not usual, len(found), key)
    return min(fit, key=lambda key: fit[key]) if fit else None


def _is_name(value: str) -> bool:
    try:
        return 0 < len(value) <= 60 and check_domain_name(value) == value
    except ValueError:
        return False
