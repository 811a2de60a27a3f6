"""Finetuning under uniform weights, alpha_FT and alpha_PT, a seed at a time: the tables of `analysis/results/finetune.md`.

    CHAMELEON_DATA=… python -m analysis.finetune wiki7 --base FOLDER_OR_GGUF --seeds 0,1,2 [key=value …]

What was found with other seeds before is kept in `analysis/results/kept`, and the tables of all are printed after every seed (`pairs.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from analysis.pairs import REPOSITORY, parser_of, seed_by_seed
from chameleon_ray.experiment import Experiment, load_experiment
from chameleon_ray.pipeline import finetune

JOBS = {"wiki7": "finetune_wiki40b", "stack7": "finetune_stack"}


def main() -> None:
    """Run the seeds that are asked for, and print the tables of all there are."""
    options = parser().parse_intermixed_args()
    common = [f"@{REPOSITORY}/jobs/local/{options.text}.yaml", f"base.model.pretrained={options.base}", "fit_every_seed=true", f"storage={options.storage}"]
    job = REPOSITORY / "jobs" / f"{JOBS[options.text]}.yaml"

    def experiment(seeds: Sequence[int]) -> Experiment:
        return load_experiment(job, [*common, *options.overrides, f"seeds={list(seeds)}"])

    seed_by_seed(experiment, options.seeds, finetune, options.together, options.kept)


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    found = parser_of(__doc__, (0, 1, 2))
    found.add_argument("text", choices=JOBS)
    found.add_argument("overrides", nargs="*", help="settings, key=value")
    found.add_argument("--base", required=True, help="the model to finetune: a folder, a GGUF file or a hub name")
    return found


if __name__ == "__main__":
    main()
