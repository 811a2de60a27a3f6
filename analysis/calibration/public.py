"""What mixtures of Pile domains would score, by the RegMix authors' public runs (`regmix/` of CHAMELEON_DATA)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing.regression import fit
from chameleon_ray.mixing.regressors.regressor import Array, Predict
from chameleon_ray.mixing.runs import joined, parameters_of, runs_of
from chameleon_ray.mixing.swarm import Swarm, read_swarm

# Domains of the data at hand -> what the Pile calls the like.
PILE_NAMES = {
    "arxiv": "arxiv",
    "book": "gutenberg_pg_19",
    "cc": "pile_cc",
    "github": "github",
    "stackexchange": "stackexchange",
    "wikipedia": "wikipedia_en",
    "europarl": "europarl",
    "freelaw": "freelaw",
    "nih_exporter": "nih_exporter",
    "pubmed_central": "pubmed_central",
    "ubuntu_irc": "ubuntu_irc",
}
FILES = {"1M": (("train", "1m"), ("test", "1m")), "60M": (("test", "60m"),), "1B": (("test", "1B"),)}


def public_runs(size: str) -> Swarm:
    """All runs of one model size."""
    return joined([public_part(*part) for part in FILES[size]])


def public_part(part: str, size: str) -> Swarm:
    """One pair of files."""
    folder = Path(os.environ["CHAMELEON_DATA"]) / "regmix"
    return read_swarm(str(folder / f"{part}_mixture_{size}.csv"), str(folder / f"{part}_pile_loss_{size}.csv"))


def as_in_the_pile(embeddings: Embeddings) -> Embeddings:
    """The eleven Pile-like domains, by the names that the Pile has for them."""
    chosen = embeddings.select(list(PILE_NAMES))
    return Embeddings(tuple(PILE_NAMES.values()), chosen.group_sums, chosen.group_counts, chosen.layer, chosen.ledger)


@dataclass(frozen=True)
class Judge:
    """Predicts what weights of the eleven Pile-like domains change against uniform ones, on those of them that were measured."""

    predict: Predict
    places: tuple[int, ...]
    measured: tuple[int, ...]
    num_domains: int

    @classmethod
    def of(cls, size: str, regressor: str = "additive") -> Judge:
        """By the runs of one size."""
        swarm = public_runs(size)
        names, runs = runs_of({parameters_of(size, "size"): swarm})
        places = tuple(names.index(name) for name in PILE_NAMES.values())
        measured = tuple(j for j, own in enumerate(runs.own) if own in places)
        return cls(fit(regressor, runs, parameters_of(size, "size")), places, measured, len(names))

    def losses(self, weights: Array) -> Array:
        """[m'] nats per token on the measured ones of the eleven; weights in the order of `PILE_NAMES`."""
        row = np.zeros(self.num_domains)
        row[list(self.places)] = weights
        return np.asarray(self.predict(row[None])[0][list(self.measured)])

    def change(self, weights: Array) -> tuple[float, float]:
        """Mean nats per token, and average perplexity as a fraction, against uniform weights."""
        mine, uniform = self.losses(weights), self.losses(np.full(len(weights), 1 / len(weights)))
        return float(mine.mean() - uniform.mean()), float(np.exp(mine).mean() / np.exp(uniform).mean() - 1)
