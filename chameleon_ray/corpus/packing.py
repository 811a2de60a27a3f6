"""Documents into rows of equal length, and held-out documents into two halves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.corpus.rows import Rows, token_dtype


def pack(
    fragments: Sequence[NDArray], documents: Sequence[int] | NDArray[np.int64], row_tokens: int, vocab_size: int
) -> tuple[Rows, list[tuple[int, NDArray]]]:
    """Lay fragments one after the other and cut the stream into rows.

    Args:
        fragments: tokens of documents, each already ending with the end-of-document token (or a piece of one).
        documents: the number of each fragment's document.
    Returns:
        The full rows, and what is left over as (document, tokens) fragments, together shorter than a row; copies, so that these few hold nothing else.
    """
    dtype = token_dtype(vocab_size)
    stream = np.concatenate([np.asarray(fragment, dtype) for fragment in fragments]) if fragments else np.empty(0, dtype)
    starts = np.concatenate([[0], np.cumsum([len(fragment) for fragment in fragments])]).astype(np.int64)
    count = len(stream) // row_tokens
    owner = np.searchsorted(starts, np.arange(count) * row_tokens, side="right") - 1
    numbers = np.asarray(documents, np.int64)
    rows = Rows(stream[: count * row_tokens].reshape(count, row_tokens), np.full(count, row_tokens, np.int32), numbers[owner])
    border = count * row_tokens
    left = [(int(numbers[i]), stream[max(starts[i], border) : starts[i + 1]].copy()) for i in range(len(fragments)) if starts[i + 1] > border]
    return rows, left


def pack_all(fragments: Sequence[NDArray], documents: Sequence[int], row_tokens: int, vocab_size: int, padding: int) -> Rows:
    """As `pack`, with the rest in one last row that is padded on the right; `length` says where the padding begins."""
    rows, left = pack(fragments, documents, row_tokens, vocab_size)
    if not left:
        return rows
    rest = np.concatenate([tokens for _, tokens in left])
    tokens = np.full((1, row_tokens), padding, rows.tokens.dtype)
    tokens[0, : len(rest)] = rest
    return Rows.concat([rows, Rows(tokens, np.array([len(rest)], np.int32), np.array([left[0][0]], np.int64))])


def deal(documents: Iterable[NDArray], half_tokens: int) -> tuple[list[tuple[int, NDArray]], list[tuple[int, NDArray]]]:
    """Deal the tokens of documents, in the order given, to two halves of about equally many tokens.

    Each document goes to the half that has less; with two or more documents neither half is empty. A half holds at most `half_tokens`: the document
    that reaches them is cut, and what comes when both are full is not read.

    Returns:
        Of each half (place of the document in the order given, its tokens).
    """
    halves: tuple[list[tuple[int, NDArray]], list[tuple[int, NDArray]]] = [], []
    taken = [0, 0]
    for place, tokens in enumerate(documents):
        half = int(taken[1] < taken[0])
        part = tokens[: half_tokens - taken[half]]
        if not len(part):
            break
        halves[half].append((place, part))
        taken[half] += len(part)
    return halves
