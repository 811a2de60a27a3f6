"""Finetuning under uniform weights, alpha_FT and alpha_PT, a seed at a time: the tables of `analysis/results/finetune.md`.

    CHAMELEON_DATA=… python -m analysis.finetune wiki7 --base FOLDER_OR_GGUF --seeds 0,1,2 [key=value …]

`gpt2-…` are of a small model of this project, all of whose weights are trained. What was found with other seeds before is kept in `analysis/results/kept`,
and the tables of all are printed after every seed (`pairs.py`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from analysis.pairs import REPOSITORY, parser_of, seed_by_seed
from chameleon_ray.experiment import Experiment, load_experiment
from chameleon_ray.pipeline import finetune

JOBS = {"wiki7": "finetune_wiki40b", "stack7": "finetune_stack"}
SMALL = [
    "base.model.lora=null",
    "base.micro_batch_rows=14",
    "base.steps=120",
    "base.learning_rate=6.0e-3",
    "embedding.samples_per_domain=512",
    "resources.cpus_per_worker=1",
]
SETTINGS = {
    "uniform": {},
    "flat": {"method": "chameleon", "temperature": {"relative": 4.0}},
    "sharp_ridge": {"method": "chameleon", "ridge": {"energy": 0.1}},
    "paper": {"method": "chameleon", "variant": "paper"},
}
# What is kept by these names: the text, and what is set beside its job.
PIECES = {
    **{text: (text, []) for text in JOBS},
    **{f"gpt2-{text}": (text, [*SMALL, f"name=gpt2-{text}"]) for text in JOBS},
    "gpt2-wiki7-settings": ("wiki7", [*SMALL, "name=gpt2-wiki7-settings", f"methods={json.dumps(SETTINGS)}"]),
}


def main() -> None:
    """Run the seeds that are asked for, and print the tables of all there are."""
    options = parser().parse_intermixed_args()
    settings = [f"storage={options.storage}", *options.overrides]
    seed_by_seed(lambda seeds: finetuned(options.piece, options.base, seeds, settings), options.seeds, finetune, options.kept)


def finetuned(piece: str, base: str, seeds: Sequence[int], overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a piece."""
    text, settings = PIECES[piece]
    common = [f"@{REPOSITORY}/jobs/local/{text}.yaml", f"base.model.pretrained={base}", "fit_every_seed=true"]
    return load_experiment(REPOSITORY / "jobs" / f"{JOBS[text]}.yaml", [*common, *settings, *overrides, f"seeds={list(seeds)}"])


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    found = parser_of(__doc__, (0, 1, 2))
    found.add_argument("piece", choices=PIECES)
    found.add_argument("overrides", nargs="*", help="settings, key=value")
    found.add_argument("--base", required=True, help="the model to finetune: a folder, a GGUF file or a hub name")
    return found


if __name__ == "__main__":
    main()
