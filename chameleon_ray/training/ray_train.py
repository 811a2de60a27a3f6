"""Training runs on Ray Train V2: a group of DeepSpeed workers per run, restarted from the last checkpoint when one dies."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from chameleon_ray import storage
from chameleon_ray.artifacts import TokenCorpus, TrainedModel, is_complete, write_record, write_table
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import Resources
from chameleon_ray.errors import UserError
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_progress import Pulse, shown
from chameleon_ray.ray_session import fits, require


@dataclass(frozen=True)
class Snapshot:
    """A shorter run on the same schedule, which a longer one passes through after `job.training.steps` steps."""

    job: TrainJob
    digest: str
    address: str


@dataclass(frozen=True)
class Run:
    """A job with the place its result goes to. `digest` names it: the same digest resumes what was left unfinished."""

    job: TrainJob
    corpus: TokenCorpus
    digest: str
    address: str
    checkpoints: str
    label: str
    snapshots: tuple[Snapshot, ...] = ()


def train_runs(runs: Sequence[Run], resources: Resources, reporter: Reporter, title: str) -> list[TrainedModel]:
    """Train every run, as many at a time as the cluster holds worker groups; results in the order of the runs.

    Raises:
        UserError: a request that cannot be met, a job that cannot be trained, or a loss that is not finite. The other runs are finished first.
    """
    from chameleon_ray.training.loop import check_job

    if not runs:
        return []
    failed: list[Exception] = []
    possible = []
    for run in runs:
        try:
            check_job(run.job, run.corpus, resources.num_workers)
            possible.append(run)
        except UserError as error:
            failed.append(error)
    outcomes: list[Any] = []
    if possible:
        require(resources)
        with reporter.stage(title) as stage, shown(stage) as board:
            outcomes = _in_turns(possible, resources, board, fits(resources))
    failed += [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if failed:
        raise failed[0]
    return outcomes


def _in_turns(runs: Sequence[Run], resources: Resources, board: Any, at_once: int) -> list[Any]:
    outcomes: list[Any] = [None] * len(runs)
    waiting = list(enumerate(runs))
    busy: dict[Any, int] = {}
    while waiting or busy:
        while waiting and len(busy) < at_once:
            index, run = waiting.pop(0)
            busy[_fit.remote(run, resources, board)] = index
        (done,), _ = ray.wait(list(busy), num_returns=1)
        index = busy.pop(done)
        try:
            outcome = ray.get(done)
            outcomes[index] = UserError(outcome["user_error"]) if "user_error" in outcome else _finish(runs[index], outcome)
        except ray.exceptions.RayTaskError as error:
            outcomes[index] = error.as_instanceof_cause()
        except Exception as error:  # a process that was killed, a node that is gone, a disk that is full: the other runs go on
            outcomes[index] = error
    return outcomes


@ray.remote(num_cpus=0, max_retries=0)
def _fit(run: Run, resources: Resources, board: Any) -> dict[str, Any]:
    """One Ray Train run, in a process of its own so that several can go on side by side."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpus = {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    body: Any = _worker
    trainer = TorchTrainer(
        body,
        train_loop_config={"run": run, "resources": resources, "board": board},
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker={"CPU": resources.cpus_per_worker, **gpus},
        ),
        run_config=RunConfig(
            name=f"{run.job.role}-{run.digest}",
            storage_path=run.checkpoints,
            failure_config=FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    result: Any = trainer.fit()
    outcome: dict[str, Any] = result.return_value
    return outcome


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """The body of one worker. What the user can mend is returned, not raised: trying again would not help."""
    try:
        return _train(config["run"], config["resources"], config["board"])
    except UserError as error:
        return {"user_error": str(error)}


def _train(run: Run, resources: Resources, board: Any) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from chameleon_ray.models.build import build_model
    from chameleon_ray.models.hardware import detect
    from chameleon_ray.training import loop
    from chameleon_ray.training.engine import build_engine, consolidated_state, layout
    from chameleon_ray.training.steps import engine_micro_batch

    torch.set_num_threads(resources.cpus_per_worker)
    job, corpus = run.job, run.corpus
    world_size, hardware = dist.get_world_size(), detect(bool(resources.gpus_per_worker), job.training.precision)
    micro = loop.choose_micro_batch(job.training.micro_batch_rows, job.training.batch_rows // world_size, corpus.row_tokens, corpus.vocab_size, hardware)
    agreed = torch.tensor(micro, device=hardware.device)
    dist.all_reduce(agreed, dist.ReduceOp.MIN)  # by free memory, which may differ between the workers' GPUs
    micro = int(agreed)
    model = build_model(job.training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, job.seed)
    engine = build_engine(model, job.training, hardware, engine_micro_batch(job, micro, world_size), world_size)
    shards = layout(job.training, hardware)
    progress = _resume(engine, world_size, shards)
    pulse = Pulse(board if dist.get_rank() == 0 else None, run.label, job.training.steps)

    def checkpoint(progress: loop.Progress) -> None:
        with tempfile.TemporaryDirectory() as folder:
            engine.save_checkpoint(folder, tag="state", client_state={"progress": progress.to_dict(world_size, shards)})
            written = any(path.is_file() for path in Path(folder).rglob("*"))
            ray.train.report({"step": progress.step}, checkpoint=ray.train.Checkpoint.from_directory(folder) if written else None)

    def on_step(step: int, loss: float) -> None:
        pulse(step, f"loss {loss:.3f}, {hardware.precision}")

    def keep(snapshot: Snapshot, progress: loop.Progress) -> None:
        state = consolidated_state(engine)
        if state is not None:
            details = loop.details(snapshot.job, corpus, progress, hardware, micro, world_size)
            details["snapshot_of"] = {"model": run.digest, "steps": job.training.steps, "at_step": progress.step}
            _publish(model, state, corpus, snapshot.address)
            _write(snapshot, corpus, progress.curve, progress.weights, details)
        dist.barrier()

    pending = {s.job.training.steps: partial(keep, s) for s in run.snapshots if not is_complete(s.address)}
    progress = loop.train(engine, job, corpus, hardware, micro, progress, checkpoint, on_step, pending)
    state = consolidated_state(engine)
    if state is not None:
        _publish(model, state, corpus, run.address)
    dist.barrier()
    return {"curve": progress.curve, "weights": progress.weights, "details": loop.details(job, corpus, progress, hardware, micro, world_size)}


def _resume(engine: Any, world_size: int, layout: str) -> Any:
    from chameleon_ray.training.loop import Progress

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        shards = [Path(folder) / "state" / "mp_rank_00_model_states.pt"]
        if not shards[0].exists():
            shards = sorted(Path(folder).glob("state/*model_states.pt"))
        from chameleon_ray.training.checkpoint import load_tree

        progress = Progress.from_dict(load_tree(str(shards[0]))["progress"], world_size, layout)
        engine.load_checkpoint(folder, tag="state")
    return progress


def _publish(model: Any, state: dict[str, Any], corpus: TokenCorpus, address: str) -> None:
    """Hugging Face layout: weights as safetensors, configuration, tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=state, safe_serialization=True)
        storage.publish(storage.local_directory(corpus.tokenizer_address), folder)
        storage.publish(folder, address)


def _finish(run: Run, outcome: dict[str, Any]) -> TrainedModel:
    _write(run, run.corpus, outcome["curve"], outcome["weights"], outcome["details"])
    storage.remove(storage.join(run.checkpoints, f"{run.job.role}-{run.digest}"))
    return TrainedModel.load(run.address)


def _write(run: Run | Snapshot, corpus: TokenCorpus, curve: list[Any], weights: list[Any], details: dict[str, Any]) -> None:
    """Everything beside the published model, the record last."""
    job = run.job
    write_table(storage.join(run.address, "metrics.parquet"), pa.Table.from_pylist(curve))
    if weights:
        write_table(storage.join(run.address, "weights.parquet"), pa.Table.from_pylist(weights))
    content = {
        "weights": dict(job.weights),
        "vocab_size": corpus.vocab_size,
        "tokenizer_sha256": corpus.tokenizer_sha256,
        "cost": details.pop("cost"),
        "details": {**details, "role": job.role, "seed": job.seed, "training": job.training.model_dump(mode="json"), "corpus": corpus.digest},
    }
    write_record(run.address, "model", run.digest, content)
