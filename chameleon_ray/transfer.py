"""A changed set of domains without training: those that are known keep their embeddings, new ones are embedded with the same proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from chameleon_ray.artifacts import Cost, Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.backend import Backend
from chameleon_ray.changes import Arrangement, check_covered, merged_quality, merged_size, rearranged, shares_of
from chameleon_ray.corpus.chunks import embedded_rows
from chameleon_ray.corpus_config import CorpusChanges, CorpusConfig
from chameleon_ray.counts import DomainSize
from chameleon_ray.discovery import read_corpus
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment
from chameleon_ray.mixing.text_quality import TextQuality, losses_of, text_quality
from chameleon_ray.settings import validate


@dataclass(frozen=True)
class Changed:
    """The changed set of domains, in the order of the experiment, new ones last.

    Attributes:
        texts: how good the text of each domain is, where that is known.
        tokens, sizes: how much train text there is of each.
        known: what was there before the change: digest -> cost. looking: what looking at the text took.
        embedded: domain -> rows that were embedded for the change; the others' embeddings were there.
        others: embeddings of the corpus's targets that were asked for.
        warnings: sentences a person should read.
    """

    embeddings: Embeddings
    texts: Mapping[str, TextQuality]
    tokens: Mapping[str, float]
    sizes: Mapping[str, DomainSize]
    tokenizer_sha256: str
    known: Mapping[str, Cost]
    looking: Mapping[str, Cost]
    embedded: Mapping[str, int]
    others: Embeddings | None = None
    warnings: tuple[str, ...] = ()


@dataclass
class _Part:
    """What some domains have in common that lie in one corpus."""

    embeddings: Embeddings
    texts: Mapping[str, TextQuality]
    tokens: Mapping[str, float]
    sizes: Mapping[str, DomainSize]
    looking: Mapping[str, Cost] = field(default_factory=dict)


def changed_embeddings(experiment: Experiment, proxy: str, changes: CorpusChanges, backend: Backend, only: bool, others: Sequence[str] = ()) -> Changed:
    """What the changed set of domains is to be weighed by.

    Args:
        proxy: a model: a folder of ours, or any that `find_model` finds.
        changes: new domains, `name: null` to leave one of the experiment's out, and those that are renamed, merged or split.
        only: take the new domains alone.
        others: targets of the corpus to embed too.
    Raises:
        UserError: a proxy with another tokenizer, what `Arrangement.of` refuses, parts that do not cover what they are parts of, or nothing left.
    """
    allowed = experiment.proxy.model.allow_remote_code and proxy == experiment.proxy.model.pretrained
    found = backend.find_model(proxy, experiment.corpus.row_tokens, "--proxy", allowed)
    known = None if only else read_corpus(experiment, backend)
    arrangement = Arrangement.of(changes.domains, known.names if known else ())
    if not arrangement.kept and not arrangement.added:
        raise UserError("corpus file: every domain is left out; keep or add at least one")
    parts: list[_Part] = []
    embedded: dict[str, int] = {}
    warnings: list[str] = []
    new = _tokenized(experiment, arrangement, found, backend) if arrangement.added else None
    if known:
        for name, pieces in arrangement.parts.items():
            assert new is not None
            told = check_covered(name, known.domains[name], {piece: new.domains[piece] for piece in pieces})
            warnings += [told] if told else []
        if arrangement.kept:
            parts.append(_known(experiment, found, known, arrangement, backend))
    if new is not None:
        parts.append(_looked_at(experiment, found, new, new.names, backend))
        embedded = {name: min(rows, experiment.embedding.samples_per_domain) for name, rows in embedded_rows(new).items()}
    first = known or new
    assert first is not None
    beside = backend.embed(_opened(found, known, backend), known, experiment.embedding, others) if others and known else None
    return Changed(
        embeddings=Embeddings.concat([part.embeddings for part in parts]),
        texts={name: text for part in parts for name, text in part.texts.items()},
        tokens={name: tokens for part in parts for name, tokens in part.tokens.items()},
        sizes={name: size for part in parts for name, size in part.sizes.items()},
        tokenizer_sha256=first.tokenizer_sha256,
        known=parts[0].embeddings.ledger if known and arrangement.kept else {},
        looking={digest: cost for part in parts for digest, cost in part.looking.items()},
        embedded=embedded,
        others=beside,
        warnings=tuple(warnings),
    )


def _tokenized(experiment: Experiment, arrangement: Arrangement, proxy: TrainedModel, backend: Backend) -> TokenCorpus:
    """The text of new domains in the proxy's tokens."""
    section = experiment.corpus.model_dump(exclude={"domains", "domains_from", "targets"})
    section |= {"domains": {name: source.model_dump() for name, source in arrangement.added.items()}, "tokenizer": {"pretrained": proxy.address}}
    reads = experiment.reads and replace(experiment.reads, run_tokens=0)  # nothing is trained on them
    return backend.tokenize(validate(CorpusConfig, section, "corpus file"), experiment.seeds[0], reads)


def _opened(proxy: TrainedModel, corpus: TokenCorpus, backend: Backend) -> TrainedModel:
    return backend.open_model(proxy.address, corpus, "--proxy", proxy.allow_remote_code)


def _looked_at(experiment: Experiment, proxy: TrainedModel, corpus: TokenCorpus, names: Sequence[str], backend: Backend) -> _Part:
    """Some domains of a corpus as they are."""
    model = _opened(proxy, corpus, backend)
    embeddings = backend.embed(model, corpus, experiment.embedding).select(names)
    losses, looking = losses_of(model, corpus, backend)
    texts = {name: text for name, text in text_quality(corpus, losses).items() if name in names}
    tokens = {name: count for name, count in corpus.tokens().items() if name in names}
    return _Part(embeddings, texts, tokens, {name: corpus.sizes()[name] for name in names}, looking)


def _known(experiment: Experiment, proxy: TrainedModel, corpus: TokenCorpus, arrangement: Arrangement, backend: Backend) -> _Part:
    """The domains that are made of known ones."""
    found = _looked_at(experiment, proxy, corpus, [old for olds in arrangement.kept.values() for old in olds], backend)
    texts, tokens, sizes = {}, {}, {}
    for name, olds in arrangement.kept.items():
        shares = shares_of(name, olds, found.tokens) if len(olds) > 1 else {olds[0]: 1.0}
        if (quality := merged_quality(found.texts, olds, shares)) is not None:
            texts[name] = quality
        if all(old in found.tokens for old in olds):
            tokens[name] = sum(found.tokens[old] for old in olds)
        sizes[name] = merged_size([found.sizes[old] for old in olds]) if len(olds) > 1 else found.sizes[olds[0]]
    return _Part(rearranged(found.embeddings, arrangement.kept, found.tokens), texts, tokens, sizes, found.looking)
