"""Memory of tokenizing ten times as much text, over that of tokenizing the smaller amount.

Memory is the peak over time of everything the Ray session holds, driver and object store included, nothing counted twice
(`measure.tree_bytes`), less what the same session held when its workers had run a data set that does nothing. Every amount has a session of
its own; the smaller one is measured twice before the larger and twice after. What is held goes up and down, and a peak is its maximum over time: the
smaller amount's is therefore taken over all of its sessions, which last about half as long together as the larger one's.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from analysis.benchmarks.measure import Outcome, PeakMemory, in_fresh_process, main, tree_bytes

BOUND = 1.15
MEGABYTES = (50, 500)
NUM_DOMAINS = 5
FILE_BYTES = 10_000_000
VOCAB_SIZE = 4096


def write_text(folder: Path, num_bytes: int, file_bytes: int) -> None:
    """Files `domain-I-NNN.jsonl`, equally many for every domain."""
    from analysis.benchmarks.synthetic import DomainText, write_json_lines

    folder.mkdir()
    for domain in range(NUM_DOMAINS):
        text = DomainText(domain)
        for number in range(num_bytes // (file_bytes * NUM_DOMAINS)):
            write_json_lines(folder / f"domain-{domain}-{number:03d}.jsonl", text, file_bytes)


def measured(folder: str) -> dict[str, float]:
    """Tokenize the files of a folder in a Ray session of this process; bytes at rest and at the peak, and seconds."""
    from analysis.benchmarks.ray_local import warm_workers
    from chameleon_ray.config import Resources
    from chameleon_ray.corpus_config import CorpusConfig, DomainConfig, TokenizerConfig, TokenizerTraining
    from chameleon_ray.progress import Reporter
    from chameleon_ray.ray_backend import RayBackend
    from chameleon_ray.ray_session import start_ray

    start_ray()
    warm_workers()
    idle = statistics.median(_after_pause() for _ in range(5))
    domains = {f"domain-{i}": DomainConfig(files=(f"{folder}/domain-{i}-*.jsonl",)) for i in range(NUM_DOMAINS)}
    tokenizer = TokenizerConfig(train=TokenizerTraining(vocab_size=VOCAB_SIZE, bytes_per_domain=1_000_000))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as storage, PeakMemory() as peak:
        corpus = RayBackend(storage, Resources(), Reporter.silent()).tokenize(CorpusConfig(domains=domains, tokenizer=tokenizer), seed=0)
    tokens = sum(corpus.tokens().values())
    return {"idle": idle, "peak": peak.bytes, "samples": peak.samples, "tokens": tokens, "seconds": time.perf_counter() - started}


def run(quick: bool) -> Outcome:
    """Small, large, small, every session in a fresh process; the text is deleted afterwards."""
    small, large = (1, 2) if quick else MEGABYTES
    file_bytes = 200_000 if quick else FILE_BYTES
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in (small, large):
            write_text(Path(folder) / str(megabytes), megabytes * 1_000_000, file_bytes)
        runs = [(megabytes, in_fresh_process(measured, f"{folder}/{megabytes}")) for megabytes in (small, small, large, small, small)]
    used = {size: max(_used(result) for megabytes, result in runs if megabytes == size) for size in (small, large)}
    ratio = used[large] / used[small]
    fields = {
        "text_megabytes": [small, large],
        "used_megabytes": [used[small] / 1e6, used[large] / 1e6],
        "runs": [_row(megabytes, result) for megabytes, result in runs],
        "domains": NUM_DOMAINS,
        "vocab_size": VOCAB_SIZE,
        "threads": os.cpu_count(),
    }
    return Outcome(ratio, BOUND, ratio <= BOUND, fields)


def _after_pause() -> int:
    time.sleep(0.5)
    return tree_bytes(os.getpid())


def _used(result: dict[str, float]) -> float:
    return result["peak"] - result["idle"]


def _row(megabytes: int, result: dict[str, float]) -> dict[str, Any]:
    sizes = {"peak_megabytes": result["peak"] / 1e6, "idle_megabytes": result["idle"] / 1e6}
    return {"text_megabytes": megabytes, **sizes, "samples": result["samples"], "tokens": result["tokens"], "seconds": result["seconds"]}


if __name__ == "__main__":
    main("tokenize_memory", run)
