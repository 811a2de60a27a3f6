"""A changed set of domains without training: those that are known keep their embeddings, new ones are embedded with the same proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from chameleon_ray.artifacts import Cost, Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.backend import Backend
from chameleon_ray.changes import Arrangement, check_covered, merged_quality, merged_size, rearranged, shares_of, train_bytes
from chameleon_ray.corpus.chunks import embedded_rows
from chameleon_ray.corpus.tokenizer import check_reads
from chameleon_ray.corpus_config import CorpusChanges, CorpusConfig, DomainConfig
from chameleon_ray.counts import DomainSize
from chameleon_ray.discovery import read_corpus, told_by
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment
from chameleon_ray.mixing.proxy import rows_of_targets
from chameleon_ray.mixing.question import estimated
from chameleon_ray.mixing.text_quality import TextQuality, losses_of, text_quality
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


@dataclass
class _Part:
    """What some domains have in common that lie in one corpus; `embedded` and `there_before` as in `Changed`."""

    embeddings: Embeddings
    texts: Mapping[str, TextQuality]
    tokens: Mapping[str, float]
    sizes: Mapping[str, DomainSize]
    looking: Mapping[str, Cost] = field(default_factory=dict)
    embedded: Mapping[str, int] = field(default_factory=dict)
    there_before: tuple[str, ...] = ()


def changed_embeddings(
    experiment: Experiment,
    proxy: str,
    changes: CorpusChanges,
    backend: Backend,
    only: bool,
    others: Sequence[str] = (),
    allow_remote_code: bool = False,
) -> Changed:
    """What the changed set of domains is to be weighed by.

    Args:
        proxy: a model: a folder of ours, or any that `find_model` finds.
        changes: new domains, `name: null` to leave one of the experiment's out, and those that are renamed, merged or split.
        only: take the new domains alone.
        others: targets of the corpus to embed too.
        allow_remote_code: run code that lies beside the proxy; also run where the experiment allows it for the same model.
    Raises:
        UserError: a proxy with another tokenizer, what `Arrangement.of` refuses, parts that have not as much text as what they are parts of, nothing left, or
            with `only` something else than new domains, or targets to embed.
    """
    allowed = allow_remote_code or (experiment.proxy.model.allow_remote_code and proxy == experiment.proxy.model.pretrained)
    found = backend.find_model(proxy, experiment.corpus.row_tokens, "--proxy", allowed)
    if only:
        _check_new(changes, others)
        known = None
    else:
        check_reads(found, experiment.corpus.tokenizer, "--proxy")
        known = read_corpus(experiment, backend)
        _opened(found, known, backend)
    arrangement = Arrangement.of(changes.domains, known.names if known else ())
    if not arrangement.kept and not arrangement.added:
        raise UserError("corpus file: every domain is left out; keep or add at least one")
    check_targets(arrangement, experiment.corpus)
    new = _tokenized(experiment, arrangement, found, backend) if arrangement.added else None
    told = _covered(experiment, arrangement, known, new)
    before = [_known(experiment, found, known, arrangement, backend)] if known and arrangement.kept else []
    after = [_looked_at(experiment, found, new, new.names, backend)] if new else []
    parts = [*before, *after]
    read = [(known, {old: name for name, olds in arrangement.kept.items() for old in olds})] if known else []
    read += [(new, {name: name for name in new.names})] if new else []
    aims, aims_before = _aims(experiment, found, known, others, backend) if others and known else (None, ())
    aims_rows = rows_of_targets(aims) if aims and not aims_before else {}
    return Changed(
        embeddings=Embeddings.concat([part.embeddings for part in parts]),
        texts={name: text for part in parts for name, text in part.texts.items()},
        tokens={name: tokens for part in parts for name, tokens in part.tokens.items()},
        sizes={name: size for part in parts for name, size in part.sizes.items()},
        tokenizer_sha256=found.tokenizer_sha256,
        there_before=(*(digest for part in parts for digest in part.there_before), *aims_before),
        looking={digest: cost for part in parts for digest, cost in part.looking.items()},
        embedded={name: rows for part in parts for name, rows in part.embedded.items()} | aims_rows,
        others=aims,
        estimates=tuple(text for corpus, names in read for text in estimated(corpus, names)),
        warnings=tuple(told),
    )


def _aims(experiment: Experiment, proxy: TrainedModel, corpus: TokenCorpus, names: Sequence[str], backend: Backend) -> tuple[Embeddings, tuple[str, ...]]:
    """The targets' embeddings, and of their ledger what was there already."""
    model = _opened(proxy, corpus, backend)
    were_there = backend.has_embedded(model, corpus, experiment.embedding, names)
    found = backend.embed(model, corpus, experiment.embedding, names)
    return found, tuple(found.ledger) if were_there else ()


