"""Second and third pass: buckets of text into token rows scattered over shards, and shards gathered, shuffled and written.

Every function is one task: it reads files, writes files under its own name, and returns counts. A task that is done is not done again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from chameleon_ray import storage
from chameleon_ray.corpus.heldout import Border
from chameleon_ray.corpus.packing import deal, pack, pack_all
from chameleon_ray.corpus.partition import Contents, read_bucket
from chameleon_ray.corpus.quality import quality_of
from chameleon_ray.corpus.rows import Rows, token_dtype, write_shard
from chameleon_ray.corpus.tokenizer import END_OF_DOCUMENT, encode, save_tokenizer, tokenizer_sha256, train_tokenizer
from chameleon_ray.counts import SplitCounts

SHARD_TEXT_BYTES = 8 << 20
MAX_SHARDS = 512
PIECES = pa.schema(
    [
        ("domain", pa.int32()),
        ("shard", pa.int32()),
        ("document", pa.int64()),
        ("tokens", pa.large_list(pa.uint32())),
    ]
)
TAIL, HELDOUT = -1, -2
KINDS = ("train", "heldout")


@dataclass(frozen=True)
class TokenizeSpec:
    """What every task of one corpus knows. `shards` is the number of train shards of each domain; of the domains in `trained_whole` nothing is measured,
    because nothing would be left to train on: what was held out of them is trained on after all."""

    address: str
    contents: Contents
    buckets: int
    borders: Mapping[str, Border]
    shards: Mapping[str, int]
    row_tokens: int
    heldout_tokens: int
    vocab_size: int
    end_of_document: int
    tokenizer_sha256: str
    seed: int
    trained_whole: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.contents.names

    @property
    def scratch(self) -> str:
        return storage.join(self.address, "scratch")


def tokenize_bucket(spec: TokenizeSpec, bucket: int) -> dict[str, Any]:
    """Tokenize one bucket; write its rows by domain and shard, and what is shorter than a row, and held-out documents, as they are.

    Returns:
        Counts by domain: train documents, tokens and bytes, held-out ones, duplicates, held-out documents that are not used; the bytes of every held-out
        document that is.
    """
    done = _done(spec, bucket)
    if storage.exists(done):
        return dict(json.loads(storage.read_bytes(done)))
    found = read_bucket(spec.contents, bucket, spec.borders)
    tokenizer = _tokenizer(spec.address, spec.tokenizer_sha256)
    fragments: dict[tuple[str, bool], list[np.ndarray]] = defaultdict(list)
    sizes: dict[tuple[str, bool], list[int]] = defaultdict(list)
    end = np.array([spec.end_of_document], np.uint32)
    for (_, domain, heldout, text), tokens in zip(found, encode(tokenizer, (text for *_, text in found)), strict=True):
        fragments[domain, heldout].append(np.concatenate([tokens, end]).astype(token_dtype(spec.vocab_size)))
        sizes[domain, heldout].append(len(text.encode()))
    counts = {
        kind: {name: [len(mine), sum(map(len, mine)), sum(sizes[name, held])] for (name, held), mine in fragments.items() if held == (kind == "heldout")}
        for kind in KINDS
    }
    _write_pieces(storage.join(spec.scratch, f"tokens-{bucket:05d}.arrow"), _scatter(spec, bucket, fragments))
    heldout_bytes = {name: mine for (name, held), mine in sizes.items() if held}
    result = {**counts, "duplicates": found.duplicates, "unused": found.unused, "heldout_bytes": heldout_bytes}
    storage.write_bytes(done, json.dumps(result).encode())
    return result


def gather_train(spec: TokenizeSpec, domain: str, shard: int) -> dict[str, Any]:
    """Write one shuffled train shard. The first shard of a domain also packs what the buckets had left over, and all of a domain trained whole."""
    index = spec.names.index(domain)
    parts = list(_full_rows(spec, index, shard))
    if shard == 0:
        kinds = (TAIL, HELDOUT) if domain in spec.trained_whole else (TAIL,)
        left = [piece for bucket in range(spec.buckets) for kind in kinds for piece in _read_pieces(spec, bucket, index, kind)]
        parts.append(pack([tokens for _, tokens in left], [document for document, _ in left], spec.row_tokens, spec.vocab_size)[0])
    histogram = np.zeros(spec.vocab_size, np.int64)
    for part in parts:
        histogram += np.bincount(part.tokens.ravel(), minlength=spec.vocab_size)
    rows = Rows.concat(parts) if parts else pack([], [], spec.row_tokens, spec.vocab_size)[0]
    parts.clear()
    rows = rows.take(np.random.default_rng([spec.seed, shard, *domain.encode()]).permutation(len(rows)))
    write_shard(storage.join(spec.address, "train", quote(domain, safe=""), f"shard-{shard:05d}.arrow"), domain, rows)
    return {"rows": len(rows), "unigrams": [[int(token), int(histogram[token])] for token in np.flatnonzero(histogram)]}


def gather_heldout(spec: TokenizeSpec, domain: str) -> dict[str, Any]:
    """Deal a domain's held-out documents, in the order of their hashes, to valid and test, `heldout_tokens` each at most; write both.

    With fewer than two documents neither split gets any: the domain is not measured.
    """
    index = spec.names.index(domain)
    buckets = range(0 if domain in spec.trained_whole else spec.buckets)
    shares: list[float] = []  # bytes per token of every document that is read
    halves = deal(_heldout_documents(spec, index, buckets, shares), spec.heldout_tokens)
    result = {}
    for split, mine in zip(("valid", "test"), halves if all(halves) else ([], []), strict=True):
        if mine:
            rows = pack_all([tokens for _, tokens in mine], range(len(mine)), spec.row_tokens, spec.vocab_size, spec.end_of_document)
            write_shard(storage.join(spec.address, split, quote(domain, safe=""), "shard-00000.arrow"), domain, rows)
        text_bytes = round(sum(shares[place] * len(tokens) for place, tokens in mine))
        result[split] = asdict(SplitCounts(len(mine), int(sum(len(tokens) for _, tokens in mine)), text_bytes, (len(rows),) if mine else ()))
    return result


def num_shards(text_bytes: int) -> int:
    """Train shards of a domain: of some 8 MB of text, so that shuffling one takes little memory; beyond 4 GB the shards grow instead."""
    return max(1, min(MAX_SHARDS, -(-text_bytes // SHARD_TEXT_BYTES)))


def make_tokenizer(spec: TokenizeSpec, vocab_size: int, bytes_per_domain: int) -> dict[str, Any]:
    """Train a tokenizer on train documents of every domain and save it; a task, so that the driver holds no text.

    Returns:
        The fields of `TokenizeSpec` that it decides.
    """
    tokenizer = train_tokenizer(vocab_size, training_sample(spec, {name: bytes_per_domain for name in spec.names if name not in spec.targets}))
    return publish_tokenizer(spec.address, tokenizer, tokenizer.get_vocab()[END_OF_DOCUMENT])


def publish_tokenizer(address: str, tokenizer: Tokenizer, end_of_document: int) -> dict[str, Any]:
    """Save the tokenizer of the corpus at `address`; the fields of `TokenizeSpec` that it decides."""
    save_tokenizer(tokenizer, end_of_document, storage.join(address, "tokenizer"))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    return {"vocab_size": size, "end_of_document": end_of_document, "tokenizer_sha256": tokenizer_sha256(tokenizer, end_of_document)}


def training_sample(spec: TokenizeSpec, wanted: Mapping[str, int]) -> dict[str, list[str]]:
    """Train documents of some domains in the order of their hashes, which is as good as a random one, about so many characters of each."""
    texts: dict[str, list[str]] = {name: [] for name in wanted}
    taken = dict.fromkeys(wanted, 0)
    for bucket in range(spec.buckets):
        if all(taken[name] >= most for name, most in wanted.items()):
            break
        for _, domain, heldout, text in read_bucket(spec.contents, bucket, spec.borders):
            trained = domain in wanted and (not heldout or domain in spec.trained_whole)
            if trained and taken[domain] < wanted[domain]:
                texts[domain].append(text[: wanted[domain] - taken[domain]])
                taken[domain] += len(texts[domain][-1])
    return {name: found for name, found in texts.items() if found}


def measure_quality(spec: TokenizeSpec, wanted: Mapping[str, int]) -> dict[str, Any]:
    """Quality of every domain's train text, by so much of it."""
    done = storage.join(spec.scratch, "quality.json")
    if storage.exists(done):
        return dict(json.loads(storage.read_bytes(done)))
    found = {name: asdict(quality_of(texts)) for name, texts in training_sample(spec, wanted).items()}
    storage.write_bytes(done, json.dumps(found).encode())
    return found


