"""The scale-free form against its definition, written out with explicit inverses, and against what it promises of copies, parts, noise and priors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.formula import Temperature
from chameleon_ray.mixing.krls import Ridge
from chameleon_ray.mixing.noise import noise_of, num_documents, reliability
from chameleon_ray.mixing.simplex import effective_number
from tests.fakes import make_context, noisy_embeddings, rng

stages = st.sampled_from(["pretrain", "finetune"])
seeds = st.integers(0, 1000)


def drawn(k: int, p: int = 12, noise: float = 0.3, seed: int = 0) -> Embeddings:
    """k domains that share a direction and differ in the rest, with noisy samples."""
    return noisy_embeddings({f"d{i:02}": 2.0 + rng(f"d{i}", seed).standard_normal(p) for i in range(k)}, 96, noise, seed)


def shares(names: tuple[str, ...], seed: int = 0) -> dict[str, float]:
    values = np.random.default_rng(seed).dirichlet(np.ones(len(names)))
    values[-1] = 1 - values[:-1].sum()
    return dict(zip(names, values.tolist(), strict=True))


def defined(embeddings: Embeddings, prior: Mapping[str, float], method: Chameleon) -> dict[str, float]:
    """alpha as METHODS defines it: s_i = delta_i^T (M + lam I)^-1 delta_i and so on, with p x p inverses and no care for rounding."""
    formula, x = method.formula, embeddings.means
    pi = np.array([prior[name] for name in embeddings.names])
    delta = x - pi @ x if formula.center else x
    moment = (pi[:, None] * delta).T @ delta
    energy = np.trace(moment)
    s = np.einsum("kp,pq,kq->k", delta, np.linalg.inv(moment + formula.ridge.energy * energy * np.eye(x.shape[1])), delta)
    d = pi @ s
    e = []
    for sums, counts, mean in zip(embeddings.group_sums, embeddings.group_counts, x, strict=True):
        filled = [g for g, count in enumerate(counts) if count]
        off = sum(((sums[g] - counts[g] * mean) ** 2).sum() for g in filled)
        e.append(len(filled) / (len(filled) - 1) * off / counts.sum() ** 2)
    r = 1 - pi @ np.array(e) / energy if formula.noise else 1.0
    f = d * (formula.floor + (1 - r) / r)
    ratio, t = (d + f) / (s + f), formula.temperature.relative
    z = ratio / t if formula.stage == "pretrain" else np.minimum(1 / ratio, formula.cap or math.inf) / t
    alpha = pi * np.exp(z - z.max())
    return dict(zip(embeddings.names, (alpha / alpha.sum()).tolist(), strict=True))


@settings(deadline=None, max_examples=40)
@given(seed=seeds, k=st.integers(3, 9), p=st.integers(2, 12), stage=stages, center=st.booleans(), noise=st.booleans(), even=st.booleans())
def test_weights_are_as_defined(seed: int, k: int, p: int, stage: str, center: bool, noise: bool, even: bool) -> None:
    embeddings = drawn(k, p, 0.3, seed)
    prior = dict.fromkeys(embeddings.names, 1 / k) if even else shares(embeddings.names, seed)
    method = Chameleon(stage=stage, center=center, noise=noise, floor=0.1, prior="uniform" if even else prior, bootstrap_draws=0)
    assert method.weigh(embeddings).weights == pytest.approx(defined(embeddings, prior, method), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("k, p", [(5, 9), (9, 5)])
def test_matching_constants_give_the_paper_s_formula(stage: str, k: int, p: int) -> None:
    embeddings = drawn(k, p)
    paper = Chameleon(variant="paper", stage=stage).weigh(embeddings)
    d, trace = paper.details["effective_dimension"], float((embeddings.means**2).sum())
    # lam = rho tr(Omega) / k; tau = k t / d (pretraining), t d / k (finetuning)
    rho, t = 10 * k / trace, (5 * d / k if stage == "pretrain" else 0.2 * k / d)
    same = (
        Chameleon(stage=stage, center=False, noise=False, floor=0, cap=1e9, ridge=Ridge(energy=rho), temperature=Temperature(relative=t))
        if (stage == "finetune")
        else Chameleon(center=False, noise=False, floor=0, ridge=Ridge(energy=rho), temperature=Temperature(relative=t))
    )
    assert same.weigh(embeddings).weights == pytest.approx(paper.weights, abs=1e-12)
    assert same.weigh(embeddings).scores == pytest.approx(paper.scores, abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, log_scale=st.floats(-6, 6), stage=stages, even=st.booleans())
def test_the_scale_of_the_embeddings_does_not_matter(seed: int, log_scale: float, stage: str, even: bool) -> None:
    embeddings = drawn(6, seed=seed)
    method = Chameleon(stage=stage, prior="uniform" if even else shares(embeddings.names, seed), bootstrap_draws=20)
    scaled = replace(embeddings, group_sums=10**log_scale * embeddings.group_sums)
    first, second = method.weigh(embeddings), method.weigh(scaled)
    assert second.weights == pytest.approx(first.weights, abs=1e-10)
    assert second.weights_stderr == pytest.approx(first.weights_stderr, rel=1e-6)
    assert second.details["reliability"] == pytest.approx(first.details["reliability"])


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("even", [True, False])
def test_neither_further_dimensions_nor_a_rotation_matter(stage: str, even: bool) -> None:
    embeddings = drawn(7, 9)
    method = Chameleon(stage=stage, prior="uniform" if even else shares(embeddings.names), bootstrap_draws=20)
    turn = np.linalg.qr(rng("turn").standard_normal((40, 40)))[0][:9]  # [9, 40] with orthonormal rows
    wide = replace(embeddings, group_sums=embeddings.group_sums @ turn)
    first, second = method.weigh(embeddings), method.weigh(wide)
    assert second.weights == pytest.approx(first.weights, abs=1e-11)
    assert second.weights_stderr == pytest.approx(first.weights_stderr, rel=1e-7)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_the_whole_set_change_no_group_s_weight(stage: str, copies: int) -> None:
    embeddings = drawn(6, 10)
    method = Chameleon(stage=stage, bootstrap_draws=0)
    once = method.weigh(embeddings)
    again = method.weigh(Embeddings.concat([renamed(embeddings, f"copy {i} of ") for i in range(copies)]))
    for name, weight in once.weights.items():
        assert sum(again.weights[f"copy {i} of {name}"] for i in range(copies)) == pytest.approx(weight, abs=1e-12)
    assert again.details["reliability"] == pytest.approx(once.details["reliability"])
    assert again.details["effective_dimension"] == pytest.approx(once.details["effective_dimension"])


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("center", [True, False])
def test_parts_that_share_a_prior_change_nothing_else(stage: str, center: bool) -> None:
    embeddings = drawn(5, 8)
    prior = shares(embeddings.names, 3)
    parts = Embeddings.concat([embeddings, renamed(embeddings.select(["d02"]), "part of "), renamed(embeddings.select(["d02"]), "another part of ")])
    divided = {**prior, "d02": 0.2 * prior["d02"], "part of d02": 0.5 * prior["d02"], "another part of d02": 0.3 * prior["d02"]}
    whole, found = (Chameleon(stage=stage, center=center, prior=p, bootstrap_draws=0).weigh(e) for p, e in ((prior, embeddings), (divided, parts)))
    assert found.weights["d02"] + found.weights["part of d02"] + found.weights["another part of d02"] == pytest.approx(whole.weights["d02"], abs=1e-12)
    assert found.weights["part of d02"] == pytest.approx(0.5 * whole.weights["d02"], abs=1e-12)
    assert {name: found.weights[name] for name in whole.weights if name != "d02"} == pytest.approx(
        {name: weight for name, weight in whole.weights.items() if name != "d02"}, abs=1e-12
    )


def test_copies_count_once_under_a_shared_prior_and_each_for_itself_under_a_uniform_one() -> None:
    embeddings = drawn(5, 8)
    whole = Chameleon(bootstrap_draws=0).weigh(embeddings)
    copies = Embeddings.concat([embeddings, *(renamed(embeddings.select(["d01"]), f"copy {i} of ") for i in range(9))])
    shared = {name: 0.02 if "d01" in name else 0.2 for name in copies.names}
    found, uniform = (Chameleon(prior=prior, bootstrap_draws=0).weigh(copies) for prior in (shared, "uniform"))
    assert sum(weight for name, weight in found.weights.items() if "d01" in name) == pytest.approx(whole.weights["d01"], abs=1e-12)
    assert sum(weight for name, weight in uniform.weights.items() if "d01" in name) > 2 * whole.weights["d01"]


@settings(deadline=None, max_examples=20)
@given(seed=seeds, stage=stages)
def test_permuting_the_domains_permutes_every_number(seed: int, stage: str) -> None:
    embeddings = drawn(8, 5, seed=seed)
    method = Chameleon(stage=stage, prior=shares(embeddings.names, seed), bootstrap_draws=5)
    permuted = embeddings.select(np.random.default_rng(seed).permutation(embeddings.names).tolist())
    first, second = method.weigh(embeddings), method.weigh(permuted)
    for part in ("weights", "scores", "weights_stderr", "scores_stderr"):
        assert getattr(first, part) == getattr(second, part)
    assert first.details == second.details


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("prior", ["uniform", "tokens", {"only": 1.0}])
def test_one_domain_gets_everything_without_a_warning(stage: str, prior: object) -> None:
    mixture = Chameleon(stage=stage, prior=prior).weigh(noisy_embeddings({"only": np.ones(4)}, 64, 0.3), {"only": 10})
    assert mixture.weights == {"only": 1.0} and mixture.weights_stderr == {"only": 0.0} and mixture.warnings == ()
    json.loads(mixture.to_json())


@pytest.mark.parametrize("prior", ["uniform", {"d00": 0.3, "d01": 0.7}])
def test_two_domains_get_the_prior_with_a_warning(prior: object) -> None:
    mixture = Chameleon(prior=prior).weigh(drawn(2))
    assert mixture.weights == pytest.approx({"d00": 0.5, "d01": 0.5} if prior == "uniform" else prior, abs=1e-15)
    assert mixture.weights_stderr == {"d00": 0.0, "d01": 0.0}
    (warning,) = mixture.warnings
    assert "follows from the prior alone" in warning and "center: false" in warning
    apart = Chameleon(prior=prior, center=False).weigh(drawn(2))
    assert abs(apart.weights["d00"] - mixture.weights["d00"]) > 1e-3


def test_two_domains_with_a_prior_among_others_without_are_two_domains() -> None:
    mixture = Chameleon(prior={"d00": 0.4, "d01": 0, "d02": 0.6}).weigh(drawn(3))
    assert mixture.weights == pytest.approx({"d00": 0.4, "d01": 0.0, "d02": 0.6}, abs=1e-15)
    assert "follows from the prior alone" in mixture.warnings[0]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("p", [4, 30])
def test_a_domain_without_prior_has_a_score_and_no_weight(stage: str, p: int) -> None:
    embeddings = drawn(6, p)
    prior = {**shares(embeddings.names[:5]), "d05": 0.0}
    mixture = Chameleon(stage=stage, prior=prior).weigh(embeddings)
    without = Chameleon(stage=stage, prior=shares(embeddings.names[:5])).weigh(embeddings.select(embeddings.names[:5]))
    assert mixture.weights["d05"] == 0.0 and mixture.weights_stderr["d05"] == 0.0
    assert mixture.scores["d05"] > 0 and math.isfinite(mixture.scores_stderr["d05"])
    assert {name: mixture.weights[name] for name in without.weights} == pytest.approx(without.weights, abs=1e-12)


@pytest.mark.parametrize("floor", [0.1, 0.25, 1.0])
def test_a_domain_exactly_at_the_centre_stays_bounded(floor: float) -> None:
    embeddings = noisy_embeddings({"left": np.array([-1.0, 0]), "middle": np.zeros(2), "right": np.array([1.0, 0]), "up": np.array([0, 0.0])}, 64)
    mixture = Chameleon(floor=floor, bootstrap_draws=0, temperature=Temperature(relative=1)).weigh(embeddings)
    assert mixture.weights["middle"] / mixture.weights["left"] <= math.exp((1 + floor) / floor)
    assert mixture.weights["middle"] == mixture.weights["up"]
    unbounded = Chameleon(floor=0, noise=False, bootstrap_draws=0).weigh(embeddings)
    assert unbounded.weights["left"] == 0


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("prior", ["uniform", "tokens"])
def test_as_noise_grows_the_weights_go_to_the_prior(stage: str, prior: str) -> None:
    means = {f"d{i}": 2.0 + rng(f"d{i}").standard_normal(8) for i in range(5)}
    tokens = {f"d{i}": 10 * (i + 1) for i in range(5)}
    target = {name: 1 / 5 if prior == "uniform" else tokens[name] / 150 for name in means}
    method = Chameleon(stage=stage, prior=prior, bootstrap_draws=0)
    found = [method.weigh(noisy_embeddings(means, 64, noise), tokens) for noise in (0.0, 3.0, 6.0, 100.0)]
    distances = [sum(abs(mixture.weights[name] - target[name]) for name in means) for mixture in found]
    reliabilities = [mixture.details["reliability"] for mixture in found]
    assert distances == sorted(distances, reverse=True) and distances[0] > 0.05
    assert reliabilities == sorted(reliabilities, reverse=True) and reliabilities[0] == pytest.approx(1)
    assert distances[-1] == 0 and reliabilities[-1] == 0
    assert any("mostly noise" in warning for warning in found[-1].warnings) and not any("mostly noise" in warning for warning in found[0].warnings)


def test_a_thousand_equal_domains_stay_effective_and_planted_ones_keep_their_order() -> None:
    # Samples scatter five times as far as the common mean is long, as single rows of one domain do.
    k, p, centre = 1000, 64, rng("centre").standard_normal(64)
    equal = noisy_embeddings({f"slice {i:04}": centre for i in range(k)}, 256, 5.0)
    found = Chameleon(bootstrap_draws=0).weigh(equal)
    assert effective_number(list(found.weights.values())) > 0.95 * k
    planted = {f"planted {i}": centre + size * np.eye(p)[i] * np.linalg.norm(centre) for i, size in enumerate((12, 20, 30, 45))}
    together = Embeddings.concat([equal, noisy_embeddings(planted, 256, 1.0)])
    mixture = Chameleon(bootstrap_draws=0).weigh(together)
    assert mixture.details["reliability"] > 0.9
    order = sorted(planted, key=mixture.weights.__getitem__, reverse=True)
    assert order == list(planted)
    assert max(mixture.weights[name] for name in planted) < min(weight for name, weight in mixture.weights.items() if name not in planted)
    assert effective_number(list(mixture.weights.values())) > 0.95 * k


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_many_domains_with_another_prior_have_error_bars_in_closed_form(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from chameleon_ray.mixing import standard_errors

    embeddings = drawn(60, 10, noise=0.6)
    method = Chameleon(stage=stage, prior=shares(embeddings.names), bootstrap_draws=400)
    drawn_errors = method.weigh(embeddings)
    monkeypatch.setattr(standard_errors, "MAX_BOOTSTRAP_DOMAINS", 10)
    closed = method.weigh(embeddings)
    assert (drawn_errors.provenance["standard_errors"], closed.provenance["standard_errors"]) == ("bootstrap", "delta method")
    for part in ("weights_stderr", "scores_stderr"):
        ratio = np.array([getattr(closed, part)[name] / getattr(drawn_errors, part)[name] for name in embeddings.names])
        assert abs(np.median(ratio) - 1) < 0.1 and ratio.min() > 0.75 and ratio.max() < 1.35


@pytest.mark.parametrize("cap, floor", [(1.3, 1.0), (1.15, 2.0)])
def test_capped_domains_have_the_error_bars_of_their_logits_that_stay(cap: float, floor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from chameleon_ray.mixing import standard_errors

    embeddings = drawn(60, 10, noise=0.3)
    method = Chameleon(stage="finetune", cap=cap, floor=floor, bootstrap_draws=400)
    resampled = method.weigh(embeddings)
    monkeypatch.setattr(standard_errors, "MAX_BOOTSTRAP_DOMAINS", 10)
    closed = method.weigh(embeddings)
    top = max(closed.weights.values())
    capped = [name for name, weight in closed.weights.items() if weight == pytest.approx(top, rel=1e-9)]
    assert 2 <= len(capped) < 60
    ratio = np.array([closed.weights_stderr[name] / resampled.weights_stderr[name] for name in capped])
    assert np.median(ratio) < 1.6, "those at the border leave it in some draws"


def test_noise_that_cannot_be_told_is_said_not_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = drawn(5)
    alone = Embeddings(embeddings.names, embeddings.group_sums[:, :1], embeddings.group_counts[:, :1], 1, {})
    mixture = Chameleon().weigh(alone)
    assert "reliability" not in mixture.details and not any("noise" in sentence for sentence in mixture.explanation)
    assert any("cannot be told" in warning for warning in mixture.warnings)
    json.loads(mixture.to_json())


def test_what_the_prior_says_by_itself_is_what_orthogonal_domains_get() -> None:
    sizes = np.array([0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02])
    names = tuple("abcdefg")
    embeddings = noisy_embeddings({name: 3.0 * np.eye(7)[i] for i, name in enumerate(names)}, 64)
    for center, stage in ((True, "pretrain"), (False, "pretrain"), (True, "finetune"), (False, "finetune")):
        method = Chameleon(stage=stage, center=center, prior=dict(zip(names, sizes.tolist(), strict=True)), bootstrap_draws=0)
        mixture = method.weigh(embeddings)
        assert mixture.details["structureless"] == pytest.approx(mixture.weights, abs=1e-12)
    mixture = Chameleon(prior=dict(zip(names, sizes.tolist(), strict=True)), floor=0.25, temperature=Temperature(relative=1)).weigh(embeddings)
    assert mixture.weights["a"] == pytest.approx(0.598, abs=0.001) and mixture.weights["g"] == pytest.approx(0.011, abs=0.001)
    assert "structureless" not in Chameleon().weigh(embeddings).details


def test_tokens_as_the_prior_are_those_of_the_corpus() -> None:
    context = make_context({"a": 10, "b": 20, "c": 70})
    mixture = Chameleon(prior="tokens").fit(context)
    assert mixture.details["prior"] == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.7})
    by_name = Chameleon(prior={"a": 0.1, "b": 0.2, "c": 0.7}).fit(context)
    assert mixture.weights == pytest.approx(by_name.weights, abs=1e-12)
    with pytest.raises(UserError, match="prior: tokens needs the domains' train tokens"):
        Chameleon(prior="tokens").weigh(drawn(3))


@pytest.mark.parametrize(
    "prior, told",
    [
        ({"d00": 0.5, "d01": 0.5}, "prior: 'd02' has no share; give one share for each of d00, d01, d02"),
        (shares(("d00", "d01", "d02", "x")), "'x' is no domain"),
    ],
)
def test_a_prior_over_other_domains_is_refused(prior: dict[str, float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Chameleon(prior=prior).weigh(drawn(3))


def test_a_prior_over_other_domains_is_refused_before_anything_is_trained() -> None:
    context = make_context({"a": 10, "b": 20, "c": 70})
    with pytest.raises(UserError, match=r"methods\.label\.prior: 'x' is no domain"):
        Chameleon(prior={"a": 0.5, "b": 0.2, "c": 0.2, "x": 0.1}).fit(context)
    assert context.backend.jobs == []


WRONG = (
    *({"prior": prior} for prior in ({"a": 0.5}, {"a": -0.5, "b": 1.5}, "size")),
    {"floor": -1},
    *({"cap": 2}, {"cap": 0, "stage": "finetune"}, {"cap": 3, "stage": "finetune", "variant": "paper"}),
)


@pytest.mark.parametrize("fields", WRONG)
def test_wrong_settings_are_refused(fields: dict) -> None:
    with pytest.raises((ValidationError, UserError)):
        Chameleon(**fields)


def test_noise_of_a_domain_of_one_document_is_that_of_a_document_of_the_others() -> None:
    embeddings = drawn(4, noise=0.5)
    plain = noise_of(embeddings, range(4))
    counts, sums = embeddings.group_counts.copy(), embeddings.group_sums.copy()
    counts[2, 1:], sums[2, 1:] = 0, 0
    found = noise_of(replace(embeddings, group_counts=counts, group_sums=sums), range(4))
    assert found[2] == pytest.approx(np.mean([96 * plain[i] for i in (0, 1, 3)])) and found[2] > 10 * found[0]
    assert found[[0, 1, 3]].tolist() == plain[[0, 1, 3]].tolist()  # they have documents enough
    alone = Embeddings(embeddings.names, sums[:, :1], counts[:, :1], 1)
    assert np.isnan(noise_of(alone, range(4))).all()


def test_two_documents_that_happen_to_be_alike_are_not_taken_for_certainty() -> None:
    counts = np.zeros((9, 32), np.int64)
    sums = np.zeros((9, 32, 6))
    for i in range(9):
        generator = rng(f"domain {i}")
        filled = [0, 1] if i == 0 else generator.choice(32, 12, replace=False)
        counts[i, filled] = 4
        sums[i, filled] = 4 * generator.standard_normal((len(filled), 6))
    sums[0, 1] = sums[0, 0]
    found = noise_of(Embeddings(tuple("abcdefghi"), sums, counts, 1, {}), range(9))
    # One degree of freedom says nothing, 1.9 say what a document's mean is off by in the other domains: 6 in six dimensions.
    assert found[0] == pytest.approx(1.875 / 2.875 * 6 / num_documents(counts)[0], rel=0.4)
    assert found[1:].mean() == pytest.approx(6 / num_documents(counts)[1:].mean(), rel=0.3)


def test_documents_are_counted_by_the_groups_that_they_fill() -> None:
    generator = np.random.default_rng(0)
    for documents in (2, 10, 40):
        counts = np.stack([np.bincount(generator.integers(0, 32, documents), minlength=32) for _ in range(400)])
        # Twice as many documents in one group as in another count like a long one: a little fewer than there are.
        assert 0.75 * documents < num_documents(3 * counts).mean() < 1.1 * documents
    one, all_filled = np.eye(32, dtype=np.int64)[:1], np.full((1, 32), 5)
    assert num_documents(one).tolist() == [1] and num_documents(all_filled).tolist() == [160]


def test_reliability_is_one_less_the_share_of_noise_in_the_energy() -> None:
    assert reliability(np.array([1.0, 3.0]), 8.0) == 0.75
    assert reliability(np.array([1.0, 3.0]), 8.0, np.array([0.75, 0.25])) == pytest.approx(1 - 1.5 / 8)
    assert reliability(np.array([1.0, 3.0]), 1.0) == 0 and reliability(np.zeros(2), 0.0) == 0


def test_weights_say_what_made_and_drove_them() -> None:
    means = {"left": [4.0, 0, 0], "leftish": [3.5, 0.5, 0], "middle": [0.3, 0, 0.2], "right": [-4.0, 0, 0.1], "odd": [0, 5.0, -4.0]}
    embeddings = noisy_embeddings({name: np.array(mean) for name, mean in means.items()}, 96, 0.3)
    made, drove, closest, sure = Chameleon().weigh(embeddings).explanation
    assert made == "Variant calibrated, weights for pretraining."
    up, down = drove.split("; ")
    assert up.startswith("Against a uniform share middle (") and up.endswith(" gains, since it lies near the middle of all domains, where others explain it")
    assert down.startswith("odd (") and down.endswith(" lose, since they stand apart, where little explains them.")
    assert "left and leftish (cosine 0.9" in closest
    assert "noise of the samples" in sure and "(standard errors)" in sure
    made, drove, *_ = Chameleon(stage="finetune", prior={**dict.fromkeys(means, 0.1), "odd": 0.6}, floor=0.5).weigh(embeddings).explanation
    assert made == "Variant calibrated, weights for finetuning, with {prior: by name, floor: 0.5}."
    assert drove.startswith("Against the prior ") and "odd (" in drove.split("; ")[-1], "with most of the prior it is the middle itself"
    paper = Chameleon(variant="paper", bootstrap_draws=0).weigh(embeddings).explanation
    assert paper[0] == "Variant paper, weights for pretraining." and not any("noise" in sentence for sentence in paper)
    assert Chameleon().weigh(drawn(2)).explanation == ("Variant calibrated, weights for pretraining.",)


def renamed(embeddings: Embeddings, prefix: str) -> Embeddings:
    return replace(embeddings, names=tuple(prefix + name for name in embeddings.names))
