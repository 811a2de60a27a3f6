"""Text, corpora and models made of nothing: seeded, so that a benchmark needs no outside data and every run measures the same work."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from tokenizers import Tokenizer

from chameleon_ray import storage
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import ModelConfig
from chameleon_ray.corpus.packing import pack
from chameleon_ray.corpus.rows import write_shard
from chameleon_ray.corpus.tokenizer import END_OF_DOCUMENT, Encoder, save_tokenizer, tokenizer_sha256, train_tokenizer
from chameleon_ray.corpus.unigrams import entropy_nats
from chameleon_ray.counts import DomainCounts, SplitCounts
from chameleon_ray.identity import digest_of
from chameleon_ray.models.build import build_model
from chameleon_ray.records import write_record

VOCAB_SIZE = 2048
HELDOUT_ROWS = 2


class DomainText:
    """Endless documents of one domain: words from a vocabulary of its own, drawn by Zipf's law; lengths are log-normal, median 300 words."""

    def __init__(self, domain: int, seed: int = 0, num_words: int = 2_000) -> None:
        self._random = np.random.default_rng([seed, domain])
        lengths = self._random.integers(2, 10, size=num_words)
        letters = self._random.integers(ord("a"), ord("z") + 1, size=int(lengths.sum()), dtype=np.uint8).tobytes().decode()
        ends = np.cumsum(lengths)
        self._words = [letters[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        shares = 1 / np.arange(1, num_words + 1)
        self._cumulative = np.cumsum(shares / shares.sum())[:-1]

    def document(self) -> str:
        """The next document."""
        count = int(np.clip(self._random.lognormal(np.log(300), 1), 20, 5000))
        picks = np.searchsorted(self._cumulative, self._random.random(count), side="right")
        return " ".join([self._words[i] for i in picks.tolist()]) + "."


def write_json_lines(path: Path, text: DomainText, num_bytes: int) -> None:
    """A file of documents, as long as asked for or at most a document longer."""
    written = 0
    with path.open("w") as file:
        while written < num_bytes:
            written += file.write(json.dumps({"text": text.document()}) + "\n")


def make_corpus(folder: str, num_domains: int, rows_per_domain: int, row_tokens: int) -> TokenCorpus:
    """A finished corpus of full rows, made with the project's tokenizer, packing and shards, and without Ray."""
    texts = {f"domain-{i}": DomainText(i) for i in range(num_domains)}
    tokenizer = train_tokenizer(VOCAB_SIZE, {name: [text.document() for _ in range(100)] for name, text in texts.items()})
    end = tokenizer.get_vocab()[END_OF_DOCUMENT]
    save_tokenizer(tokenizer, end, storage.join(folder, "tokenizer"))
    rows = {"train": rows_per_domain, "valid": HELDOUT_ROWS, "test": HELDOUT_ROWS}
    counts = {}
    for name, text in texts.items():
        splits = {split: _write_split(folder, split, name, text, tokenizer, count, row_tokens) for split, count in rows.items()}
        (train, entropy), (valid, _), (test, _) = splits["train"], splits["valid"], splits["test"]
        counts[name] = DomainCounts(train, valid, test, 0, 0, {}, entropy)
    digest = digest_of("corpus", {"synthetic": [num_domains, rows_per_domain, row_tokens, VOCAB_SIZE]})
    corpus = TokenCorpus(folder, digest, tuple(texts), counts, row_tokens, tokenizer.get_vocab_size(), end, tokenizer_sha256(tokenizer, end))
    write_record(folder, "corpus", digest, corpus.content())
    return TokenCorpus.load(folder)


def make_model(folder: str, model: ModelConfig, corpus: TokenCorpus) -> None:
    """A freshly initialised model in Hugging Face layout, with the corpus's tokenizer: as fast as a trained one."""
    network: Any = build_model(model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, seed=0)
    with tempfile.TemporaryDirectory() as local:
        network.save_pretrained(local)
        storage.publish(local, folder)
    storage.publish(corpus.tokenizer_address, folder)


def _write_split(folder: str, split: str, domain: str, text: DomainText, tokenizer: Tokenizer, num_rows: int, row_tokens: int) -> tuple[SplitCounts, float]:
    """One shard, and the unigram entropy of its tokens."""
    end = np.array([tokenizer.get_vocab()[END_OF_DOCUMENT]], np.uint32)
    encoder, fragments = Encoder(tokenizer), list[np.ndarray]()
    while sum(map(len, fragments)) < num_rows * row_tokens:
        fragments += [np.concatenate([tokens, end]) for tokens in encoder.encode([text.document() for _ in range(50)])]
    packed, _ = pack(fragments, range(len(fragments)), row_tokens, tokenizer.get_vocab_size())
    rows = packed.take(np.arange(num_rows))
    write_shard(storage.join(folder, split, quote(domain, safe=""), "shard-00000.arrow"), domain, rows)
    histogram = np.bincount(rows.tokens.ravel())
    text_bytes = sum(len(text) for text in tokenizer.decode_batch(rows.tokens.tolist()))
    counts = SplitCounts(len(np.unique(rows.document)), num_rows * row_tokens, text_bytes, (num_rows,))
    return counts, entropy_nats(histogram)
