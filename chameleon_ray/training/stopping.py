"""Ending a proxy's training when Chameleon's weights have settled (they do so early: table 12 of the paper).

At intervals a small fixed sample of every domain is embedded with the model as it is, and weighed by the paper's formula. Training ends when the
weights are within a tolerance, in L1 distance, of the weights at half the steps, at two such comparisons running. The learning rate is
planned for all steps and not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from chameleon_ray.artifacts import NUM_GROUPS, Cost, Embeddings, TokenCorpus
from chameleon_ray.config import StopConfig, TrainingConfig
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.embedding.groups import group_sums
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.models.flops import forward_flops_per_token
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.pooling import MeanHiddenState, middle_layer

FORWARD_ROWS = 16


class Stopper:
    """Weights of a model in training, and whether they have settled; its memory is the history that the loop keeps."""

    def __init__(self, training: TrainingConfig, corpus: TokenCorpus, hardware: Hardware, rank: int, world_size: int) -> None:
        assert training.stop is not None
        self._stop: StopConfig = training.stop
        self._every = interval(training)
        self._layer = middle_layer(training.model.shape[0])
        self._hardware, self._names = hardware, corpus.names
        self._mine = range(rank, len(corpus.names), world_size)
        reader = RowReader(corpus)
        counts = corpus.rows()
        self._rows = {i: reader.read(corpus.names[i], np.arange(min(counts[corpus.names[i]], self._stop.samples_per_domain))) for i in self._mine}

    def due(self, step: int) -> bool:
        """Whether the weights are taken after so many steps."""
        return step % self._every == 0

    def weigh(self, module: torch.nn.Module, step: int) -> list[dict[str, Any]]:
        """step, domain, weight, mean, stderr: the weights by the model as it is. A collective: every rank embeds some of the domains."""
        embed = MeanHiddenState(module, self._layer)
        width = embed.width
        sums = torch.zeros(len(self._names), NUM_GROUPS, width, dtype=torch.float64)
        counts = torch.zeros(len(self._names), NUM_GROUPS, dtype=torch.float64)
        module.eval()
        for i in self._mine:
            rows = self._rows[i]
            parts = (slice(j, j + FORWARD_ROWS) for j in range(0, len(rows), FORWARD_ROWS))
            vectors = np.concatenate([embed(rows.tokens[part], rows.length[part]).numpy() for part in parts])
            found, number = group_sums(vectors, rows.document)
            sums[i], counts[i] = torch.from_numpy(found), torch.from_numpy(number)
        module.train()
        sums, counts = sums.to(self._hardware.device), counts.to(self._hardware.device)
        dist.all_reduce(sums)
        dist.all_reduce(counts)
        embeddings = Embeddings(self._names, sums.cpu().numpy(), counts.cpu().numpy().astype(np.int64), self._layer, Cost())
        mixture = Chameleon().weigh(embeddings)
        errors = mixture.weights_stderr or {}
        return [{"step": step, "domain": name, "weight": w, "mean": w, "stderr": errors.get(name, 0.0)} for name, w in mixture.weights.items()]

    def settled(self, history: Sequence[dict[str, Any]], step: int) -> bool:
        """Whether the last two comparisons, of the weights at t and t / 2 steps, were within the tolerance."""
        taken: dict[int, dict[str, tuple[float, float]]] = {}
        for entry in history:
            taken.setdefault(entry["step"], {})[entry["domain"]] = (entry["weight"], entry["stderr"])
        compared = [t for t in sorted(taken) if t <= step and t % 2 == 0 and t // 2 in taken]
        return compared[-1:] == [step] and len(compared) >= 2 and all(self._close(taken[t], taken[t // 2]) for t in compared[-2:])

    def _close(self, now: dict[str, tuple[float, float]], before: dict[str, tuple[float, float]]) -> bool:
        distance = sum(abs(now[name][0] - before[name][0]) for name in now)
        tolerance = sum(error for _, error in now.values()) if self._stop.tolerance == "bootstrap" else self._stop.tolerance
        return distance <= tolerance


def interval(training: TrainingConfig) -> int:
    """Steps between two looks: as configured, or a twentieth of the run."""
    assert training.stop is not None
    return training.stop.every_steps or max(1, training.steps // 20)


def stopping_flops(training: TrainingConfig, corpus: TokenCorpus, steps: int) -> float:
    """Operations of the looks taken in so many steps."""
    if training.stop is None:
        return 0.0
    rows = sum(min(count, training.stop.samples_per_domain) for count in corpus.rows().values())
    layers, _, width = training.model.shape
    per_token = forward_flops_per_token(middle_layer(layers), width, corpus.row_tokens, corpus.vocab_size, head=False)
    return steps // interval(training) * rows * corpus.row_tokens * per_token
