"""What a worker trains on, batch by batch: the next one is planned and read while this one computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.corpus.rows import RowReader, Rows
from chameleon_ray.training.plan import MixturePlan, PlanState


@dataclass(frozen=True)
class Batch:
    """A worker's rows of a global batch, their domains [n] (index into the plan's names), and the plan's state after the whole batch."""

    rows: Rows
    domains: NDArray[np.int64]
    after: PlanState


def batches(
    plan: MixturePlan, state: PlanState, reader: RowReader, batch_rows: int, mine: Callable[[NDArray[np.int64]], NDArray[np.int64]], count: int
) -> Iterator[Batch]:
    """So many batches from a state on.

    Args:
        batch_rows: of a global batch.
        mine: which of a global batch's rows, given by their domains, this worker takes.
    """

    def read(state: PlanState) -> Batch:
        planned, after = plan.take(state, batch_rows)
        chosen = mine(planned.domain)
        domains = planned.domain[chosen]
        return Batch(reader.read_mixed(plan.names, domains, planned.row[chosen]), domains, after)

    with ThreadPoolExecutor(1, "batches") as reading:
        coming = reading.submit(read, state)
        for left in reversed(range(count)):
            batch = coming.result()
            if left:
                coming = reading.submit(read, batch.after)
            yield batch
