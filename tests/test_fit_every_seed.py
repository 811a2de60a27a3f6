"""With `fit_every_seed` every base model trains on the mixture that was fitted with its own seed; without, all train on the first's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest

from chameleon_ray import results
from chameleon_ray.artifacts import Cost, Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.backend import Outcome, Reads, TrainJob
from chameleon_ray.config import EmbeddingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import parse_experiment
from chameleon_ray.fitting import fit_all, mixture_jobs, refits
from chameleon_ray.mixture import Mixture, averaged
from chameleon_ray.pipeline import compare
from tests.fakes import FakeBackend, make_corpus, noisy_embeddings, rng

SEEDS = (3, 5, 8)


class SeenEnoughError(Exception):
    """The base models would be trained now."""


@dataclass
class Recorder(FakeBackend):
    """Embeddings follow from domain and proxy; notes the base models that are asked for."""

    root: str = ""
    bases: dict[Any, TrainJob] = field(default_factory=dict)

    def tokenize(self, config: object, seed: int, reads: Reads | None = None) -> TokenCorpus:
        assert seed == SEEDS[0]
        return make_corpus({"a": 100, "b": 60, "c": 30})

    def embed(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> Embeddings:
        means = {name: 2.0 + rng(name).standard_normal(8) + 0.3 * rng(name + model.digest).standard_normal(8) for name in corpus.names}
        return noisy_embeddings(means, samples=spec.samples_per_domain, noise=0.3)

    def run_trials(self, name: str, corpus: TokenCorpus, jobs: Mapping[Any, TrainJob], splits: Sequence[str]) -> Any:
        self.bases = dict(jobs)
        raise SeenEnoughError


def document(**changes: object) -> dict[str, Any]:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    return {"name": "x", "seeds": list(SEEDS), "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": training, "base": training, **changes}


def asked_for(folder: Path, **changes: object) -> Recorder:
    recorder = Recorder(root=str(folder))
    with pytest.raises(SeenEnoughError):
        compare(parse_experiment(document(**changes)), recorder)  # type: ignore[arg-type]
    return recorder


def test_every_seed_has_its_own_fit_where_that_is_asked_for(tmp_path: Path) -> None:
    once, anew = asked_for(tmp_path / "once"), asked_for(tmp_path / "anew", fit_every_seed=True)
    for recorder in (once, anew):
        assert list(recorder.bases) == [(label, seed) for seed in SEEDS for label in ("uniform", "chameleon")]
        assert all(job.seed == seed for (_, seed), job in recorder.bases.items())
    weights = {name: [tuple(recorder.bases["chameleon", seed].weights.values()) for seed in SEEDS] for name, recorder in (("once", once), ("anew", anew))}
    assert len(set(weights["once"])) == 1 and len(set(weights["anew"])) == 3
    assert weights["anew"][0] == weights["once"][0], "the first seed's fit is the one that there is without"
    assert sorted({job.seed for job in anew.jobs if job.role == "proxy"}) == list(SEEDS)
    assert {job.seed for job in once.jobs if job.role == "proxy"} == {SEEDS[0]}


def test_a_fit_that_fails_takes_only_its_own_seed_with_it(tmp_path: Path) -> None:
    """Its base model is missing; what is shown of a fit is then the first that there is."""

    class Failing(Recorder):
        def train_many(self, corpus: TokenCorpus, jobs: Sequence[TrainJob]) -> list[TrainedModel]:
            if any(job.seed == SEEDS[0] for job in jobs):
                raise UserError("proxy: the training loss is not finite")
            return super().train_many(corpus, jobs)

        def run_trials(self, name: str, corpus: TokenCorpus, jobs: Mapping[Any, TrainJob], splits: Sequence[str]) -> dict[Any, Outcome]:
            self.bases = dict(jobs)
            return {key: Outcome(failure="not needed here") for key in jobs}

    backend = Failing(root=str(tmp_path))
    experiment = parse_experiment(document(fit_every_seed=True))
    corpus = backend.tokenize(None, SEEDS[0])
    jobs, _ = mixture_jobs(experiment, corpus, backend)  # type: ignore[arg-type]
    fits, failures = fit_all(refits(jobs), backend)  # type: ignore[arg-type]
    assert [key for key in fits if key[0] == "chameleon"] == [("chameleon", 5), ("chameleon", 8)]
    assert failures == {"chameleon, fitted with seed 3": "proxy: the training loss is not finite"}
    with pytest.raises(UserError, match="not finite"):  # no base model, so no report: what went wrong first
        compare(experiment, backend)  # type: ignore[arg-type]
    assert [key for key in backend.bases if key[0] == "chameleon"] == [("chameleon", 5), ("chameleon", 8)]
    found = results._embeddings(jobs, fits, backend)  # type: ignore[arg-type]
    assert found is not None and found.names == corpus.names


def test_the_mixture_of_several_fits_is_their_mean_with_the_error_over_fits() -> None:
    fits = [
        Mixture("m", {"a": a, "b": 1 - a}, scores={"a": 2 * a, "b": 1.0}, ledger={"shared": Cost(5), str(a): Cost(1)}, provenance={"seed": i}, warnings=("w",))
        for i, a in enumerate((0.2, 0.3, 0.7))
    ]
    found = averaged(fits)
    assert found.weights == pytest.approx({"a": 0.4, "b": 0.6})
    error = stdev((0.2, 0.3, 0.7)) / np.sqrt(3)
    assert found.weights_stderr == pytest.approx({"a": error, "b": error})
    assert found.scores == pytest.approx({"a": fmean((0.4, 0.6, 1.4)), "b": 1.0}) and found.scores_stderr == pytest.approx({"a": 2 * error, "b": 0})
    assert found.cost.tokens == 8 and found.provenance["seeds"] == [0, 1, 2] and found.warnings == ("w",)
    assert found.provenance["fits"] == 3
    assert averaged(fits[:1]) is fits[0]


def test_fits_that_limits_alone_make_equal_are_several() -> None:
    fits = [
        Mixture(
            "m",
            {"a": 0.5, "b": 0.5},
            unconstrained={"a": a, "b": 1 - a},
            scores={"a": a, "b": 1.0},
            scores_stderr={"a": 0.9, "b": 0.9},
            budget={"a": 5, "b": 5},
            provenance={"seed": i},
        )
        for i, a in enumerate((0.2, 0.4))
    ]
    found = averaged(fits)
    assert found.provenance["fits"] == 2 and found.budget == {} and found.scores_stderr == pytest.approx({"a": 0.1, "b": 0.0})


def test_fits_that_a_seed_does_not_change_keep_their_own_errors() -> None:
    fits = [Mixture("m", {"a": 0.2, "b": 0.8}, weights_stderr={"a": 0.01, "b": 0.02}, budget={"a": 2, "b": 8}, provenance={"seed": i}) for i in range(3)]
    found = averaged(fits)
    assert found.weights_stderr == {"a": 0.01, "b": 0.02} and found.provenance["fits"] == 1 and found.budget == {"a": 2, "b": 8}
