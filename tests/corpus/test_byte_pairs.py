"""Tokens of plain byte-level BPE are those of the tokenizers library, and what is not plain is run by that library."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GPT2Tokenizer

from chameleon_ray.corpus import tokenizer
from chameleon_ray.corpus.byte_pairs import byte_pairs
from chameleon_ray.corpus.tokenizer import END_OF_DOCUMENT, Encoder, load_tokenizer, save_tokenizer, train_tokenizer

PROSE = "The words don't end here, they'll run on in 1984 or 12 other years. Śnieg, naïve façade, 漢字 and Ω≠ω; \tif x == 3:\n        return  x\r\n\n"


def written(bpe: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bpe.to_str())
    return found


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    made = train_tokenizer(1000, {"prose": [PROSE * 3], "source": [Path(__file__).read_text()], "blanks": [" " * 70 + "\n" * 9 + "a" * 40]})
    assert byte_pairs(made)
    return made


def expected(bpe: Tokenizer, text: str) -> list[int]:
    bpe.encode_special_tokens = True
    return list(bpe.encode(text, add_special_tokens=False).ids)


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=80)
    | st.lists(st.sampled_from([*"aA1 .'\n\t\r é漢", "  ", "'ll", "'s", "'S", "the", " re", END_OF_DOCUMENT, "\u00a0", "\u2028"])).map("".join)
)
def test_any_text_has_the_tokens_of_the_library(bpe: Tokenizer, text: str) -> None:
    (tokens,) = Encoder(bpe).encode([text])
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == expected(bpe, text)


def test_every_character_is_cut_into_words_alike() -> None:
    """Letters, numbers and white space are what the library's Unicode tables say: each kind of word has a merge with whatever byte may follow in it.

    Every character of the first two planes, but every 64th of ideographs and syllables, which fill whole ranges, and of the other planes.
    """
    kinds = "a1.Ġ"
    following = sorted({byte_level(chr(code))[0] for code in without_surrogates(range(0x110000))})
    made = merging(*((kind, byte) for kind in kinds for byte in following))
    assert byte_pairs(made)
    characters = [chr(code) for code in without_surrogates(range(0x20000)) if unicodedata.category(chr(code)) != "Lo" or code % 64 == 0]
    characters += [chr(code) for code in without_surrogates(range(0x20000, 0x110000, 64))]
    for start in range(0, len(characters), 2000):
        text = "\n".join(f"a{c} {c}1{c}.{c}" for c in characters[start : start + 2000])
        (tokens,) = Encoder(made).encode([text])
        assert tokens.tolist() == expected(made, text), f"from U+{ord(characters[start]):x}"


def without_surrogates(codes: Iterable[int]) -> list[int]:
    """Code points that text may have."""
    return [code for code in codes if not 0xD800 <= code < 0xE000]


def byte_level(text: str) -> str:
    return "".join(word for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text))


@pytest.mark.parametrize("text", [" " * 200_000, "a" * 200_000, "\n \t" * 70_000 + "x", "e\u0301" * 100_000], ids=["blanks", "one word", "gaps", "marks"])
def test_text_without_an_end_has_the_tokens_of_the_library(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(tokenizer, "PIECE_CHARACTERS", len(text) + 1)
    (tokens,) = Encoder(bpe).encode([text])
    assert tokens.tolist() == expected(bpe, text)


def test_saved_and_loaded_it_is_plain_still(bpe: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(bpe, bpe.token_to_id(END_OF_DOCUMENT), str(tmp_path / "tokenizer"))
    loaded, _ = load_tokenizer(str(tmp_path / "tokenizer"))
    assert byte_pairs(loaded)
    assert [tokens.tolist() for tokens in Encoder(loaded).encode([PROSE])] == [expected(bpe, PROSE)]


def test_the_published_layout_of_gpt2_is_plain(bpe: Tokenizer, tmp_path: Path) -> None:
    """`vocab.json` and `merges.txt`, whose ids are in another order than the merges."""
    model = written(bpe)["model"]
    ids = np.random.default_rng(0).permutation(len(model["vocab"])).tolist()
    (tmp_path / "vocab.json").write_text(json.dumps(dict(zip(model["vocab"], ids, strict=True))))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": END_OF_DOCUMENT}))
    GPT2Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    loaded, _ = load_tokenizer(str(tmp_path))
    assert byte_pairs(loaded)
    (tokens,) = Encoder(loaded).encode([PROSE])
    assert tokens.tolist() == expected(loaded, PROSE) != expected(bpe, PROSE)


def digits(content: dict[str, Any]) -> None:
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    content["pre_tokenizer"] = json.loads(pre_tokenizers.Sequence(split).__getstate__())


def composed(content: dict[str, Any]) -> None:
    content["normalizer"] = json.loads(normalizers.NFC().__getstate__())


def prefixed(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def unsplit(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["use_regex"] = False


def whole_words(content: dict[str, Any]) -> None:
    content["model"]["ignore_merges"] = True


def dropped(content: dict[str, Any]) -> None:
    content["model"]["dropout"] = 1e-9


def with_a_suffix(content: dict[str, Any]) -> None:
    content["model"]["end_of_word_suffix"] = "e"


def another_model(content: dict[str, Any]) -> None:
    content["model"] = {"type": "WordLevel", "vocab": content["model"]["vocab"], "unk_token": "e"}


def without_a_byte(content: dict[str, Any]) -> None:
    del content["model"]["vocab"]["ö"]


@pytest.mark.parametrize(
    "change", [digits, composed, prefixed, unsplit, whole_words, dropped, with_a_suffix, another_model, without_a_byte], ids=lambda change: change.__name__
)
def test_what_is_more_than_merges_is_run_by_the_library(bpe: Tokenizer, change: Callable[[dict[str, Any]], None]) -> None:
    content = written(bpe)
    change(content)
    changed = Tokenizer.from_str(json.dumps(content))
    assert byte_pairs(changed) is None
    (tokens,) = Encoder(changed).encode([PROSE])
    assert tokens.tolist() == expected(changed, PROSE)


def test_an_encoder_is_of_the_tokenizer_as_it_was_given(bpe: Tokenizer) -> None:
    changed = Tokenizer.from_str(bpe.to_str())
    before = Encoder(changed)
    changed.normalizer = normalizers.Lowercase()
    assert [tokens.tolist() for tokens in before.encode([PROSE])] == [expected(bpe, PROSE)]
    assert [tokens.tolist() for tokens in Encoder(changed).encode([PROSE])] == [expected(bpe, PROSE.lower())]


def test_an_added_word_is_found_in_text(bpe: Tokenizer) -> None:
    added = Tokenizer.from_str(bpe.to_str())
    added.add_tokens([AddedToken("on in 1984")])
    assert byte_pairs(added) is None
    (tokens,) = Encoder(added).encode([PROSE])
    assert added.token_to_id("on in 1984") in tokens
    assert tokens.tolist() == expected(added, PROSE)


def merging(*merges: tuple[str, str]) -> Tokenizer:
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = dict.fromkeys([*symbols, *(first + second for first, second in merges)])
    made = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


@pytest.mark.parametrize(
    ("merges", "text"),
    [
        ((("b", "c"), ("a", "b"), ("ab", "c")), "abc"),
        ((("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")), "abc"),
        ((("ab", "c"), ("a", "b")), "abc abab"),
    ],
    ids=["a token that its own text never becomes", "a token of two merges", "a part that comes later"],
)
def test_merges_out_of_order_are_run_by_the_library(merges: tuple[tuple[str, str], ...], text: str) -> None:
    made = merging(*merges)
    assert byte_pairs(made) is None
    (tokens,) = Encoder(made).encode([text])
    assert tokens.tolist() == expected(made, text)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8),
    st.lists(st.text("abc", max_size=12) | st.text("abc", min_size=600, max_size=1000), max_size=4),
)
def test_any_merges_give_the_tokens_of_the_library(steps: list[tuple[int, int]], texts: list[str]) -> None:
    """Merges of any tokens so far, most of which no training would make."""
    words, merges = list("abc"), []
    for first, second in steps:
        merges.append((words[first % len(words)], words[second % len(words)]))
        words.append("".join(merges[-1]))
    made = merging(*dict.fromkeys(merges))
    assert [tokens.tolist() for tokens in Encoder(made).encode(texts)] == [expected(made, text) for text in texts]
