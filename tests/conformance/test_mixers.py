"""What holds for every method: the table in METHODS.md, on a backend in closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pydantic import ValidationError

from chameleon_ray.artifacts import Cost, Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.backend import ProxyLosses, TrainJob, rule_settings
from chameleon_ray.config import EmbeddingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.methods import METHODS
from chameleon_ray.mixture import Mixture
from tests.fakes import FakeBackend, make_context

ROWS = {"web": 400, "books": 90, "code": 120, "math": 33, "news": 7}


def build(method: str, names: list[str]) -> Method:
    """The method with its defaults, but a small swarm; fixed weights have no defaults, so they are made up."""
    if method == "regmix":
        return METHODS[method](num_proxies=64, samples=1000, top=16)
    if method != "fixed":
        return METHODS[method]()
    total = sum(range(1, len(names) + 1))
    return METHODS[method](weights={name: (1 + sorted(names).index(name)) / total for name in names})


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def test_table_agrees_with_the_class(method: str) -> None:
    assert METHODS[method].name == method


def test_weights_lie_on_the_simplex_and_carry_the_corpus_names_in_order(method: str) -> None:
    mixture = build(method, list(ROWS)).fit(make_context(ROWS))
    assert mixture.method == method
    assert list(mixture.weights) == list(ROWS)
    assert abs(math.fsum(mixture.weights.values()) - 1) < 1e-12
    assert all(type(weight) is float and weight >= 0 for weight in mixture.weights.values())


def test_fitting_twice_gives_the_same_answer(method: str) -> None:
    assert build(method, list(ROWS)).fit(make_context(ROWS)) == build(method, list(ROWS)).fit(make_context(ROWS))


def test_permuting_the_domains_permutes_the_weights(method: str) -> None:
    permuted = {name: ROWS[name] for name in ("news", "code", "web", "math", "books")}
    mixtures = [build(method, list(rows)).fit(make_context(rows)) for rows in (ROWS, permuted)]
    for part in ("weights", "scores", "weights_stderr", "scores_stderr"):
        first, second = (getattr(mixture, part) for mixture in mixtures)
        if first is None:
            assert second is None
        else:
            assert all(abs(first[name] - second[name]) <= 1e-12 for name in ROWS)


def test_json_round_trip(method: str, tmp_path) -> None:
    mixture = build(method, list(ROWS)).fit(make_context(ROWS))
    address = str(tmp_path / "mixture.json")
    mixture.save(address)
    loaded = Mixture.load(address)
    assert loaded.weights == mixture.weights and loaded.scores == mixture.scores and loaded.cost == mixture.cost
    assert json.loads(loaded.to_json()) == json.loads(mixture.to_json())


def test_cost_is_reported(method: str) -> None:
    context = make_context(ROWS)
    cost = build(method, list(ROWS)).fit(context).cost
    assert isinstance(cost, Cost)
    trained = bool(context.backend.jobs)
    assert all((value > 0) == trained for value in (cost.tokens, cost.flops, cost.seconds))


@pytest.mark.parametrize("empty", ["web", "news"])
def test_an_empty_domain_raises_with_its_name(method: str, empty: str) -> None:
    with pytest.raises(UserError, match=repr(empty)):
        build(method, list(ROWS)).fit(make_context({**ROWS, empty: 0}))


def test_a_missing_domain_raises_with_its_name(method: str) -> None:
    context = make_context(ROWS)
    del context.corpus.domains["math"]
    with pytest.raises(UserError, match="'math'"):
        build(method, list(ROWS)).fit(context)


def test_a_single_domain_gets_everything(method: str) -> None:
    mixture = build(method, ["web"]).fit(make_context({"web": 5}))
    assert mixture.weights == {"web": 1.0}
    assert mixture.warnings == ()


def test_settings_are_frozen_and_recorded(method: str) -> None:
    mixer = build(method, list(ROWS))
    for name in type(mixer).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(mixer, name, getattr(mixer, name))
    recorded = mixer.fit(make_context(ROWS)).provenance["settings"]
    assert set(mixer.model_dump()) <= set(recorded)


def test_many_domains(method: str) -> None:
    rows = {f"domain-{i}": 10 + i for i in range(100)}
    weights = build(method, list(rows)).fit(make_context(rows)).weights
    assert abs(math.fsum(weights.values()) - 1) < 1e-9
    assert list(weights) == list(rows)
    assert (len(set(weights.values())) == 1) == (method == "uniform")


@dataclass
class RecordingBackend(FakeBackend):
    """Also remembers what was embedded and glanced at."""

    embedded: list[str] = field(default_factory=list)
    glances: list[int] = field(default_factory=list)

    def embed(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> Embeddings:
        self.embedded.append(model.digest)
        return super().embed(model, corpus, spec, names)

    def glance(self, model: TrainedModel, corpus: TokenCorpus, tokens_per_domain: int) -> ProxyLosses:
        self.glances.append(tokens_per_domain)
        return super().glance(model, corpus, tokens_per_domain)


def asked(job: TrainJob) -> tuple[Any, ...]:
    return job.role, job.training, tuple(job.weights.items()), job.seed, job.rule and rule_settings(job.rule)


def test_its_work_is_what_fitting_it_asks_for(method: str) -> None:
    backend = RecordingBackend()
    context = replace(make_context(ROWS), backend=backend)
    mixer = build(method, list(ROWS))
    work = mixer.work(context)
    assert not backend.jobs  # nothing is done for it
    mixer.fit(context)
    assert sorted(map(repr, map(asked, backend.jobs))) == sorted(map(repr, map(asked, (*work.trains, *work.swarm))))
    assert len(backend.embedded) == (work.embeds is not None) and len(backend.glances) == bool(work.glance_tokens)
    assert work.embeds is None or work.embeds in work.trains
