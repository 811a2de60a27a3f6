"""Training without Ray: processes with gloo, the real engine and the real loop. They are forked from one that has imported what takes seconds."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.training.preloaded"])
PROCESSES = Lock()  # starting a process looks at all others too: a code that two threads read at once is lost to one of them, which then says 255


def run_world(folder: Path, world_size: int, **settings: Any) -> dict[str, Any]:
    """Start `world_size` processes that train with `settings`; returns what rank 0 wrote: losses, state sums, exit codes."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    request = folder / "request.json"
    request.write_text(json.dumps({"folder": str(folder), **settings}))
    outputs, processes = [folder / f"output-{rank}.txt" for rank in range(world_size)], []
    for rank, output in enumerate(outputs):
        output.write_text("")
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{key: str(value) for key, value in place.items()}, "DS_ACCELERATOR": "cpu"}
        processes.append(FORKED.Process(target=member, args=(environment, str(request), str(output))))
        with PROCESSES:
            processes[-1].start()
    running = _joined(processes, 300)
    for process in running:
        process.kill()
    assert not running, "a world has hung: " + "\n".join(output.read_text() for output in outputs)
    result = folder / "result.json"
    found = json.loads(result.read_text()) if result.exists() else {}
    result.unlink(missing_ok=True)
    return {**found, "exit": [process.exitcode for process in processes], "output": "\n".join(output.read_text() for output in outputs)}


def _joined(processes: Sequence[Any], seconds: float) -> list[Any]:
    """Wait for processes; those that still run after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        with PROCESSES:
            running = [process for process in processes if process.is_alive()]
        if not running or time.monotonic() > end:
            return running
        time.sleep(0.02)


def member(environment: dict[str, str], request: str, output: str) -> None:
    """One process of a world; what it says goes to a file."""
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main(request)


def run_worlds(*worlds: tuple[Path, int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Worlds that know nothing of each other, two at a time: folder, number of processes and settings of each."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda world: run_world(world[0], world[1], **world[2]), worlds))


class FolderCheckpoints:
    """The latest checkpoint of all workers in one folder."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder.parent)
        self._folder = folder

    @contextmanager
    def latest(self) -> Iterator[str | None]:
        yield str(self._folder) if self._folder.exists() else None

    def keep(self, folder: str, step: int) -> None:
        shutil.copytree(folder, self._folder, dirs_exist_ok=True)
        import torch.distributed as dist

        dist.barrier()  # a worker that dies next must not leave the others' files of an older step behind


def main(request: str) -> None:
    import torch
    import torch.distributed as dist

    from chameleon_ray.artifacts import TokenCorpus, TrainedModel
    from chameleon_ray.backend import TrainJob
    from chameleon_ray.config import Resources, TrainingConfig
    from chameleon_ray.models.hardware import Hardware
    from chameleon_ray.progress import Reporter
    from chameleon_ray.ray_backend import RayBackend
    from chameleon_ray.training.run import Run
    from chameleon_ray.training.signals import excess_losses
    from chameleon_ray.training.worker import train_run

    asked = json.loads(Path(request).read_text())
    torch.set_num_threads(1)
    dist.init_process_group("gloo")

    corpus = TokenCorpus.load(asked["corpus"])
    training = TrainingConfig.model_validate(asked["training"])
    training = training.model_copy(update={"micro_batch_rows": asked.get("micro_batch_rows")})
    rule, reference = _rule(asked)
    backend = RayBackend(asked["folder"], Resources(), Reporter.silent())
    start = backend.find_model(asked["start"], corpus.row_tokens, "start") if "start" in asked else None
    job = TrainJob("base", training, asked["weights"], asked.get("seed", 0), rule, reference, start)
    if "domain_tokens" in asked:
        excess_losses.DOMAIN_TOKENS["cpu"] = asked["domain_tokens"]
    folder = Path(asked["folder"])
    passes = [training.model_copy(update={"steps": steps}) for steps in asked.get("snapshots", ())]
    kept = [Run(replace(job, training=shorter), corpus, "short", str(folder / f"model-{shorter.steps}")) for shorter in passes]
    run = Run(job, corpus, "long", str(folder / "model"), tuple(kept))

    def on_step(step: int, loss: float) -> None:
        if step == asked.get("die_after"):
            os._exit(9)
        if step == asked.get("out_of_memory_after"):
            raise torch.OutOfMemoryError("made up")

    train_run(run, Hardware(torch.device("cpu"), getattr(torch, asked.get("dtype", "float32")), "test"), FolderCheckpoints(folder / "checkpoint"), on_step)
    if dist.get_rank() == 0:
        model = TrainedModel.load(run.address)
        weights = model.weight_history().to_pylist() if "rule" in model.details else []
        found = {"curve": model.metrics().to_pylist(), "state": _values(run.address), "rows": list(model.details["rows_drawn"].values()), "weights": weights}
        found |= {"begun": model.details["begun_at_steps"], "micro_batch_rows": model.details["micro_batch_rows"], "flops": model.cost.flops}
        found |= {"step": model.cost.tokens // (training.batch_rows * corpus.row_tokens)}
        found |= {"kept": {passed.job.training.steps: _values(passed.address) for passed in kept}}
        (folder / "result.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _values(folder: str) -> dict[str, list[float]]:
    from safetensors.torch import load_file

    (file,) = Path(folder).glob("*.safetensors")
    return {name: value.double().reshape(-1).tolist() for name, value in load_file(file).items()}


def _rule(asked: dict[str, Any]) -> tuple[Any, Any]:
    from chameleon_ray.artifacts import Cost, TrainedModel
    from chameleon_ray.mixing.chameleon import Chameleon
    from chameleon_ray.mixing.doge import DoGERule
    from chameleon_ray.mixing.doremi import DoReMiRule
    from chameleon_ray.mixing.settled import SettledRule

    rules = {"doremi": DoReMiRule, "doge": DoGERule, "settled": partial(SettledRule, Chameleon(variant="paper").formula)}
    rule = rules[asked["rule"]["name"]](**asked["rule"]["fields"]) if "rule" in asked else None
    reference = TrainedModel(asked["reference"], "reference", {}, 0, "", Cost()) if "reference" in asked else None
    return rule, reference
