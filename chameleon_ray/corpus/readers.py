"""The documents of a part, streamed, for every format.

A reader runs in many workers and holds a buffer of a few megabytes and one document at a time (of Parquet 16; of a Hugging Face data set what `datasets`
reads at once, up to a row group).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from chameleon_ray import storage
from chameleon_ray.config import check_domain_name
from chameleon_ray.corpus.documents import Document, Skip, make_document
from chameleon_ray.corpus.python_environment import document_bytes
from chameleon_ray.corpus.sources import DATASETS_ERRORS, Part, file_format, first_line, open_dataset
from chameleon_ray.errors import UserError

_STRING_TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "null")
_BUFFER_BYTES = 4 << 20  # read at once: every read of an object store is a request
_CHUNK_BYTES = 64 << 10  # compressed bytes fed to a decompressor at once: bounds what one call can expand to
_BATCH_ROWS = 16
_FETCH_AGAIN = "write the file again or fetch it afresh"


def read_part(part: Part, text_column: str) -> Iterator[Document | Skip]:
    """Stream the documents of a part; a text that cannot be a document comes as a `Skip`, so that it can be counted.

    Args:
        part: from `plan_parts`.
        text_column: the key or column with the text; dots reach into nested records, unless a key with these dots exists.
    Raises:
        UserError: a file that is gone, truncated or corrupt, a line that is not a JSON object, a record without the column, a text that is not
            a string, or a record without a domain.
    """
    if part.kind == "huggingface":
        yield from _read_huggingface(part, text_column)
        return
    assert part.domain is not None
    for source in part.sources:
        if not storage.exists(source.address):
            raise UserError(f"{source.address}: not found on this machine; every machine must see the files of the corpus at the same address")
        values = [document_bytes(source.address)] if part.kind == "environment" else _read_file(source.address, text_column)
        for value in values:
            yield make_document(part.domain, part.heldout, value)


def _read_file(address: str, text_column: str) -> Iterator[bytes | str | None]:
    known = file_format(address)
    assert known is not None
    suffix, compression = known
    if suffix == ".parquet":
        yield from _read_parquet(address, text_column)
    elif suffix == ".txt":
        yield b"".join(_chunks(address, compression)).removeprefix(b"\xef\xbb\xbf")
    else:
        yield from _read_json_lines(address, compression, text_column)


def _chunks(address: str, compression: str) -> Iterator[bytes]:
    """The decompressed bytes of a file."""
    with storage.open_input(address) as stream:
        buffered = pa.BufferedInputStream(stream, _BUFFER_BYTES)
        stored = iter(lambda: buffered.read(_CHUNK_BYTES), b"")
        try:
            if compression == ".zst":
                yield from _decompressed(stored, zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj)
            elif compression == ".gz":
                yield from _decompressed(stored, lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16))
            else:
                yield from stored
        except (EOFError, zlib.error, zstandard.ZstdError) as error:
            raise UserError(f"{address}: truncated or corrupt ({first_line(error)}); {_FETCH_AGAIN}") from None


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


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their end. The pieces of a long line are joined once, so that its cost is linear in its length."""
    pending: list[bytes] = []
    for chunk in chunks:
        first, *following = chunk.split(b"\n")
        pending.append(first)
        for piece in following:
            yield b"".join(pending)
            pending = [piece]
    yield b"".join(pending)


def _read_json_lines(address: str, compression: str, text_column: str) -> Iterator[bytes | str | None]:
    for number, line in enumerate(_lines(_chunks(address, compression)), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line and not line.isspace():
            yield _json_text(line, f"{address}:{number}", text_column)


def _json_text(line: bytes, where: str, text_column: str) -> bytes | str | None:
    try:
        decoded = line.decode()
    except UnicodeDecodeError:
        return line  # as it is: `make_document` skips it for the same reason
    if "\0" in decoded:
        return line
    try:
        record = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({first_line(error)}); expected one JSON object per line") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected one JSON object per line, found {type(record).__name__}")
    try:
        value = _nested_value(record, text_column)
    except KeyError:
        raise _missing_column(where, text_column, record) from None
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {text_column!r} holds {type(value).__name__}, not a string; set corpus.text_column to the key with the text")
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


def _read_parquet(address: str, text_column: str) -> Iterator[bytes | None]:
    try:
        with storage.open_input(address) as stream:
            # Without pre_buffer and with a small buffer, pages are read as they are needed, not a row group at once.
            file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
            _strings(file.schema_arrow.empty_table(), text_column, address)  # complains with all columns, before only one is read
            for batch in file.iter_batches(_BATCH_ROWS, columns=[text_column]):
                yield from _strings(batch, text_column, address)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{address}: not readable as Parquet, truncated or corrupt ({first_line(error)}); {_FETCH_AGAIN}") from None


def _read_huggingface(part: Part, text_column: str) -> Iterator[Document | Skip]:
    (source,) = part.sources
    where = f"{source.address}, split {part.options['split']}, shard {part.options['shard']} of {part.options['num_shards']}"
    domain_column, only = part.options.get("domain_column"), part.options.get("only")
    row, found = 0, set[str]()
    for table in _huggingface_tables(source.address, part.options, where):
        names: Iterable[bytes | None] = [(part.domain or "").encode()] * table.num_rows
        if domain_column is not None:
            names = _strings(table, domain_column, where, "corpus.domains_from.domain_column")
        for value, name in zip(_strings(table, text_column, where), names, strict=True):
            row += 1
            domain = (name or b"").decode(errors="replace")
            if domain not in found:
                _check_discovered(domain, f"{where}, row {row}: {domain_column!r}")
                found.add(domain)
            if not only or domain in only:
                yield make_document(domain, part.heldout, value)


def _check_discovered(domain: str, where: str) -> None:
    if not domain or "\ufffd" in domain:
        raise UserError(f"{where} holds no domain name; every record needs one")
    try:
        check_domain_name(domain)
    except ValueError as error:
        raise UserError(f"{where} holds {domain!r}: {error}") from None


def _huggingface_tables(address: str, options: Mapping[str, Any], where: str) -> Iterator[pa.Table]:
    try:
        shard = open_dataset(address, options).shard(options["num_shards"], options["shard"])
        yield from shard.with_format("arrow").iter(batch_size=_BATCH_ROWS)
    except DATASETS_ERRORS as error:
        raise UserError(f"{where}: not readable (datasets: {first_line(error)}); {_FETCH_AGAIN}") from error


def _strings(table: pa.Table | pa.RecordBatch, column: str, where: str, setting: str = "corpus.text_column") -> Iterator[bytes | None]:
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


def _missing_column(where: str, column: str, found: Iterable[str], setting: str = "corpus.text_column") -> UserError:
    return UserError(f"{where}: no {column!r}, found {', '.join(found) or 'no keys'}; set {setting} to one of them")
