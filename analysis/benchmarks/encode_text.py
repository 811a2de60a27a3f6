"""Bytes of text per second that one thread turns into tokens, over those of the tokenizers library by itself, with equal tokens.

The library encodes the same documents in batches of 256 Ki characters, by the call that it has for speed.
"""

from __future__ import annotations

import os
import statistics

import numpy as np
from numpy.typing import NDArray

from analysis.benchmarks.measure import Outcome, interleaved, main, rate, ratios
from analysis.benchmarks.synthetic import DomainText
from chameleon_ray.corpus.tokenizer import BATCH_CHARACTERS, encode, train_tokenizer

BOUND = 2.0
DOMAINS, WORDS, VOCAB_SIZE = 4, 50_000, 8192


def run(quick: bool) -> Outcome:
    """Documents with vocabularies of their own, short enough that neither side cuts them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    documents, repetitions = (20, 1) if quick else (400, 5)
    domains = {f"domain-{i}": DomainText(i, num_words=WORDS) for i in range(DOMAINS)}
    tokenizer = train_tokenizer(VOCAB_SIZE, {name: [text.document() for _ in range(documents)] for name, text in domains.items()})
    texts = [text.document() for _ in range(documents) for text in domains.values()]
    batches: list[list[str]] = [[]]
    for text in texts:
        if sum(map(len, batches[-1])) + len(text) > BATCH_CHARACTERS:
            batches.append([])
        batches[-1].append(text)

    def ours() -> list[NDArray[np.uint32]]:
        return list(encode(tokenizer, texts))

    def library() -> list[NDArray[np.uint32]]:
        return [np.array(found.ids, np.uint32) for batch in batches for found in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]

    assert all(map(np.array_equal, ours(), library())), "the tokens must be equal"
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    found = interleaved({"ours": lambda: rate(ours, megabytes), "library": lambda: rate(library, megabytes)}, repetitions)
    each = ratios(found["ours"], found["library"])
    ratio = statistics.median(each)
    fields = {
        "threads": 1,
        "text_megabytes": megabytes,
        "vocab_size": tokenizer.get_vocab_size(),
        "our_megabytes_per_second": statistics.median(found["ours"]),
        "library_megabytes_per_second": statistics.median(found["library"]),
        "ratios": each,
    }
    return Outcome(ratio, BOUND, ratio >= BOUND, fields)


if __name__ == "__main__":
    main("encode_text", run)
