"""The experiment's corpus; where nobody labelled its documents, the domains that are found among them first.

A model embeds the documents: one that others trained, or a proxy that is trained on all of the text as a single domain. What is found is kept, and a corpus of
its domains is one like any other.
"""

from __future__ import annotations

from dataclasses import replace

from chameleon_ray.artifacts import Clusters, TokenCorpus, TrainedModel
from chameleon_ray.backend import Backend, Reads, TrainJob, start_of
from chameleon_ray.config import ClustersConfig, CorpusConfig, DomainConfig, TokenizerConfig
from chameleon_ray.corpus.sources import TEXT
from chameleon_ray.experiment import SMALL_TEXT_BYTES, Experiment


def read_corpus(experiment: Experiment, backend: Backend, at: Experiment | None = None) -> TokenCorpus:
    """The corpus of an experiment, or of a point of its sweep; raises what reading it raises.

    Args:
        at: the point. Its domains are found with the experiment's own proxy, so that points that train it otherwise share them; it reads as much as the
            experiment, unless it asks for another amount.
    """
    asked, seed = at or experiment, experiment.seeds[0]
    reads = asked.reads if asked.corpus.tokens_per_domain != experiment.corpus.tokens_per_domain else experiment.reads
    found = asked.corpus.domains_from and asked.corpus.domains_from.clusters
    if not found:
        return backend.tokenize(asked.corpus, seed, reads)
    if found.embed == "proxy":
        model, config = _proxy(experiment, asked.corpus, found, backend)
    else:
        model, config = backend.find_model(found.embed, asked.corpus.row_tokens, "corpus.domains_from.clusters.embed"), asked.corpus
    clusters = _clusters(experiment, config, found, model, reads, backend)
    return backend.tokenize(config, seed, reads, clusters)


def _proxy(experiment: Experiment, corpus: CorpusConfig, found: ClustersConfig, backend: Backend) -> tuple[TrainedModel, CorpusConfig]:
    """The experiment's proxy trained on all of the text as one domain; the corpus with the tokenizer that it has."""
    source = {"files": found.of} if found.of else {"huggingface": found.huggingface}
    one = corpus.model_copy(update={"domains": {TEXT: DomainConfig.model_validate(source)}, "domains_from": None, "require_heldout": False})
    training = experiment.proxy.model_copy(update={"stop": None})
    reads = None if corpus.tokens_per_domain is None else Reads(training.steps * training.batch_rows * corpus.row_tokens, 0, SMALL_TEXT_BYTES)
    text = backend.tokenize(one, experiment.seeds[0], reads)
    job = TrainJob("proxy", training, {TEXT: 1.0}, experiment.seeds[0], start=start_of(training, text, backend, "proxy"))
    backend.check(text, [job])
    (model,) = backend.train_many(text, [job])
    return model, corpus.model_copy(update={"tokenizer": TokenizerConfig(pretrained=text.tokenizer_address)})


def _clusters(experiment: Experiment, corpus: CorpusConfig, found: ClustersConfig, model: TrainedModel, reads: Reads | None, backend: Backend) -> Clusters:
    """As many documents are read as all the domains together want."""
    wanted = reads and replace(reads, domain_tokens=found.k * reads.domain_tokens)
    return backend.find_clusters(corpus, model, experiment.embedding.layer, experiment.seeds[0], wanted)
