"""What becomes of domains that are left out, renamed, merged or split, and what their embeddings are then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chameleon_ray.artifacts import Cost, Embeddings
from chameleon_ray.changes import Arrangement, TextBytes, check_covered, merged_quality, merged_size, rearranged, train_bytes
from chameleon_ray.corpus_config import CorpusChanges, CorpusConfig, load_changes
from chameleon_ray.counts import DomainCounts, DomainSize, Excerpt, SplitCounts
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.noise import noise_of
from chameleon_ray.mixing.text_quality import TextQuality
from chameleon_ray.mixture import Mixture, averaged
from chameleon_ray.settings import validate
from chameleon_ray.transfer import check_targets
from tests.fakes import noisy_embeddings, rng

KNOWN = ("a", "b", "c", "d")
NEW = {"files": ["x.jsonl"]}
TOKENS = {"a": 100.0, "b": 300.0, "c": 50.0, "d": 50.0}


def arranged(changes: dict[str, Any], known: tuple[str, ...] = KNOWN) -> Arrangement:
    return Arrangement.of(validate(CorpusChanges, {"domains": changes}, "corpus file").domains, known)


@pytest.fixture
def embeddings() -> Embeddings:
    return noisy_embeddings({name: rng(name).standard_normal(6) for name in KNOWN}, 256, 0.5)


def test_every_kind_of_change_at_once() -> None:
    changes = {"e": NEW, "a": None, "bee": {"rename": "b"}, "c": {"split": {"c1": NEW, "c2": {"files": ["y.jsonl"], "heldout": ["z.jsonl"]}}}}
    found = arranged(changes)
    assert dict(found.kept) == {"d": ("d",), "bee": ("b",)}
    assert list(found.added) == ["e", "c1", "c2"] and found.added["c2"].heldout == ("z.jsonl",)
    assert dict(found.parts) == {"c": ("c1", "c2")}
    assert dict(arranged({"b": {"merge": ["a", "b"]}}).kept) == {"c": ("c",), "d": ("d",), "b": ("a", "b")}
    assert dict(arranged({"a": {"rename": "b"}, "b": {"rename": "a"}}).kept) == {"c": ("c",), "d": ("d",), "a": ("b",), "b": ("a",)}, "two names may be swapped"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"x": None}, r"^corpus file: domains\.x is null but the experiment has no such domain; it has a, b, c, d$"),
        ({"x": {"rename": "y"}}, r"^corpus file: domains\.x renames 'y' but the experiment has no such domain"),
        ({"x": {"merge": ["a", "y"]}}, r"^corpus file: domains\.x merges 'y' but the experiment has no such domain"),
        ({"x": {"split": {"x1": NEW, "x2": NEW}}}, r"^corpus file: domains\.x is split but the experiment has no such domain"),
        ({"x": {"rename": "a"}, "y": {"rename": "a"}}, r"^corpus file: domains\.y renames 'a', and domains\.x changes 'a' too; a domain is changed once$"),
        ({"x": {"rename": "a"}, "a": None}, r"domains\.a is null, and domains\.x changes 'a' too"),
        ({"b": {"rename": "a"}}, r"^corpus file: domains\.b is in the experiment already; choose another name"),
        ({"a": NEW}, r"^corpus file: domains\.a is in the experiment already"),
        ({"a": {"split": {"n": NEW, "b": NEW}}}, r"^corpus file: domains\.b is in the experiment already"),
        ({"n": NEW, "a": {"split": {"n": NEW, "m": NEW}}}, r"^corpus file: domains\.a: two new domains are called 'n'"),
        ({"x": {"merge": ["a", "b"]}, "c": {"split": {"x": NEW, "y": NEW}}}, r"^corpus file: domains\.x is in the experiment already"),
        ({"x": {"merge": ["a"]}}, r"merge needs two domains or more, each once"),
        ({"x": {"merge": ["a", "a"]}}, r"merge needs two domains or more, each once"),
        ({"a": {"split": {"x": NEW}}}, r"split needs two parts or more"),
        ({"x": {"rename": "a", "files": ["x"]}}, r"give one of files, huggingface, rename, merge and split"),
        ({"x": {"rename": "a", "heldout": ["x"]}}, r"heldout is for new text"),
        ({"x": {"files": ["x"], "heldout_split": "test"}}, r"heldout_split is a split of the huggingface data set"),
        ({"x": {}}, r"give one of files, huggingface, rename, merge and split"),
        ({"x": {"renamed": "a"}}, r"domains\.x\.renamed: unknown key .*did you mean 'rename'"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        arranged(changes)
    assert "\n" not in str(refused.value)


def test_a_renamed_domain_keeps_its_embedding_and_its_weight(embeddings: Embeddings) -> None:
    kept = arranged({"bee": {"rename": "b"}}).kept
    moved = rearranged(embeddings, kept, TOKENS)
    assert moved.names == ("a", "c", "d", "bee") and moved.group_counts.dtype == np.int64
    plain, renamed = (Chameleon(bootstrap_draws=20).weigh(each) for each in (embeddings, moved))
    assert renamed.weights["bee"] == pytest.approx(plain.weights["b"], abs=1e-12) and renamed.weights["a"] == pytest.approx(plain.weights["a"], abs=1e-12)


def test_a_merged_domain_is_the_mean_by_how_much_text_there_is(embeddings: Embeddings) -> None:
    kept = arranged({"ab": {"merge": ["a", "b"]}}).kept
    moved = rearranged(embeddings, kept, TOKENS)
    means, place = embeddings.means, moved.names.index("ab")
    assert np.abs(moved.means[place] - (0.25 * means[0] + 0.75 * means[1])).max() < 1e-12
    assert np.abs(moved.means[moved.names.index("c")] - means[2]).max() == 0
    assert moved.group_counts[place].sum() == pytest.approx(512)
    alike = [replace(noisy_embeddings(dict.fromkeys("ab", np.zeros(400)), 256, 1.0, seed)) for seed in range(8)]
    noise = [noise_of(rearranged(each, {"ab": ("a", "b")}, TOKENS), [0])[0] for each in alike]
    assert np.mean(noise) == pytest.approx(400 * (0.25**2 + 0.75**2) / 256, rel=0.1), "the noise of both, each by its share"
    apart = noisy_embeddings({"a": np.zeros(400), "b": np.full(400, 50.0)}, 256, 1.0)
    assert noise_of(rearranged(apart, {"ab": ("a", "b")}, TOKENS), [0])[0] < 2 * np.mean(noise), "that they differ from each other is no noise"
    both = Chameleon(bootstrap_draws=20).weigh(Embeddings.concat([moved, noisy_embeddings({"new": rng("new").standard_normal(6)}, 64, 0.5)]))
    assert both.weights_stderr and all(error > 0 for error in both.weights_stderr.values())


def test_how_much_text_a_merged_domain_has_must_be_known(embeddings: Embeddings) -> None:
    with pytest.raises(UserError, match=r"domains\.ab: how much text there is of 'b' is not known, so that it cannot be merged"):
        rearranged(embeddings, {"ab": ("a", "b")}, {"a": 100.0})


def test_quality_and_size_of_merged_domains() -> None:
    texts = {"a": TextQuality(2.0, 0.1, 0.5, 100), "b": TextQuality(4.0, 0.3, 0.7, 300)}
    found = merged_quality(texts, ("a", "b"), {"a": 0.25, "b": 0.75})
    assert found and (found.compression, found.repeated, found.structure, found.sample_bytes) == pytest.approx((3.5, 0.25, 0.65, 400))
    assert merged_quality(texts, ("a", "z"), {"a": 0.25, "z": 0.75}) is None
    assert merged_size([DomainSize(100, 10, 10.0), DomainSize(300, 10, 30.0)]) == DomainSize(400, 20, 20.0)


def counts(text_bytes: int, excerpt: Excerpt | None = None) -> DomainCounts:
    train, held_out = SplitCounts(1, 10, text_bytes // 2, (1,)), SplitCounts(1, 10, 40, (1,))
    return DomainCounts(train, held_out, held_out, text_bytes, 0, {}, 1.0, excerpt=excerpt)


def test_how_much_text_there_is_without_what_is_held_out_from_elsewhere() -> None:
    assert train_bytes(counts(1000), False) == TextBytes(1000.0) and train_bytes(counts(1000), True) == TextBytes(500.0)
    assert train_bytes(replace(counts(1000), duplicates=2), True) == TextBytes(500.0, copies=1000.0)
    assert train_bytes(counts(50, Excerpt(50, 2, 10, 1_000_000.0, 250_000.0, 25_000.0)), True) == TextBytes(1e6, 1e5)
    assert train_bytes(counts(50, Excerpt(50, 2, 10, None, None, None)), False) == TextBytes(None)


def test_what_is_never_trained_on_is_no_new_domain() -> None:
    corpus = CorpusConfig.model_validate({"domains": {"a": {"files": ["a"]}, "b": {"files": ["b"]}}, "targets": {"mine": {"files": ["m"]}}})
    for changes, place in (
        ({"mine": {"files": ["x"]}}, "domains.mine"),
        ({"mine": {"rename": "a"}}, "domains.mine"),
        ({"b": {"split": {"b1": {"files": ["m"]}, "b2": {"files": ["y"]}}}}, "domains.b.split.b1"),
    ):
        arrangement = Arrangement.of(CorpusChanges.model_validate({"domains": changes}).domains, ("a", "b"))
        with pytest.raises(UserError, match=f"^corpus file: {place} is corpus.targets.mine of the experiment, which is never trained on; leave one out$"):
            check_targets(arrangement, corpus)


def test_a_split_covers_its_parent() -> None:
    whole = TextBytes(1e6)
    assert check_covered("a", whole, {"a1": TextBytes(6e5), "a2": TextBytes(4.1e5)}) is None
    with pytest.raises(UserError, match=r"^corpus file: domains\.a: its parts \(a1, a2\) have 0\.7 MB of text and it has 1; a split covers its parent"):
        check_covered("a", whole, {"a1": TextBytes(6e5), "a2": TextBytes(1e5)})
    assert check_covered("a", TextBytes(9e5, copies=1e5), {"a1": TextBytes(6e5), "a2": TextBytes(4e5)}) is None, "copies are counted on one side only"
    sampled = TextBytes(1.2e6, 1e5)
    assert check_covered("a", sampled, {"a1": TextBytes(6e5), "a2": TextBytes(4e5)}) is None, "an estimate within its error"
    with pytest.raises(UserError, match="a split covers its parent"):
        check_covered("a", sampled, {"a1": TextBytes(3e5), "a2": TextBytes(1e5)})
    told = check_covered("a", TextBytes(None), {"a1": TextBytes(6e5), "a2": TextBytes(4e5)})
    assert told is not None and told.startswith("Whether the parts of a (a1, a2) have as much text as it has cannot be told")


def test_what_a_change_took_is_what_was_not_there_before(tmp_path: Any) -> None:
    mixture = Mixture("chameleon", {"a": 1.0}, ledger={"old": Cost(100, 5.0, 1.0, 6.0), "new": Cost(10, 0.5, 0.1, 0.6)}, there_before=("old",))
    assert mixture.extra == Cost(10, 0.5, 0.1, 0.6) and mixture.cost.tokens == 110
    mixture.save(str(tmp_path / "mixture.json"))
    assert Mixture.load(str(tmp_path / "mixture.json")) == mixture


def test_fits_with_several_seeds_have_all_that_was_there_before() -> None:
    fits = [
        Mixture(
            "chameleon",
            {"a": 1.0},
            ledger={f"old {seed}": Cost(100, 5.0), f"new {seed}": Cost(10, 0.5)},
            there_before=(f"old {seed}",),
            provenance={"embedded_rows": {"a": 7}},
        )
        for seed in (0, 1)
    ]
    assert averaged(fits).extra == Cost(20, 1.0) and averaged(fits).provenance["embedded_rows"] == {"a": 14}
    assert averaged([fits[0], fits[0]]).provenance["embedded_rows"] == {"a": 7}, "what two fits share was embedded once"


def test_a_name_that_is_given_twice_is_told(tmp_path: Any) -> None:
    (tmp_path / "changes.yaml").write_text("domains: {x: {rename: a}, x: {rename: b}}")
    with pytest.raises(UserError, match=r"x.*given twice"):
        load_changes(str(tmp_path / "changes.yaml"))
