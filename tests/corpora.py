"""Small corpora in the project's own format, written without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from chameleon_ray import storage
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.corpus.packing import pack_all
from chameleon_ray.corpus.rows import Rows, write_shard
from chameleon_ray.corpus.tokenizer import END_OF_DOCUMENT, save_tokenizer, tokenizer_sha256, train_tokenizer
from chameleon_ray.counts import DomainCounts, SplitCounts
from chameleon_ray.records import write_record

WORDS = "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which you were all"


def make_corpus(folder: Path, rows: Mapping[str, int] | None = None, row_tokens: int = 32, seed: int = 0, targets: tuple[str, ...] = ()) -> TokenCorpus:
    """A token corpus whose domains differ in their words; `rows` full train rows each. Some of them may be targets instead."""
    rows = rows or {"alpha": 40, "beta": 24, "gamma": 9}
    generator = np.random.default_rng(seed)
    texts = {name: [_text(generator, i) for _ in range(200)] for i, name in enumerate(rows)}
    tokenizer = train_tokenizer(320, texts)
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    address = str(folder)
    save_tokenizer(tokenizer, end, storage.join(address, "tokenizer"))
    domains = {name: _domain(address, name, count, texts[name], tokenizer, end, row_tokens) for name, count in rows.items()}
    names = tuple(name for name in rows if name not in targets)
    corpus = TokenCorpus(address, "test", names, domains, row_tokens, tokenizer.get_vocab_size(), end, tokenizer_sha256(tokenizer, end), targets)
    write_record(address, "corpus", "test", {**corpus.content(), "seconds": 0.0})
    return corpus


def _text(generator: np.random.Generator, domain: int) -> str:
    words = WORDS.split()[domain * 9 : domain * 9 + 14] or WORDS.split()
    return " ".join(generator.choice(words, size=int(generator.integers(5, 60))))


def _domain(address: str, name: str, count: int, texts: list[str], tokenizer: Tokenizer, end: int, row_tokens: int) -> DomainCounts:
    documents = [np.array([*tokenizer.encode(text).ids, end], np.uint16) for text in texts]
    stored = {}
    for split, mine in (("train", documents[:160] * 9), ("valid", documents[160:180]), ("test", documents[180:])):
        packed = pack_all(mine, range(len(mine)), row_tokens, 320, end)
        kept: Rows = packed.take(np.arange(count)) if split == "train" else packed
        write_shard(storage.join(address, split, name, "shard-00000.arrow"), name, kept)
        stored[split] = SplitCounts(len(mine), int(kept.length.sum()), 3 * int(kept.length.sum()), (len(kept),))
    return DomainCounts(stored["train"], stored["valid"], stored["test"], 1000, 0, {}, 4.0)