@lru_cache(maxsize=1)
def _tokenizer(address: str, sha256: str) -> Tokenizer:
    """One per process and content: `tokenizers` never gives back all that loading one takes (4 MB)."""
    return Tokenizer.from_file(storage.local_file(storage.join(address, "tokenizer", "tokenizer.json")))


def _done(spec: TokenizeSpec, bucket: int) -> str:
    """What a finished bucket came to."""
    return storage.join(spec.scratch, f"tokens-{bucket:05d}.json")


def _heldout_documents(spec: TokenizeSpec, index: int, buckets: Iterable[int], shares: list[float]) -> Iterator[np.ndarray]:
    """The tokens of a domain's held-out documents; `shares` gets the bytes per token of each."""
    for bucket in buckets:
        pieces = list(_read_pieces(spec, bucket, index, HELDOUT))
        sizes = json.loads(storage.read_bytes(_done(spec, bucket)))["heldout_bytes"].get(spec.names[index], []) if pieces else []
        for (_, tokens), size in zip(pieces, sizes, strict=True):
            shares.append(size / len(tokens))
            yield tokens


def _scatter(spec: TokenizeSpec, bucket: int, fragments: Mapping[tuple[str, bool], list[np.ndarray]]) -> Iterator[pa.RecordBatch]:
    for index, name in enumerate(spec.names):
        train, heldout = (fragments.get((name, held), []) for held in (False, True))
        numbers = (bucket << 32) + np.arange(len(train) + len(heldout), dtype=np.int64)
        rows, left = pack(train, numbers[: len(train)], spec.row_tokens, spec.vocab_size)
        shards = np.random.default_rng([spec.seed, bucket, *name.encode()]).integers(spec.shards[name], size=len(rows))
        for shard in np.unique(shards):
            mine = rows.take(np.flatnonzero(shards == shard))
            yield _batch(index, int(shard), mine.document, list(mine.tokens))
        if left:
            yield _batch(index, TAIL, [document for document, _ in left], [tokens for _, tokens in left])
        if heldout:
            yield _batch(index, HELDOUT, numbers[len(train) :], heldout)


