"""Runs as trials of a Ray Tune experiment: each trains one model, measures it, and reports what came out.

A trial only waits for the workers that Ray Train and Ray Data start for it, so it takes no CPU; as many go on at once as the cluster holds worker
groups, so that no two wait for what the other holds. What is finished lies in storage: the same comparison started again runs what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ray import tune

from chameleon_ray import storage
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import Resources
from chameleon_ray.errors import UserError
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_progress import BoardReporter, Line, shown
from chameleon_ray.ray_session import fits, require

RETRIES = 1
# Tune refuses to ask for nothing, and a trial that took part of a CPU would leave its own workers too little: a trial takes some memory.
TRIAL_RESOURCES: dict[str, int | float] = {"memory": 1 << 20}

Measure = Callable[[TrainJob, Reporter], dict[str, float]]


def run_trials(name: str, root: str, jobs: Mapping[str, TrainJob], measure: Measure, resources: Resources, reporter: Reporter) -> dict[str, str]:
    """Run every job to its end; one that fails is tried once more and does not stop the others.

    Args:
        root: address of the folder for Tune's own record.
        jobs: by the name of the trial.
        measure: trains and measures a job in the trial's process, saying to the reporter how far it is; its numbers are the trial's metrics.
    Returns:
        For each trial that failed, by its name, what went wrong in one line.
    Raises:
        UserError: workers that the cluster can never hold.
    """
    require(resources)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Tune's newer output prints to standard output however quiet it is asked to be
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own returns as if all trials had run, and what is missing would be trained after it
    with reporter.phase(f"training and measuring {len(jobs)} base models") as phase, shown(phase) as line:
        tuner = tune.Tuner(
            tune.with_resources(partial(_run, jobs=dict(jobs), measure=measure, line=line), tune.PlacementGroupFactory([TRIAL_RESOURCES])),
            param_space={"trial": tune.grid_search(list(jobs))},
            tune_config=tune.TuneConfig(max_concurrent_trials=max(1, fits(resources))),
            run_config=tune.RunConfig(name=name, storage_path=storage.join(root, "trials"), verbose=0, failure_config=tune.FailureConfig(max_failures=RETRIES)),
        )
        results = tuner.fit()
    failed = {}
    for result in (results[i] for i in range(len(results))):
        told = (result.metrics or {}).get("user_error") or (result.error and _first_line(result.error))
        if told:
            failed[(result.config or {})["trial"]] = told
    return failed


def _run(config: dict[str, Any], jobs: Mapping[str, TrainJob], measure: Measure, line: Line) -> dict[str, Any]:
    """The body of a trial."""
    name = config["trial"]
    try:
        return measure(jobs[name], BoardReporter(line, name, jobs[name].training.steps))
    except UserError as error:
        return {"user_error": str(error)}


def _first_line(error: BaseException) -> str:
    """The cause's own words: what Ray wraps around it ends with them."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
