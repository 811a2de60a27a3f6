"""Text to tokens: a pretrained tokenizer, or byte-level BPE trained on an equal share of every domain."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from chameleon_ray import storage
from chameleon_ray.artifacts import TrainedModel
from chameleon_ray.corpus.byte_pairs import byte_pairs
from chameleon_ray.corpus_config import TokenizerConfig
from chameleon_ray.errors import UserError, one_line
from chameleon_ray.hub import refusal, terms_to_accept

END_OF_DOCUMENT = "<|endoftext|>"
PIECE_CHARACTERS = 1 << 15
BATCH_CHARACTERS = 1 << 18
_GAP = re.compile(r"(?<=\S)[ \t\r\n]")


def train_tokenizer(vocab_size: int, texts: Mapping[str, Sequence[str]]) -> Tokenizer:
    """Byte-level BPE (GPT-2's pre-tokenization) on equal shares: a domain with less text is repeated until it weighs as much as the largest.

    Args:
        vocab_size: tokens in all, the 256 bytes and the end of document included.
        texts: sample documents of every domain.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_DOCUMENT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    share = max(sum(map(len, documents)) for documents in texts.values())
    tokenizer.train_from_iterator(itertools.chain.from_iterable(_share(documents, share) for documents in texts.values()), trainer)
    return tokenizer


def load_tokenizer(name: str) -> tuple[Tokenizer, int]:
    """A pretrained tokenizer by hub name (with `@revision` where it is not the newest), folder or GGUF file, and its end-of-document token.

    Raises:
        UserError: it cannot be loaded, has no fast implementation, or no end-of-text token.
    """
    found = _loaded(name)
    return found.backend_tokenizer, int(found.eos_token_id)


def _loaded(name: str) -> Any:
    """As the library has it, with its special tokens and chat template."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(**_source(name), use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        remedy = terms_to_accept(name.partition("@")[0]) if refusal(error) == "gated" else "give a hub name or a folder with tokenizer.json"
        raise UserError(f"corpus.tokenizer.pretrained: {name!r} cannot be loaded ({one_line(error)}); {remedy}") from None
    if getattr(found, "backend_tokenizer", None) is None:
        raise UserError(f"corpus.tokenizer.pretrained: {name!r} has no tokenizer.json; choose a tokenizer with a fast implementation")
    if found.eos_token_id is None:
        raise UserError(f"corpus.tokenizer.pretrained: {name!r} defines no eos_token, which marks the end of a document; add one to its tokenizer_config.json")
    return found


def _source(name: str) -> dict[str, str]:
    """What tells the library where a tokenizer is."""
    if name.endswith(".gguf"):
        file = Path(storage.local_file(storage.absolute(name)))
        return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    if storage.is_remote(name) or Path(name).expanduser().exists():
        return {"pretrained_model_name_or_path": storage.local_directory(storage.absolute(name))}
    repository, _, revision = name.partition("@")
    return {"pretrained_model_name_or_path": repository, "revision": revision or "main"}


def save_tokenizer(tokenizer: Tokenizer, end_of_document: int, address: str, like: str | None = None) -> None:
    """Write the files that `AutoTokenizer.from_pretrained` reads.

    Args:
        like: the pretrained tokenizer, as `load_tokenizer` takes it, whose special tokens and chat template are written beside it; None: the end of a document
            begins one too, and stands for what is unknown.
    """
    from transformers import PreTrainedTokenizerFast

    token = tokenizer.id_to_token(end_of_document)
    decorations = {"eos_token": token, "bos_token": token, "unk_token": token} if like is None else _decorations(_loaded(like))
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **decorations).save_pretrained(folder)
        for extra in Path(folder).iterdir():
            assert extra.suffix in (".json", ".jinja"), extra
        storage.publish(folder, address)


def _decorations(found: Any) -> dict[str, Any]:
    """What a tokenizer of the library has beside what makes tokens of text: all that a prompt or a batch of it takes."""
    named = ("extra_special_tokens", "chat_template", "model_max_length", "padding_side")
    return {**found.special_tokens_map, **{name: getattr(found, name) for name in named if getattr(found, name, None) is not None}}


def tokenizer_sha256(tokenizer: Tokenizer, end_of_document: int) -> str:
    """Identity of a tokenizer: everything that decides which tokens a document becomes.

    Covered are vocabulary and merges, normaliser, pre-tokenizer, added tokens and the token that ends a document; left out is what only pads,
    truncates, decorates or decodes. Saving and loading changes nothing of it.
    """
    written = json.loads(tokenizer.to_str())
    content = {part: written[part] for part in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    return hashlib.sha256(json.dumps({**content, "end_of_document": end_of_document}, sort_keys=True).encode()).hexdigest()


def check_reads(model: TrainedModel, config: TokenizerConfig, where: str) -> None:
    """Raise `UserError` where it is known before any text is read that a model has another tokenizer than the corpus; `where` names the model.

    A tokenizer that is trained on the corpus can only be that of a model that was trained here.
    """
    if config.pretrained is not None:
        same = config.pretrained == model.details.get("pretrained") or tokenizer_sha256(*load_tokenizer(config.pretrained)) == model.tokenizer_sha256
    else:
        same = "training" in model.details
    if not same:
        name = model.details.get("pretrained", model.address)
        raise UserError(f"{where}: {name} has another tokenizer than the corpus; set corpus.tokenizer: {{pretrained: {name}}}")


class Encoder:
    """Documents to tokens, by a tokenizer as it is when this is made.

    Long documents are cut into pieces where white space begins, which GPT-2's pre-tokenization never joins with what stands before it, so
    that the tokens are those of the whole; memory stays flat also for a 50 MB line. Text that spells a special token stays text. Plain byte-level
    BPE is run by tiktoken, with equal tokens (`corpus.byte_pairs`).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._merges = byte_pairs(tokenizer)

    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
        """Tokens of each document, without any special token."""
        if self._merges is None:
            yield from self._by_library(documents)
            return
        for text in documents:
            yield np.concatenate([self._merges.encode(piece) for piece in _pieces(text)])

    def _by_library(self, documents: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
        for group in batches(documents):
            pieces = [list(_pieces(text)) for text in group]
            found = iter(self._encoded([piece for parts in pieces for piece in parts]))
            for parts in pieces:
                yield np.concatenate([next(found) for _ in parts])

    def _encoded(self, pieces: Sequence[str]) -> Iterator[NDArray[np.uint32]]:
        step = max(1, BATCH_CHARACTERS // PIECE_CHARACTERS)
        batches = [pieces] if sum(map(len, pieces)) <= BATCH_CHARACTERS else [pieces[i : i + step] for i in range(0, len(pieces), step)]
        for batch in batches:
            for encoding in self._tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(encoding.ids, np.uint32)


def batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents by so many as have `BATCH_CHARACTERS` together; a longer one is alone."""
    batch: list[str] = []
    characters = 0
    for text in documents:
        if batch and characters + len(text) > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        stop = _cut(text, start + PIECE_CHARACTERS // 2, start + PIECE_CHARACTERS)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _cut(text: str, low: int, high: int) -> int:
    places = [match.start() for match in _GAP.finditer(text, low, high)]
    return places[-1] if places else high


def _share(documents: Sequence[str], characters: int) -> Iterator[str]:
    left = characters
    for text in itertools.cycle(documents):
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return
