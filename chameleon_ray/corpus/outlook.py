"""What a corpus will be, as far as that can be said before it is read: its domains, and about how many tokens each will have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.corpus.heldout import BYTES_PER_TOKEN
from chameleon_ray.corpus.sources import UNKNOWN_BYTES, Source
from chameleon_ray.corpus.token_bytes import bytes_per_token
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.counts import DomainCounts, Excerpt, SplitCounts

MOST_LOOKS = 64  # sources, or files of one, whose beginnings are read


def outlook(config: CorpusConfig, sources: Sequence[Source], address: str, digest: str, vocab_size: int, tokenizer_sha256: str) -> TokenCorpus:
    """A corpus that is not there, with counts that are estimates: by the sizes of files, what is wanted of them, and a look at the beginnings of some.

    Where records name their domains there may be more of them than the beginnings show.

    Raises:
        UserError: as `bytes_per_token`.
    """
    looked = [part for source in sources if source.origin.kind != "environment" and not source.origin.heldout for part in _to_look_at(source)][:MOST_LOOKS]
    sizes = bytes_per_token(looked, config.text_column, config.tokenizer) if looked else {}
    text_bytes: dict[str, list[float]] = {}  # to train on: there and read; declared held out: read
    for source in sources:
        for name, (there, read) in _text_bytes(source, sizes).items():
            of_domain = text_bytes.setdefault(name, [0.0, 0.0, 0.0])
            if source.origin.heldout:
                of_domain[2] += read
            else:
                of_domain[0], of_domain[1] = of_domain[0] + there, of_domain[1] + read
    usual = sum(sizes.values()) / len(sizes) if sizes else float(BYTES_PER_TOKEN)
    domains = {name: _counts(config, there, read, held, sizes.get(name, usual)) for name, (there, read, held) in text_bytes.items()}
    names = tuple(name for name in domains if name not in config.targets)
    corpus = TokenCorpus(address, digest, names, domains, config.row_tokens, vocab_size, 0, tokenizer_sha256, tuple(config.targets))
    return replace(corpus, measured_tokens=config.measured_tokens)


def _to_look_at(source: Source) -> list[Source]:
    """A source; where its records name their domains, some of its files one by one, spread over all, since each may have other domains."""
    if source.origin.domain is not None:
        return [source]
    step = -(-len(source.files) // MOST_LOOKS)
    return [replace(source, files=(file,)) for file in source.files[::step]]


def divided(corpus: TokenCorpus, config: CorpusConfig, names: Sequence[str]) -> TokenCorpus:
    """The same text as so many domains of equal size."""
    found = [corpus.domains[name] for name in corpus.names]
    tokens = sum(split.tokens for each in found for split in (each.train, each.valid, each.test))
    read = float(sum(each.text_bytes for each in found))
    there = sum(each.excerpt.text_bytes or 0.0 if each.excerpt else each.text_bytes for each in found)
    each = _counts(config, there / len(names), read / len(names), 0.0, read / max(1, tokens))
    domains = {**dict.fromkeys(names, each), **{name: corpus.domains[name] for name in corpus.targets}}
    return replace(corpus, names=tuple(names), domains=domains)


def _text_bytes(source: Source, sizes: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Text that there is of every domain of a source, and how much of it will be read, about."""
    origin, there = source.origin, source.likely_text_bytes or len(source.files) * UNKNOWN_BYTES
    names = [origin.domain] if origin.domain is not None else list(origin.only) or list(sizes)
    found = {}
    for name in names:
        of_it = there / len(names)
        read = of_it
        if source.wanted is not None:
            read = min(of_it, float(source.wanted.text_bytes(sizes.get(name, float(BYTES_PER_TOKEN)), source.wanted.num_domains or len(names))))
        found[name] = of_it, read
    return found


def _counts(config: CorpusConfig, there: float, train: float, declared: float, per_token: float) -> DomainCounts:
    """Counts of a domain of which so many bytes are there to train on and so many are read, and some declared as held out."""
    heldout = 0.0 if declared else min(config.heldout_fraction * train / per_token, 2 * config.heldout_tokens)
    measured = min(declared / per_token, 2 * config.heldout_tokens) / 2 if declared else heldout / 2
    splits = [
        SplitCounts(0, int(tokens), int(tokens * per_token), (-(-int(tokens) // config.row_tokens),)) for tokens in (train / per_token - heldout, measured)
    ]
    excerpt = Excerpt(int(train), 0, 0, there, there / per_token - heldout, None) if there > train else None
    return DomainCounts(splits[0], splits[1], splits[1], int(train + declared), 0, {}, 0.0, excerpt=excerpt)
