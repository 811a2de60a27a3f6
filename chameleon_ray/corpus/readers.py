"""Records of files, streamed, for every format: whole files here, parts of them in `stretches.py`.

A reader runs in many workers and holds a buffer of a few megabytes and one document at a time (of Parquet 16; of a data set that `datasets` streams what
that reads at once, up to a row group).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from chameleon_ray import storage
from chameleon_ray.corpus.data_sets import DATASETS_ERRORS, open_stream
from chameleon_ray.corpus.documents import Document, Skip, make_document
from chameleon_ray.corpus.formats import file_format
from chameleon_ray.corpus.python_environment import document_bytes
from chameleon_ray.corpus.sources import File, Origin, Part
from chameleon_ray.corpus_config import check_domain_name
from chameleon_ray.errors import UserError, one_line

_STRING_TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "null")
_BUFFER_BYTES = 4 << 20  # read at once: every read of an object store is a request
_CHUNK_BYTES = 64 << 10  # compressed bytes fed to a decompressor at once: bounds what one call can expand to
_BATCH_ROWS = 16
_FETCH_AGAIN = "write the file again or fetch it afresh"
_MARK = b"\xef\xbb\xbf"
_TEXT_COLUMN, _DOMAIN_COLUMN = "corpus.text_column", "corpus.domains_from.domain_column"

Value = bytes | str | None


@dataclass(frozen=True)
class Columns:
    """Where records hold text, and where the name of their domain; dots reach into nested records, unless a key with these dots exists."""

    text: str
    domain: str | None = None


@dataclass(frozen=True)
class Record:
    """The text of one record as stored, and its domain where it names one; `start` is where it begins and `size` how long it is, in bytes of the content
    that it is read from: the lines of a file, decompressed, or the texts of a table one after the other."""

    start: int
    size: int
    value: Value
    domain: str | None = None


def read_part(part: Part, text_column: str) -> Iterator[Document | Skip]:
    """Stream the documents of a part; a text that cannot be a document comes as a `Skip`, so that it can be counted.

    Args:
        part: from `parts_of`.
        text_column: the key or column with the text; dots reach into nested records, unless a key with these dots exists.
    Raises:
        UserError: a file that is gone, truncated or corrupt, a line that is not a JSON object, a record without the column, a text that is not
            a string, or a record without a domain.
    """
    columns = Columns(text_column, part.origin.domain_column)
    for file in part.files:
        yield from documents(part.origin, _records(part, file, columns))


def documents(origin: Origin, records: Iterable[Record]) -> Iterator[Document | Skip]:
    """What records become; those of domains that are not wanted are left out."""
    for record in records:
        domain = origin.domain if record.domain is None else record.domain
        assert domain is not None
        if not origin.only or domain in origin.only:
            yield make_document(domain, origin.heldout, record.value, origin.replace, origin.bytes_literals)


def _records(part: Part, file: File, columns: Columns) -> Iterator[Record]:
    if part.origin.kind == "stream":
        return stream_records(part.origin, file, columns)
    check_exists(file)
    if part.origin.kind == "environment":
        return iter([Record(0, file.size_bytes, document_bytes(file.address))])
    suffix, compression = file_format(file.address) or ("", "")
    if suffix == ".parquet":
        return parquet_records(file.address, columns)
    if suffix == ".txt":
        return iter([text_record(file.address, compression)])
    if part.span:
        return json_records(file.address, lines(plain_content(file.address, *part.span, _CHUNK_BYTES), *part.span), columns)
    return json_records(file.address, lines(content(file.address, compression)), columns)


def text_record(address: str, compression: str) -> Record:
    """A text file as one record."""
    text = b"".join(content(address, compression)).removeprefix(_MARK)
    return Record(0, len(text), text)


def check_exists(file: File) -> None:
    """Raise `UserError` for a file that is not there."""
    if not storage.exists(file.address):
        raise UserError(f"{file.address}: not found on this machine; every machine must see the files of the corpus at the same address")


def content(address: str, compression: str) -> Iterator[bytes]:
    """The decompressed bytes of a file."""
    with storage.open_input(address) as stream:
        buffered = pa.BufferedInputStream(stream, _BUFFER_BYTES)
        yield from decompressed(address, compression, iter(lambda: buffered.read(_CHUNK_BYTES), b""))


def plain_content(address: str, start: int, stop: int, step: int) -> Iterator[bytes]:
    """The bytes of a file from the one before `start` on, as `lines` takes them; those behind `stop` in small steps, since only a line's end is wanted."""
    with storage.open_input(address) as stream:
        stream.seek(max(0, start - 1))
        while left := stop - stream.tell():
            if left < 0 or not (chunk := stream.read(min(left, _BUFFER_BYTES))):
                break
            yield chunk
        yield from iter(lambda: stream.read(step), b"")


