"""Changed domains, section 4.2 of the paper: seven domains of text that grow to thirteen. The tables of `analysis/results/transfer.md`, a piece at a time.

    CHAMELEON_DATA=… python -m analysis.transfer methods                          every method: its weights, rows embedded, what the change took of each
    CHAMELEON_DATA=… python -m analysis.transfer scratch --seeds 0 1 2 3          what mixtures are worth to models that see 150 tokens a parameter
    CHAMELEON_DATA=… python -m analysis.transfer going-on --base MODEL --seeds 0 1   the same where a pretrained model goes on, all alike from its weights

`scratch` and `going-on` fit every method anew with every seed, so that what is said of seeds holds for proxies too, and measure text that no domain has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.pairs import seed_by_seed
from chameleon_ray.experiment import load_experiment
from chameleon_ray.pipeline import compare

REPOSITORY = Path(__file__).resolve().parents[1]
UNSEEN = ("wiki7/de", "wiki7/es", "stack7/python", "stack7/c")
PAIRED = ["methods.doremi=null", "methods.doge=null", "methods.regmix=null", "fit_every_seed=true"]
SCRATCH = [
    "name=pile13-scratch",
    "corpus.tokenizer.train.vocab_size=1024",
    "base.model={layers: 2, heads: 2, width: 48}",
    "base.steps=4400",
    "base.batch_rows=16",
    "base.learning_rate=5.0e-3",
]
GOING_ON = [
    "name=pile13-going-on",
    "base.steps=90",
    "base.batch_rows=13",
    "base.learning_rate=1.0e-4",
    "base.min_learning_rate=1.0e-5",
    "corpus.heldout_tokens=4096",
    "resources.cpus_per_worker=2",
]


def main() -> None:
    """Run what is missing of the piece that is asked for, and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=("methods", "scratch", "going-on"))
    parser.add_argument("overrides", nargs="*", help="settings, key=value")
    parser.add_argument("--base", help="the model that goes on: a folder, a GGUF file or a hub name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--storage", default="runs")
    options = parser.parse_intermixed_args()
    if (options.piece == "going-on") != (options.base is not None):
        parser.error("--base belongs to going-on, and going-on needs it")
    settings = [f"@{REPOSITORY}/jobs/local/pile13.yaml", f"storage={options.storage}", *_piece(options.piece, options.base), *options.overrides]
    job = REPOSITORY / "jobs" / "pile_transfer.yaml"
    print(seed_by_seed(lambda seeds: load_experiment(job, [*settings, f"seeds={list(seeds)}"]), options.seeds, compare))


def _piece(piece: str, base: str | None) -> list[str]:
    if piece == "methods":
        return []
    targets = [f"corpus.targets.{place.replace('/', '_')}={{files: ['${{CHAMELEON_DATA}}/{place}/valid.jsonl.zst']}}" for place in UNSEEN]
    if base is None:
        return [*SCRATCH, *PAIRED, *targets]
    tokenizer = f"corpus.tokenizer={{pretrained: {base}}}"
    return [*GOING_ON, tokenizer, f"base.model={{pretrained: {base}}}", *PAIRED, *targets]


if __name__ == "__main__":
    main()
