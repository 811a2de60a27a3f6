"""The part of the benchmarks that speaks to Ray directly."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from chameleon_ray.ray_session import cluster_cpus, quiet_data
from chameleon_ray.training.ray_train import poll_often


def warm_workers() -> None:
    """Run a data set that does nothing, so that Ray's workers exist before anything is measured."""
    quiet_data()
    count = 2 * cluster_cpus()

    def wait(row: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.5)
        return row

    for _ in ray.data.range(count, override_num_blocks=count).map(wait, num_cpus=1).iter_rows():
        pass


def in_train_worker(function: Callable[[dict[str, Any]], Any], arguments: dict[str, Any], cpus: int, folder: str) -> dict[str, Any]:
    """What `function(arguments)` returns in the one worker of a Ray Train run, set up as training runs are."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    poll_often()
    trainer: Any = TorchTrainer(
        function,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(num_workers=1, use_gpu=False, resources_per_worker={"CPU": cpus}),
        run_config=RunConfig(name="benchmark", storage_path=folder),
    )
    returned: dict[str, Any] = trainer.fit().return_value
    return returned
