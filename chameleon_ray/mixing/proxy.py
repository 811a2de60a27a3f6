"""The proxy that reads every domain alike, and the domains' embeddings by it (Chameleon, algorithm 1, steps 3 and 5)."""

from __future__ import annotations

from typing import Literal

from chameleon_ray.artifacts import Embeddings, TrainedModel
from chameleon_ray.backend import FitContext, TrainJob
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.settled import SettledRule
from chameleon_ray.mixing.simplex import domain_names, uniform


def uniform_proxy(context: FitContext, rule: SettledRule | None = None) -> TrainJob:
    """The experiment's proxy on uniform weights; a pretrained one goes on from what it is. The same run for every method that embeds with it, unless a rule
    may end it early."""
    training = context.proxy.model_copy(update={"stop": None})
    return TrainJob("proxy", training, uniform(domain_names(context.corpus)), context.seed, rule, start=context.start)


def check_layer(context: FitContext) -> None:
    """Raise `UserError` for a layer that the proxy does not have."""
    layers = context.start.details["architecture"]["layers"] if context.start else context.proxy.model.shape[0]
    check_layer_number(context.embedding.layer, layers)


def check_layer_number(layer: Literal["middle"] | int, layers: int) -> None:
    """Raise `UserError` for a layer beyond those of a proxy that has so many."""
    if layer != "middle" and layer > layers:
        raise UserError(f"embedding.layer: {layer}, but the proxy has {layers} layers; choose 1 to {layers}, or middle")


def embedded(context: FitContext, job: TrainJob) -> tuple[TrainedModel, Embeddings]:
    """The trained proxy and the embedding of every domain by it.

    Raises:
        UserError: a domain without samples.
    """
    (proxy,) = context.backend.train_many(context.corpus, [job])
    embeddings = context.backend.embed(proxy, context.corpus, context.embedding)
    for name in context.corpus.names:
        if name not in embeddings.names:
            raise UserError(f"domain {name!r} has no embedding; add documents or remove the domain")
    return proxy, embeddings
