"""Some train text of every domain, for what looks at little of it: the tokenizer, and what is said of quality. Tasks, so that the driver holds no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tokenizers import Tokenizer

from chameleon_ray import storage
from chameleon_ray.corpus.buckets import read_bucket
from chameleon_ray.corpus.quality import quality_of
from chameleon_ray.corpus.scatter import TokenizeSpec
from chameleon_ray.corpus.tokenizer import END_OF_DOCUMENT, save_tokenizer, tokenizer_sha256, train_tokenizer
from chameleon_ray.records import done_once

TOKENIZER_BYTES = 256 << 20
MOST_BUCKETS = 1024


def train_text(spec: TokenizeSpec, wanted: Mapping[str, int]) -> dict[str, list[str]]:
    """Train documents of some domains in the order of their hashes, which is as good as a random one, about so many bytes of each.

    No more than `MOST_BUCKETS` are read, 16 GB: of a corpus beyond that, domains with a thousandth of a millionth of it may have nothing there.
    """
    texts: dict[str, list[str]] = {name: [] for name in wanted}
    taken = dict.fromkeys(wanted, 0)
    short = {name for name, most in wanted.items() if most}
    for bucket in range(min(spec.contents.layout.buckets, MOST_BUCKETS)):
        if not short:
            break
        for _, domain, heldout, text in read_bucket(spec.contents, bucket, spec.borders):
            if domain in short and (not heldout or domain in spec.trained_whole):
                texts[domain].append(text[: wanted[domain] - taken[domain]])
                taken[domain] += len(texts[domain][-1].encode())
                if taken[domain] >= wanted[domain]:
                    short.remove(domain)
    return {name: found for name, found in texts.items() if found}


def make_tokenizer(spec: TokenizeSpec, vocab_size: int, bytes_per_domain: int) -> dict[str, Any]:
    """Train a tokenizer on train documents of every domain, 256 MB in all at most, and save it. Done before: return at once.

    Returns:
        The fields of `TokenizeSpec` that it decides.
    """
    return done_once(storage.join(spec.scratch, "tokenizer.json"), lambda: _make_tokenizer(spec, vocab_size, bytes_per_domain))


def _make_tokenizer(spec: TokenizeSpec, vocab_size: int, bytes_per_domain: int) -> dict[str, Any]:
    trained = [name for name in spec.names if name not in spec.targets]
    each = min(bytes_per_domain, TOKENIZER_BYTES // len(trained))
    tokenizer = train_tokenizer(vocab_size, train_text(spec, dict.fromkeys(trained, each)))
    return publish_tokenizer(spec.address, tokenizer, tokenizer.get_vocab()[END_OF_DOCUMENT])


def publish_tokenizer(address: str, tokenizer: Tokenizer, end_of_document: int, like: str | None = None) -> dict[str, Any]:
    """Save the tokenizer of the corpus at `address` (`like` a pretrained one, where it is that); the fields of `TokenizeSpec` that it decides."""
    save_tokenizer(tokenizer, end_of_document, storage.join(address, "tokenizer"), like)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    return {"vocab_size": size, "end_of_document": end_of_document, "tokenizer_sha256": tokenizer_sha256(tokenizer, end_of_document)}


def measure_quality(spec: TokenizeSpec, wanted: Mapping[str, int]) -> dict[str, Any]:
    """Quality of every domain's train text, by so much of it. Done before: return at once."""

    def measure() -> dict[str, Any]:
        return {name: asdict(quality_of(texts)) for name, texts in train_text(spec, wanted).items()}

    return done_once(storage.join(spec.scratch, "quality.json"), measure)
