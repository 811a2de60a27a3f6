"""Tokenizing much text on a small machine: seconds, and memory above an idle session. `python -m analysis.scale`, or `make scale`.

The text is made as it is read (`benchmarks/text_store.py`), so that only what tokenizing itself writes takes disk: some twice the text. Every run has a process
of its own and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from typing import Any

from analysis.benchmarks.measure import PeakMemory, in_fresh_process, tree_bytes
from analysis.benchmarks.text_store import BLOCK_BYTES, TextStore

FILE_BLOCKS = 1600
VOCAB_SIZE = 8192
ROW_TOKENS = 512


def measured(patterns: dict[str, str]) -> dict[str, Any]:
    """Tokenize everything in a Ray session of this process."""
    from analysis.benchmarks.ray_local import warm_workers
    from chameleon_ray.config import Resources
    from chameleon_ray.corpus_config import CorpusConfig, DomainConfig, TokenizerConfig, TokenizerTraining
    from chameleon_ray.progress import Reporter
    from chameleon_ray.ray_backend import RayBackend
    from chameleon_ray.ray_session import start_ray

    start_ray()
    warm_workers()
    idle = statistics.median(_after_pause() for _ in range(5))
    domains = {name: DomainConfig(files=(pattern,)) for name, pattern in patterns.items()}
    tokenizer = TokenizerConfig(train=TokenizerTraining(vocab_size=VOCAB_SIZE, bytes_per_domain=4_000_000))
    config = CorpusConfig(domains=domains, tokenizer=tokenizer, row_tokens=ROW_TOKENS, tokens_per_domain=None)
    storage = tempfile.mkdtemp()
    started = time.perf_counter()
    try:
        with PeakMemory() as peak:
            corpus = RayBackend(storage, Resources(), Reporter()).tokenize(config, seed=0)
        seconds = time.perf_counter() - started
        driver = max(tree_bytes(os.getpid()) - idle, 0)
    finally:
        shutil.rmtree(storage)
    rows = sum(corpus.rows().values())
    return {"idle_gigabytes": idle / 1e9, "above_idle_gigabytes": (peak.bytes - idle) / 1e9, "left_gigabytes": driver / 1e9, "seconds": seconds, "rows": rows}


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(prog="python -m analysis.scale")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of text, in five domains")
    parser.add_argument("--domains", type=int, default=None, help="instead: so many domains of some 100 rows each")
    arguments = parser.parse_args()
    if arguments.domains:
        store = TextStore(arguments.domains, 1, 4, compressed=False, templates=8, num_words=20_000)
    else:
        files = max(1, round(arguments.gigabytes * 1e9 / (5 * FILE_BLOCKS * BLOCK_BYTES)))
        store = TextStore(5, files, FILE_BLOCKS, templates=128, num_words=50_000)
    with store.serve():
        found = in_fresh_process(measured, store.patterns())
    line = {"text_gigabytes": store.text_bytes / 1e9, "domains": store.domains, "megabytes_per_second": store.text_bytes / 1e6 / found["seconds"], **found}
    print(json.dumps({**line, "sent_gigabytes": store.sent_bytes / 1e9, "requests": store.requests, "threads": os.cpu_count()}))


def _after_pause() -> int:
    time.sleep(0.5)
    return tree_bytes(os.getpid())


if __name__ == "__main__":
    main()