def decompressed(address: str, compression: str, stored: Iterable[bytes]) -> Iterator[bytes]:
    """What stored bytes hold; raises `UserError` where they end early or are not what the name says."""
    try:
        if compression == ".zst":
            yield from _decompressed(stored, zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj)
        elif compression == ".gz":
            yield from _decompressed(stored, lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16))
        else:
            yield from stored
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"{address}: truncated or corrupt ({one_line(error)}); {_FETCH_AGAIN}") from None


def _decompressed(stored: Iterable[bytes], new_decompressor: Callable[[], Any]) -> Iterator[bytes]:
    """The content of one or more frames (gzip: members), each of which must be complete.

    The libraries' file objects are not used: zstandard's takes a truncated frame for the end of the file, and both take an empty file.
    A file cut exactly between two complete frames cannot be told from a complete file.
    """
    decompressor = new_decompressor()
    complete = False
    for chunk in stored:
        while chunk:
            yield decompressor.decompress(chunk)
            complete = decompressor.eof
            chunk = decompressor.unused_data
            if complete:
                decompressor = new_decompressor()
    if not complete:
        raise EOFError("ends before the end of a compressed frame")


def lines(chunks: Iterable[bytes], start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Lines without their end, and where each begins. The pieces of a long line are joined once, so that its cost is linear in its length.

    Args:
        chunks: the content from the byte before `start` on (from the first byte where `start` is 0), so that a line that begins there is known from one
            that only goes on there, which is left out.
        stop: lines that begin from there on are left out; the content need not go further than the end of the last line.
    """
    place, pending = start, list[bytes]()
    is_whole = start == 0
    if not is_whole:
        place -= 1
    begun = place
    for chunk in chunks:
        first, *following = chunk.split(b"\n")
        pending.append(first)
        for piece in following:
            line = b"".join(pending)
            if is_whole:
                yield begun, line
            begun += len(line) + 1
            if stop is not None and begun >= stop:
                return
            is_whole, pending = True, [piece]
    if is_whole:
        yield begun, b"".join(pending)


def json_records(address: str, found: Iterable[tuple[int, bytes]], columns: Columns) -> Iterator[Record]:
    """The records of lines, one JSON object each; blank lines are nothing."""
    from_the_start = False
    for number, (start, line) in enumerate(found, 1):
        if start == 0:
            from_the_start, line = True, line.removeprefix(_MARK)
        if line and not line.isspace():
            yield _json_record(start, line, f"{address}:{number}" if from_the_start else f"{address}, line at byte {start:,}", columns)


def _json_record(start: int, line: bytes, where: str, columns: Columns) -> Record:
    text = line.decode(errors="replace")
    usable = "\0" not in text and ("\ufffd" not in text or _is_utf8(line))
    if not usable and columns.domain is None:
        return Record(start, len(line) + 1, line)  # as it is: `make_document` skips it for the same reason
    try:
        record = json.loads(text, strict=usable)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({one_line(error)}); expected one JSON object per line") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected one JSON object per line, found {type(record).__name__}")
    value = _text_of(record, columns.text, where) if usable else line
    if columns.domain is None:
        return Record(start, len(line) + 1, value)
    return Record(start, len(line) + 1, value, _discovered(_text_of(record, columns.domain, where, _DOMAIN_COLUMN), columns.domain, where))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text_of(record: Mapping[str, Any], column: str, where: str, setting: str = _TEXT_COLUMN) -> str | None:
    try:
        value = _nested_value(record, column)
    except KeyError:
        raise _missing_column(where, column, record, setting) from None
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {column!r} holds {type(value).__name__}, not a string; set {setting} to a key with strings")
    return value


def _nested_value(record: Mapping[str, Any], column: str) -> Any:
    if column in record:
        return record[column]
    for head, rest in _heads(column):
        if isinstance(record.get(head), dict):
            return _nested_value(record[head], rest)
    raise KeyError(column)


def _heads(column: str) -> Iterator[tuple[str, str]]:
    """`a.b.c` -> (a, b.c), (a.b, c)."""
    keys = column.split(".")
    return ((".".join(keys[:i]), ".".join(keys[i:])) for i in range(1, len(keys)))


def parquet_records(address: str, columns: Columns) -> Iterator[Record]:
    """The records of a Parquet file."""
    with open_parquet(address, _BUFFER_BYTES) as file:
        yield from row_group_records(file, address, columns, None)


@contextmanager
def open_parquet(address: str, buffer_bytes: int) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose pages are read as they are needed, not a row group at once; what goes wrong with it is the user's to mend."""
    try:
        with storage.open_input(address) as stream:
            yield pq.ParquetFile(stream, buffer_size=buffer_bytes, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{address}: not readable as Parquet, truncated or corrupt ({one_line(error)}); {_FETCH_AGAIN}") from None


def row_group_records(file: pq.ParquetFile, address: str, columns: Columns, groups: list[int] | None) -> Iterator[Record]:
    """The records of some row groups, of all when None; a record's `start` counts the bytes of the texts before it."""
    wanted = [columns.text, *([columns.domain] if columns.domain else [])]
    check_columns(file.schema_arrow.empty_table(), address, columns)  # complains with all columns, before only these are read
    yield from table_records(file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=wanted), address, columns)


def check_columns(table: pa.Table | pa.RecordBatch, where: str, columns: Columns) -> None:
    """Raise `UserError` for a column that is not there or holds no strings."""
    _strings(table, columns.text, where, _TEXT_COLUMN)
    if columns.domain:
        _strings(table, columns.domain, where, _DOMAIN_COLUMN)


def table_records(tables: Iterable[pa.Table | pa.RecordBatch], where: str, columns: Columns) -> Iterator[Record]:
    """The records of tables, one after the other."""
    start = row = 0
    for table in tables:
        names: Iterable[bytes | None] = [None] * table.num_rows
        if columns.domain is not None:
            names = _strings(table, columns.domain, where, _DOMAIN_COLUMN)
        for value, name in zip(_strings(table, columns.text, where, _TEXT_COLUMN), names, strict=True):
            row += 1
            domain = None
            if columns.domain is not None:
                domain = _discovered((name or b"").decode(errors="replace"), columns.domain, f"{where}, row {row}")
            size = len(value or b"")
            yield Record(start, size, value, domain)
            start += size


def stream_records(origin: Origin, file: File, columns: Columns) -> Iterator[Record]:
    """The records of one shard of a data set that `datasets` reads."""
    address, _, shard = file.address.rpartition("#")
    where = f"{address}, split {origin.options['split']}, shard {shard} of {origin.options['num_shards']}"
    yield from table_records(_stream_tables(address, origin, int(shard), where), where, columns)


def _stream_tables(address: str, origin: Origin, shard: int, where: str) -> Iterator[pa.Table]:
    try:
        stream = open_stream(address, origin.options).shard(origin.options["num_shards"], shard)
        yield from stream.with_format("arrow").iter(batch_size=_BATCH_ROWS)
    except DATASETS_ERRORS as error:
        raise UserError(f"{where}: not readable (datasets: {one_line(error)}); {_FETCH_AGAIN}") from error


def _discovered(domain: str | None, column: str, where: str) -> str:
    """The name that a record gives its domain; raises `UserError` for one that no domain can have."""
    if not domain or "\ufffd" in domain:
        raise UserError(f"{where}: {column!r} holds no domain name; every record needs one")
    try:
        return _checked_name(domain)
    except ValueError as error:
        raise UserError(f"{where}: {column!r} holds {domain!r}: {error}") from None


@lru_cache(maxsize=1 << 14)
def _checked_name(domain: str) -> str:
    return check_domain_name(domain)


def _strings(table: pa.Table | pa.RecordBatch, column: str, where: str, setting: str) -> Iterator[bytes | None]:
    """The values of a string column as stored bytes: pyarrow does not check that they are UTF-8, and fails as a whole when one is not."""
    path = _column_path(table.schema, column)
    if path is None:
        raise _missing_column(where, column, table.schema.names, setting)
    array = pc.struct_field(table.to_struct_array(), path)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if str(array.type) not in _STRING_TYPES:
        raise UserError(f"{where}: column {column!r} holds {array.type}, not strings; set {setting} to a column of strings")
    return (value.as_py() for value in array.cast(pa.large_binary()))


def _column_path(fields: pa.Schema | pa.StructType, column: str) -> list[int] | None:
    """Indices that lead to a column; dots reach into structs, unless a column with these dots exists."""
    names = [member.name for member in fields]
    if column in names:
        return [names.index(column)]
    for head, rest in _heads(column):
        if head in names and pa.types.is_struct(inner := fields.field(names.index(head)).type):
            path = _column_path(inner, rest)
            return None if path is None else [names.index(head), *path]
    return None


def _missing_column(where: str, column: str, found: Iterable[str], setting: str) -> UserError:
    return UserError(f"{where}: no {column!r}, found {', '.join(found) or 'no keys'}; set {setting} to one of them")
