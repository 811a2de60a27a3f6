"""Training without Ray: processes with gloo, the real engine and the real loop. Run as `python -m tests.training.worlds FILE`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def run_world(folder: Path, world_size: int, **settings: Any) -> dict[str, Any]:
    """Start `world_size` processes that train with `settings`; returns what rank 0 wrote: losses, state sums, exit codes."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    request = folder / "request.json"
    request.write_text(json.dumps({"folder": str(folder), **settings}))
    processes = []
    for rank in range(world_size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{key: str(value) for key, value in place.items()}, "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-m", "tests.training.worlds", str(request)]
        processes.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    result = folder / "result.json"
    found = json.loads(result.read_text()) if result.exists() else {}
    result.unlink(missing_ok=True)
    return {**found, "exit": [process.returncode for process in processes], "output": "\n".join(outputs)}


def main(request: str) -> None:
    import torch
    import torch.distributed as dist

    from chameleon_ray.artifacts import TokenCorpus
    from chameleon_ray.backend import TrainJob
    from chameleon_ray.config import TrainingConfig
    from chameleon_ray.models.build import build_model
    from chameleon_ray.models.hardware import Hardware
    from chameleon_ray.training import loop
    from chameleon_ray.training.checkpoint import load_tree
    from chameleon_ray.training.engine import build_engine, consolidated_state, layout
    from chameleon_ray.training.steps import engine_micro_batch

    asked = json.loads(Path(request).read_text())
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    corpus = TokenCorpus.load(asked["corpus"])
    training = TrainingConfig.model_validate(asked["training"])
    weights = asked["weights"]
    job = TrainJob("base", training, weights, asked.get("seed", 0), *_rule(asked))
    hardware = Hardware(torch.device("cpu"), torch.float32, "test")
    micro = asked.get("micro_batch_rows") or training.batch_rows // world
    model = build_model(training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, job.seed)
    engine = build_engine(model, training, hardware, engine_micro_batch(job, micro, world), world)
    saved = Path(asked["folder"]) / "checkpoint"
    progress = loop.Progress()
    if saved.exists():
        progress = loop.Progress.from_dict(load_tree(str(next(saved.glob("state/*model_states.pt"))))["progress"], world, layout(training, hardware))
        engine.load_checkpoint(str(saved), tag="state")

    def checkpoint(now: loop.Progress) -> None:
        engine.save_checkpoint(str(saved), tag="state", client_state={"progress": now.to_dict(world, layout(training, hardware))})

    def on_step(step: int, loss: float) -> None:
        if step == asked.get("die_after"):
            os._exit(9)

    kept: dict[int, Any] = {}
    snapshots = {step: lambda now: kept.update({now.step: _values(consolidated_state(engine))}) for step in asked.get("snapshots", ())}
    final = loop.train(engine, job, corpus, hardware, micro, progress, checkpoint, on_step, snapshots)
    state = consolidated_state(engine)
    if state is not None:
        values = _values(state)
        found = {"curve": final.curve, "state": values, "rows": final.plan.counts if final.plan else None}
        found |= {"weights": final.weights, "step": final.step, "kept": kept}
        (Path(asked["folder"]) / "result.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _values(state: Any) -> Any:
    return state and {name: value.double().cpu().reshape(-1).tolist() for name, value in state.items()}


def _rule(asked: dict[str, Any]) -> tuple[Any, Any]:
    from chameleon_ray.artifacts import Cost, TrainedModel
    from chameleon_ray.mixing.doge import DoGERule
    from chameleon_ray.mixing.doremi import DoReMiRule

    rule = {"doremi": DoReMiRule, "doge": DoGERule}[asked["rule"]["name"]](**asked["rule"]["fields"]) if "rule" in asked else None
    reference = TrainedModel(asked["reference"], "reference", {}, 0, "", Cost()) if "reference" in asked else None
    return rule, reference


if __name__ == "__main__":
    main(sys.argv[1])
