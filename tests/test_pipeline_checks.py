"""What can be known before anything is read or trained is said then."""

from __future__ import annotations

import pytest

from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.pipeline import compare, mix
from tests.fakes import FakeBackend


def experiment(**methods: object) -> Experiment:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    return parse_experiment({"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": training, "base": training, "methods": methods})


def test_finetuning_weights_are_refused_before_the_corpus_is_read() -> None:
    backend = FakeBackend()  # which can tokenize nothing
    asked = experiment(uniform={}, mine={"method": "chameleon", "stage": "finetune"})
    for call in (lambda: compare(asked, backend), lambda: mix(asked, "mine", backend)):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"^methods\.mine\.stage: finetune"):
            call()
