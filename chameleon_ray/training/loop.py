"""One training run, the same on one CPU and on many GPUs: batch -> loss -> step, with exact resumption.

Knows DeepSpeed's engine and torch.distributed, not Ray. What happens at a checkpoint is the caller's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from chameleon_ray.artifacts import Cost, TokenCorpus
from chameleon_ray.backend import RuleState, TrainJob
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.errors import UserError
from chameleon_ray.models.adapters import adapted_maps
from chameleon_ray.training.batches import batches
from chameleon_ray.training.gauge import Gauge
from chameleon_ray.training.history import History
from chameleon_ray.training.learner import Learner, learned
from chameleon_ray.training.plan import MixturePlan, PlanState
from chameleon_ray.training.schedule import learning_rate
from chameleon_ray.training.signals import make_step, signal_of
from chameleon_ray.training.steps import Worker

# Operations of a minute or two on two CPU cores: fewer are sooner done again than kept.
WORTH_KEEPING = 1e13


@dataclass
class Progress:
    """What a run knows of itself between two steps; all of it is part of the checkpoint.

    `begun`: the steps after which the run was taken up, as far as checkpoints tell: 0, and more where it was interrupted.
    """

    step: int = 0
    plan: PlanState | None = None
    seconds: float = 0.0
    curve: History = field(default_factory=History)
    rule: RuleState | None = None
    weights: History = field(default_factory=History)
    begun: tuple[int, ...] = ()

    def to_dict(self, world_size: int, layout: str) -> dict[str, Any]:
        """With what the checkpoint's shards fit: a number of workers and a `layout` (see `engine.layout`)."""
        kept_apart = {"curve": self.curve.to_dict(), "weights": self.weights.to_dict(), "rule": self.rule.to_dict() if self.rule else None}
        rest = asdict(replace(self, curve=History(), weights=History(), rule=None))
        return {**rest, **kept_apart, "world_size": world_size, "layout": layout}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], world_size: int, layout: str) -> Progress:
        """Raises: UserError when another number of workers, ZeRO stage or number format wrote the checkpoint."""
        if state["world_size"] != world_size:
            raise UserError(
                f"resources.num_workers: the checkpoint at step {state['step']} was written by {state['world_size']} workers and this run has {world_size}; "
                f"its shards fit no other number: set resources.num_workers={state['world_size']}, or delete the unfinished run to start it again"
            )
        if state["layout"] != layout:
            raise UserError(
                f"zero_stage: the checkpoint at step {state['step']} was written with {state['layout']} and this run has {layout}; "
                "go on as it was begun, or delete the unfinished run to start it again"
            )
        plan = {**state["plan"], "counts": tuple(state["plan"]["counts"]), "due": tuple(state["plan"]["due"])}
        rule = RuleState.from_dict(state["rule"]) if state["rule"] else None
        curve, weights = History.from_dict(state["curve"]), History.from_dict(state["weights"])
        return cls(state["step"], PlanState(**plan), state["seconds"], curve, rule, weights, tuple(state["begun"]))


