"""What determines each artifact: every digest in one place.

A digest covers the configuration, the inputs (by their digests), the seed, and the version of the algorithm that makes the artifact from them. It
leaves out where and how it was computed: workers, micro-batches, ZeRO stage, paths. A finished artifact is taken again exactly when its digest says so.

**Versions.** `VERSIONS` has one number per kind of artifact; a method and a rule carry their own (`version`). Whoever changes what comes out of an
algorithm for the same inputs raises its number; `tests/golden` fails when a result changes and the number does not.

**Number format.** `precision: auto` (bf16 where there are units for it, else fp32) is one configuration: what was trained on one machine is taken on
another, and the record says in which format it was computed. Whoever needs one format sets it, and it is then part of the digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from chameleon_ray.artifacts import TokenCorpus, TrainedModel
from chameleon_ray.backend import Reads, TrainJob, Transfer, rule_settings
from chameleon_ray.config import EmbeddingConfig, LoraConfig, TrainingConfig
from chameleon_ray.corpus_config import CorpusConfig

# Of a training section: how it is computed, not what.
NOT_IN_DIGEST = frozenset({"micro_batch_rows", "zero_stage", "checkpoint_every_steps"})
# Of a model: where it lies (which one it is, and what of its own code is run, its digest says), and adapters, which are said apart where there are any.
NOT_OF_THE_MODEL = {"pretrained", "allow_remote_code", "lora"}

# Kind of artifact -> version of what makes it.
VERSIONS: dict[str, int] = {
    "corpus": 5,  # reading, splitting, packing, order of rows, targets, samples of the text, what is counted and looked at
    "clusters": 2,  # documents, vectors, directions, k-means, merging, words
    "tokenizer": 2,  # what tells one tokenizer from another
    "model": 5,  # order of the data, initialisation, optimizer, steps
    "family": 2,  # models that are the beginning of one run
    "proxy": 4,  # one run of a swarm, and its measurement
    "embeddings": 7,  # layer, samples, pooling, groups
    "losses": 4,  # held-out losses by document
    "glance": 1,  # losses by domain on a few rows
    "foreign": 3,  # a model that others trained
    "mixture": 9,  # what is around a method; the method has a version of its own
    "report": 14,  # what is shown of the results
}

# What is made of other kinds on the way, whose digests are not among its inputs.
MADE_WITH: dict[str, tuple[str, ...]] = {
    "family": ("model",),
    "proxy": ("model",),
    "mixture": ("model", "proxy", "embeddings", "glance"),
    "report": ("losses",),
}


def digest_of(kind: str, content: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with anything in `content`, and with the version of the kind or of what it is made with.

    Args:
        kind: a key of `VERSIONS`.
        content: what JSON can hold, without numbers that are not finite.
    """
    versions = {"version": VERSIONS[kind], "made_with": {other: VERSIONS[other] for other in MADE_WITH.get(kind, ())}}
    text = json.dumps({"kind": kind, **versions, **content}, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def corpus_digest(
    config: CorpusConfig, sources: Sequence[tuple[str | None, bool, str]], tokenizer_sha256: str | None, seed: int, reads: Reads | None = None
) -> str:
    """Of a corpus.

    Args:
        sources: (domain, held out, fingerprint) of everything that is read; the domain is None where each record names its own.
        tokenizer_sha256: of a pretrained tokenizer; None where one is trained.
        reads: how much is read, where some source is not read whole.
    """
    training = config.tokenizer.train
    found = config.domains_from
    content = {
        **config.model_dump(mode="json", include={"text_column", "row_tokens", "heldout_fraction", "heldout_tokens"}),
        "tokenizer": training.model_dump() if training else {"sha256": tokenizer_sha256},
        "domains": list(config.domains) or list(found.only if found else ()),
        "targets": list(config.targets),
        "domain_column": found.domain_column if found else None,
        "sources": [list(source) for source in sources],
        "reads": asdict(reads) if reads else None,
        "seed": seed,
        **_cleaned(config),
    }
    return digest_of("corpus", content)


def clusters_digest(
    config: CorpusConfig, sources: Sequence[tuple[str | None, bool, str]], model: TrainedModel, layer: int, seed: int, reads: Reads | None = None
) -> str:
    """Of domains that are found among documents by a model, which brings its tokenizer; `sources` and `reads` as for a corpus."""
    found = config.domains_from and config.domains_from.clusters
    assert found
    content = {
        **config.model_dump(mode="json", include={"text_column", "row_tokens"}),
        **found.model_dump(mode="json", include={"k", "within"}),
        "sources": [list(source) for source in sources],
        "model": model.digest,
        "tokenizer": model.tokenizer_sha256,
        "layer": layer,
        "reads": asdict(reads) if reads else None,
        "seed": seed,
        **_cleaned(config),
    }
    return digest_of("clusters", content)


def _cleaned(config: CorpusConfig) -> dict[str, Any]:
    """What is made of the text as it is stored: pieces that others stand for, in their order."""
    literals = {"bytes_literals": True} if config.bytes_literals else {}
    return literals | ({"replace": [list(pair) for pair in config.replace.items()]} if config.replace else {})


def model_digest(job: TrainJob, corpus: TokenCorpus) -> str:
    """Of a trained model: what two runs may share whatever their roles are called."""
    return digest_of("model", job_content(job, corpus))


def family_digest(job: TrainJob, corpus: TokenCorpus) -> str:
    """Of the runs that one run passes through: those that differ in their steps alone, on one schedule. A run that may end early is its own family."""
    content = job_content(job, corpus)
    if job.rule is None or job.rule.changes != "nothing":
        del content["training"]["steps"]
    return digest_of("family", {**content, "role": job.role})


def proxy_digest(job: TrainJob, corpus: TokenCorpus, split: str, tokens_per_domain: int) -> str:
    """Of one run of a swarm, measured on so many tokens of each domain of a split."""
    return digest_of("proxy", {**job_content(job, corpus), "split": split, "tokens_per_domain": tokens_per_domain})


def job_content(job: TrainJob, corpus: TokenCorpus) -> dict[str, Any]:
    """What a run's result depends on."""
    training = training_content(job.training)
    lora = job.training.model.lora
    training["model"] = (lora and _lora_content(lora)) if job.start else list(job.training.model.shape)
    training["schedule_steps"] = job.training.horizon
    content = {"training": training, "weights": dict(sorted(job.weights.items())), "seed": job.seed, "corpus": corpus.digest}
    if job.rule is not None:
        content["rule"] = {**rule_settings(job.rule), "domains": list(job.weights)}
    if job.start is not None:
        content["start"] = job.start.digest
    if job.reference is not None:
        content["reference"] = job.reference.digest
    return content


def training_content(training: TrainingConfig) -> dict[str, Any]:
    """A training section without what only says how it is computed."""
    content = training.model_dump(mode="json", exclude=set(NOT_IN_DIGEST))
    lora = training.model.lora
    content["model"] = {key: value for key, value in content["model"].items() if key not in NOT_OF_THE_MODEL}
    return {**content, "lora": _lora_content(lora)} if lora else content


def _lora_content(lora: LoraConfig) -> dict[str, Any]:
    """Adapters by what they come to: alpha over rank, and targets in whatever order."""
    return {"rank": lora.rank, "scale": lora.scale, "targets": sorted(lora.targets)}


def embeddings_digest(model: str, corpus: TokenCorpus, layer: int, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> str:
    """Of the embeddings of a corpus's domains, or of those named, by a model (its digest)."""
    content = {**spec.model_dump(mode="json", exclude={"layer"}), "layer": layer, **({} if names is None else {"names": list(names)})}
    return digest_of("embeddings", {"model": model, "corpus": corpus.digest, **content})


def losses_digest(model: str, corpus: TokenCorpus, splits: Sequence[str], rows_at_most: int | None = None) -> str:
    """Of a model's (its digest) losses on some splits, or on so many rows of them at even distances."""
    part = {} if rows_at_most is None else {"even_rows": rows_at_most}
    return digest_of("losses", {"model": model, "corpus": corpus.digest, "splits": list(splits), **part})


def glance_digest(model: str, corpus: TokenCorpus, rows_per_domain: int) -> str:
    """Of a glance at a model's (its digest) losses, on so many rows of everything measured."""
    return digest_of("glance", {"model": model, "corpus": corpus.digest, "even_rows": rows_per_domain})


def foreign_digest(config: str, weights: Sequence[str]) -> str:
    """Of a model that others trained, by the hashes of its files."""
    return digest_of("foreign", {"config": config, "weights": list(weights)})


def mixture_digest(
    label: str,
    method: Any,
    sections: Mapping[str, BaseModel],
    corpus: TokenCorpus,
    seed: int,
    start: TrainedModel | None = None,
    transfer: Transfer | None = None,
) -> str:
    """Of what a method (settings with a name and a version) says of a corpus.

    Args:
        sections: those of the experiment that the method reads, by name.
        start: the pretrained model of the proxy, where there is one.
        transfer: the domains that the proxy is trained on, where they are others.
    """
    read = {name: training_content(section) if isinstance(section, TrainingConfig) else section.model_dump(mode="json") for name, section in sections.items()}
    versions = {"method_version": method.version, "rule_version": getattr(method.rule, "version", None)}
    content = {"method": method.name, **versions, "settings": method.model_dump(mode="json"), **read}
    begun: dict[str, Any] = {"start": start.digest} if start else {}
    if transfer is not None:
        begun["transfer"] = {"corpus": transfer.corpus.digest, "same": dict(transfer.same)}
    return digest_of("mixture", {**content, **begun, "label": label, "corpus": corpus.digest, "seed": seed})


def report_digest(mixtures: Sequence[str], models: Sequence[str], experiment: Mapping[str, Any], failures: Mapping[str, str]) -> str:
    """Of a report: its mixtures and base models ("label/seed/digest"), the experiment without its resources, and what failed."""
    return digest_of("report", {"mixtures": sorted(mixtures), "models": sorted(models), "experiment": dict(experiment), "failures": dict(failures)})
