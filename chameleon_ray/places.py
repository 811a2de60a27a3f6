"""Where every artifact lies in a storage, by the digest of what determines it: whether something is done is known before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from chameleon_ray import storage
from chameleon_ray.artifacts import Cost, TokenCorpus, TrainedModel
from chameleon_ray.backend import Reads, TrainJob
from chameleon_ray.config import EmbeddingConfig
from chameleon_ray.corpus.sources import Source
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.identity import clusters_digest, corpus_digest, embeddings_digest, glance_digest, losses_digest, model_digest, proxy_digest
from chameleon_ray.models.architecture import Architecture, layer_number
from chameleon_ray.records import is_complete
from chameleon_ray.training.run import Run


@dataclass(frozen=True)
class Place:
    """Of one artifact."""

    digest: str
    address: str

    @property
    def is_complete(self) -> bool:
        return is_complete(self.address)


@dataclass(frozen=True)
class Places:
    """Of all artifacts of a storage."""

    root: str

    def corpus(self, config: CorpusConfig, sources: Sequence[Source], seed: int, reads: Reads | None) -> Place:
        """Of a corpus. What decides how much is read is part of its digest where a source is not read whole."""
        pretrained = config.tokenizer.pretrained
        digest = corpus_digest(config, _known(sources), _tokenizer_sha256(pretrained) if pretrained else None, seed, _decisive(sources, reads))
        return self._place("corpora", digest)

    def clusters(self, config: CorpusConfig, sources: Sequence[Source], model: TrainedModel, layer: int, seed: int, reads: Reads | None) -> Place:
        """Of domains that are found among documents."""
        return self._place("clusters", clusters_digest(config, _known(sources), model, layer, seed, _decisive(sources, reads)))

    def run(self, job: TrainJob, corpus: TokenCorpus) -> Run:
        """Of a model that is trained."""
        corpus = job.corpus or corpus
        digest = model_digest(job, corpus)
        return Run(job, corpus, digest, storage.join(self.root, "models", f"{job.role}-{digest}"))

    def proxy(self, job: TrainJob, corpus: TokenCorpus, split: str, tokens_per_domain: int) -> Run:
        """Of a proxy that is only measured."""
        place = self._place("proxies", proxy_digest(job, corpus, split, tokens_per_domain))
        return Run(job, corpus, place.digest, place.address)

    def embeddings(self, model: str, corpus: TokenCorpus, layer: int, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> Place:
        """Of the embeddings of a corpus's domains, or of some of its domains or targets, by a model (its digest)."""
        return self._place("embeddings", embeddings_digest(model, corpus, layer, spec, names))

    def losses(self, model: str, corpus: TokenCorpus, splits: Sequence[str], rows_at_most: int | None = None) -> Place:
        """Of a model's (its digest) losses on some splits."""
        return self._place("losses", losses_digest(model, corpus, splits, rows_at_most))

    def glance(self, model: str, corpus: TokenCorpus, rows_per_domain: int) -> Place:
        """Of a glance at a model's (its digest) losses."""
        return self._place("glances", glance_digest(model, corpus, rows_per_domain))

    def is_measured(self, run: Run, splits: Sequence[str]) -> bool:
        """Whether a model is trained, and its losses on some splits are known."""
        return is_complete(run.address) and self.losses(run.digest, run.corpus, splits, run.corpus.measured_at_most).is_complete

    def _place(self, kind: str, digest: str) -> Place:
        return Place(digest, storage.join(self.root, kind, digest))


def layer_of(model: TrainedModel, row_tokens: int, wanted: Literal["middle"] | int) -> tuple[int, Cost]:
    """The layer to embed at and what one token takes."""
    architecture = Architecture.of_trained(model, row_tokens)
    layer = layer_number(wanted, architecture.layers)
    return layer, Cost(1, architecture.embedding_flops(layer, row_tokens), 0.0, architecture.forward_flops(row_tokens))


def _known(sources: Sequence[Source]) -> list[tuple[str | None, bool, str]]:
    return [(source.origin.domain, source.origin.heldout, source.fingerprint) for source in sources]


def _decisive(sources: Sequence[Source], reads: Reads | None) -> Reads | None:
    return reads if any(source.wanted for source in sources) else None


def _tokenizer_sha256(address: str) -> str:
    from chameleon_ray.corpus.tokenizer import load_tokenizer, tokenizer_sha256

    return tokenizer_sha256(*load_tokenizer(address))