def train(
    engine: Any,
    worker: Worker,
    progress: Progress,
    checkpoint: Callable[[Progress], None],
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    snapshots: Mapping[int, Callable[[Progress], None]] | None = None,
) -> Progress:
    """Run from `progress.step` to the end, or until the job's rule lets it end.

    Args:
        engine: from `engine.build_engine`.
        checkpoint: called on every rank after every `checkpoint_interval` steps but the last.
        snapshots: by number of steps, called on every rank when so many are done: what a shorter run on the same schedule would end with.
        on_step: called on every rank with the steps done and the latest mean loss of this rank that has come from the device, in nats per token.
    Returns:
        The final progress; `curve` has, per logged step and domain, the mean training loss over the steps since the last (summed over ranks),
        and `weights`, where the job has a rule, its weights.
    Raises:
        UserError: the loss is not finite.
    """
    job, corpus, hardware = worker.job, worker.corpus, worker.hardware
    training, signal = job.training, signal_of(job)
    plan = MixturePlan(job.weights, corpus.rows(), job.seed)
    learner = Learner(job, progress.rule) if job.rule else None
    take_step = make_step(worker, learner)
    look = signal.look(worker) if signal and signal.look else None
    every = checkpoint_interval(worker)
    log_every = max(1, training.steps // 100)
    sums = torch.zeros(len(plan.names), 2, dtype=torch.float64, device=hardware.device)
    progress.begun += (progress.step,)
    gauge = Gauge()
    engine.train()
    started = time.perf_counter() - progress.seconds
    stream = batches(plan, progress.plan or plan.start(), RowReader(corpus), training.batch_rows, take_step.mine, training.steps - progress.step)
    for step, batch in enumerate(stream, progress.step):
        rate = learning_rate(training, step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        if learner:
            learner.begin(step + 1, rate)
        row_losses = take_step(engine, batch.rows, batch.domains)
        domains = torch.from_numpy(batch.domains).to(hardware.device)
        sums[:, 0].index_add_(0, domains, row_losses.double())
        sums[:, 1].index_add_(0, domains, torch.full_like(row_losses, corpus.row_tokens - 1, dtype=torch.float64))
        progress.step, progress.plan, progress.seconds = step + 1, batch.after, time.perf_counter() - started
        last = progress.step == training.steps
        if learner and look and learner.due:
            learner.see(**look(engine.module))
            learner.note(progress.weights)
            last = last or learner.done
        progress.rule = learner.state if learner else None
        save = progress.step % every == 0 and not last
        snapshot = (snapshots or {}).get(progress.step)
        if progress.step % log_every == 0 or save or last or snapshot:
            progress.curve.add(progress.step, **_log(sums, plan.names, progress.step, rate, job))
            if learner and not look:
                learner.note(progress.weights)
            sums.zero_()
        on_step(progress.step, gauge.read(row_losses) / (corpus.row_tokens - 1))
        if snapshot:
            snapshot(progress)
        if save:
            checkpoint(progress)
        if last:
            break
    return progress


def checkpoint_interval(worker: Worker) -> int:
    """Steps from one checkpoint to the next: as configured, or a tenth of the run; not more often than every 50 where so few are done again in no time."""
    training = worker.job.training
    a_step, _ = run_flops(worker, 1)
    return training.checkpoint_every_steps or max(-(-training.steps // 10), min(50, math.ceil(WORTH_KEEPING / a_step)))


def check_job(job: TrainJob, corpus: TokenCorpus, world_size: int) -> None:
    """Refuse what cannot be trained, before anything starts: UserError with the field."""
    training = job.training
    if training.batch_rows % world_size:
        raise UserError(f"{job.key('batch_rows')}: {training.batch_rows} is not a multiple of resources.num_workers {world_size}; change one of them")
    rows_per_rank = training.batch_rows // world_size
    if training.micro_batch_rows is not None and rows_per_rank % training.micro_batch_rows:
        raise UserError(f"{job.key('micro_batch_rows')}: {training.micro_batch_rows} does not divide the {rows_per_rank} rows of a worker; choose a divisor")
    if set(job.weights) != set(corpus.names):
        odd = sorted(set(job.weights) ^ set(corpus.names))
        raise UserError(f"weights: domain {odd[0]!r} is in the mixture or in the corpus but not in both; corpus has {', '.join(corpus.names)}")
    MixturePlan(job.weights, corpus.rows(), job.seed)
    if training.model.lora is not None and job.start is not None:
        adapted_maps(training.model.lora, job.start, job.key("model.lora.targets"))
    signal = signal_of(job)
    if signal is not None:
        signal.check(job, corpus, world_size)


def run_flops(worker: Worker, steps: int) -> tuple[float, float]:
    """Operations of plain training for so many steps, and of everything that is run: activations that are computed again, and what the rule's signal takes."""
    signal, corpus = signal_of(worker.job), worker.corpus
    tokens = steps * worker.job.training.batch_rows * corpus.row_tokens
    plain = worker.architecture.training_flops(tokens, corpus.row_tokens)
    again = worker.architecture.recompute_flops(corpus.row_tokens) * tokens if worker.micro_batch.recompute else 0.0
    return plain, plain + again + (signal.flops(worker, steps) if signal else 0.0)


def details(worker: Worker, progress: Progress) -> dict[str, Any]:
    """What the record of a trained model says beside weights; `cost` as `Cost` has it."""
    job, corpus, hardware = worker.job, worker.corpus, worker.hardware
    tokens = progress.step * job.training.batch_rows * corpus.row_tokens
    plain, flops = run_flops(worker, progress.step)
    rows, drawn = corpus.rows(), dict(zip(job.weights, progress.plan.counts if progress.plan else (), strict=True))
    found = {
        "cost": asdict(Cost(tokens, flops, progress.seconds, plain)),
        "seconds": progress.seconds,
        "begun_at_steps": list(progress.begun),
        "tokens_per_second": tokens / progress.seconds,
        "parameters": worker.architecture.num_parameters,
        "trained_parameters": worker.architecture.trained_parameters,
        "precision": hardware.precision,
        "hardware": hardware.reason,
        "compiled": worker.compiled,
        "micro_batch_rows": worker.micro_batch.rows,
        "activations_recomputed": worker.micro_batch.recompute,
        "epochs_begun": {name: -(-count // rows[name]) for name, count in drawn.items() if count},
        "rows_drawn": drawn,
    }
    if job.start is not None:
        found |= {"start": job.start.digest, "architecture": asdict(replace(worker.architecture, adapter_products=0))}
        found |= {what: job.start.details[what] for what in ("linear_maps", "context")}
        if job.training.model.lora is not None:
            found["adapters_of"] = job.start.address
    if job.rule is not None and progress.rule is not None and progress.rule.updates:
        found["rule"] = learned(job.rule, progress.rule, progress.step)
    return found


def _log(sums: torch.Tensor, names: tuple[str, ...], step: int, rate: float, job: TrainJob) -> dict[str, Any]:
    """An entry of the curve for the whole batch ("all") and for every domain that was drawn."""
    total = sums.clone()
    dist.all_reduce(total)
    table = total.cpu().numpy()
    if not np.isfinite(table).all():
        raise UserError(f"{job.role}: the training loss is not finite at step {step}; lower {job.key('learning_rate')} or raise {job.key('warmup_steps')}")
    table = np.concatenate([table.sum(axis=0, keepdims=True), table])
    drawn = np.flatnonzero(table[:, 1])
    loss, tokens = table[drawn].T
    domains = [("all", *names)[index] for index in drawn.tolist()]
    return {"domains": domains, "loss": loss / tokens, "tokens": tokens.astype(np.int64), "learning_rate": rate}
