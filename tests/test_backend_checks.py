"""Models and corpora that do not fit each other are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_ray.artifacts import Cost, TrainedModel
from chameleon_ray.config import Resources
from chameleon_ray.errors import UserError
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


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    backend = RayBackend(str(tmp_path / "runs"), Resources(), Reporter.silent())
    with pytest.raises(UserError, match=r"no config\.json"):
        backend.open_model(str(tmp_path), corpus)
