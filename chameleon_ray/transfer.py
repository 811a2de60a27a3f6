"""A changed set of domains without training: those that are known keep their embeddings, new ones are embedded with the same proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from chameleon_ray.artifacts import Cost, Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.backend import Backend, Transfer
from chameleon_ray.changes import (
    FILE,
    Arrangement,
    TextBytes,
    check_covered,
    merged_bytes,
    merged_quality,
    merged_size,
    rearranged,
    shares_of,
    train_bytes,
)
from chameleon_ray.corpus.chunks import embedded_rows
from chameleon_ray.corpus.tokenizer import check_reads
from chameleon_ray.corpus_config import CorpusChanges, CorpusConfig, DomainConfig
from chameleon_ray.counts import DomainSize
from chameleon_ray.discovery import read_corpus, told_by, transferred_from
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment
from chameleon_ray.mixing.proxy import embeddings_by, rows_of_targets, texts_to_embed
from chameleon_ray.mixing.question import estimated
from chameleon_ray.mixing.text_quality import TextQuality, proxy_losses, text_quality
from chameleon_ray.records import is_complete
from chameleon_ray.settings import validate


@dataclass(frozen=True)
class Changed:
    """The changed set of domains, in the order of the experiment, new ones last.

    Attributes:
        texts: how good the text of each domain is, where that is known.
        tokens, sizes: how much train text there is of each.
        there_before: digests of what the domains that did not change took. looking: what looking at text took, by digest.
        embedded: domain -> rows that were embedded for the change.
        others: embeddings of the corpus's targets that were asked for.
        estimates: sentences on sizes that are not counted. warnings: sentences a person should read.
    """

    embeddings: Embeddings
    texts: Mapping[str, TextQuality]
    tokens: Mapping[str, float]
    sizes: Mapping[str, DomainSize]
    tokenizer_sha256: str
    there_before: tuple[str, ...]
    looking: Mapping[str, Cost]
    embedded: Mapping[str, int]
    others: Embeddings | None = None
    estimates: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    """Some domains; fields as in `Changed`."""

    embeddings: Embeddings
    texts: Mapping[str, TextQuality]
    tokens: Mapping[str, float]
    sizes: Mapping[str, DomainSize]
    looking: Mapping[str, Cost]
    embedded: Mapping[str, int]
    there_before: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Step:
    """One of several changes, what its file is called, and the text of the domains that are new with it."""

    arrangement: Arrangement
    where: str
    new: TokenCorpus | None


def changed_embeddings(
    experiment: Experiment,
    proxy: str,
    changes: Sequence[CorpusChanges],
    backend: Backend,
    only: bool,
    others: Sequence[str] = (),
    allow_remote_code: bool = False,
) -> Changed:
    """What the changed set of domains is to be weighed by.

    Args:
        proxy: a model: a folder of ours, or any that `find_model` finds.
        changes: one after the other, each of what the one before left: new domains, `name: null` to leave one out, and those that are renamed, merged or
            split. What was embedded for an earlier change is not embedded again for a later one.
        only: take the new domains alone.
        others: targets of the corpus to embed too.
        allow_remote_code: run code that lies beside the proxy; also run where the experiment allows it for the same model.
    Raises:
        UserError: a proxy with another tokenizer, what `Arrangement.of` refuses, parts that have not as much text as what they are parts of, nothing left, or
            with `only` something else than new domains, or targets to embed.
    """
    allowed = allow_remote_code or (experiment.proxy.model.allow_remote_code and proxy == experiment.proxy.model.pretrained)
    found = backend.find_model(proxy, experiment.corpus.row_tokens, "--proxy", allowed)
    if not changes:
        raise UserError(f"{FILE}: there is none; say what changes")
    known = None
    if only:
        _check_new(changes, others)
    else:
        check_reads(found, experiment.corpus.tokenizer, "--proxy")
        known = read_corpus(experiment, backend)
        _opened(found, known, backend)
    steps = [
        _Step(each, where, _tokenized(experiment, each, where, found, backend) if each.added else None)
        for where, each in _arranged(changes, known.names if known else (), experiment.corpus)
    ]
    told = _covered(experiment, known, steps)
    begun = max((i for i, step in enumerate(steps) if not step.arrangement.kept), default=None)  # what was before is not left, and not embedded
    part = _known(experiment, found, known, backend) if known and begun is None else None
    for step in steps[begun or 0 :]:
        part = _after(experiment, found, part, step, backend, is_last=step is steps[-1])
    assert part is not None
    aims, aims_before = _aims(experiment, found, known, others, backend) if others and known else (None, ())
    aims_rows = rows_of_targets(aims) if aims and not aims_before else {}
    return Changed(
        embeddings=part.embeddings,
        texts=part.texts,
        tokens=part.tokens,
        sizes=part.sizes,
        tokenizer_sha256=found.tokenizer_sha256,
        there_before=(*part.there_before, *aims_before),
        looking=part.looking,
        embedded={**part.embedded, **aims_rows},
        others=aims,
        estimates=tuple(text for corpus, names in _called(known, steps) for text in estimated(corpus, names)),
        warnings=tuple(told),
    )


def _aims(experiment: Experiment, proxy: TrainedModel, corpus: TokenCorpus, names: Sequence[str], backend: Backend) -> tuple[Embeddings, tuple[str, ...]]:
    """The targets' embeddings, and of their ledger what was there already."""
    model = _opened(proxy, corpus, backend)
    were_there = backend.has_embedded(model, corpus, experiment.embedding, names)
    found = backend.embed(model, corpus, experiment.embedding, names)
    return found, tuple(found.ledger) if were_there else ()


