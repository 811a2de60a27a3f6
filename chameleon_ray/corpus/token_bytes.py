"""How many bytes of text make a token, by a look at the beginning of every source that is to be sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chameleon_ray.corpus.documents import Document
from chameleon_ray.corpus.sampling import SourceSample
from chameleon_ray.corpus.sources import Source
from chameleon_ray.corpus.stretches import StretchReading
from chameleon_ray.corpus.tokenizer import Encoder, load_tokenizer, train_tokenizer
from chameleon_ray.corpus_config import TokenizerConfig
from chameleon_ray.errors import UserError

ALL_BYTES = 16 << 20
LEAST_BYTES, MOST_BYTES = 8 << 10, 256 << 10
MOST_FILES = 64


def bytes_per_token(sources: Sequence[Source], text_column: str, config: TokenizerConfig) -> dict[str, float]:
    """Bytes of text to a token, by domain, of those that the beginnings of some sources show; where a tokenizer is to be trained, by one that is trained on
    these beginnings.

    Raises:
        UserError: a file that cannot be read, or none of the sources begins with a document.
    """
    most = max(LEAST_BYTES, min(MOST_BYTES, ALL_BYTES // len(sources)))
    texts: dict[str, list[str]] = {}
    for source in sources:
        taken = 0
        for document in _first_documents(source, text_column):
            texts.setdefault(document.domain, []).append(document.text[: most - taken])
            taken += len(texts[document.domain][-1])
            if taken >= most:
                break
    if not texts:
        origin = sources[0].origin
        where = f"corpus.domains.{origin.domain}" if origin.domain else "corpus.domains_from"
        of = f" of {', '.join(origin.only)}" if origin.only else ""
        raise UserError(f"{where}: no documents{of} at the beginning of its files; check them and corpus.text_column{', and only' if of else ''}")
    if config.pretrained is not None:
        tokenizer, _ = load_tokenizer(config.pretrained)
    else:
        assert config.train is not None
        tokenizer = train_tokenizer(config.train.vocab_size, texts)
    encoder = Encoder(tokenizer)
    return {name: sum(len(text.encode()) for text in found) / sum(len(tokens) + 1 for tokens in encoder.encode(found)) for name, found in texts.items()}


def _first_documents(source: Source, text_column: str) -> Iterator[Document]:
    """The documents of the first stretches of a source's files."""
    for file in SourceSample(source, {}, 1.0).files[:MOST_FILES]:
        for _, found in StretchReading(source.origin, file, 0, 1, text_column):
            if isinstance(found, Document):
                yield found