def _check_new(changes: CorpusChanges, others: Sequence[str]) -> None:
    for name, change in changes.domains.items():
        if change is None or not (change.files or change.huggingface):
            what = "null" if change is None else "a change of the experiment's domains"
            raise UserError(f"corpus file: domains.{name} is {what}, and --only takes the new domains alone; remove it, or leave --only out")
    if others:
        raise UserError(f"targets.{others[0]}: with --only the experiment's own text is not read; leave --only out, or the target")


def check_targets(arrangement: Arrangement, corpus: CorpusConfig) -> None:
    """Raise `UserError` for a new domain with the name or the text of one of the corpus's targets, which nothing is trained on."""
    for name in (*arrangement.kept, *arrangement.added):
        source = arrangement.added.get(name)
        for target, text in corpus.targets.items():
            if target == name or (source and (text.files, text.huggingface) == (source.files, source.huggingface)):
                raise UserError(
                    f"corpus file: {arrangement.place(name)} is corpus.targets.{target} of the experiment, which is never trained on; leave one out"
                )


def _covered(experiment: Experiment, arrangement: Arrangement, known: TokenCorpus | None, new: TokenCorpus | None) -> list[str]:
    """What cannot be told of domains that were split; raises `UserError` for parts that have less text or more. Of text that is not read
    yet nothing is said."""
    if known is None or new is None or not (is_complete(known.address) and is_complete(new.address)):
        return []
    told = []
    for name, pieces in arrangement.parts.items():
        source = experiment.corpus.domains.get(name)
        parts = {piece: train_bytes(new.domains[piece], _is_held_out_apart(arrangement.added[piece])) for piece in pieces}
        told.append(check_covered(name, train_bytes(known.domains[name], source is not None and _is_held_out_apart(source)), parts))
    return [each for each in told if each]


def _is_held_out_apart(source: DomainConfig) -> bool:
    return bool(source.heldout or source.heldout_split)


def _tokenized(experiment: Experiment, arrangement: Arrangement, proxy: TrainedModel, backend: Backend) -> TokenCorpus:
    """The text of new domains in the proxy's tokens."""
    section = experiment.corpus.model_dump(exclude={"domains", "domains_from", "targets"})
    section |= {"domains": {name: source.model_dump() for name, source in arrangement.added.items()}, "tokenizer": {"pretrained": proxy.address}}
    reads = experiment.reads and replace(experiment.reads, run_tokens=0)  # nothing is trained on them
    with told_by([(f"corpus.domains.{name}", f"corpus file: {arrangement.place(name)}") for name in arrangement.added]):
        return backend.tokenize(validate(CorpusConfig, section, "corpus file"), experiment.seeds[0], reads)


def _opened(proxy: TrainedModel, corpus: TokenCorpus, backend: Backend) -> TrainedModel:
    return backend.open_model(proxy.address, corpus, "--proxy", proxy.allow_remote_code)


def _looked_at(experiment: Experiment, proxy: TrainedModel, corpus: TokenCorpus, names: Sequence[str], backend: Backend) -> _Part:
    """Some domains of a corpus as they are."""
    model = _opened(proxy, corpus, backend)
    embeddings = backend.embed(model, corpus, experiment.embedding).select(names)
    losses, looking = losses_of(model, corpus, backend)
    wanted, sizes = set(names), corpus.sizes()
    texts = {name: text for name, text in text_quality(corpus, losses).items() if name in wanted}
    tokens = {name: count for name, count in corpus.tokens().items() if name in wanted}
    rows = {name: min(count, experiment.embedding.samples_per_domain) for name, count in embedded_rows(corpus).items()}
    return _Part(embeddings, texts, tokens, {name: sizes[name] for name in names}, looking, rows)


def _known(experiment: Experiment, proxy: TrainedModel, corpus: TokenCorpus, arrangement: Arrangement, backend: Backend) -> _Part:
    """The domains that are made of known ones, and whether these had been embedded by the proxy before."""
    were_embedded = backend.has_embedded(_opened(proxy, corpus, backend), corpus, experiment.embedding)
    found = _looked_at(experiment, proxy, corpus, [old for olds in arrangement.kept.values() for old in olds], backend)
    texts, tokens, sizes = {}, {}, {}
    for name, olds in arrangement.kept.items():
        shares = shares_of(name, olds, found.tokens) if len(olds) > 1 else {olds[0]: 1.0}
        if (quality := merged_quality(found.texts, olds, shares)) is not None:
            texts[name] = quality
        if all(old in found.tokens for old in olds):
            tokens[name] = sum(found.tokens[old] for old in olds)
        sizes[name] = merged_size([found.sizes[old] for old in olds]) if len(olds) > 1 else found.sizes[olds[0]]
    embeddings = rearranged(found.embeddings, arrangement.kept, found.tokens)
    if were_embedded:
        return _Part(embeddings, texts, tokens, sizes, found.looking, there_before=(*embeddings.ledger, *found.looking))
    left = dict(found.embedded)
    rows = {name: sum(left.pop(old) for old in olds) for name, olds in arrangement.kept.items()}
    return _Part(embeddings, texts, tokens, sizes, found.looking, rows | {f"{old} (left out)": count for old, count in left.items()})