def _number(place: int, changes: Sequence[CorpusChanges]) -> str:
    """What a change is called: of several files their places tell them apart."""
    return f"{FILE} {place + 1}" if len(changes) > 1 else FILE


def _check_new(changes: Sequence[CorpusChanges], others: Sequence[str]) -> None:
    for i, each in enumerate(changes):
        for name, change in each.domains.items():
            if change is None or not (change.files or change.huggingface):
                what = "null" if change is None else "a change of the experiment's domains"
                where = f"{_number(i, changes)}: domains.{name}"
                raise UserError(f"{where} is {what}, and --only takes the new domains alone; remove it, or leave --only out")
    if others:
        raise UserError(f"targets.{others[0]}: with --only the experiment's own text is not read; leave --only out, or the target")


def _arranged(changes: Sequence[CorpusChanges], known: Sequence[str], corpus: CorpusConfig) -> list[tuple[str, Arrangement]]:
    """Every change of what the one before left, with what its file is called."""
    found, names = [], tuple(known)
    for i, change in enumerate(changes):
        where = _number(i, changes)
        with told_by([(FILE, where)]):
            arrangement = Arrangement.of(change.domains, names)
            if not arrangement.kept and not arrangement.added:
                raise UserError(f"{FILE}: every domain is left out; keep or add at least one")
            check_targets(arrangement, corpus)
        found.append((where, arrangement))
        names = (*arrangement.kept, *arrangement.added)
    return found


def check_targets(arrangement: Arrangement, corpus: CorpusConfig) -> None:
    """Raise `UserError` for a new domain with the name or the text of one of the corpus's targets, which nothing is trained on."""
    for name in (*arrangement.kept, *arrangement.added):
        source = arrangement.added.get(name)
        for target, text in corpus.targets.items():
            if target == name or (source and (text.files, text.huggingface) == (source.files, source.huggingface)):
                raise UserError(f"{FILE}: {arrangement.place(name)} is corpus.targets.{target} of the experiment, which is never trained on; leave one out")


def _covered(experiment: Experiment, known: TokenCorpus | None, steps: Sequence[_Step]) -> list[str]:
    """What cannot be told of domains that were split; raises `UserError` for parts that have less text or more. Of text that is not read
    yet nothing is said."""
    told, there = [], dict[str, TextBytes]()
    if known is not None and is_complete(known.address):
        there = {name: _bytes_of(known, name, experiment.corpus.domains.get(name)) for name in known.names}
    for arrangement, where, new in ((step.arrangement, step.where, step.new) for step in steps):
        read = new is not None and is_complete(new.address)
        added = {name: _bytes_of(new, name, source) for name, source in arrangement.added.items()} if new is not None and read else {}
        for name, pieces in arrangement.parts.items():
            if read and name in there:
                with told_by([(FILE, where)]):
                    told.append(check_covered(name, there[name], {piece: added[piece] for piece in pieces}))
        kept = {name: merged_bytes([there[old] for old in olds]) for name, olds in arrangement.kept.items() if all(old in there for old in olds)}
        there = kept | added
    return [each for each in told if each]


def _bytes_of(corpus: TokenCorpus, name: str, source: DomainConfig | None) -> TextBytes:
    return train_bytes(corpus.domains[name], source is not None and bool(source.heldout or source.heldout_split))


def _called(known: TokenCorpus | None, steps: Sequence[_Step]) -> list[tuple[TokenCorpus, dict[str, str]]]:
    """Every corpus with what its domains, those that are left, are called after all changes."""
    found: list[tuple[TokenCorpus, dict[str, str]]] = [(known, {name: name for name in known.names})] if known else []
    for step in steps:
        now = {old: name for name, olds in step.arrangement.kept.items() for old in olds}
        found = [(corpus, {first: now[name] for first, name in names.items() if name in now}) for corpus, names in found]
        if step.new is not None:
            found.append((step.new, {name: name for name in step.new.names}))
    return found


