"""A method, a rule and a signal that a newcomer would add: one file, one line in a table, and everything else works with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import Array, Changes, FitContext, RuleState, Seen, TrainJob
from chameleon_ray.config import TrainingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import parse_experiment
from chameleon_ray.mixing.learned import learned
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.methods import METHODS
from chameleon_ray.mixing.simplex import domain_names, normalised, uniform
from chameleon_ray.mixture import Mixture
from chameleon_ray.models.build import build_model
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.head import TokenLosses
from chameleon_ray.training import loop, signals
from chameleon_ray.training.micro_batch import MicroBatch
from chameleon_ray.training.plain_engine import PlainEngine
from chameleon_ray.training.signals import Signal
from chameleon_ray.training.steps import Worker
from tests import fakes
from tests.conformance import test_every_rule, test_mixers
from tests.corpora import make_corpus


@dataclass(frozen=True)
class ToyRule:
    """Leans towards domains whose name is long, as far as their signal says, and ends the run after `looks` looks."""

    name: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    signal: ClassVar[str] = "toy"
    changes: ClassVar[Changes] = "nothing"
    every_steps: int = 2
    looks: int = 100

    def start(self, names: Sequence[str], prior: Array, horizon_steps: int) -> RuleState:
        return RuleState.start(names, prior, {"seen": np.zeros(len(names))}, self.every_steps)

    def update(self, state: RuleState, seen: Seen) -> RuleState:
        total = state.memory["seen"] + seen.values["lengths"]
        return state.updated(normalised(1 + total), {"seen": total}, seen.step + self.every_steps)

    def answer(self, state: RuleState) -> Array:
        return state.mean()

    def done(self, state: RuleState) -> bool:
        return state.updates >= self.looks


class Toy(Method):
    """Trains the proxy, watched by the toy rule."""

    name: ClassVar[str] = "toy"
    needs: ClassVar[frozenset[str]] = frozenset({"proxy"})
    every_steps: int = 2

    def jobs(self, context: FitContext) -> list[TrainJob]:
        names = domain_names(context.corpus)
        return [TrainJob("toy", context.proxy, uniform(names), context.seed, ToyRule(self.every_steps))]

    def fit(self, context: FitContext) -> Mixture:
        (proxy,) = context.backend.train_many(context.corpus, self.jobs(context))
        return learned(self, context, proxy, "use shorter names")


def lengths(worker: Worker) -> Callable[[Any], dict[str, Array]]:
    """The toy signal: how long the names are, times how many parameters the model has."""
    return lambda model: {"lengths": np.array([len(name) for name in worker.corpus.names], np.float64) * len(list(model.parameters()))}


def refuse(job: TrainJob, corpus: TokenCorpus, world_size: int) -> None:
    if world_size > 1:
        raise UserError("toy: one worker only")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two lines that a newcomer writes, and the toy's answer on the fake backend."""
    monkeypatch.setitem(METHODS, "toy", Toy)
    monkeypatch.setitem(signals.SIGNALS, "toy", Signal(refuse, lambda worker, steps: 7.0 * steps, look=lengths))
    plain = fakes.seen_by

    def seen_by(signal: str, names: Sequence[str], step: int) -> Seen:
        toy = Seen(step, 1e-3, {"lengths": np.array([len(name) for name in names], np.float64)})
        return toy if signal == "toy" else plain(signal, names, step)

    monkeypatch.setattr(fakes, "seen_by", seen_by)
    monkeypatch.setattr(test_every_rule, "seen_by", seen_by)


def suite(module: Any, argument: str) -> list[Callable[..., None]]:
    """The tests of a conformance suite, those that take what is tested."""
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    return [test for test in tests if argument in inspect.signature(test).parameters]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("test", suite(test_mixers, "method"), ids=lambda test: test.__name__)
def test_a_new_method_passes_the_suite(test: Callable[..., None], tmp_path: Path) -> None:
    given = {"method": "toy", "tmp_path": tmp_path, "empty": "news"}
    test(**{name: given[name] for name in inspect.signature(test).parameters})


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("test", suite(test_every_rule, "rule"), ids=lambda test: test.__name__)
def test_a_new_rule_passes_the_suite(test: Callable[..., None], tmp_path: Path) -> None:
    given = {"rule": ToyRule(), "tmp_path": tmp_path}
    test(**{name: given[name] for name in inspect.signature(test).parameters})


@pytest.mark.usefixtures("registered")
def test_a_new_method_is_known_to_the_experiment_file() -> None:
    proxy = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    document = {"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": proxy, "base": proxy, "methods": {"mine": {"method": "toy"}}}
    assert parse_experiment(document).mixer("mine") == Toy()
    with pytest.raises(UserError, match=r"methods\.mine\.every_step: unknown key"):
        parse_experiment({**document, "methods": {"mine": {"method": "toy", "every_step": 3}}})


@pytest.mark.usefixtures("registered")
def test_a_new_signal_is_taken_in_the_real_loop(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    training = TrainingConfig(model={"layers": 1, "heads": 2, "width": 8}, steps=12, batch_rows=4)
    job = TrainJob("toy", training, dict.fromkeys(corpus.names, 1 / 3), 0, ToyRule(every_steps=3, looks=2))
    with pytest.raises(UserError, match="toy: one worker only"):
        loop.check_job(job, corpus, 2)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    worker = Worker(job, corpus, Hardware(torch.device("cpu"), torch.float32, "test"), MicroBatch(4))
    model = TokenLosses(build_model(training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, 0))
    progress = loop.train(PlainEngine(model, training), worker, loop.Progress(), lambda _: None)
    assert progress.step == 6 and progress.rule is not None and progress.rule.updates == 2
    found = loop.details(worker, progress)
    assert (found["rule"]["name"], found["rule"]["ended_at_step"]) == ("toy", 6)
    assert found["cost"]["flops"] == found["cost"]["paper_flops"] + 7.0 * 6
    assert sorted(found["rule"]["answer"], key=found["rule"]["answer"].__getitem__)[-2:] == ["alpha", "gamma"]
