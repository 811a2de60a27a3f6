"""What a proxy of a swarm is measured on: a bounded part of every measured domain, spread over its documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import ModelConfig
from chameleon_ray.corpus.rows import RowReader, Rows
from chameleon_ray.models import memory
from chameleon_ray.models.build import build_model
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.head import TokenLosses
from chameleon_ray.models.losses import domain_losses, measured_rows
from tests.corpora import make_corpus
from tests.fakes import leave_unmeasured

CPU = Hardware(torch.device("cpu"), torch.float32, "test")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model(corpus: TokenCorpus) -> TokenLosses:
    return TokenLosses(build_model(ModelConfig(layers=1, heads=2, width=16), corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, seed=0)).eval()


def by_hand(model: TokenLosses, rows: Rows) -> float:
    tokens, length = (torch.from_numpy(values.astype(np.int64)) for values in (rows.tokens, rows.length))
    with torch.inference_mode():
        return float(model(tokens, length).double().sum()) / int((rows.length - 1).sum())


@pytest.mark.parametrize("tokens", [1, 5 * 32 + 31, 1 << 20])
def test_the_part_that_is_measured(corpus: TokenCorpus, model: TokenLosses, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setitem(memory.FORWARD_TOKENS, "cpu", 3 * corpus.row_tokens)
    read: dict[str, list[int]] = {}
    original = RowReader.read

    def watched(self: RowReader, domain: str, rows: np.ndarray) -> Rows:
        read[domain] = rows.tolist()
        return original(self, domain, rows)

    monkeypatch.setattr(RowReader, "read", watched)
    found = domain_losses(model, corpus, "valid", measured_rows(corpus, "valid", tokens), CPU)
    monkeypatch.undo()
    for name, stored in corpus.rows("valid").items():
        wanted = {1: 1, 191: 5, 1 << 20: stored}[tokens]
        assert stored > 5
        assert len(set(read[name])) == len(read[name]) == wanted
        assert wanted == 1 or max(np.diff(read[name])) - min(np.diff(read[name])) <= 1, "at even distances"
        assert found[name] == pytest.approx(by_hand(model, RowReader(corpus, "valid").read(name, np.array(read[name]))), rel=1e-6)


def test_domains_without_held_out_text_are_left_out(corpus: TokenCorpus, model: TokenLosses, tmp_path: Path) -> None:
    part = leave_unmeasured(corpus, "beta")
    assert list(domain_losses(model, part, "valid", measured_rows(part, "valid", 1 << 20), CPU)) == ["alpha", "gamma"]
