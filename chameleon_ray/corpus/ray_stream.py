"""Rows of a corpus through a pool of actors that hold a model, with Ray Data: the one way that models meet rows outside training.

What an actor returns carries the number of its chunk; the driver puts results in that order before it reduces them, so that neither the
number of actors nor the order of arrival changes a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import Resources
from chameleon_ray.corpus.chunks import Chunk
from chameleon_ray.progress import Stage
from chameleon_ray.ray_session import pool_size, quiet_data


def stream(
    corpus: TokenCorpus,
    chunks: Sequence[Chunk],
    worker: type,
    arguments: dict[str, Any],
    resources: Resources,
    stage: Stage,
    pool_actors: int | None = None,
) -> list[dict[str, Any]]:
    """Send chunks through a pool of `worker` actors.

    Args:
        worker: a class called with a batch of one row, the fields of a `Chunk`, that returns a batch of one row with the chunk's `number`.
        arguments: of the class's constructor, beside `corpus`.
        pool_actors: at most so many actors; by default as many as the cluster has room for.
    Returns:
        One dictionary per chunk, in the order of the chunks.
    """
    quiet_data()
    actors = min(pool_actors or pool_size(resources), len(chunks))
    items = [asdict(chunk) for chunk in chunks]
    data = ray.data.from_items(items, override_num_blocks=len(items))
    gpus: dict[str, Any] = {"num_gpus": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    results = data.map_batches(
        worker,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=actors),
        fn_constructor_kwargs={"corpus": corpus, **arguments},
        num_cpus=resources.cpus_per_worker,
        **gpus,
    )
    found: dict[int, dict[str, Any]] = {}
    for row in results.iter_rows():
        found[int(row["number"])] = row
        stage.update("chunks", len(found), len(chunks))
    assert len(found) == len(chunks), f"{len(found)} of {len(chunks)} chunks came back"
    return [found[number] for number in range(len(chunks))]
