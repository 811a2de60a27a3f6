"""An object store on loopback whose text is made as it is read: terabytes that take no disk, and a count of what was really sent.

It speaks as much of S3 as reading needs: listings, sizes, ranges. A file is an order of blocks of whole JSON lines, 64 KiB each; of a compressed file every
block is a gzip member of its own, padded to one size, so that any range of it can be made without what is before it. Documents are real words of
`DomainText`, drawn from a few blocks of each domain, and every one has a number of its own.
"""

from __future__ import annotations

import gzip
import json
import os
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse
from xml.sax.saxutils import escape

from analysis.benchmarks.synthetic import DomainText

BUCKET = "text"
BLOCK_BYTES = 64 << 10
STORED_BYTES = 32 << 10  # of a compressed block
PAGE_KEYS = 1000
NUMBER = b"################"


@lru_cache(maxsize=64)
def blocks_without_numbers(domain: int, count: int, num_words: int) -> list[bytes]:
    """Blocks of one domain, with a place for a number in every document."""
    text, found = DomainText(domain, num_words=num_words), []
    for _ in range(count):
        lines, left = [], BLOCK_BYTES
        while left > 400:
            record = json.dumps({"text": f"{NUMBER.decode()} {text.document()}"[: left - 40]}).encode() + b"\n"
            lines.append(record)
            left -= len(record)
        lines[-1] = lines[-1].removesuffix(b'"}\n') + b"." * left + b'"}\n'
        found.append(b"".join(lines))
    return found


def as_member(block: bytes) -> bytes:
    """A block as a gzip member of `STORED_BYTES`: a field of its header pads it."""
    member = gzip.compress(block, 1, mtime=0)
    padding = STORED_BYTES - len(member) - 2
    assert 4 <= padding < 1 << 16, len(member)
    extra = b"pd" + (padding - 4).to_bytes(2, "little") + bytes(padding - 4)
    return member[:3] + bytes([member[3] | 4]) + member[4:10] + len(extra).to_bytes(2, "little") + extra + member[10:]


@dataclass
class TextStore:
    """Files `text/domain-DDDDD/part-FFFFF.jsonl[.gz]` of so many blocks each; even domains are compressed. Counts what it sends.

    `templates`: different blocks of each domain, beside the numbers in them. `vocabularies`: so many domains have words of their own, the others share them.
    """

    domains: int
    files: int
    blocks: int
    compressed: bool = True
    templates: int = 16
    num_words: int = 2000
    vocabularies: int = 64
    sent_bytes: int = 0
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def text_bytes(self) -> int:
        """How much there is."""
        return self.domains * self.files * self.blocks * BLOCK_BYTES

    def patterns(self) -> dict[str, str]:
        """Domain -> pattern of its files."""
        return {f"domain-{i:05d}": f"s3://{BUCKET}/domain-{i:05d}/*" for i in range(self.domains)}

    def all_keys(self) -> Iterator[str]:
        """All keys, in order."""
        for domain in range(self.domains):
            for file in range(self.files):
                yield f"domain-{domain:05d}/part-{file:05d}.jsonl{'' if domain % 2 or not self.compressed else '.gz'}"

    def size(self, key: str) -> int:
        """Of an object, in bytes."""
        return self.blocks * (STORED_BYTES if key.endswith(".gz") else BLOCK_BYTES)

    def read(self, key: str, start: int, stop: int) -> bytes:
        """A range of an object."""
        domain, file = int(key[7:12]), int(key[18:23])
        size = STORED_BYTES if key.endswith(".gz") else BLOCK_BYTES
        made = (self._block(domain, file, block) for block in range(start // size, -(-stop // size)))
        data = b"".join(map(as_member, made) if key.endswith(".gz") else made)
        return data[start - start // size * size :][: stop - start]

    def _block(self, domain: int, file: int, block: int) -> bytes:
        """A block of a file, plain: one of its domain's, with numbers that no other document has."""
        blocks = blocks_without_numbers(domain % self.vocabularies, self.templates, self.num_words)
        first, *others = blocks[zlib.crc32(f"{domain} {file} {block}".encode()) % self.templates].split(NUMBER)
        numbers = (f"{domain:04x}{file:05x}{block:05x}{i:02x}".encode() for i in range(len(others)))
        return b"".join([first, *(part for number, other in zip(numbers, others, strict=True) for part in (number, other))])

    @contextmanager
    def serve(self) -> Iterator[TextStore]:
        """Answer on a port of its own; the environment then points there."""
        server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self, "known": frozenset(self.all_keys()), "keys": list(self.all_keys())})
        )
        server.daemon_threads = True
        given = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1",
        }
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


class _Handler(BaseHTTPRequestHandler):
    """The requests of S3 that reading makes."""

    protocol_version = "HTTP/1.1"
    store: TextStore
    known: frozenset[str]
    keys: list[str]

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        key = self._key()
        if key and key not in self.known:
            self._answer(404, b"")
            return
        self._answer(200, b"", self._headers(key) if key else {}, self.store.size(key) if key else 0)

    def do_GET(self) -> None:
        key, query = self._key(), parse_qs(urlparse(self.path).query)
        if not key:
            self._answer(200, self._listing({name: values[0] for name, values in query.items()}), {"Content-Type": "application/xml"})
        elif key not in self.known:
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>", {"Content-Type": "application/xml"})
        else:
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            size = self.store.size(key)
            start, stop = int(first), min(size, int(last) + 1 if last else size)
            data = self.store.read(key, start, stop)
            with self.store.lock:
                self.store.sent_bytes += len(data)
                self.store.requests += 1
            self._answer(206, data, {**self._headers(key), "Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def _key(self) -> str:
        bucket, _, key = unquote(urlparse(self.path).path).lstrip("/").partition("/")
        return key if bucket == BUCKET else f"{bucket}/{key}"

    def _headers(self, key: str) -> dict[str, str]:
        etag = f'"{zlib.crc32(key.encode()):08x}"'
        return {"ETag": etag, "Last-Modified": "Mon, 06 Jan 2025 00:00:00 GMT", "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, size: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if size is None else size))
        self.end_headers()
        self.wfile.write(data)

    def _listing(self, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most, after = int(query.get("max-keys", PAGE_KEYS)), query.get("continuation-token", query.get("start-after", ""))
        keys: list[str] = []
        folders: dict[str, None] = {}
        truncated = False
        for key in self.keys[bisect_right(self.keys, max(prefix, after)) - (prefix > after and prefix in self.known) :]:
            if not key.startswith(prefix):
                break
            if len(keys) + len(folders) >= most:
                truncated = True
                break
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders[prefix + rest.split(delimiter)[0] + delimiter] = None
            else:
                keys.append(key)
        entry = "<Contents><Key>{}</Key><LastModified>2025-01-06T00:00:00.000Z</LastModified><ETag>&quot;{:08x}&quot;</ETag><Size>{}</Size></Contents>"
        contents = "".join(entry.format(escape(key), zlib.crc32(key.encode()), self.store.size(key)) for key in keys)
        common = "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders)
        token = f"<NextContinuationToken>{escape(keys[-1])}</NextContinuationToken>" if truncated and keys else ""
        count = len(keys) + len(folders)
        head = f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{count}</KeyCount><IsTruncated>{str(truncated).lower()}</IsTruncated>"
        return f'<?xml version="1.0"?><ListBucketResult>{head}{token}{contents}{common}</ListBucketResult>'.encode()
