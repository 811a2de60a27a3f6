"""Embedding tokens per second of the actor pool, over those of the path in the authors' script.

That path is in `published.py`. Same model, rows, rows per forward pass, number format and number of threads.
"""

from __future__ import annotations

from analysis.benchmarks.embedding_pool import Setting, compare
from analysis.benchmarks.measure import Outcome, main
from analysis.benchmarks.published import Published
from chameleon_ray.models.hardware import detect

BOUND = 1.8
BATCHES = 12


def run(quick: bool) -> Outcome:
    """Pool and published path in turns."""
    return compare(BOUND, quick, _published, BATCHES)


def _published(setting: Setting) -> Published:
    return Published(setting.folder, setting.layer, setting.corpus.row_tokens, detect(use_gpu=False))


if __name__ == "__main__":
    main("embed_vs_published", run)
