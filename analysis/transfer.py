"""Changed domains, section 4.2 of the paper: seven domains of text that grow to thirteen. The tables of `analysis/results/transfer.md`, a piece at a time.

    CHAMELEON_DATA=… python -m analysis.transfer methods                           every method: weights, rows embedded, what the change took of each
    CHAMELEON_DATA=… python -m analysis.transfer scratch --seeds 0,1,2,3           pairs of what needs no training: worth to models of 150 tokens a parameter
    CHAMELEON_DATA=… python -m analysis.transfer going-on --base MODEL --seeds 0,1 the same mixtures where a pretrained model goes on, from its weights

Of `methods` and `scratch` every method is fitted anew with every seed, so that what is said of seeds holds for proxies too. `going-on` takes of
Chameleon the mean of the fits that `scratch` has kept, as the same text in the pretrained model's tokens, of which each domain has other numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from analysis.kept import Kept
from analysis.pairs import REPOSITORY, parser_of, seed_by_seed, setting_of, text_of
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.discovery import read_corpus
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, load_experiment
from chameleon_ray.pipeline import compare
from chameleon_ray.ray_backend import RayBackend

# What is compared pair by pair: `paper` is Chameleon by the paper's own formula. A pretrained model goes on by the two that matter.
PAIRED = {"scratch": ("uniform", "human", "chameleon", "paper"), "going-on": ("uniform", "chameleon")}
SCRATCH = "pile13-scratch"
GOING_ON = [
    "name=pile13-going-on",
    "transfer=null",
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
    common = [f"storage={options.storage}"]
    settings = [*common, *overrides_of(options.piece, options.base), *options.overrides]
    if options.base is not None:
        settings.append(f"methods.chameleon={carried_over(settings, common, options.kept)}")
    seed_by_seed(lambda seeds: transferred(options.piece, [*settings, f"seeds={list(seeds)}"]), options.seeds, compare, options.kept)


def transferred(piece: str, settings: Sequence[str]) -> Experiment:
    """The experiment of a piece."""
    found = load_experiment(REPOSITORY / "jobs" / "pile_transfer.yaml", [f"@{REPOSITORY}/jobs/local/pile13.yaml", *settings])
    return found.model_copy(update={"methods": {label: found.methods[label] for label in PAIRED.get(piece, found.methods)}})


def overrides_of(piece: str, base: str | None) -> list[str]:
    """What a piece changes of the job."""
    if base is None:
        return [f"name=pile13-{piece}", "fit_every_seed=true", "methods.paper={method: chameleon, variant: paper}"]
    return [*GOING_ON, f"corpus.tokenizer={{pretrained: {base}}}", f"base.model={{pretrained: {base}}}"]


def carried_over(going_on: Sequence[str], scratch: Sequence[str], kept: Path) -> str:
    """The mean of Chameleon's fits that `scratch` has kept, as fixed weights in the tokens of the model that goes on.

    Raises:
        UserError: nothing is kept of `scratch`, or what is was set otherwise.
    """
    found = Kept.load(kept / SCRATCH)
    if found is None:
        raise UserError(f"{kept / SCRATCH}: nothing is kept there; run the piece scratch first, whose mixtures the model goes on with")
    corpora = []
    for piece, settings in (("scratch", [*scratch, *overrides_of("scratch", None)]), ("going-on", going_on)):
        experiment = transferred(piece, [*settings, "seeds=[0]"])
        backend = RayBackend(experiment.storage, experiment.resources)
        if piece == "scratch":
            found.check(setting_of(experiment, backend, text_of(experiment)))
        corpora.append(read_corpus(experiment, backend))
    weights: dict[str, list[float]] = {}
    for row in found.weights.to_pylist():
        if row["method"] == "chameleon":
            weights.setdefault(row["domain"], []).append(row["weight"])
    return json.dumps({"method": "fixed", "weights": in_tokens_of({name: float(np.mean(each)) for name, each in weights.items()}, *corpora)})


def in_tokens_of(weights: Mapping[str, float], theirs: TokenCorpus, ours: TokenCorpus) -> dict[str, float]:
    """Shares of one corpus's tokens as shares of another's: the same text in another tokenizer."""
    per_token = [{name: corpus.domains[name].train.text_bytes / corpus.domains[name].train.tokens for name in weights} for corpus in (theirs, ours)]
    found = {name: share * per_token[0][name] / per_token[1][name] for name, share in weights.items()}
    return {name: share / sum(found.values()) for name, share in found.items()}


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    found = parser_of(__doc__, (0,))
    found.add_argument("piece", choices=("methods", "scratch", "going-on"))
    found.add_argument("overrides", nargs="*", help="settings, key=value")
    found.add_argument("--base", help="the model that goes on: a folder, a GGUF file or a hub name")
    return found


if __name__ == "__main__":
    main()
