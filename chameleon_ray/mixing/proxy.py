"""The proxy that reads every domain alike, and the domains' embeddings by it (Chameleon, algorithm 1, steps 3 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from chameleon_ray.artifacts import Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.backend import Backend, FitContext, Text, TrainJob, Transfer
from chameleon_ray.config import EmbeddingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.settled import SettledRule
from chameleon_ray.mixing.simplex import domain_names, uniform


def uniform_proxy(context: FitContext, rule: SettledRule | None = None) -> TrainJob:
    """The experiment's proxy on uniform weights; a pretrained one goes on from what it is. The same run for every method that embeds with it, unless a rule
    may end it early; on other domains than those to weigh where it is to be transferred."""
    training = context.proxy.model_copy(update={"stop": None})
    corpus = context.transfer.corpus if context.transfer else None
    return TrainJob("proxy", training, uniform(domain_names(corpus or context.corpus)), context.seed, rule, start=context.start, corpus=corpus)


def check_layer(context: FitContext) -> None:
    """Raise `UserError` for a layer that the proxy does not have."""
    layers = context.start.details["architecture"]["layers"] if context.start else context.proxy.model.shape[0]
    check_layer_number(context.embedding.layer, layers)


def check_layer_number(layer: Literal["middle"] | int, layers: int) -> None:
    """Raise `UserError` for a layer beyond those of a proxy that has so many."""
    if layer != "middle" and layer > layers:
        raise UserError(f"embedding.layer: {layer}, but the proxy has {layers} layers; choose 1 to {layers}, or middle")


@dataclass(frozen=True)
class Embedded:
    """A proxy and the embedding of every domain by it. `there_before`: digests of what was there before the domains changed, where the proxy is that of other
    domains."""

    proxy: TrainedModel
    embeddings: Embeddings
    there_before: tuple[str, ...] = ()


def formats_of(*embeddings: Embeddings | None) -> tuple[str, ...]:
    """The number formats that models were in which embedded domains, and whatever lies beside them, as far as they are known."""
    return tuple(sorted({precision for each in embeddings if each is not None for precision in each.precisions}))


def embedded_in(formats: Sequence[str]) -> dict[str, str]:
    """Number formats for a mixture's provenance, where they are known."""
    return {"embedded_in": " and ".join(formats)} if formats else {}


def rows_of_targets(found: Embeddings) -> dict[str, int]:
    """How many rows were embedded of unseen text, as it is called among domains."""
    return {f"{name} (target)": int(rows) for name, rows in zip(found.names, found.group_counts.sum(axis=1), strict=True)}


def texts_to_embed(corpus: TokenCorpus, transfer: Transfer | None) -> tuple[Text, ...]:
    """What a proxy embeds: all domains; of a transferred one those that it was trained on, and of the domains to weigh only those that are not among them."""
    if transfer is None:
        return (Text(corpus),)
    new = tuple(name for name in corpus.names if name not in transfer.same)
    return (*((Text(transfer.corpus),) if transfer.same else ()), *((Text(corpus, new),) if new else ()))


def embedded(context: FitContext, job: TrainJob) -> Embedded:
    """The trained proxy and the embedding of every domain by it.

    Raises:
        UserError: a domain without samples.
    """
    (proxy,) = context.backend.train_many(context.corpus, [job])
    embeddings, ledgers = embeddings_by(proxy, context.corpus, context.transfer, context.embedding, context.backend)
    known = context.transfer.corpus if context.transfer else None
    there_before = [digest for text, digests in ledgers if text.corpus is known for digest in digests]
    return Embedded(proxy, embeddings, (proxy.run, *there_before) if known else ())


def embeddings_by(
    proxy: TrainedModel, corpus: TokenCorpus, transfer: Transfer | None, spec: EmbeddingConfig, backend: Backend
) -> tuple[Embeddings, list[tuple[Text, tuple[str, ...]]]]:
    """The embedding of every domain of a corpus by a trained proxy, and each text that was embedded for them with the digests in its ledger.

    Raises:
        UserError: a domain without samples.
    """
    parts, ledgers = [], []
    for text in texts_to_embed(corpus, transfer):
        found = backend.embed(proxy, text.corpus, spec, text.names)
        ledgers.append((text, tuple(found.ledger)))
        if transfer is not None and text.corpus is transfer.corpus:
            found = replace(found.select(list(transfer.same.values())), names=tuple(transfer.same))
        parts.append(found)
    embeddings = Embeddings.concat(parts) if len(parts) > 1 else parts[0]
    for name in corpus.names:
        if name not in embeddings.names:
            raise UserError(f"domain {name!r} has no embedding; add documents or remove the domain")
    return embeddings.select(corpus.names) if transfer else embeddings, ledgers
