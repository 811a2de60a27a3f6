"""Domain embeddings by the model as it is: group sums of the mean hidden state after a layer, of a small fixed sample of every domain.

A rule sees `group_sums` [k, groups, p], `group_counts` [k, groups] and `layer`, and says which layer and how many train rows of each domain to take.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus, group_layout
from chameleon_ray.backend import Rule, TrainJob
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.embedding.groups import group_sums
from chameleon_ray.errors import UserError
from chameleon_ray.models.architecture import layer_number
from chameleon_ray.models.pooling import MeanHiddenState
from chameleon_ray.training.steps import Worker

FORWARD_ROWS = 16


class EmbeddingRule(Rule, Protocol):
    """A rule that looks at embeddings: at most `samples_per_domain` rows of each domain, for the first time after `every_steps` steps and then as often."""

    layer: Literal["middle"] | int
    samples_per_domain: int
    every_steps: int


class EmbeddingLook:
    """Embeds the sample; every worker takes some of the domains."""

    def __init__(self, worker: Worker) -> None:
        rule = cast(EmbeddingRule, worker.job.rule)
        names = worker.corpus.names
        self._num_domains, self._device = len(names), worker.hardware.device
        self._layer = layer_number(rule.layer, worker.architecture.layers)
        reader, counts = RowReader(worker.corpus), worker.corpus.rows()
        mine = range(worker.rank, len(names), worker.world_size)
        self._rows = {i: reader.read(names[i], np.arange(min(counts[names[i]], rule.samples_per_domain))) for i in mine}

    def __call__(self, model: Any) -> dict[str, NDArray[np.float64]]:
        embed = MeanHiddenState(model.model, self._layer)
        num_groups, _ = group_layout(self._num_domains)
        sums = torch.zeros(self._num_domains, num_groups, embed.width, dtype=torch.float64)
        counts = torch.zeros(self._num_domains, num_groups, dtype=torch.float64)
        model.eval()
        for i, rows in self._rows.items():
            parts = (slice(j, j + FORWARD_ROWS) for j in range(0, len(rows), FORWARD_ROWS))
            vectors = np.concatenate([embed(rows.tokens[part], rows.length[part]).cpu().numpy() for part in parts])
            found, number = group_sums(vectors, rows.document, num_groups)
            sums[i], counts[i] = torch.from_numpy(found), torch.from_numpy(number)
        model.train()
        sums, counts = sums.to(self._device), counts.to(self._device)
        dist.all_reduce(sums)
        dist.all_reduce(counts)
        return {"group_sums": sums.cpu().numpy(), "group_counts": counts.cpu().numpy(), "layer": np.array(self._layer)}


def check(job: TrainJob, corpus: TokenCorpus, world_size: int) -> None:
    """Raise `UserError` where no worker holds the whole model."""
    if job.training.zero_stage == 3:
        raise UserError(f"{job.key('stop')}: embedding while training needs whole parameters on every worker; set {job.key('zero_stage')} to 2 or less")


def flops(worker: Worker, steps: int) -> float:
    """Operations of the looks taken in so many steps."""
    rule = cast(EmbeddingRule, worker.job.rule)
    corpus, model = worker.corpus, worker.architecture
    rows = sum(min(count, rule.samples_per_domain) for count in corpus.rows().values())
    return steps // rule.every_steps * rows * corpus.row_tokens * model.embedding_flops(layer_number(rule.layer, model.layers), corpus.row_tokens)
