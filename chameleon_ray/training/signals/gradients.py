"""Products of the domains' gradients, and a step on their weighted sum: what DoGE trains with.

A rule sees `products` [k], <g_i, G> with every g_i clipped to the rule's `max_norm` and G the sum over its `target_mask`, and `norms` [k], |g_i| after
clipping, 0 for a domain that the batch does not show.

The global batch is regrouped by domain, so that k backward passes see as many rows as one would; every rank owns some of the domains and keeps their
gradients (`domain_gradients.py`). Two products with them give the scores and the model's gradient.

    ranks exchange    G [N] once more than a plain step, and k numbers
    memory            4 N bytes per owned domain (82M parameters: 2.3 GB at k = 7 on one rank)
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import Rule, TrainJob
from chameleon_ray.corpus.rows import Rows
from chameleon_ray.errors import UserError
from chameleon_ray.training.learner import Learner
from chameleon_ray.training.signals.domain_gradients import DomainGradients, matrix_bytes
from chameleon_ray.training.steps import Worker


class GradientRule(Rule, Protocol):
    """A rule that sees products of clipped gradients."""

    max_norm: float

    def target_mask(self, num_domains: int) -> NDArray[np.float64]:
        """[k] 1 for the domains whose gradients make up G."""
        ...


class GradientStep:
    """The step on sum_i alpha_i g_i, alpha from the same gradients."""

    def __init__(self, worker: Worker, learner: Learner) -> None:
        self._rule: Any = learner.rule  # a GradientRule
        self._worker, self._learner = worker, learner
        self._num_domains = len(worker.job.weights)
        self._gradients = DomainGradients(worker, np.array_split(np.arange(self._num_domains), worker.world_size)[worker.rank])

    def mine(self, domains: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the domains this rank owns, domain by domain."""
        order = np.argsort(domains, kind="stable")
        return order[np.isin(domains[order], self._gradients.owned)]

    def __call__(self, engine: Any, rows: Rows, domains: NDArray[np.int64]) -> torch.Tensor:
        matrix, losses = self._gradients.take(engine.module, rows, domains)
        self._gradients.step(engine, self._reweigh(matrix))
        return losses.sum(dim=1)

    def _reweigh(self, matrix: torch.Tensor) -> torch.Tensor:
        """Show the learner the products; [owned] what each gradient, a row of M, counts for in the model's."""
        norms = torch.linalg.vector_norm(matrix, dim=1)
        clip = (self._rule.max_norm / norms.clamp(min=self._rule.max_norm)).float()
        mask = torch.from_numpy(self._rule.target_mask(self._num_domains)[self._gradients.owned]).float().to(matrix.device)
        target = torch.mv(matrix.T, clip * mask)  # G, [N]
        if self._worker.world_size > 1:
            dist.all_reduce(target)
        numbers = torch.zeros(2, self._num_domains, dtype=torch.float64, device=matrix.device)
        owned = torch.from_numpy(self._gradients.owned).to(matrix.device)
        numbers[0, owned] = (torch.mv(matrix, target) * clip).double()
        numbers[1, owned] = (norms * clip).double()
        dist.all_reduce(numbers)
        found = numbers.cpu().numpy()
        if not np.isfinite(found).all():
            raise UserError(_diverged(self._worker.job))
        products, clipped_norms = found
        weights = self._learner.see(products=products, norms=clipped_norms)
        return torch.from_numpy(weights.astype(np.float32)).to(matrix.device)[owned] * clip


def check(job: TrainJob, corpus: TokenCorpus, world_size: int) -> None:
    """Raise `UserError` where gradients are cut, or where there are more workers than domains."""
    if job.training.zero_stage:
        raise UserError(
            f"{job.key('zero_stage')}: {job.training.zero_stage}, but DoGE compares whole gradients of single domains, and ZeRO cuts gradients, optimizer "
            f"states or parameters over the workers; set {job.key('zero_stage')}=0"
        )
    if world_size > len(job.weights):
        raise UserError(
            f"resources.num_workers: {world_size} workers but {len(job.weights)} domains, and with DoGE every worker owns whole domains; "
            f"set resources.num_workers={len(job.weights)} or fewer"
        )


def _diverged(job: TrainJob) -> str:
    return f"{job.role}: a gradient is not finite; lower {job.key('learning_rate')} or raise {job.key('warmup_steps')}"


def flops(worker: Worker, steps: int) -> float:
    """Operations of the four products with k gradients."""
    return 8.0 * steps * len(worker.job.weights) * worker.architecture.num_parameters


def kept_bytes(job: TrainJob, corpus: TokenCorpus, world_size: int) -> int:
    """The gradients, and two more: G and what is handed to the engine."""
    return matrix_bytes(job, corpus, world_size) + 2 * matrix_bytes(job, corpus, len(job.weights))
