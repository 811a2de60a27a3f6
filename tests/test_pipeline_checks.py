"""What can be known before anything is read or trained is said then."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from chameleon_ray.artifacts import Cost, TokenCorpus, TrainedModel
from chameleon_ray.config import ProxyChanges
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.fitting import compared, mixture_jobs, refits
from chameleon_ray.mixture import Mixture
from chameleon_ray.pipeline import check_points, compare, evaluate, mix, train
from tests.fakes import FakeBackend, make_corpus


def experiment(**methods: object) -> Experiment:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    return parse_experiment({"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": training, "base": training, "methods": methods})


@dataclass
class Found(FakeBackend):
    """Which can open a model of others and no text; `asked` are names and row lengths."""

    asked: list[tuple[str, int]] = field(default_factory=list)

    def find_model(self, name: str, row_tokens: int, where: str, allow_remote_code: bool = False) -> TrainedModel:
        self.asked.append((name, row_tokens))
        return TrainedModel(name, "d", {}, 300, hashlib.sha256(name.encode()).hexdigest(), Cost(), {"pretrained": name})


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
    two = {"proxy": {"model": {"pretrained": "another/tiny"}, "steps": 0}, "base": training, "corpus": {"domains": corpus["domains"]}}
    with pytest.raises(UserError, match=r"someone/tiny and another/tiny have different tokenizers, and both are to read the tokens of one corpus"):
        compare(parse_experiment({"name": "x", **two, "methods": {"uniform": {}}}), Found())  # type: ignore[arg-type]
    fitting = parse_experiment(
        {"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": {**training, "steps": 0}, "base": plain, "methods": {"uniform": {}}}
    )
    with pytest.raises(AttributeError, match="tokenize"):  # the proxy's own tokenizer is the corpus's: the next thing is to read text
        compare(fitting, Found())  # type: ignore[arg-type]


def test_models_of_a_sweep_each_bring_their_tokenizer() -> None:
    base = {"model": {"pretrained": "someone/tiny"}, "steps": 4}
    sweep = {"each": {"base.model.pretrained": ["someone/small"], "corpus.row_tokens": [64]}, "train_base": True}
    asked = parse_experiment({"name": "x", "stage": "finetune", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "base": base, "sweep": sweep})
    backend = Found()
    with pytest.raises(AttributeError, match="tokenize"):  # neither is refused: the next thing is to read text
        compare(asked, backend)  # type: ignore[arg-type]
    rows = asked.corpus.row_tokens
    assert set(backend.asked) == {("someone/tiny", rows), ("someone/small", rows), ("someone/tiny", 64)}


def test_finetuning_weights_are_refused_before_the_corpus_is_read() -> None:
    backend = FakeBackend()  # which can tokenize nothing
    asked = experiment(uniform={}, mine={"method": "chameleon", "stage": "finetune"})
    for call in (lambda: compare(asked, backend), lambda: mix(asked, "mine", backend)):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"^methods\.mine\.stage: finetune"):
            call()


class Reading(FakeBackend):
    """Which has a corpus, and models of others."""

    def open_model(self, name: str, corpus: TokenCorpus, where: str = "model", allow_remote_code: bool = False) -> TrainedModel:
        return TrainedModel(name, name, {}, corpus.vocab_size, corpus.tokenizer_sha256, Cost())

    def tokenize(self, config: CorpusConfig, seed: int, reads: object = None) -> TokenCorpus:
        return replace(make_corpus({"a": 10, "b": 10}), digest=f"of rows of {config.row_tokens}, seed {seed}")


def test_points_that_read_other_text_have_no_base_models(caplog: pytest.LogCaptureFixture) -> None:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    sweep = {"each": {"corpus.row_tokens": [64], "base.steps": [5]}, "train_base": True}
    asked = parse_experiment({"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": training, "base": training, "sweep": sweep})
    backend: Any = Reading()
    corpus = backend.tokenize(asked.corpus, 0)
    jobs, swept = mixture_jobs(asked, corpus, backend)
    check_points(jobs, swept, corpus, backend)
    assert {job.point for job in swept} == {"corpus.row_tokens=64", "base.steps=5"}
    assert {job.point for job in compared(jobs, swept)} == {"", "base.steps=5"}
    assert caplog.messages == ["sweep at corpus.row_tokens=64: other text, or other tokens of it, on which base models cannot be compared; its weights only"]


def test_points_of_other_seeds_fit_anew_on_the_same_text() -> None:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    asked = {"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": training, "base": training, "sweep": {"each": {"seeds": [[1], [2]]}}}
    backend: Any = Reading()
    corpus = backend.tokenize(parse_experiment(asked).corpus, 0)
    jobs, swept = mixture_jobs(parse_experiment(asked), corpus, backend)
    assert [job.method for job in jobs] == ["uniform", "chameleon"]
    assert [(job.method, job.point, job.seed) for job in swept] == [("chameleon", "seeds=[1]", 1), ("chameleon", "seeds=[2]", 2)], "uniform has no use for one"
    assert {job.corpus.digest for job in swept} == {corpus.digest} and refits(swept) == swept


def test_seeds_change_nothing_of_a_proxy_that_is_taken_as_it_is() -> None:
    base = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    proxy = {"model": {"pretrained": "someone/tiny"}, "steps": 0}
    asked = {"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": proxy, "base": base, "sweep": {"each": {"seeds": [[1], [2]]}}}
    experiment, backend = parse_experiment(asked), cast(Any, Reading())
    corpus = backend.tokenize(experiment.corpus, 0)
    jobs, swept = mixture_jobs(experiment, corpus, backend)
    with pytest.raises(UserError, match="sweep: no point changes the weights of any method"):
        check_points(jobs, swept, corpus, backend)


def test_a_point_of_a_sweep_is_the_file_with_its_values_in_it() -> None:
    training: dict[str, Any] = {"model": {"layers": 1, "heads": 2, "width": 8}, "steps": 4}
    asked: dict[str, Any] = {"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": training, "base": training}
    found = parse_experiment(asked).at({"base.learning_rate": 1e-4, "methods.chameleon.variant": "paper"})
    written = {**asked, "base": {**training, "learning_rate": 1e-4}, "methods": {"uniform": {}, "chameleon": {"variant": "paper"}}}
    assert found == parse_experiment(written) and found.base.min_learning_rate == 2e-5
    own = ProxyChanges(learning_rate=1e-4).applied_to(found.proxy)
    assert own.min_learning_rate == 2e-5 and found.proxy.min_learning_rate == 1e-4, "what follows from the learning rate follows the method's own"


def test_a_point_of_a_file_with_a_model_of_ours_and_a_tokenizer_that_is_trained() -> None:
    corpus = {"domains": {"a": {"files": ["a.txt"]}}, "tokenizer": {"train": {"vocab_size": 4096}}}
    proxy = {"model": {"pretrained": "runs/models/proxy-x"}, "steps": 0}
    sweep = {"each": {"embedding.samples_per_domain": [8]}}
    asked = parse_experiment({"name": "x", "corpus": corpus, "proxy": proxy, "base": {"model": {"preset": "cpu-tiny"}, "steps": 4}, "sweep": sweep})
    (point,) = asked.points()
    assert point.corpus == asked.corpus and point.proxy == asked.proxy and point.embedding.samples_per_domain == 8


@pytest.mark.parametrize("more", [{"fit_every_seed": True}, {}])
def test_seeds_are_swept_for_fits_alone(more: dict[str, Any]) -> None:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    sweep = {"each": {"seeds": [[1]]}, "train_base": not more}
    with pytest.raises(UserError, match=r"sweep: seeds shows how fits differ; set sweep\.train_base and fit_every_seed to false"):
        parse_experiment({"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": training, "base": training, "sweep": sweep, **more})


def test_a_sweep_that_changes_no_weights_is_refused() -> None:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    asked = {"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": training, "base": training, "sweep": {"each": {"base.steps": [5]}}}
    with pytest.raises(UserError, match=r"^sweep: no point changes the weights of any method; set sweep\.train_base: true"):
        compare(parse_experiment({**asked, "methods": {"uniform": {}, "chameleon": {}}}), Reading())  # type: ignore[arg-type]


def test_weights_of_another_tokenizer_are_used_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    asked = experiment(uniform={})
    for sha, warned in ((None, False), ("0" * 64, False), ("1" * 64, True)):
        caplog.clear()
        train(asked, Mixture("chameleon", {"a": 0.5, "b": 0.5}, label="mine", tokenizer_sha256=sha), Reading())  # type: ignore[arg-type]
        assert ("mixture 'mine' was found with another tokenizer than the corpus has" in caplog.text) is warned
