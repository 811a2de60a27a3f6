"""A changed set of domains without training: those that are known keep their embeddings, new ones are embedded with the same proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chameleon_ray.artifacts import Embeddings, TokenCorpus
from chameleon_ray.backend import Backend
from chameleon_ray.config import CorpusChanges, CorpusConfig, DomainConfig
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment
from chameleon_ray.settings import validate


def changed_embeddings(experiment: Experiment, proxy: str, changes: CorpusChanges, backend: Backend, only: bool) -> tuple[Embeddings, list[TokenCorpus]]:
    """Embeddings of the changed set of domains, and the corpora that they are of.

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
    if not only:
        known = backend.tokenize(experiment.corpus, experiment.seeds[0])
        _check(changes.domains, known.names)
        model = backend.open_model(found.address, known, "--proxy", found.allow_remote_code)
        kept = [name for name in known.names if name not in changes.domains]
        if kept:
            parts.append(backend.embed(model, known, experiment.embedding).select(kept))
            corpora.append(known)
    added = {name: source.model_dump() for name, source in changes.domains.items() if source is not None}
    if added:
        section = {**experiment.corpus.model_dump(exclude={"domains", "domains_from"}), "domains": added, "tokenizer": {"pretrained": found.address}}
        new = backend.tokenize(validate(CorpusConfig, section, "corpus file"), experiment.seeds[0])
        parts.append(backend.embed(backend.open_model(found.address, new, "--proxy", found.allow_remote_code), new, experiment.embedding))
        corpora.append(new)
    if not parts:
        raise UserError("corpus file: every domain is left out; keep or add at least one")
    return Embeddings.concat(parts), corpora


def _check(domains: Mapping[str, DomainConfig | None], known: Sequence[str]) -> None:
    for name, source in domains.items():
        if source is None and name not in known:
            raise UserError(f"corpus file: domains.{name} is null but the experiment has no such domain; it has {', '.join(known)}")
        if source is not None and name in known:
            raise UserError(f"corpus file: domains.{name} is in the experiment already; choose another name, or use --only to take the new domains alone")
