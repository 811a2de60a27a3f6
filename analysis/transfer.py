"""Changed domains, section 4.2 of the paper: seven domains of text that grow to thirteen. The tables of `analysis/results/transfer.md`, a piece at a time.

    CHAMELEON_DATA=… python -m analysis.transfer methods                             every method: weights, rows embedded, what the change took of each
    CHAMELEON_DATA=… python -m analysis.transfer scratch --seeds 0,1,2,3 --together  pairs of what needs no training: worth to models of 150 tokens a parameter
    CHAMELEON_DATA=… python -m analysis.transfer going-on --base MODEL --seeds 0,1   the same where a pretrained model goes on, all alike from its weights

Every method is fitted anew with every seed, so that what is said of seeds holds for proxies too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from analysis.pairs import REPOSITORY, parser_of, seed_by_seed
from chameleon_ray.experiment import Experiment, load_experiment
from chameleon_ray.pipeline import compare

PAIRED = ("uniform", "human", "chameleon")
GOING_ON = [
    "name=pile13-going-on",
    "base.steps=48",
    "base.batch_rows=13",
    "base.learning_rate=1.0e-4",
    "base.min_learning_rate=1.0e-5",
    "corpus.measured_tokens=4096",
    "resources.cpus_per_worker=2",
]


def main() -> None:
    """Run what is missing of the piece that is asked for, and print its tables."""
    options = parser().parse_intermixed_args()
    if (options.piece == "going-on") != (options.base is not None):
        parser().error("--base belongs to going-on, and going-on needs it")
    settings = [f"storage={options.storage}", *overrides_of(options.piece, options.base), *options.overrides]
    seed_by_seed(lambda seeds: transferred(options.piece, [*settings, f"seeds={list(seeds)}"]), options.seeds, compare, options.together, options.kept)


def transferred(piece: str, settings: Sequence[str]) -> Experiment:
    """The experiment of a piece."""
    found = load_experiment(REPOSITORY / "jobs" / "pile_transfer.yaml", [f"@{REPOSITORY}/jobs/local/pile13.yaml", *settings])
    return found if piece == "methods" else found.model_copy(update={"methods": {label: found.methods[label] for label in PAIRED}})


def overrides_of(piece: str, base: str | None) -> list[str]:
    """What a piece changes of the job."""
    if base is None:
        return [f"name=pile13-{piece}", "fit_every_seed=true"]
    return [*GOING_ON, "fit_every_seed=true", f"corpus.tokenizer={{pretrained: {base}}}", f"base.model={{pretrained: {base}}}"]


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    found = parser_of(__doc__, (0,))
    found.add_argument("piece", choices=("methods", "scratch", "going-on"))
    found.add_argument("overrides", nargs="*", help="settings, key=value")
    found.add_argument("--base", help="the model that goes on: a folder, a GGUF file or a hub name")
    return found


if __name__ == "__main__":
    main()
