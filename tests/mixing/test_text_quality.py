"""What is said of a domain that gains although its text is poor, and the prior that counts it less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from chameleon_ray.artifacts import Cost, TrainedModel
from chameleon_ray.counts import Quality
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.text_quality import GLANCE_TOKENS, TextQuality, factors, proxy_losses, quality_warnings, text_quality
from chameleon_ray.records import write_table
from tests.fakes import FakeBackend, leave_unmeasured, make_context, make_corpus, noisy_embeddings, rng

GOOD = TextQuality(2.7, 0.02, 0.5)
POOR = {
    "boilerplate": (TextQuality(12.0, 0.95, 0.9), "95% of its passages stand in other documents of it too, it compresses 12.0 times"),
    "noise": (
        TextQuality(1.3, 0.0, 0.02),
        "it hardly compresses (1.3 times), as noise does, what stands before a token tells the proxy little of it (2% of the",
    ),
    "shuffled": (TextQuality(2.2, 0.0, 0.1), "what stands before a token tells the proxy little of it (10% of the entropy, 50% in the median domain)"),
}
PRIOR = dict.fromkeys(("a", "b", "c", "odd"), 0.25)


@pytest.mark.parametrize("kind", POOR)
def test_a_poor_domain_is_warned_about_only_if_it_gains(kind: str) -> None:
    poor, told = POOR[kind]
    quality = {**dict.fromkeys("abc", GOOD), "odd": poor}
    (warning,) = quality_warnings(quality, {"a": 0.2, "b": 0.2, "c": 0.2, "odd": 0.4}, PRIOR, counted=False)
    assert warning.startswith("odd gets 1.6 times its prior and its text looks poor: ") and told in warning and "quality: true" in warning
    *little, counted = quality_warnings(quality, {"a": 0.2, "b": 0.2, "c": 0.2, "odd": 0.4}, PRIOR, counted=True)
    assert told in counted and "quality: true" not in counted
    assert little == [] or little[0].startswith("quality: true leaves little of odd (")
    assert quality_warnings(quality, {"a": 0.3, "b": 0.3, "c": 0.2, "odd": 0.2}, PRIOR, counted=False) == []
    assert quality_warnings(dict.fromkeys(PRIOR, GOOD), {"a": 0.2, "b": 0.2, "c": 0.2, "odd": 0.4}, PRIOR, counted=False) == []


def test_factors_are_one_for_good_text_and_small_for_poor() -> None:
    quality = {**dict.fromkeys("abc", GOOD), **{name: poor for name, (poor, _) in POOR.items()}}
    found = factors(quality, [*quality, "unknown"])
    assert found["a"] == pytest.approx(0.98) and found["unknown"] == 1.0
    assert found["boilerplate"] == pytest.approx(0.05) and found["noise"] < 0.06 and found["shuffled"] < 0.3
    assert factors({**dict.fromkeys("abc", GOOD), "odd": TextQuality(2.7, 0.0, -0.2)}, ["odd"])["odd"] == 0.01, "never nothing"


def test_a_short_text_is_not_called_noise() -> None:
    quality = {**dict.fromkeys("abc", GOOD), "odd": TextQuality(1.2, 0.0, 0.5, sample_bytes=600)}
    assert quality_warnings(quality, {"a": 0.2, "b": 0.2, "c": 0.2, "odd": 0.4}, PRIOR, counted=False) == []


def test_a_proxy_that_has_learned_little_is_not_asked() -> None:
    quality = {name: TextQuality(2.7, 0.0, structure) for name, structure in (("a", 0.03), ("b", 0.0), ("c", 0.02), ("odd", -0.2))}
    assert quality_warnings(quality, {"a": 0.2, "b": 0.2, "c": 0.2, "odd": 0.4}, PRIOR, counted=False) == []
    assert factors(quality, list(quality)) == dict.fromkeys(quality, 1.0)


def test_measures_come_from_the_corpus_and_the_proxys_losses() -> None:
    corpus = leave_unmeasured(make_corpus({"a": 4, "b": 4}), "b")
    sampled = {name: replace(counts, quality=Quality(1000, 3.0, 0.1)) for name, counts in corpus.domains.items()}
    found = text_quality(replace(corpus, domains=sampled), {"a": 4.0})
    assert found == {"a": TextQuality(3.0, 0.1, pytest.approx(1 - 4 / 5), 1000), "b": TextQuality(3.0, 0.1, None, 1000)}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_quality_counts_in_front_of_the_scores(stage: str) -> None:
    means = {name: 3 * rng(name).standard_normal(8) for name in ("a", "b", "c", "odd")}
    embeddings = noisy_embeddings(means, samples=200, noise=0.1)
    texts = {**dict.fromkeys("abc", GOOD), "odd": POOR["boilerplate"][0]}
    plain, counted = (Chameleon(stage=stage, quality=quality, bootstrap_draws=50).weigh(embeddings, texts=texts) for quality in (False, True))
    expected = {name: plain.weights[name] * (0.05 if name == "odd" else 0.98) for name in plain.weights}
    assert counted.weights == pytest.approx({name: weight / sum(expected.values()) for name, weight in expected.items()})
    assert counted.scores == plain.scores
    assert counted.weights_stderr["odd"] < 0.2 * plain.weights_stderr["odd"]
    assert plain.details["quality"]["odd"] == {"compression": 12.0, "repeated": 0.95, "structure": 0.9, "sample_bytes": 8192}
    assert "quality: true" in counted.explanation[0] and any("leaves little of odd (0.05)" in warning for warning in counted.warnings)
    with pytest.raises(UserError, match="quality: true needs the domains' text"):
        Chameleon(quality=True).weigh(embeddings)
    gone = Chameleon(quality=True, bootstrap_draws=0).weigh(embeddings, texts=dict.fromkeys(texts, TextQuality(90.0, 1.0, 0.5)))
    assert gone.weights == pytest.approx(Chameleon(bootstrap_draws=0).weigh(embeddings).weights), "where all are poor alike nothing changes"


def test_a_proxy_that_was_trained_here_tells_by_its_last_losses(tmp_path: Path) -> None:
    corpus = make_corpus({"a": 4, "b": 4})
    losses = {"all": lambda step: 1.0, "a": lambda step: 2.0 if step > 90 else 5.0, "b": lambda step: 4.0 if step > 95 else 5.0}
    rows = [{"step": step, "domain": name, "loss": loss(step), "tokens": 500, "learning_rate": 0.1} for step in range(1, 101) for name, loss in losses.items()]
    write_table(str(tmp_path / "metrics.parquet"), pa.Table.from_pylist(rows))
    proxy = TrainedModel(str(tmp_path), "d", {}, 300, "0" * 64, Cost(), {"training": {}, "corpus": corpus.digest})
    found, looking = proxy_losses(proxy, corpus, FakeBackend())
    assert (found["a"], found["b"], looking) == (2.0, 4.5, {})
    other = replace(corpus, digest="another text by the same names")
    short = replace(proxy, details={"training": {}, "corpus": corpus.digest}, address=str(tmp_path / "short"))
    write_table(str(tmp_path / "short" / "metrics.parquet"), pa.Table.from_pylist([{**row, "tokens": 10} for row in rows]))
    for asked, of in ((other, proxy), (make_corpus({"a": 4, "c": 4}), proxy), (corpus, short)):
        found, looking = proxy_losses(of, asked, FakeBackend())
        assert set(found.values()) == {3.0} and looking == {"glance": Cost(GLANCE_TOKENS, 1.0, 0.0)}


def test_fitting_looks_at_the_text() -> None:
    context = make_context({"a": 10, "b": 20, "c": 5})
    sampled = {name: replace(counts, quality=Quality(1000, 3.0, 0.1)) for name, counts in context.corpus.domains.items()}
    mixture = Chameleon().fit(replace(context, corpus=replace(context.corpus, domains=sampled)))
    assert mixture.details["quality"]["a"] == {"compression": 3.0, "repeated": 0.1, "structure": pytest.approx(1 - 3 / 5), "sample_bytes": 1000}
    assert "glance" in mixture.ledger
