"""A changed set of domains without training: those that are known keep their embeddings, new ones are embedded with the same proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from chameleon_ray.artifacts import Cost, Embeddings, TokenCorpus
from chameleon_ray.backend import Backend
from chameleon_ray.corpus_config import CorpusChanges, CorpusConfig, DomainConfig
from chameleon_ray.discovery import read_corpus
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment
from chameleon_ray.mixing.text_quality import TextQuality, losses_of, text_quality
from chameleon_ray.settings import validate


@dataclass(frozen=True)
class Changed:
    """The changed set of domains: embeddings, the corpora that they are of, how good their text is, and what looking at that took, by digest."""

    embeddings: Embeddings
    corpora: tuple[TokenCorpus, ...]
    texts: Mapping[str, TextQuality]
    looking: Mapping[str, Cost]


def changed_embeddings(experiment: Experiment, proxy: str, changes: CorpusChanges, backend: Backend, only: bool) -> Changed:
    """What the changed set of domains is to be weighed by.

    Args:
        proxy: a model: a folder of ours, or any that `find_model` finds.
        changes: new domains, or `name: null` to leave one of the experiment's out.
        only: take the new domains alone.
    Raises:
        UserError: a proxy with another tokenizer, a name that is there already, one to leave out that is not, or nothing left.
    """
    allowed = experiment.proxy.model.allow_remote_code and proxy == experiment.proxy.model.pretrained
    found = backend.find_model(proxy, experiment.corpus.row_tokens, "--proxy", allowed)
    parts: list[Embeddings] = []
    corpora: list[TokenCorpus] = []
    texts: dict[str, TextQuality] = {}
    looking: dict[str, Cost] = {}

    def take(corpus: TokenCorpus, names: Sequence[str]) -> None:
        model = backend.open_model(found.address, corpus, "--proxy", found.allow_remote_code)
        parts.append(backend.embed(model, corpus, experiment.embedding).select(names))
        corpora.append(corpus)
        losses, took = losses_of(model, corpus, backend)
        texts.update({name: each for name, each in text_quality(corpus, losses).items() if name in names})
        looking.update(took)

    if not only:
        known = read_corpus(experiment, backend)
        _check(changes.domains, known.names)
        if kept := [name for name in known.names if name not in changes.domains]:
            take(known, kept)
    added = {name: source.model_dump() for name, source in changes.domains.items() if source is not None}
    if added:
        section = {**experiment.corpus.model_dump(exclude={"domains", "domains_from", "targets"}), "domains": added, "tokenizer": {"pretrained": found.address}}
        reads = experiment.reads and replace(experiment.reads, run_tokens=0)  # nothing is trained on them
        new = backend.tokenize(validate(CorpusConfig, section, "corpus file"), experiment.seeds[0], reads)
        take(new, new.names)
    if not parts:
        raise UserError("corpus file: every domain is left out; keep or add at least one")
    return Changed(Embeddings.concat(parts), tuple(corpora), texts, looking)


def _check(domains: Mapping[str, DomainConfig | None], known: Sequence[str]) -> None:
    for name, source in domains.items():
        if source is None and name not in known:
            raise UserError(f"corpus file: domains.{name} is null but the experiment has no such domain; it has {', '.join(known)}")
        if source is not None and name in known:
            raise UserError(f"corpus file: domains.{name} is in the experiment already; choose another name, or use --only to take the new domains alone")