def _tokenized(experiment: Experiment, arrangement: Arrangement, where: str, proxy: TrainedModel, backend: Backend) -> TokenCorpus:
    """The text of new domains in the proxy's tokens."""
    section = experiment.corpus.model_dump(exclude={"domains", "domains_from", "targets"})
    section |= {"domains": {name: source.model_dump() for name, source in arrangement.added.items()}, "tokenizer": {"pretrained": proxy.address}}
    reads = experiment.reads and replace(experiment.reads, run_tokens=0)  # nothing is trained on them
    with told_by([(f"corpus.domains.{name}", f"{where}: {arrangement.place(name)}") for name in arrangement.added]):
        return backend.tokenize(validate(CorpusConfig, section, where), experiment.seeds[0], reads)


def _opened(proxy: TrainedModel, corpus: TokenCorpus, backend: Backend) -> TrainedModel:
    return backend.open_model(proxy.address, corpus, "--proxy", proxy.allow_remote_code)


def _known(experiment: Experiment, proxy: TrainedModel, corpus: TokenCorpus, backend: Backend) -> _Part:
    """The experiment's own domains, as comparing embeds them: with a proxy of other domains what is the same there is taken from there."""
    transfer = transferred_from(experiment, backend) if experiment.transfer and "corpus" in proxy.details else None
    if transfer is not None and not (transfer.same and proxy.details["corpus"] == transfer.corpus.digest):
        transfer = None
    return _embedded(experiment, proxy, corpus, transfer, backend, for_the_change=False)


def _embedded(experiment: Experiment, proxy: TrainedModel, corpus: TokenCorpus, transfer: Transfer | None, backend: Backend, for_the_change: bool) -> _Part:
    """The domains of a corpus as they are. What was there is not part of what a change takes, unless it is there `for_the_change` itself: asked for again,
    that took what it took."""
    model, spec = _opened(proxy, corpus, backend), experiment.embedding
    texts = texts_to_embed(corpus, transfer)
    were_there = [not for_the_change and backend.has_embedded(model, text.corpus, spec, text.names) for text in texts]
    embeddings, ledgers = embeddings_by(model, corpus, transfer, spec, backend)
    losses, looking = proxy_losses(model, corpus, backend)
    there = [digest for (_, digests), was_there in zip(ledgers, were_there, strict=True) if was_there for digest in digests]
    old = {theirs: name for name, theirs in transfer.same.items()} if transfer else {}
    rows: dict[str, int] = {}
    for text in (text for text, was_there in zip(texts, were_there, strict=True) if not was_there):
        mine = embedded_rows(text.corpus, text.names)
        called = old if transfer is not None and text.corpus is transfer.corpus else {name: name for name in mine}
        rows |= {called.get(name, f"{name} (left out)"): min(count, spec.samples_per_domain) for name, count in mine.items()}
    there += looking if all(were_there) else []
    return _Part(embeddings, text_quality(corpus, losses), corpus.tokens(), corpus.sizes(), looking, rows, tuple(there))


def _after(experiment: Experiment, proxy: TrainedModel, before: _Part | None, step: _Step, backend: Backend, is_last: bool) -> _Part:
    """The domains after a change: those that are made of others, and new ones."""
    kept = None
    if before is not None:
        with told_by([(FILE, step.where)]):
            kept = _rearranged(before, step.arrangement)
    if step.new is None:
        assert kept is not None, "something is kept or added"
        return kept
    new = _embedded(experiment, proxy, step.new, None, backend, for_the_change=is_last)
    if kept is None:
        return new
    return _Part(
        Embeddings.concat([kept.embeddings, new.embeddings]),
        {**kept.texts, **new.texts},
        {**kept.tokens, **new.tokens},
        {**kept.sizes, **new.sizes},
        {**kept.looking, **new.looking},
        {**kept.embedded, **new.embedded},
        (*kept.there_before, *new.there_before),
    )


def _rearranged(part: _Part, arrangement: Arrangement) -> _Part:
    """Domains that are made of others."""
    texts, tokens, sizes, rows = {}, {}, {}, {}
    for name, olds in arrangement.kept.items():
        shares = shares_of(name, olds, part.tokens) if len(olds) > 1 else {olds[0]: 1.0}
        if (quality := merged_quality(part.texts, olds, shares)) is not None:
            texts[name] = quality
        if all(old in part.tokens for old in olds):
            tokens[name] = sum(part.tokens[old] for old in olds)
        sizes[name] = merged_size([part.sizes[old] for old in olds]) if len(olds) > 1 else part.sizes[olds[0]]
        if any(old in part.embedded for old in olds):
            rows[name] = sum(part.embedded.get(old, 0) for old in olds)
    used = {old for olds in arrangement.kept.values() for old in olds}
    left = {f"{name} (left out)" if name in part.sizes else name: count for name, count in part.embedded.items() if name not in used}
    embeddings = rearranged(part.embeddings, arrangement.kept, part.tokens)
    return replace(part, embeddings=embeddings, texts=texts, tokens=tokens, sizes=sizes, embedded={**rows, **left})
