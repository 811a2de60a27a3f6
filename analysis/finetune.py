"""Finetuning under uniform weights, alpha_FT and alpha_PT, a seed at a time: the tables of `analysis/results/finetune.md`.

    CHAMELEON_DATA=… python -m analysis.finetune wiki7 --base FOLDER_OR_GGUF --seeds 0,1,2 [key=value …]

What an earlier call with the first of these seeds finished is found, and the tables are printed after every seed (`pairs.py`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.pairs import parser_of, seed_by_seed
from chameleon_ray.experiment import load_experiment
from chameleon_ray.pipeline import finetune

REPOSITORY = Path(__file__).resolve().parents[1]
JOBS = {"wiki7": "finetune_wiki40b", "stack7": "finetune_stack"}


def main() -> None:
    """Run what is missing of the seeds that are asked for, and print the tables of all of them."""
    options = parser().parse_intermixed_args()
    common = [f"@{REPOSITORY}/jobs/local/{options.text}.yaml", f"base.model.pretrained={options.base}", f"storage={options.storage}", *options.overrides]
    job = REPOSITORY / "jobs" / f"{JOBS[options.text]}.yaml"
    seed_by_seed(lambda seeds: load_experiment(job, [*common, f"seeds={list(seeds)}"]), options.seeds, finetune, options.together)


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    found = parser_of(__doc__, (0, 1, 2))
    found.add_argument("text", choices=JOBS)
    found.add_argument("overrides", nargs="*", help="settings, key=value")
    found.add_argument("--base", required=True, help="the model to finetune: a folder, a GGUF file or a hub name")
    return found


if __name__ == "__main__":
    main()
