"""Held-out loss: sums and counts per document, and what follows from them per domain.

A document is the unit of sampling: its tokens share a topic and an author, so the standard error treats documents, not tokens, as independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.artifacts import DocumentLosses, SplitLosses, TokenCorpus
from chameleon_ray.config import Precision
from chameleon_ray.counts import SplitCounts

# The number format in which every model that is kept is measured: the same numbers wherever that is done, and changes too small for bf16 count.
MEASURED_IN: Precision = "fp32"


def document_of_target(tokens: NDArray[np.integer], document: NDArray[np.int64], end_of_document: int) -> NDArray[np.int64]:
    """tokens [n, T], document [n] of the first token -> [n, T]: the document of the *next* token, numbered on at every end of document."""
    return document[:, None] + np.cumsum(tokens == end_of_document, axis=1)


def bits_per_byte(nats_per_token: float, counts: SplitCounts) -> float:
    """A loss in the unit that models with different tokenizers share: what is predicted of a byte of text, as a split's tokens are long on average."""
    return nats_per_token / math.log(2) * counts.tokens / counts.text_bytes


def mean_bits_per_byte(losses: Mapping[str, DocumentLosses], corpus: TokenCorpus, split: str) -> float:
    """Arithmetic mean over domains of bits per byte."""
    return float(np.mean([bits_per_byte(loss.mean_nats, corpus.domains[name].split(split)) for name, loss in losses.items()]))


def mean_nats(losses: Mapping[str, DocumentLosses]) -> float:
    """Arithmetic mean over domains of nats per token."""
    return float(np.mean([loss.mean_nats for loss in losses.values()]))


def mean_of_tokens(losses: SplitLosses) -> dict[str, float]:
    """Nats per token of each domain and split, by "domain (split)"."""
    return {f"{name} ({split})": loss.mean_nats for split, by_domain in losses.items() for name, loss in by_domain.items()}


def mean_perplexity(losses: Mapping[str, DocumentLosses]) -> float:
    """Arithmetic mean over domains of perplexities, as in the paper's tables."""
    return float(np.mean([loss.perplexity for loss in losses.values()]))
