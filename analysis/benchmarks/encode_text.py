"""Bytes of text per second that one thread turns into tokens, over those of the tokenizers library by itself, with equal tokens.

The library encodes the same documents in batches of 256 Ki characters, by the call that it has for speed. Two texts: made ones, whose words are random letters,
and the modules of Python's standard library; the lesser ratio counts.
"""

from __future__ import annotations

import os
import statistics
import sysconfig
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.benchmarks.measure import Outcome, interleaved, main, rate, ratios
from analysis.benchmarks.synthetic import DomainText
from chameleon_ray.corpus.tokenizer import PIECE_CHARACTERS, Encoder, batches, train_tokenizer

BOUND = 2.0
DOMAINS, WORDS, VOCAB_SIZE = 4, 50_000, 8192


def modules(count: int) -> list[str]:
    """Source files, in the order of their names, of a length that is not cut."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = (file.read_text(encoding="utf-8") for file in files)
    return list(islice((text for text in texts if 1000 < len(text) <= PIECE_CHARACTERS), count))


def measured(texts: Sequence[str], repetitions: int) -> dict[str, Any]:
    """Both sides in turns."""
    tokenizer = train_tokenizer(VOCAB_SIZE, {"text": texts[: len(texts) // 4]})
    encoder = Encoder(tokenizer)

    def ours() -> list[NDArray[np.uint32]]:
        return list(encoder.encode(texts))

    def library() -> list[NDArray[np.uint32]]:
        return [np.array(found.ids, np.uint32) for batch in batches(texts) for found in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]

    assert all(np.array_equal(*pair) for pair in zip(ours(), library(), strict=True)), "the tokens must be equal"
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    found = interleaved({"ours": lambda: rate(ours, megabytes), "library": lambda: rate(library, megabytes)}, repetitions)
    each = ratios(found["ours"], found["library"])
    speeds = {f"{side}_megabytes_per_second": statistics.median(speed) for side, speed in found.items()}
    return {"text_megabytes": megabytes, "vocab_size": tokenizer.get_vocab_size(), **speeds, "ratio": statistics.median(each), "ratios": each}


def run(quick: bool) -> Outcome:
    """Two megabytes of either text, with a tokenizer trained on a quarter of it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    documents, repetitions = (40, 1) if quick else (800, 5)
    domains = [DomainText(i, num_words=WORDS) for i in range(DOMAINS)]
    made = [text.document() for _ in range(documents // DOMAINS) for text in domains]
    sides = {"made": measured(made, repetitions), "python": measured(modules(documents), repetitions)}
    ratio = min(side["ratio"] for side in sides.values())
    return Outcome(ratio, BOUND, ratio >= BOUND, {"threads": 1, **sides})


if __name__ == "__main__":
    main("encode_text", run)
