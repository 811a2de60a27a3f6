"""Rows of a corpus through a pool of actors that hold a model, with Ray Data: the one way that models meet rows outside training.

Results come in any order, each with its chunk, whose number is its place in the order that does not depend on the actors. Who reduces them does so
as they come and in that order where it matters, so that neither the number of actors nor the order of arrival changes a bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import ray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import Resources
from chameleon_ray.corpus.chunks import Chunk
from chameleon_ray.progress import Phase
from chameleon_ray.ray_session import pool_size, quiet_data, worth


def stream(
    corpus: TokenCorpus,
    chunks: Sequence[Chunk],
    worker: type,
    arguments: dict[str, Any],
    resources: Resources,
    phase: Phase,
    flops: float,
    pool_actors: int | None = None,
) -> Iterator[tuple[Chunk, dict[str, Any]]]:
    """Send chunks through a pool of `worker` actors.

    Args:
        worker: a class called with a batch of one row, the fields of a `Chunk`, that returns a batch of one row with the chunk's `number`.
        arguments: of the class's constructor, beside `corpus`.
        flops: that all of it takes; a few seconds' work is one actor's, which would have been done before a second one had started.
        pool_actors: at most so many actors; by default as many as the cluster has room for.
    Yields:
        Every chunk with its result, as they come. Nothing of a result is kept here.
    """
    arguments = {"corpus": corpus, **arguments}
    for number, row in through_pool([asdict(chunk) for chunk in chunks], worker, arguments, resources, phase, "chunks", flops, pool_actors):
        yield chunks[number], row


def through_pool(
    items: Sequence[dict[str, Any]],
    worker: type,
    arguments: dict[str, Any],
    resources: Resources,
    phase: Phase,
    label: str,
    flops: float,
    pool_actors: int | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Send items through a pool of actors that hold a model.

    Args:
        items: numbered from 0 in their field `number`.
        worker: a class called with a batch of one item, that returns a batch of one row with the item's `number`.
        label: what progress counts. flops, pool_actors: as for `stream`.
    Yields:
        Every item's number and result, as they come.
    """
    quiet_data()
    actors = min(pool_actors or pool_size(resources), len(items), worth(flops, resources))
    data = ray.data.from_items(list(items), override_num_blocks=len(items))
    gpus: dict[str, Any] = {"num_gpus": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    results = data.map_batches(
        worker,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=actors),
        fn_constructor_kwargs=arguments,
        num_cpus=resources.cpus_per_worker,
        **gpus,
    )
    done = 0
    for done, row in enumerate(results.iter_rows(), 1):
        phase.update(label, done, len(items))
        yield int(row["number"]), row
    assert done == len(items), f"{done} of {len(items)} {label} came back"
