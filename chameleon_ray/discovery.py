"""The experiment's corpus; where nobody labelled its documents, the domains that are found among them first.

A model embeds the documents: one that others trained, or a proxy that is trained on all of the text as a single domain. What is found is kept, and a corpus of
its domains is one like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from chameleon_ray.artifacts import TokenCorpus, TrainedModel
from chameleon_ray.backend import Backend, Reads, TrainJob, Transfer, start_of
from chameleon_ray.config import TrainingConfig
from chameleon_ray.corpus.sources import TEXT
from chameleon_ray.corpus_config import CLUSTERS, ClustersConfig, CorpusConfig, TokenizerConfig, check_documents
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import SMALL_TEXT_BYTES, Experiment
from chameleon_ray.mixing.proxy import check_layer_number
from chameleon_ray.records import is_complete

# What the documents are read by -> where the user wrote it.
KEYS = (
    (f"corpus.domains.{TEXT}.files", f"{CLUSTERS}.of"),
    (f"corpus.domains.{TEXT}", CLUSTERS),
    (f"domain {TEXT!r}", "the documents"),
    ("corpus.domains_from.files", f"{CLUSTERS}.of"),
    ("corpus.domains_from.huggingface", f"{CLUSTERS}.huggingface"),
    ("corpus.domains_from.domain_column", f"{CLUSTERS}.within"),
)


def read_corpus(experiment: Experiment, backend: Backend, at: Experiment | None = None) -> TokenCorpus:
    """The corpus of an experiment, or of a point of its sweep; raises what reading it raises.

    Args:
        at: the point. Its domains are found with the experiment's own proxy, so that points that train it otherwise share them; it reads as much as the
            experiment, unless it asks for another amount.
    """
    asked, seed = at or experiment, experiment.seeds[0]
    reads = _reads(experiment, asked)
    if asked.corpus.tokenizer.train is not None and (transfer := transferred_from(experiment, backend, at)) is not None:
        tokenizer = TokenizerConfig(pretrained=transfer.corpus.tokenizer_address)  # the proxy's
        asked = asked.model_copy(update={"corpus": asked.corpus.model_copy(update={"tokenizer": tokenizer})})
    found = asked.corpus.domains_from and asked.corpus.domains_from.clusters
    if not found:
        return backend.tokenize(asked.corpus, seed, reads)
    layer: Literal["middle"] | int = "middle"  # embedding.layer is of the experiment's proxy
    with told_by(KEYS):
        if found.embed == "proxy":
            layer = experiment.embedding.layer
            model = _proxy(experiment, asked.corpus, found, backend)
        else:
            model = backend.find_model(found.embed, asked.corpus.row_tokens, f"{CLUSTERS}.embed")
        wanted = reads and replace(reads, domain_tokens=found.k * reads.domain_tokens)  # as many documents as all the domains together want
        clusters = backend.find_clusters(asked.corpus, model, layer, seed, wanted)
    return backend.tokenize(asked.corpus, seed, reads, clusters)


def transferred_from(experiment: Experiment, backend: Backend, at: Experiment | None = None) -> Transfer | None:
    """The domains that the proxy is trained on, where they are others than the experiment's (or a sweep's point's), and which of these have the same text
    there."""
    asked = at or experiment
    if asked.transfer is None:
        return None
    config = domains_before(asked)
    with told_by([("corpus.domains", "transfer.domains")]):
        corpus = backend.tokenize(config, experiment.seeds[0], _reads(experiment, asked))
    same = {name: old for name, source in asked.corpus.domains.items() for old, text in config.domains.items() if text == source}
    return Transfer(corpus, same)


def domains_before(experiment: Experiment) -> CorpusConfig:
    """The text that the proxy of an experiment with `transfer` is trained on."""
    assert experiment.transfer is not None
    before = {"domains": experiment.transfer.domains, "domains_from": experiment.transfer.domains_from}
    return experiment.corpus.model_copy(update={**before, "require_heldout": False})


def _reads(experiment: Experiment, asked: Experiment) -> Reads | None:
    """How much a point of a sweep reads: as much as the experiment, unless it asks for another amount."""
    return asked.reads if asked.corpus.tokens_per_domain != experiment.corpus.tokens_per_domain else experiment.reads


@contextmanager
def told_by(keys: Iterable[tuple[str, str]]) -> Iterator[None]:
    """What is said of the keys that text is read by, said of those that the user wrote."""
    try:
        yield
    except UserError as error:
        told = str(error)
        for ours, theirs in keys:
            told = re.sub(rf"{re.escape(ours)}(?=[.:,\s\[]|$)", theirs.replace("\\", r"\\"), told)
        raise UserError(told) from error


def _proxy(experiment: Experiment, corpus: CorpusConfig, found: ClustersConfig, backend: Backend) -> TrainedModel:
    """The experiment's proxy trained on all of the text as one domain, to find others in it and for nothing else: what these will hold out is not known yet,
    and it may have read that, as it has to place it. The corpus's tokenizer and proxies are made anew of what the domains train on.

    Raises:
        UserError: among others that there are fewer documents than clusters, before anything is trained.
    """
    one = corpus.model_copy(update={"domains": {TEXT: found.source}, "domains_from": None, "require_heldout": False})
    training = experiment.proxy.model_copy(update={"stop": None})
    _check_layer(training, experiment.embedding.layer, backend)
    reads = None if corpus.tokens_per_domain is None else Reads(training.rows * corpus.row_tokens, 0, SMALL_TEXT_BYTES)
    text = backend.tokenize(one, experiment.seeds[0], reads)
    there = text.domains[TEXT]
    if found.within is None and there.excerpt is None and is_complete(text.address):
        check_documents(sum(split.documents for split in (there.train, there.valid, there.test)) + there.unused_heldout, found.k)
    job = TrainJob("proxy", training, {TEXT: 1.0}, experiment.seeds[0], start=start_of(training, text, backend, "proxy"))
    backend.check(text, [job])
    (model,) = backend.train_many(text, [job])
    return model


def _check_layer(training: TrainingConfig, layer: Literal["middle"] | int, backend: Backend) -> None:
    """Raise `UserError` for a layer that a proxy will not have, before it is trained."""
    name = training.model.pretrained
    if layer == "middle":
        return
    if name is None:
        layers = training.model.shape[0]
    else:
        layers = backend.find_model(name, 1, "proxy.model.pretrained", training.model.allow_remote_code).details["architecture"]["layers"]
    check_layer_number(layer, layers)
