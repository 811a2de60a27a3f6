"""Models and corpora that do not fit each other are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_ray.artifacts import Cost, TrainedModel
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import Resources, TrainingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.learned import trajectory_of
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend, check_tokenizer
from tests.corpora import make_corpus


def test_another_vocabulary_or_tokenizer_is_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    model = TrainedModel("runs/models/base-x", "x", {}, corpus.vocab_size, corpus.tokenizer_sha256, Cost())
    check_tokenizer(model, corpus)
    with pytest.raises(UserError, match=r"runs/models/base-x: its vocabulary has 300 tokens and the corpus needs 320"):
        check_tokenizer(replace(model, vocab_size=300), corpus)
    with pytest.raises(UserError, match="another tokenizer"):
        check_tokenizer(replace(model, tokenizer_sha256="0"), corpus)


def test_a_saved_tokenizer_is_recognised(tmp_path: Path) -> None:
    from chameleon_ray.corpus.tokenizer import load_tokenizer, tokenizer_sha256

    corpus = make_corpus(tmp_path / "corpus")
    tokenizer, end = load_tokenizer(corpus.tokenizer_address)
    assert tokenizer_sha256(tokenizer, end) == corpus.tokenizer_sha256
    assert end == corpus.end_of_document
    assert tokenizer_sha256(*load_tokenizer(make_corpus(tmp_path / "other", seed=1).tokenizer_address)) != corpus.tokenizer_sha256


def test_a_proxy_that_is_taken_as_it_is_has_no_story_of_its_own_training(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    details = {"rule": {"name": "settled"}, "snapshot_of": {"model": "longer"}, "training": {"steps": 3}}
    ours = TrainedModel("runs/models/proxy-x", "x", {}, corpus.vocab_size, corpus.tokenizer_sha256, Cost(100, 1.0), details)
    training = TrainingConfig.model_validate({"model": {"pretrained": "runs/models/proxy-x"}, "steps": 0})
    backend = RayBackend(str(tmp_path / "runs"), Resources(), Reporter.silent())
    (found,) = backend.train_many(corpus, [TrainJob("proxy", training, dict.fromkeys(corpus.names, 1 / 3), 0, start=ours)])
    assert (found.digest, found.run, found.cost, found.details) == ("x", "x", Cost(), {"training": {"steps": 3}})
    assert trajectory_of(found) is None


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    backend = RayBackend(str(tmp_path / "runs"), Resources(), Reporter.silent())
    with pytest.raises(UserError, match=r"no config\.json"):
        backend.open_model(str(tmp_path), corpus)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^model: .* holds adapters alone, without the model that they belong to; merge them first \(peft: "):
        backend.find_model(str(tmp_path), 32, "model", allow_remote_code=True)


@pytest.mark.parametrize(("there", "asked", "told"), [(2.0, 0, "2 GPUs here and resources.gpus_per_worker is 0"), (2.0, 1, None), (0.0, 0, None)])
def test_gpus_that_nothing_asks_for_are_told(monkeypatch: pytest.MonkeyPatch, there: float, asked: int, told: str | None) -> None:
    import ray

    from chameleon_ray.ray_session import idle_gpus

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, **({"GPU": there} if there else {})})
    found = idle_gpus(Resources(gpus_per_worker=asked))
    assert (found and found.startswith(told or "-")) if told else found is None
