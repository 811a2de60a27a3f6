"""What can be known before anything is read or trained is said then."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from chameleon_ray.artifacts import Cost, TrainedModel
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.pipeline import compare, evaluate, mix
from tests.fakes import FakeBackend


def experiment(**methods: object) -> Experiment:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    return parse_experiment({"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": training, "base": training, "methods": methods})


@dataclass
class Found(FakeBackend):
    """Which can open a model of others and no text."""

    def find_model(self, name: str, row_tokens: int, where: str, allow_remote_code: bool = False) -> TrainedModel:
        return TrainedModel(name, "d", {}, 300, "0" * 64, Cost(), {"pretrained": name})


def test_another_tokenizer_is_found_out_before_the_corpus_is_read() -> None:
    training = {"model": {"pretrained": "someone/tiny"}, "steps": 4}
    plain = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    corpus = {"domains": {"a": {"files": ["a.txt"]}}, "tokenizer": {"train": {"vocab_size": 400}}}
    asked = parse_experiment({"name": "x", "corpus": corpus, "proxy": plain, "base": training, "methods": {"uniform": {}}})
    told = r"^base\.model\.pretrained: someone/tiny has another tokenizer than the corpus; set corpus\.tokenizer: \{pretrained: someone/tiny\}"
    with pytest.raises(UserError, match=told):
        compare(asked, Found())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="^--model: someone/tiny has another tokenizer than the corpus"):
        evaluate(experiment(uniform={}), "someone/tiny", Found())  # type: ignore[arg-type]
    fitting = parse_experiment(
        {"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": {**training, "steps": 0}, "base": plain, "methods": {"uniform": {}}}
    )
    with pytest.raises(AttributeError, match="tokenize"):  # the proxy's own tokenizer is the corpus's: the next thing is to read text
        compare(fitting, Found())  # type: ignore[arg-type]


def test_finetuning_weights_are_refused_before_the_corpus_is_read() -> None:
    backend = FakeBackend()  # which can tokenize nothing
    asked = experiment(uniform={}, mine={"method": "chameleon", "stage": "finetune"})
    for call in (lambda: compare(asked, backend), lambda: mix(asked, "mine", backend)):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"^methods\.mine\.stage: finetune"):
            call()
