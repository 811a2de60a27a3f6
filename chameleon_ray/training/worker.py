"""What one worker of a run does, from the seed to the published model. It knows DeepSpeed and torch.distributed, and nothing of Ray.

Import this module inside a worker only: DeepSpeed probes the machine when it is imported.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from chameleon_ray import storage
from chameleon_ray.artifacts import Cost, TokenCorpus
from chameleon_ray.backend import ProxyLosses, TrainJob
from chameleon_ray.models.adapters import add_adapters
from chameleon_ray.models.build import build_model
from chameleon_ray.models.compiled import compile_blocks
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.head import TokenLosses
from chameleon_ray.models.load import load_to_train
from chameleon_ray.models.losses import domain_losses, measured_rows
from chameleon_ray.records import is_complete, write_record, write_table
from chameleon_ray.training import loop
from chameleon_ray.training.checkpoint import load_tree
from chameleon_ray.training.engine import build_engine, consolidated_state, layout
from chameleon_ray.training.micro_batch import MicroBatch, choose_micro_batch
from chameleon_ray.training.plain_engine import PlainEngine
from chameleon_ray.training.run import Run
from chameleon_ray.training.signals import engine_micro_batch, signal_of
from chameleon_ray.training.steps import Worker

TAG = "state"
MICRO_BATCH = "micro_batch.json"


class Checkpoints(Protocol):
    """Where a run's checkpoints go: sharded, every worker keeps its own files. At `address` there is room for what else an unfinished run notes down."""

    address: str

    def latest(self) -> AbstractContextManager[str | None]:
        """A folder with the files of the last checkpoint, if there is one."""
        ...

    def keep(self, folder: str, step: int) -> None:
        """Take over what a worker wrote into the folder; called by every worker."""
        ...


def train_run(run: Run, hardware: Hardware, checkpoints: Checkpoints, on_step: Callable[[int, float], None] = lambda step, loss: None) -> None:
    """Train the run's model, going on from its last checkpoint, and publish it; the shorter runs that it passes through are published on the way.

    A collective: every worker calls it, inside a process group. The first one publishes, the record last.

    Raises:
        UserError: what the user can mend; trying again would not help.
        torch.OutOfMemoryError: the device's memory ran out all the same. What was noted down makes the next attempt take half as many rows at a time.
    """
    if is_complete(run.address):
        return
    job, corpus = run.job, run.corpus
    noted = storage.join(checkpoints.address, MICRO_BATCH)
    worker = place(job, corpus, hardware, noted)
    model = make_model(worker)
    engine = build_engine(model, job.training, hardware, engine_micro_batch(worker), worker.world_size)
    progress = _resume(engine, worker, checkpoints)

    def checkpoint(progress: loop.Progress) -> None:
        with tempfile.TemporaryDirectory() as folder:
            state = progress.to_dict(worker.world_size, layout(job.training, hardware))
            engine.save_checkpoint(folder, tag=TAG, client_state={"progress": state}, exclude_frozen_parameters=True)
            checkpoints.keep(folder, progress.step)

    def publish(published: Run, progress: loop.Progress) -> None:
        state = consolidated_state(engine)
        if state is not None:
            _publish(published, run, worker, model, state, progress)
        dist.barrier()

    snapshots = {passed.job.training.steps: partial(publish, passed) for passed in run.passes if not is_complete(passed.address)}
    try:
        done = loop.train(engine, worker, progress, checkpoint, on_step, snapshots)
    except torch.OutOfMemoryError:
        storage.write_bytes(noted, json.dumps(asdict(worker.micro_batch.halved(job, corpus.row_tokens))).encode())
        raise
    publish(run, done)


def train_proxy(job: TrainJob, corpus: TokenCorpus, split: str, tokens_per_domain: int, digest: str, hardware: Hardware) -> ProxyLosses:
    """Train a tiny model from scratch in this process and measure it on a part of a split; the model is not kept.

    Returns:
        Losses, and what training and measuring took; the paper's convention leaves out measuring and the output head.

    Raises:
        UserError: a loss that is not finite.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    training, worker = job.training, place(job, corpus, hardware)
    model, progress = _train_plainly(worker)
    started = time.perf_counter()
    chosen = measured_rows(corpus, split, tokens_per_domain)
    losses = domain_losses(model, corpus, split, chosen, hardware)
    trained, measured = (rows * corpus.row_tokens for rows in (training.rows, sum(map(len, chosen.values()))))
    whole, bare = (worker.architecture.forward_flops(corpus.row_tokens, head) for head in (True, False))
    seconds = progress.seconds + time.perf_counter() - started
    return ProxyLosses(digest, losses, Cost(trained + measured, (3 * trained + measured) * whole, seconds, 3 * trained * bare))


def _train_plainly(worker: Worker) -> tuple[Any, loop.Progress]:
    """In this process from scratch, with half as many rows at a time whenever memory runs out."""
    while True:
        engine = make_plain_engine(worker)
        try:
            return engine.module, loop.train(engine, worker, loop.Progress(), lambda _: None)
        except torch.OutOfMemoryError:
            worker = replace(worker, micro_batch=worker.micro_batch.halved(worker.job, worker.corpus.row_tokens))


def make_model(worker: Worker) -> TokenLosses:
    """The job's model as it is before the first step, on the CPU in fp32."""
    job, corpus, start = worker.job, worker.corpus, worker.job.start
    model: Any
    if start is None:
        model = build_model(job.training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, job.seed)
    else:
        model = load_to_train(storage.local_directory(start.address), start.allow_remote_code)
        if job.training.model.lora:
            add_adapters(model, job.training.model.lora, start, job.seed)
    losses = TokenLosses(model, probe=start is not None)  # looks at the head before blocks are compiled: on the CPU, where they never run
    if worker.micro_batch.recompute:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if worker.compiled:
        compile_blocks(model)
    return losses


