"""A proxy that others trained: taken as it is, adapted, and refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from chameleon_ray.artifacts import TrainedModel
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.mixing.text_quality import GLANCE_TOKENS
from chameleon_ray.pipeline import mix
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from tests.families import publish

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("session")]


@pytest.fixture(scope="module")
def asked(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The tests' experiment with a Llama that has a tokenizer of another text."""
    from tests.corpora import make_corpus

    folder = tmp_path_factory.mktemp("pretrained")
    model = publish("llama", make_corpus(folder / "corpus"), folder / "model", context=experiment.corpus.row_tokens)
    document = experiment.model_dump(mode="json")
    del document["corpus"]["tokenizer"]
    document["proxy"] = {"model": {"pretrained": model}, "steps": 0}
    document["methods"] = {"chameleon": {}, "tuned": {"method": "chameleon", "stage": "finetune"}}
    return document


@pytest.mark.long
def test_a_pretrained_proxy_is_taken_as_it_is(asked: dict) -> None:
    experiment = parse_experiment(asked)
    backend = RayBackend(experiment.storage, experiment.resources, Reporter.silent())
    pretrained, tuned = (mix(experiment, label, backend) for label in experiment.methods)
    folder = asked["proxy"]["model"]["pretrained"]
    assert experiment.corpus.tokenizer.pretrained == folder
    corpus = backend.tokenize(experiment.corpus, experiment.seeds[0], experiment.reads)
    model = backend.open_model(folder, corpus)
    assert pretrained.provenance["proxy"] == tuned.provenance["proxy"] == model.digest
    assert pretrained.provenance["layer"] == 2, "the middle of four blocks"
    assert set(pretrained.weights) == set(corpus.names) and pretrained.weights != tuned.weights
    tokens = sum(min(rows, experiment.embedding.samples_per_domain) for rows in corpus.rows().values()) * corpus.row_tokens
    glanced = sum(min(rows, GLANCE_TOKENS // corpus.row_tokens) for rows in corpus.rows("valid").values()) * corpus.row_tokens
    assert pretrained.cost.tokens == tokens + glanced, "nothing was trained"
    assert set(pretrained.details["quality"]) == set(corpus.names)
    assert 0 < pretrained.cost.flops < pretrained.cost.paper_flops


@pytest.mark.long
def test_a_pretrained_proxy_goes_on_from_what_it_is(asked: dict) -> None:
    experiment = parse_experiment({**asked, "proxy": {**asked["proxy"], "steps": 3, "batch_rows": 4, "learning_rate": 1e-3, "min_learning_rate": 1e-3}})
    backend = RayBackend(experiment.storage, experiment.resources, Reporter.silent())
    adapted = mix(experiment, "chameleon", backend)
    model = TrainedModel.load(adapted.provenance["proxy_address"])
    assert model.details["start"] == backend.find_model(asked["proxy"]["model"]["pretrained"], 32, "proxy").digest
    assert model.details["architecture"]["layers"] == 4 and model.cost.tokens == 3 * 4 * experiment.corpus.row_tokens
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(model.address).model_type == "llama"
    before = mix(parse_experiment(asked), "chameleon", backend)
    assert adapted.weights != before.weights and adapted.weights == pytest.approx(before.weights, abs=0.2)


@pytest.mark.long
def test_a_model_of_ours_may_be_the_pretrained_proxy(asked: dict, experiment: Experiment) -> None:
    own = parse_experiment(experiment.model_dump(mode="json"))
    backend = RayBackend(own.storage, own.resources, Reporter.silent())
    trained = mix(own, "chameleon", backend)
    again = parse_experiment({**asked, "proxy": {"model": {"pretrained": trained.provenance["proxy_address"]}, "steps": 0}})
    found = mix(again, "chameleon", backend)
    assert found.provenance["proxy"] == trained.provenance["proxy"] and found.weights == pytest.approx(trained.weights, abs=1e-9)


def test_what_a_pretrained_proxy_lacks_is_said_before_any_text_is_read(asked: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RayBackend, "tokenize", lambda *_: pytest.fail("text was read"))
    long = parse_experiment({**asked, "corpus": {**asked["corpus"], "row_tokens": 512}})
    backend = RayBackend(str(tmp_path / "runs"), long.resources, Reporter.silent())
    with pytest.raises(UserError, match=r"^proxy\.model\.pretrained: .* reads at most 32 tokens and corpus\.row_tokens is 512; lower corpus\.row_tokens"):
        mix(long, "chameleon", backend)
    for method in ("doremi", "doge"):
        with pytest.raises(UserError, match=rf"^methods\.{method}\.proxy: .* give methods\.{method}\.proxy a model .* and steps of its own"):
            mix(parse_experiment({**asked, "methods": {method: {}}}), method, backend)
    gone = {**asked, "proxy": {"model": {"pretrained": str(tmp_path / "gone")}, "steps": 0}}
    with pytest.raises(UserError, match=r"^proxy\.model\.pretrained: .*gone' is no folder here"):
        mix(parse_experiment(gone), "chameleon", backend)
    assert not list(tmp_path.rglob("record.json"))
