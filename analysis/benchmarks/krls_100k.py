"""Seconds and bytes of the leverage scores of 100,000 domains of width 768, with 7 and 1,000 domains beside it.

Each measurement has a process of its own. `bytes` is the most memory that it held, over what it held before there were any embeddings: X itself
counts. `ratio` is the bound on the seconds over the seconds; the bytes have a bound of their own.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

from analysis.benchmarks.measure import Outcome, in_fresh_process, interleaved, main, status_bytes

BOUND_SECONDS = 10.0
BOUND_BYTES = 2e9
BOUND = 1.0
REPETITIONS = 3
WIDTH = 768
DOMAINS = (7, 1_000, 100_000)


def measured(num_domains: int, width: int) -> tuple[float, float]:
    """(seconds, bytes) of one call with the paper's settings, in this process."""
    import numpy as np

    from chameleon_ray.mixing import krls

    names = [str(i) for i in range(num_domains)]
    krls.scores(np.eye(8), krls.Ridge(absolute=10.0), False, names[:8])
    before = status_bytes("VmRSS")
    embeddings = np.random.default_rng(0).standard_normal((num_domains, width))
    started = time.perf_counter()
    found = krls.scores(embeddings, krls.Ridge(absolute=10.0), False, names)
    seconds = time.perf_counter() - started
    assert len(found.scores) == num_domains
    return seconds, float(status_bytes("VmHWM") - before)


def run(quick: bool) -> Outcome:
    """All sizes in turns; median of the seconds, most of the bytes."""
    sizes, width, repetitions = ((3, 7, 100), 16, 1) if quick else (DOMAINS, WIDTH, REPETITIONS)
    memory: dict[str, list[float]] = {str(size): [] for size in sizes}

    def side(size: int) -> float:
        seconds, used = in_fresh_process(measured, size, width)
        memory[str(size)].append(used)
        return float(seconds)

    found = interleaved({str(size): partial(side, size) for size in sizes}, repetitions)
    results: dict[str, dict[str, Any]] = {size: {"seconds": statistics.median(seconds), "bytes": max(memory[size])} for size, seconds in found.items()}
    *smaller, largest = results
    seconds, used = results[largest]["seconds"], results[largest]["bytes"]
    fields = {
        **results[largest],
        "bound_seconds": BOUND_SECONDS,
        "bound_bytes": BOUND_BYTES,
        "domains": int(largest),
        "width": width,
        "beside": {f"domains_{size}": results[size] for size in smaller},
    }
    return Outcome(BOUND_SECONDS / seconds, BOUND, seconds <= BOUND_SECONDS and used <= BOUND_BYTES, fields)


if __name__ == "__main__":
    main("krls_100k", run)