def make_plain_engine(worker: Worker) -> PlainEngine:
    """The plain engine around the job's model, on the worker's device and in its number format."""
    model = make_model(worker).to(worker.hardware.device, worker.hardware.dtype)
    return PlainEngine(model, worker.job.training, worker.job.training.batch_rows // engine_micro_batch(worker))


def place(job: TrainJob, corpus: TokenCorpus, hardware: Hardware, noted: str | None = None) -> Worker:
    """This process's place in the run. The workers agree on the smallest micro-batch, since the free memory of their GPUs may differ.

    Args:
        noted: address of the micro-batch that an attempt before, which ran out of memory, left for this one.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    signal = signal_of(job)
    chosen = choose_micro_batch(job, corpus, hardware, world_size, signal.kept_bytes(job, corpus, world_size) if signal else 0)
    if noted is not None and storage.exists(noted):
        before = MicroBatch(**json.loads(storage.read_bytes(noted)))
        chosen = chosen.limited_by(before, job.training.batch_rows // world_size)
    agreed = torch.tensor([chosen.rows, -int(chosen.recompute)], device=hardware.device)
    if world_size > 1:
        dist.all_reduce(agreed, dist.ReduceOp.MIN)
    rows, recompute = agreed.tolist()
    return Worker(job, corpus, hardware, MicroBatch(rows, bool(recompute)), rank, world_size)


def _resume(engine: Any, worker: Worker, checkpoints: Checkpoints) -> loop.Progress:
    with checkpoints.latest() as folder:
        if folder is None:
            return loop.Progress()
        shards = [Path(folder) / TAG / "mp_rank_00_model_states.pt"]
        if not shards[0].exists():
            shards = sorted(Path(folder).glob(f"{TAG}/*model_states.pt"))
        saved = load_tree(str(shards[0]))["progress"]
        progress = loop.Progress.from_dict(saved, worker.world_size, layout(worker.job.training, worker.hardware))
        engine.load_checkpoint(folder, tag=TAG, load_module_strict=worker.job.training.model.lora is None)  # what is frozen is not in it
    return progress


def _say_format(config: Path) -> None:
    """Let a model's configuration name fp32, in which its weights are published, and not what it was trained in. Adapters have no such file."""
    if config.exists():
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def _publish(published: Run, run: Run, worker: Worker, model: TokenLosses, state: dict[str, Any], progress: loop.Progress) -> None:
    """Hugging Face layout (weights, or adapters alone, as safetensors, configuration, tokenizer), loss curve, weights over the steps; the record last."""
    job, corpus = published.job, published.corpus
    with tempfile.TemporaryDirectory() as folder:
        model.model.save_pretrained(folder, state_dict=state, safe_serialization=True)
        _say_format(Path(folder, "config.json"))
        storage.publish(storage.local_directory(corpus.tokenizer_address), folder)
        storage.publish(folder, published.address)
    details = loop.details(replace(worker, job=job), progress)
    if published is not run:
        details["snapshot_of"] = {"model": run.digest, "steps": run.job.training.steps, "at_step": progress.step}
    write_table(storage.join(published.address, "metrics.parquet"), progress.curve.table())
    if len(progress.weights):
        write_table(storage.join(published.address, "weights.parquet"), progress.weights.table())
    content = {
        "weights": dict(job.weights),
        "vocab_size": job.start.vocab_size if job.start else corpus.vocab_size,
        "tokenizer_sha256": corpus.tokenizer_sha256,
        "cost": details.pop("cost"),
        "details": {**details, "role": job.role, "seed": job.seed, "training": job.training.model_dump(mode="json"), "corpus": corpus.digest},
    }
    write_record(published.address, "model", published.digest, content)
