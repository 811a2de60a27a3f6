"""Products of the domains' gradients, and a step on their weighted sum: what DoGE trains with.

A rule sees `products` [k], <g_i, G> with every g_i clipped to the rule's `max_norm` and G the sum over its `target_mask` and its `external` texts, and
`norms` [k], |g_i| after clipping, 0 for a domain that the batch does not show.

The global batch is regrouped by domain, so that k backward passes see as many rows as one would; every rank owns some of the domains and keeps their
gradients (`domain_gradients.py`). Two products with them give the scores and the model's gradient.

Of every external text, a target of the corpus, a step reads as many rows of its valid half as of a domain, one after the other in a fixed random order.

    ranks exchange    G [N] once more than a plain step, and k numbers
    memory            4 N bytes per owned domain (82M parameters: 2.3 GB at k = 7 on one rank)
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import Rule, TrainJob
from chameleon_ray.corpus.rows import RowReader, Rows
from chameleon_ray.errors import UserError
from chameleon_ray.training.learner import Learner
from chameleon_ray.training.signals.domain_gradients import DomainGradients, matrix_bytes
from chameleon_ray.training.steps import Worker


class GradientRule(Rule, Protocol):
    """A rule that sees products of clipped gradients."""

    max_norm: float
    external: tuple[str, ...]

    def target_mask(self, num_domains: int) -> NDArray[np.float64]:
        """[k] 1 for the domains whose gradients make up G."""
        ...


class GradientStep:
    """The step on sum_i alpha_i g_i, alpha from the same gradients."""

    def __init__(self, worker: Worker, learner: Learner) -> None:
        rule = cast(GradientRule, learner.rule)
        self._rule, self._worker, self._learner = rule, worker, learner
        self._num_domains = len(worker.job.weights)
        self._gradients = DomainGradients(worker, np.array_split(np.arange(self._num_domains), worker.world_size)[worker.rank])
        self._external = [HeldoutRows(worker, name) for name in rule.external[worker.rank :: worker.world_size]]

    def mine(self, domains: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the domains this rank owns, domain by domain."""
        order = np.argsort(domains, kind="stable")
        return order[np.isin(domains[order], self._gradients.owned)]

    def __call__(self, engine: Any, rows: Rows, domains: NDArray[np.int64]) -> torch.Tensor:
        matrix, losses = self._gradients.take(engine.module, rows, domains)
        self._gradients.step(engine, self._reweigh(engine.module, matrix))
        return losses.sum(dim=1)

    def _reweigh(self, module: Any, matrix: torch.Tensor) -> torch.Tensor:
        """Show the learner the products; [owned] what each gradient, a row of M, counts for in the model's."""
        norms = torch.linalg.vector_norm(matrix, dim=1)
        clip = (self._rule.max_norm / norms.clamp(min=self._rule.max_norm)).float()
        mask = torch.from_numpy(self._rule.target_mask(self._num_domains)[self._gradients.owned]).float().to(matrix.device)
        target = torch.mv(matrix.T, clip * mask)  # G, [N]
        for text in self._external:
            gradient = self._gradients.of(module, text.rows(self._learner.step - 1))
            target += gradient * (self._rule.max_norm / torch.linalg.vector_norm(gradient).clamp(min=self._rule.max_norm))
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


class HeldoutRows:
    """The rows of a target's valid half that are full, in a fixed random order, so many at a step."""

    def __init__(self, worker: Worker, name: str) -> None:
        corpus = worker.corpus
        full = np.arange(full_rows(corpus, name))
        order = np.random.default_rng([worker.job.seed, *name.encode()]).permutation(full)
        self._rows = RowReader(corpus, "valid").read(name, order)
        self._count = rows_per_step(worker.job, corpus, name)

    def rows(self, step: int) -> Rows:
        """Those of a step, counted from 0; after the last comes the first again."""
        return self._rows.take((step * self._count + np.arange(self._count)) % len(self._rows))


def rows_per_step(job: TrainJob, corpus: TokenCorpus, target: str) -> int:
    """Of an external text: as many as a domain has on average, and no row twice."""
    return min(full_rows(corpus, target), max(1, job.training.batch_rows // len(job.weights)))


def full_rows(corpus: TokenCorpus, target: str) -> int:
    """Rows of a target's valid half without padding."""
    return corpus.domains[target].valid.tokens // corpus.row_tokens


def check(job: TrainJob, corpus: TokenCorpus, world_size: int) -> None:
    """Raise `UserError` where gradients are cut, where there are more workers than domains, or where a target has less than a row."""
    rule = cast(GradientRule, job.rule)
    for name in rule.external:
        if not full_rows(corpus, name):
            raise UserError(
                f"corpus.targets.{name}: its valid half has {corpus.domains[name].valid.tokens} tokens, less than a row of {corpus.row_tokens}, and DoGE "
                "takes gradients on whole rows of it; add documents, or lower corpus.row_tokens"
            )
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
    """Operations of the four products with k gradients, and of the gradients of external texts."""
    rule = cast(GradientRule, worker.job.rule)
    external = steps * sum(rows_per_step(worker.job, worker.corpus, name) for name in rule.external) * worker.corpus.row_tokens
    products = 8.0 * steps * len(worker.job.weights) * worker.architecture.num_parameters
    return products + worker.architecture.training_flops(external, worker.corpus.row_tokens)


def kept_bytes(job: TrainJob, corpus: TokenCorpus, world_size: int) -> int:
    """The gradients, and two or three more: G, what is handed to the engine, and that of an external text."""
    rule = cast(GradientRule, job.rule)
    return matrix_bytes(job, corpus, world_size) + (3 if rule.external else 2) * matrix_bytes(job, corpus, len(job.weights))
