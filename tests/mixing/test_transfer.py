"""A proxy of other domains: it is trained on those, embeds only what is new, and the change is charged for that alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pydantic import ValidationError

from chameleon_ray.artifacts import Cost, Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.backend import FitContext, Text, Transfer, rule_settings
from chameleon_ray.config import EmbeddingConfig, StopConfig
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import parse_experiment
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.doremi import DoReMi
from chameleon_ray.mixing.static import Fixed
from tests.fakes import FakeBackend, make_context, make_corpus, with_target


@dataclass
class Recording(FakeBackend):
    """Remembers what was embedded, and charges for it by the rows."""

    embedded: list[tuple[TokenCorpus, tuple[str, ...] | None]] = field(default_factory=list)

    def embed(self, model: TrainedModel, corpus: TokenCorpus, spec: EmbeddingConfig, names: Sequence[str] | None = None) -> Embeddings:
        self.embedded.append((corpus, tuple(names) if names is not None else None))
        found = super().embed(model, corpus, spec, names)
        return replace(found, ledger={f"embedding {len(self.embedded)}": Cost(100 * len(found.names), 1e6 * len(found.names), 0.1, 2e6 * len(found.names))})


def transferred(same: dict[str, str]) -> tuple[FitContext, Recording]:
    backend = Recording()
    transfer = Transfer(replace(make_corpus({"a": 100, "b": 60, "old": 30}), digest="known"), same)
    return replace(make_context({"a": 100, "bee": 60, "new": 30}), backend=backend, transfer=transfer), backend


def test_the_proxy_learns_the_old_domains_and_embeds_the_new_ones_alone() -> None:
    context, backend = transferred({"a": "a", "bee": "b"})
    mixture = Chameleon(bootstrap_draws=0).fit(context)
    (job,) = backend.jobs
    assert context.transfer and job.corpus is context.transfer.corpus and set(job.weights) == {"a", "b", "old"}
    assert backend.embedded == [(context.transfer.corpus, None), (context.corpus, ("new",))]
    assert tuple(mixture.weights) == ("a", "bee", "new") and list(mixture.provenance["embedded_rows"]) == ["new"]
    assert mixture.there_before == (f"{job.role}-0", "embedding 1") and mixture.extra.tokens == 100 + backend.glance(None, context.corpus, 2048).cost.tokens  # type: ignore[arg-type]
    assert Chameleon().work(context).texts == (Text(context.transfer.corpus), Text(context.corpus, ("new",)))
    whole = Chameleon(bootstrap_draws=0).fit(replace(context, transfer=None))
    assert whole.there_before == () and whole.extra == whole.cost


def test_weights_of_the_old_domains_on_the_way_are_not_shown_for_the_new_ones() -> None:
    context, backend = transferred({"a": "a", "bee": "b"})
    watched = replace(context, proxy=context.proxy.model_copy(update={"stop": StopConfig(tolerance=1e-9, every_steps=2)}))
    mixture = Chameleon(bootstrap_draws=0).fit(watched)
    assert backend.jobs[-1].rule is not None and mixture.trajectory is None
    alone = Chameleon(bootstrap_draws=0).fit(replace(watched, transfer=None))
    assert alone.trajectory is not None and set(alone.trajectory.weights) == set(context.corpus.names)
    by_layer = [Chameleon().proxy_job(replace(watched, embedding=EmbeddingConfig(layer=layer))).rule for layer in ("middle", 1)]
    assert [rule and rule_settings(rule)["layer"] for rule in by_layer] == ["middle", 1], "what is watched is embedded as at the end"


def test_a_domain_of_another_name_has_the_embedding_that_its_text_had() -> None:
    context, backend = transferred({"a": "a", "bee": "b"})
    found = Chameleon(bootstrap_draws=0).embed(context)
    assert context.transfer
    old = FakeBackend().embed(found.proxy, context.transfer.corpus, context.embedding)
    assert found.embeddings.names == ("a", "bee", "new")
    assert (found.embeddings.means[1] == old.means[old.names.index("b")]).all() and len(backend.embedded) == 2


def test_unseen_text_that_a_transferred_proxy_embeds_is_counted() -> None:
    context, _ = transferred({"a": "a", "bee": "b"})
    context = replace(context, corpus=with_target(context.corpus, "use", "other"))
    rows = Chameleon(bootstrap_draws=0, targets={"use": 1.2}).fit(context).provenance["embedded_rows"]
    assert list(rows) == ["new", "use (target)"] and all(rows.values())


def test_a_proxy_of_wholly_other_domains_embeds_all() -> None:
    context, backend = transferred({})
    mixture = Chameleon(bootstrap_draws=0).fit(context)
    assert mixture.there_before == ("proxy-0",) and [names for _, names in backend.embedded] == [("a", "bee", "new")]


def test_everything_known_embeds_nothing() -> None:
    context, backend = transferred({"a": "a", "bee": "b", "new": "old"})
    mixture = Chameleon(bootstrap_draws=0).fit(context)
    assert [names for _, names in backend.embedded] == [None] and mixture.provenance["embedded_rows"] == {}


def test_methods_that_train_on_the_new_domains_are_charged_for_all() -> None:
    context, backend = transferred({"a": "a"})
    mixture = DoReMi(proxy={"model": {"layers": 1, "heads": 1, "width": 8}, "batch_rows": 6}).fit(context)  # type: ignore[arg-type]
    assert all(job.corpus is None for job in backend.jobs) and mixture.extra == mixture.cost != Cost()


def test_unseen_text_is_embedded_where_weights_look_towards_it() -> None:
    context = make_context({"a": 100, "b": 60, "c": 30})
    backend = Recording()
    context = replace(context, backend=backend, corpus=with_target(context.corpus, "use", "other"))
    mixture = Chameleon(bootstrap_draws=0, targets={"use": 1.2}).fit(context)
    assert [names for _, names in backend.embedded] == [None, ("use",)] and "embedding 2" in mixture.ledger
    backend.embedded.clear()
    for method, told in (
        (Chameleon(targets={"usee": 2.0}), r"neither a domain nor one of corpus\.targets; .*did you mean 'use'"),
        (Chameleon(targets={"use": 0.5}), "0.5, and text that is no domain can only be looked towards; give 1 or more"),
        (Chameleon(targets={"use": 2.0}, stage="finetune"), "text that is no domain, and when finetuning what a target explains gets less"),
    ):
        with pytest.raises(UserError, match=rf"^methods\.label: targets\.usee?: {told}"):
            method.check(context)
    assert not backend.embedded, "before anything is embedded"


def test_published_weights_under_other_names() -> None:
    context = make_context({"code": 10, "papers": 10, "poems": 10})
    mixture = Fixed(preset="pile_human", names={"code": "github", "papers": "arxiv", "poems": None}).fit(context)
    assert mixture.weights == pytest.approx({"code": 0.054 / 0.188, "papers": 0.134 / 0.188, "poems": 0.0})
    with pytest.raises(UserError, match="preset pile_human: no weight for domain 'poems' of the corpus"):
        Fixed(preset="pile_human", names={"code": "github", "papers": "arxiv"}).fit(context)
    with pytest.raises(ValidationError, match="names: pile_human has no 'gitub'; it has .*did you mean 'github'"):
        Fixed(preset="pile_human", names={"code": "gitub"})
    with pytest.raises(ValidationError, match="names: 'arxiv' is given to two domains; its weight can be that of one"):
        Fixed(preset="pile_human", names={"papers": "arxiv", "preprints": "arxiv"})
    assert (
        Fixed(preset="pile_human", names={"code": "github", "papers": "arxiv", "poems": None})
        .fit(context)
        .warnings[0]
        .startswith("Chameleon (ICML 2025), table 15: found with")
    )
    with pytest.raises(ValidationError, match="names says what a preset calls the domains"):
        Fixed(weights={"a": 1.0}, names={"a": "b"})
    with pytest.raises(UserError, match="it has none of the domains with a weight"):
        Fixed(preset="pile_human", names=dict.fromkeys(("code", "papers", "poems"))).fit(context)


def experiment(**more: Any) -> Any:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 4}
    return parse_experiment({"name": "x", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "proxy": training, "base": training, **more})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"transfer": {}}, "transfer: give either domains or domains_from"),
        ({"transfer": {"domains_from": {"clusters": {"k": 2, "of": ["x"]}}}}, r"transfer: domains_from\.clusters: domains that are yet to be found"),
        (
            {"transfer": {"domains": {"a": {"files": ["x"]}}}, "proxy": {"model": {"pretrained": "m"}, "steps": 0}},
            r"transfer: a proxy that is taken as it is \(proxy\.steps: 0\) is trained on no domains",
        ),
        (
            {"transfer": {"domains": {"a": {"files": ["x"]}}}, "corpus": {"domains_from": {"clusters": {"k": 2, "of": ["x"]}}}},
            r"transfer: corpus\.domains_from\.clusters would train the proxy on the text that it divides; name a pretrained model",
        ),
        ({"stage": "finetune"}, r"base\.model: stage finetune goes on from a model that is trained already; give base\.model: \{pretrained: NAME\}"),
        ({"stage": "finetune", "base": None}, r"base\.model: stage finetune goes on from a model that is trained already"),
        ({"proxy": None, "base": {"model": {"pretrained": "m"}, "steps": 4}}, r"proxy: missing; .*\{model: \{pretrained: m\}, steps: 0\}"),
        ({"base": {"model": {"preset": "cpu-tiny", "lora": {}}, "steps": 4}}, r"base\.model: lora trains adapters beside a pretrained model"),
        ({"proxy": {"model": {"pretrained": "m", "lora": {}}, "steps": 4}}, r"proxy: lora is for base\.model; a proxy is trained whole"),
        ({"methods": {"doremi": {"proxy": {"model": {"pretrained": "m", "lora": {}}}}}}, r"lora is for base\.model"),
        ({"base": {"model": {"pretrained": "m", "lora": {"rank": 0}}, "steps": 4}}, r"base\.model\.lora\.rank: .*greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_told(more: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        experiment(**more)
    assert "\n" not in str(refused.value)


def test_finetuning_embeds_with_its_base_and_compares_three_mixtures() -> None:
    base = {"model": {"pretrained": "some/model", "lora": {"rank": 8}}, "steps": 4}
    found = parse_experiment({"name": "x", "stage": "finetune", "corpus": {"domains": {"a": {"files": ["a.txt"]}}}, "base": base})
    assert (found.proxy.model.pretrained, found.proxy.steps, found.proxy.model.lora) == ("some/model", 0, None)
    nothing = {"proxy": None, "corpus": {"domains": {"a": {"files": ["a.txt"]}}, "tokenizer": None}, "embedding": None}
    assert parse_experiment({"name": "x", "stage": "finetune", "base": base, **nothing}) == found, "what is null is not there"
    assert found.corpus.tokenizer.pretrained == "some/model" and tuple(found.methods) == ("uniform", "alpha_ft", "alpha_pt")
    assert [found.mixer(label).stage for label in ("alpha_ft", "alpha_pt", "chameleon")] == ["finetune", "pretrain", "finetune"]  # type: ignore[attr-defined]
    at = found.at({"methods.alpha_ft.temperature": {"relative": 0.5}})
    assert at.mixer("alpha_ft").temperature.relative == 0.5 and at.proxy == found.proxy and at.corpus == found.corpus  # type: ignore[attr-defined]
    other = found.at({"base.model.pretrained": "another/model"})
    assert other.proxy.model.pretrained == other.corpus.tokenizer.pretrained == "another/model", "the proxy follows the base"
    going_on = experiment(base={"model": {"pretrained": "some/model"}, "steps": 4})
    assert going_on.corpus.tokenizer.pretrained == "some/model" and going_on.mixer("chameleon").stage == "pretrain"
