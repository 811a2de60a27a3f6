"""Plain byte-level BPE at several times the speed of the tokenizers library, and token for token the same.

Where a tokenizer is GPT-2's pattern, which cuts text into words, and an order of merges within a word, tiktoken runs both; all others are run
by the library that they come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

# GPT-2's own, with possessive quantifiers: they match the same and never look back.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_GPT2_WORDS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BEYOND_MERGES = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
_SYMBOLS_AT_ONCE = 4096


class BytePairs:
    """Encodes as a tokenizer of the library does; to be had from `byte_pairs`, which proves that it may be."""

    def __init__(self, symbols: Sequence[bytes], ids: Sequence[int]) -> None:
        self._core = tiktoken.Encoding("corpus", pat_str=_WORDS, mergeable_ranks={symbol: rank for rank, symbol in enumerate(symbols)}, special_tokens={})
        self._ids = np.array(ids, np.uint32)

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Tokens of `text`, without any special token; text that spells one stays text."""
        return self._ids[self._core.encode_to_numpy(text, disallowed_special=())]


def byte_pairs(tokenizer: Tokenizer) -> BytePairs | None:
    """The tokenizer as it is now, in tiktoken, or None where it is more than GPT-2's pattern and merges, so that only its own library runs it.

    Words are cut alike because the pattern is the same; that both libraries know the same letters, numbers and white space is tested, for the
    versions that `constraints.txt` names. Within a word the library joins the pair whose merge comes first, and tiktoken any two neighbours that
    together spell a token, the earliest token first and a word that is a token at once; both take the leftmost of equals. They are the same if

    1. every byte is a token, and every other token comes of one merge;
    2. both parts of a merge come earlier than it, so that merges run in their order: none makes room for an earlier one;
    3. the text of a token, alone, becomes that token.

    For suppose that both stand at the same cut, and tiktoken joins x and y, which spell u. No merge has crossed the bounds of what they span, and by
    2 all that come before u's have run there that can, since one that comes later would not have run before them. What stands within the bounds
    is therefore what stands before the last merge of u alone, which by 3 is u's own pair: x and y are that pair, and the library joins them too.

    Costs under a second and some 50 MB for a while at 50,000 tokens.
    """
    if tokenizer.normalizer is not None or not isinstance(tokenizer.model, models.BPE) or not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return None
    content = json.loads(tokenizer.to_str())
    model: dict[str, Any] = content["model"]
    if (
        any(model.get(name) for name in _BEYOND_MERGES)
        or {name: content["pre_tokenizer"].get(name) for name in _GPT2_WORDS} != _GPT2_WORDS
        or not all(token["special"] for token in content["added_tokens"])
    ):
        return None
    bytes_of = _spelled_bytes()
    symbols = [*bytes_of, *("".join(pair) for pair in model["merges"])]
    rank = {symbol: place for place, symbol in enumerate(symbols)}
    if len(rank) < len(symbols) or not model["vocab"].keys() >= rank.keys():
        return None
    if any(rank.get(part, place) >= place for place, pair in enumerate(model["merges"], start=len(bytes_of)) for part in pair):
        return None
    ids = [model["vocab"][symbol] for symbol in symbols]
    if not _become_themselves(tokenizer, symbols, ids):
        return None
    return BytePairs([b"".join(map(bytes_of.__getitem__, symbol)) for symbol in symbols], ids)


def _become_themselves(tokenizer: Tokenizer, symbols: Sequence[str], ids: Sequence[int]) -> bool:
    """Whether the library's merges, alone, make of each token's text that token."""
    merges = Tokenizer(tokenizer.model)
    for start in range(0, len(symbols), _SYMBOLS_AT_ONCE):
        found = merges.encode_batch_fast(symbols[start : start + _SYMBOLS_AT_ONCE])
        if any(alone.ids != [number] for alone, number in zip(found, ids[start : start + _SYMBOLS_AT_ONCE], strict=True)):
            return False
    return True


def _spelled_bytes() -> dict[str, bytes]:
    """The byte that each of the 256 characters of byte-level text stands for: itself where it can be printed, and the others in their order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printed = [ord(character) for character in alphabet if ord(character) < 256]
    return {character: bytes([byte]) for character, byte in zip(alphabet, [*printed, *sorted(set(range(256)) - set(printed))], strict=True)}