def _batch(domain: int, shard: int, documents: Sequence[int] | np.ndarray, tokens: Sequence[np.ndarray]) -> pa.RecordBatch:
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in tokens])])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.concatenate(tokens), pa.uint32()))
    count = len(tokens)
    columns = [pa.array(np.full(count, domain, np.int32)), pa.array(np.full(count, shard, np.int32)), pa.array(np.asarray(documents, np.int64)), lists]
    return pa.record_batch(columns, schema=PIECES)


def _write_pieces(address: str, batches: Iterator[pa.RecordBatch]) -> None:
    """An Arrow file whose batches can be read one by one; the index beside it says which is which."""
    filesystem, path = storage.resolve(address)
    index = []
    with filesystem.open_output_stream(path) as sink, pa.ipc.new_file(sink, PIECES) as writer:
        for batch in batches:
            writer.write_batch(batch)
            index.append([batch["domain"][0].as_py(), batch["shard"][0].as_py()])
    storage.write_bytes(f"{address}.index", json.dumps(index).encode())


def _batches_of(spec: TokenizeSpec, bucket: int, domain: int, shard: int) -> Iterator[pa.RecordBatch]:
    address = storage.join(spec.scratch, f"tokens-{bucket:05d}.arrow")
    wanted = [i for i, place in enumerate(json.loads(storage.read_bytes(f"{address}.index"))) if place == [domain, shard]]
    if wanted:
        with pa.memory_map(storage.local_file(address)) as source:
            reader = pa.ipc.open_file(source)
            for i in wanted:
                yield reader.get_batch(i)


def _read_pieces(spec: TokenizeSpec, bucket: int, domain: int, shard: int) -> Iterator[tuple[int, np.ndarray]]:
    dtype = token_dtype(spec.vocab_size)
    for batch in _batches_of(spec, bucket, domain, shard):
        offsets, values = batch["tokens"].offsets.to_numpy(), batch["tokens"].values.to_numpy()
        for i, document in enumerate(batch["document"].to_pylist()):
            yield document, values[offsets[i] : offsets[i + 1]].astype(dtype)


def _full_rows(spec: TokenizeSpec, domain: int, shard: int) -> Iterator[Rows]:
    for bucket in range(spec.buckets):
        for batch in _batches_of(spec, bucket, domain, shard):
            tokens = batch["tokens"].flatten().to_numpy().astype(token_dtype(spec.vocab_size)).reshape(-1, spec.row_tokens)
            yield Rows(tokens, np.full(len(tokens), spec.row_tokens, np.int32), batch["document"].to_numpy().copy())  # a view would keep the file mapped
