"""Seconds and memory of Chameleon's weights of 100,000 domains of width 768, error bars included, from their file on disk.

Each measurement has a process of its own, which loads the embeddings and weighs them. `bytes` is the most memory that the whole process ever held,
interpreter and libraries included (VmHWM: pages of files that are mapped and touched count too). `seconds` is loading and weighing together.
Every preset is measured and the worst one counts. `ratio` is the bound on the seconds over the seconds; the bytes have a bound of their own.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from typing import Any

import numpy as np

from analysis.benchmarks.measure import Outcome, in_fresh_process, interleaved, main, status_bytes
from chameleon_ray.artifacts import NUM_GROUPS, Embeddings, group_layout
from chameleon_ray.mixing.variants import Variant
from chameleon_ray.records import once

BOUND_SECONDS = 60.0
BOUND_BYTES = 4e9
BOUND = 1.0
WIDTH = 768
NUM_DOMAINS = 100_000
SAMPLES = 4 * NUM_GROUPS
VARIANTS: tuple[Variant, ...] = ("calibrated", "paper", "released")


def make(address: str, num_domains: int, width: int) -> None:
    """Write embeddings that share a direction, differ in the rest, and come from noisy samples."""
    num_groups, dtype = group_layout(num_domains)
    generator = np.random.default_rng(0)
    per_group = SAMPLES // num_groups
    sums = np.empty((num_domains, num_groups, width), dtype)
    for domain in range(num_domains):
        noise = generator.standard_normal((num_groups, width), dtype=np.float32)
        sums[domain] = per_group * (1 + generator.standard_normal(width)) + per_group**0.5 * noise
    names = tuple(f"domain-{number}" for number in generator.permutation(num_domains))
    embeddings = Embeddings(names, sums, np.full(sums.shape[:2], per_group), 6)
    once(address, "embeddings", "benchmark", lambda: embeddings.save(address))


def measured(address: str, variant: Variant) -> tuple[float, float, float]:
    """(seconds, of which loading, bytes) of one weighing in this process."""
    from chameleon_ray.mixing.chameleon import Chameleon

    started = time.perf_counter()
    embeddings = Embeddings.load(address)
    loaded = time.perf_counter()
    mixture = Chameleon(variant=variant).weigh(embeddings)
    ended = time.perf_counter()
    assert mixture.weights_stderr is not None and len(mixture.weights_stderr) == len(embeddings.names)
    return ended - started, loaded - started, float(status_bytes("VmHWM"))


def run(quick: bool) -> Outcome:
    """Every preset in turn."""
    num_domains, width = (2_000, 16) if quick else (NUM_DOMAINS, WIDTH)
    beside: dict[str, dict[str, Any]] = {}

    def side(address: str, variant: Variant) -> float:
        seconds, loading, used = in_fresh_process(measured, address, variant)
        beside[variant] = {"seconds": seconds, "loading_seconds": loading, "bytes": used}
        return float(seconds)

    with tempfile.TemporaryDirectory() as folder:
        in_fresh_process(make, folder, num_domains, width)
        interleaved({variant: partial(side, folder, variant) for variant in VARIANTS}, 1)
    seconds, used = (max(found[key] for found in beside.values()) for key in ("seconds", "bytes"))
    bounds = {"bound_seconds": BOUND_SECONDS, "bound_bytes": BOUND_BYTES}
    sizes = {"domains": num_domains, "width": width, "groups": group_layout(num_domains)[0]}
    fields = {"seconds": seconds, "bytes": used, **bounds, **sizes, "beside": beside}
    return Outcome(BOUND_SECONDS / seconds, BOUND, seconds <= BOUND_SECONDS and used <= BOUND_BYTES, fields)


if __name__ == "__main__":
    main("weigh_100k", run)
