"""Embedding tokens per second of the actor pool, over those of the bare truncated forward pass in one process.

The bare pass is the first layers of the model called on tensors that are ready, and a mean over the tokens: no reading, no groups, no Ray.
Same model, rows per forward pass, number format and number of threads. The pool may come out above 1: it also shortens the last block.
"""

from __future__ import annotations

import torch

from analysis.benchmarks.embedding_pool import Setting, compare
from analysis.benchmarks.measure import Outcome, main
from chameleon_ray.models.hardware import detect
from chameleon_ray.models.load import load_truncated

BOUND = 0.90
BATCHES = 24


class BareForward:
    """The truncated model and nothing else."""

    def __init__(self, setting: Setting) -> None:
        self._model = load_truncated(setting.folder, setting.layer, detect(use_gpu=False))

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [n, T] -> [n, p]."""
        states: torch.Tensor = self._model(input_ids=tokens, use_cache=False).last_hidden_state
        return states.mean(dim=1)


def run(quick: bool) -> Outcome:
    """Pool and bare forward pass in turns."""
    return compare(BOUND, quick, BareForward, BATCHES)


if __name__ == "__main__":
    main("embed_vs_forward", run)
