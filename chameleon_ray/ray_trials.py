"""Base models as trials of a Ray Tune experiment: each trains one model, measures it, and reports what came out.

A trial only waits for the workers that Ray Train and Ray Data start for it, so it takes no CPU; as many go on at once as the cluster holds worker
groups, so that no two wait for what the other holds. What is finished lies in storage: the same comparison started again runs what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ray import tune

from chameleon_ray import storage
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import Trial
from chameleon_ray.config import Resources
from chameleon_ray.errors import UserError
from chameleon_ray.evaluation.losses import mean_nats, mean_perplexity
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_progress import BoardReporter, shown
from chameleon_ray.ray_session import fits, require

RETRIES = 1
# Tune refuses to ask for nothing, and a trial that took part of a CPU would leave its own workers too little: a trial takes some memory.
TRIAL_RESOURCES: dict[str, int | float] = {"memory": 1 << 20}


def run_trials(
    name: str, root: str, corpus: TokenCorpus, trials: Sequence[Trial], splits: Sequence[str], resources: Resources, reporter: Reporter
) -> dict[str, str]:
    """Run every trial to its end; one that fails is tried once more and does not stop the others.

    Returns:
        For each trial that failed, by its name, what went wrong in one line.
    Raises:
        UserError: workers that the cluster can never hold.
    """
    require(resources)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Tune's newer output prints to standard output however quiet it is asked to be
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own returns as if all trials had run, and what is missing would be trained after it
    by_name = {trial.name: trial for trial in trials}
    with reporter.stage(f"training and measuring {len(trials)} base models") as stage, shown(stage) as board:
        body = partial(_run, trials=by_name, root=root, corpus=corpus, splits=tuple(splits), resources=resources, board=board)
        tuner = tune.Tuner(
            tune.with_resources(body, tune.PlacementGroupFactory([TRIAL_RESOURCES])),
            param_space={"trial": tune.grid_search(list(by_name))},
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


def _run(
    config: dict[str, Any], trials: Mapping[str, Trial], root: str, corpus: TokenCorpus, splits: tuple[str, ...], resources: Resources, board: Any
) -> dict[str, Any]:
    """The body of a trial. Its metrics are those of the first split (valid): choices are made on it."""
    from chameleon_ray.ray_backend import RayBackend

    trial = trials[config["trial"]]
    backend = RayBackend(root, resources, BoardReporter(board, trial.name, trial.job.training.steps), pool_actors=resources.num_workers)
    try:
        (model,) = backend.train_many(corpus, [trial.job])
        (losses,) = backend.evaluate([model], corpus, splits)
    except UserError as error:
        return {"user_error": str(error)}
    found = losses[splits[0]]
    each = {f"perplexity/{domain}": loss.perplexity for domain, loss in found.items()}
    return {"mean_perplexity": mean_perplexity(found), "mean_loss_nats": mean_nats(found), **each}


def _first_line(error: BaseException) -> str:
    """The cause's own words: what Ray wraps around it ends with them."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
