"""Held-out loss: sums and counts per document, and what follows from them per domain.

A document is the unit of sampling: its tokens share a topic and an author, so the standard error treats documents, not tokens, as independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DocumentLosses:
    """Loss of one model on one domain: for each document the sum of nats and the tokens predicted."""

    document: NDArray[np.int64]
    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def mean_nats(self) -> float:
        """Nats per token over all tokens of the domain."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def stderr_nats(self) -> float:
        """Standard error of `mean_nats`, clustered by document (ratio estimator); NaN for a single document."""
        n = len(self.document)
        if n < 2:
            return math.nan
        residual = self.nats - self.mean_nats * self.tokens
        return float(np.sqrt(n / (n - 1) * (residual**2).sum()) / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """exp of the mean."""
        return math.exp(self.mean_nats)

    @property
    def stderr_perplexity(self) -> float:
        """Delta method: perplexity times the standard error in nats."""
        return self.perplexity * self.stderr_nats

    @classmethod
    def from_tokens(cls, document: NDArray[np.int64], nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> DocumentLosses:
        """Add up entries of the same document."""
        unique, inverse = np.unique(document, return_inverse=True)
        return cls(unique, np.bincount(inverse, nats, len(unique)).astype(np.float64), np.bincount(inverse, tokens, len(unique)).astype(np.int64))


SplitLosses = dict[str, dict[str, DocumentLosses]]  # split -> domain -> losses


def document_of_target(tokens: NDArray[np.integer], document: NDArray[np.int64], end_of_document: int) -> NDArray[np.int64]:
    """tokens [n, T], document [n] of the first token -> [n, T]: the document of the *next* token, numbered on at every end of document."""
    return document[:, None] + np.cumsum(tokens == end_of_document, axis=1)


def mean_nats(losses: Mapping[str, DocumentLosses]) -> float:
    """Arithmetic mean over domains of nats per token."""
    return float(np.mean([loss.mean_nats for loss in losses.values()]))


def mean_perplexity(losses: Mapping[str, DocumentLosses]) -> float:
    """Arithmetic mean over domains of perplexities, as in the paper's tables."""
    return float(np.mean([loss.perplexity for loss in losses.values()]))
