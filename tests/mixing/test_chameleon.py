"""Chameleon's weights against small examples worked out from first principles, and its error bars against Monte Carlo."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from chameleon_ray.artifacts import Cost, Embeddings
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.formula import Temperature
from chameleon_ray.mixing.krls import Ridge
from chameleon_ray.mixing.simplex import effective_number
from chameleon_ray.mixing.text_quality import GLANCE_TOKENS
from tests.fakes import make_context, noisy_embeddings, rng

PAPER = {"variant": "paper"}
RELATIVE = {**PAPER, "ridge": Ridge(relative=1.0), "temperature": Temperature(relative=0.7)}


def exact(**vectors: list[float]) -> Embeddings:
    """Embeddings without noise."""
    return noisy_embeddings({name: np.array(vector, dtype=float) for name, vector in vectors.items()}, samples=64)


def spread(k: int, p: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """k domain means that share a direction and differ in the rest."""
    return {f"d{i}": 1.0 + rng(f"d{i}", seed).standard_normal(p) for i in range(k)}


def exponentials(logits: dict[str, float]) -> dict[str, float]:
    total = sum(math.exp(z) for z in logits.values())
    return {name: math.exp(z) / total for name, z in logits.items()}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_two_domains_by_hand_paper(stage: str) -> None:
    # a = (3, 1), b = (1, 2): Omega = [[10, 5], [5, 5]], k lam = 2 * 10 = 20, Omega + 20 I = [[30, 5], [5, 25]] with determinant 725
    # and inverse [[25, -5], [-5, 30]] / 725; S_a = (10*25 - 5*5) / 725 = 225/725, S_b = (5*30 - 5*5) / 725 = 125/725.
    mixture = Chameleon(variant="paper", stage=stage).weigh(exact(a=[3, 1], b=[1, 2]))
    assert mixture.scores == pytest.approx({"a": 225 / 725, "b": 125 / 725}, abs=1e-14)
    logits = {"a": 725 / 225 / 5, "b": 725 / 125 / 5} if stage == "pretrain" else {"a": 225 / 725 / 0.2, "b": 125 / 725 / 0.2}
    assert mixture.weights == pytest.approx(exponentials(logits), abs=1e-14)


def test_three_domains_by_hand_released() -> None:
    # a = (0, 0, 1), b = (3, 0, 1), c = (0, 6, 1) have the mean row (1, 2, 1); centred: (-1, -2, 0), (2, -2, 0), (-1, 4, 0).
    gram = [[5, 2, -7], [2, 8, -10], [-7, -10, 17]]
    shifted = [[Fraction(gram[i][j] + (30 if i == j else 0)) for j in range(3)] for i in range(3)]  # k lam = 3 * 10

    def minor(i: int, j: int) -> Fraction:
        (r, s), (u, v) = ([x for x in range(3) if x != i], [y for y in range(3) if y != j])
        return shifted[r][u] * shifted[s][v] - shifted[r][v] * shifted[s][u]

    determinant = sum((-1) ** j * shifted[0][j] * minor(0, j) for j in range(3))
    raw = [sum(gram[i][j] * (-1) ** (i + j) * minor(i, j) for j in range(3)) / determinant for i in range(3)]
    scores = dict(zip("abc", (float(value / sum(raw)) for value in raw), strict=True))
    mixture = Chameleon(variant="released").weigh(exact(a=[0, 0, 1], b=[3, 0, 1], c=[0, 6, 1]))
    assert mixture.scores == pytest.approx(scores, abs=1e-14)
    assert mixture.weights == pytest.approx(exponentials({name: 1 / (5 * score) for name, score in scores.items()}), abs=1e-13)
    assert mixture.details["effective_dimension"] == pytest.approx(float(sum(raw)), abs=1e-14)
    assert mixture.details["ridge"] == 10 and mixture.details["temperature"] == 5


def test_three_domains_by_hand_released_in_one_dimension() -> None:
    # More domains than dimensions. Centred embeddings -1, -1, 2: Omega has the one eigenvalue 6, so S_i = y_i^2 / (6 + 30); normalised 1/6, 1/6, 4/6.
    mixture = Chameleon(variant="released").weigh(exact(a=[0], b=[0], c=[3]))
    assert mixture.scores == pytest.approx({"a": 1 / 6, "b": 1 / 6, "c": 4 / 6}, abs=1e-14)
    assert mixture.weights == pytest.approx(exponentials({"a": 6 / 5, "b": 6 / 5, "c": 6 / 20}), abs=1e-14)


@pytest.mark.parametrize("variant", ["calibrated", "paper", "released"])
def test_one_domain(variant: str) -> None:
    mixture = Chameleon(variant=variant).weigh(exact(only=[1, 2, 3]))
    assert mixture.weights == {"only": 1.0}
    assert mixture.warnings == ()
    json.loads(mixture.to_json())


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    k=st.integers(1, 20),
    variant=st.sampled_from(["calibrated", "paper", "released"]),
    stage=st.sampled_from(["pretrain", "finetune"]),
)
def test_simplex_and_permutation_for_every_preset(seed: int, k: int, variant: str, stage: str) -> None:
    embeddings = noisy_embeddings(spread(k, 8, seed), 64, 0.2, seed)
    method = Chameleon(variant=variant, stage=stage, bootstrap_draws=3)
    permuted = embeddings.select(np.random.default_rng(seed).permutation(embeddings.names).tolist())
    first, second = method.weigh(embeddings), method.weigh(permuted)
    assert abs(math.fsum(first.weights.values()) - 1) < 1e-12
    assert tuple(second.weights) == permuted.names
    for part in ("weights", "scores", "weights_stderr", "scores_stderr"):
        assert getattr(first, part) == getattr(second, part)


@pytest.mark.parametrize("fields", [{}, {"stage": "finetune"}, {"variant": "released"}, PAPER, {**PAPER, "stage": "finetune"}, RELATIVE])
def test_duplicated_domains_tie(fields: dict) -> None:
    means = spread(5)
    mixture = Chameleon(**fields).weigh(noisy_embeddings({**means, "copy": means["d2"]}, 64))
    assert mixture.weights["copy"] == pytest.approx(mixture.weights["d2"], abs=1e-12)
    assert mixture.scores["copy"] == pytest.approx(mixture.scores["d2"], abs=1e-12)


def test_a_large_ridge_leaves_the_squared_norms() -> None:
    means = spread(5)
    mixture = Chameleon(variant="paper", ridge=Ridge(absolute=1e12), temperature=Temperature(relative=1)).weigh(noisy_embeddings(means, 64))
    expected = {name: float(mean @ mean) / (5 * 1e12) for name, mean in means.items()}
    assert mixture.scores == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("stage, absolute, relative", [("pretrain", 5.0, 0.7), ("finetune", 0.2, 1.4)])
def test_relative_temperatures_reproduce_the_constants_at_seven_domains(stage: str, absolute: float, relative: float) -> None:
    embeddings = noisy_embeddings(spread(7), 64)
    fields = {"variant": "paper", "stage": stage, "normalize": True, "ridge": Ridge(relative=1.0), "bootstrap_draws": 0}
    given_, same = (Chameleon(temperature=Temperature(**t), **fields).weigh(embeddings) for t in ({"absolute": absolute}, {"relative": relative}))
    assert same.details["temperature"] == pytest.approx(absolute, rel=0.021)
    assert same.weights == pytest.approx(given_.weights, abs=0.01)
    exactly = 5 / 7 if stage == "pretrain" else 1.4
    assert Chameleon(temperature=Temperature(relative=exactly), **fields).weigh(embeddings).weights == pytest.approx(given_.weights, abs=1e-13)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_relative_temperature_ignores_normalisation(stage: str) -> None:
    embeddings = noisy_embeddings(spread(6), 64)
    plain, normalised = (Chameleon(stage=stage, normalize=choice, **RELATIVE).weigh(embeddings) for choice in (False, True))
    assert plain.weights == pytest.approx(normalised.weights, abs=1e-13)


def test_relative_settings_ignore_the_scale_of_the_embeddings() -> None:
    embeddings = noisy_embeddings(spread(6), 64, 0.2)
    scaled = replace(embeddings, group_sums=1e4 * embeddings.group_sums)
    first, second = (Chameleon(**RELATIVE).weigh(each) for each in (embeddings, scaled))
    assert second.weights == pytest.approx(first.weights, abs=1e-12)
    assert second.weights_stderr == pytest.approx(first.weights_stderr, rel=1e-9)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("temperature", [None, Temperature(relative=1)])
def test_identical_domains_are_uniform_with_a_warning(stage: str, temperature: Temperature | None) -> None:
    method = Chameleon(variant="released", stage=stage, temperature=temperature)
    mixture = method.weigh(exact(a=[0.1, 0.7], b=[0.1, 0.7], c=[0.1, 0.7]))
    assert mixture.weights == pytest.approx(dict.fromkeys("abc", 1 / 3), abs=1e-15)
    assert any("same embedding" in warning for warning in mixture.warnings)
    json.loads(mixture.to_json())


def test_a_domain_at_the_centre_takes_everything() -> None:
    # S = 0 for the middle domain: softmax(1 / (S tau)) tends to all of the weight, which is a warning and not a NaN.
    mixture = Chameleon(variant="released").weigh(exact(left=[-1, 0], middle=[0, 0], right=[1, 0]))
    assert mixture.weights == {"left": 0.0, "middle": 1.0, "right": 0.0}
    assert "collapse" in mixture.warnings[0]


def test_warning_when_scores_saturate() -> None:
    scores_warn, weights_warn = Chameleon(variant="paper", ridge=Ridge(absolute=1e-7)).weigh(noisy_embeddings(spread(5), 64)).warnings
    assert "far below the spectrum" in scores_warn and "variant: calibrated" in scores_warn
    assert "nearly uniform" in weights_warn


def test_warning_when_norms_are_equal_under_a_large_ridge() -> None:
    first, _ = Chameleon(variant="paper", ridge=Ridge(absolute=1e7), temperature=Temperature(relative=1)).weigh(exact(a=[1, 0], b=[0, 1], c=[-1, 0])).warnings
    assert "hardly differ" in first


def test_warning_when_weights_collapse_in_the_released_preset_at_many_domains() -> None:
    means = {name: (0.5 + i / 50) * mean for i, (name, mean) in enumerate(spread(100, 128).items())}
    embeddings = noisy_embeddings(means, 64)
    collapsed, relative = (Chameleon(**{**fields, "variant": "released"}, bootstrap_draws=0).weigh(embeddings) for fields in ({}, RELATIVE))
    assert "collapse" in collapsed.warnings[0] and effective_number(list(collapsed.weights.values())) < 2
    assert relative.warnings == () and 2 < effective_number(list(relative.weights.values())) < 99
    flat = Chameleon(variant="released", stage="finetune", bootstrap_draws=0).weigh(embeddings)
    assert any("nearly uniform" in warning for warning in flat.warnings)


def test_no_warning_for_domains_that_differ() -> None:
    assert Chameleon(**RELATIVE).weigh(noisy_embeddings(spread(7), 64, 0.1)).warnings == ()
    assert Chameleon(**RELATIVE).weigh(exact(a=[3, 1], b=[1, 2])).warnings == ()


def test_a_domain_in_one_hash_group_is_warned_about() -> None:
    embeddings = noisy_embeddings(spread(4), 64, 0.3)
    counts, sums = embeddings.group_counts.copy(), embeddings.group_sums.copy()
    counts[2, 1:], sums[2, 1:] = 0, 0
    mixture = Chameleon(**RELATIVE).weigh(replace(embeddings, group_counts=counts, group_sums=sums))
    assert [warning for warning in mixture.warnings if "'d2'" in warning and "only 1 hash group" in warning]
    assert all(math.isfinite(error) for error in mixture.weights_stderr.values())


def test_many_domains_in_one_hash_group_are_named_up_to_ten() -> None:
    embeddings = noisy_embeddings(spread(13), 64, 0.3)
    counts, sums = embeddings.group_counts.copy(), embeddings.group_sums.copy()
    counts[1:, 1:], sums[1:, 1:] = 0, 0
    found = [each for each in Chameleon(**RELATIVE).weigh(replace(embeddings, group_counts=counts, group_sums=sums)).warnings if "hash group" in each]
    assert len(found) == 11 and found[-1].startswith("2 more domains have samples in only 1 hash group")


def test_empty_hash_groups_do_not_disturb_the_bootstrap() -> None:
    embeddings = noisy_embeddings(spread(4), samples=5, noise=0.3)
    assert (embeddings.group_counts == 0).any()
    mixture = Chameleon(**RELATIVE).weigh(embeddings)
    assert all(0 < error < 1 for error in mixture.weights_stderr.values())


def test_error_bars_shrink_with_the_root_of_the_samples() -> None:
    few, many = (Chameleon(**RELATIVE).weigh(noisy_embeddings(spread(6), samples, 0.5)) for samples in (512, 512 * 16))
    for part in ("scores_stderr", "weights_stderr"):
        ratios = [getattr(few, part)[name] / getattr(many, part)[name] for name in few.weights]
        assert 3 < np.exp(np.mean(np.log(ratios))) < 5.3


@pytest.mark.parametrize(
    "fields", [RELATIVE, {**RELATIVE, "variant": "released"}, {**PAPER, "stage": "finetune", "ridge": Ridge(absolute=1)}, {}, {"stage": "finetune"}]
)
def test_error_bars_match_monte_carlo(fields: dict) -> None:
    means, samples, noise = spread(5), 1024, 0.5
    repeats = [Chameleon(bootstrap_draws=0, **fields).weigh(noisy_embeddings(means, samples, noise, seed)) for seed in range(1, 201)]
    estimate = [Chameleon(**fields).weigh(noisy_embeddings(means, samples, noise, seed)) for seed in range(1, 6)]
    for values, errors in (("weights", "weights_stderr"), ("scores", "scores_stderr")):
        for name in means:
            truth = np.std([getattr(mixture, values)[name] for mixture in repeats], ddof=1)
            found = np.mean([getattr(mixture, errors)[name] for mixture in estimate])
            assert 0.7 < found / truth < 1.4


def test_no_draws_no_error_bars() -> None:
    mixture = Chameleon(bootstrap_draws=0).weigh(noisy_embeddings(spread(3), 64))
    assert mixture.weights_stderr is None and mixture.scores_stderr is None


def test_details_and_provenance() -> None:
    means = spread(4)
    embeddings = noisy_embeddings(means, 64)
    mixture = Chameleon(variant="released", temperature=Temperature(relative=0.5)).weigh(embeddings)
    stacked = np.array([means[name] for name in mixture.details["affinity"]["names"]])
    assert np.array(mixture.details["affinity"]["values"]) == pytest.approx(stacked @ stacked.T, abs=1e-10)
    assert mixture.details["temperature"] == pytest.approx(0.5 * 4)  # normalised scores have mean 1/k
    assert sum(mixture.details["eigenvalues"]) == pytest.approx(((stacked - stacked.mean(axis=0)) ** 2).sum())
    assert mixture.provenance["layer"] == 1 and mixture.provenance["samples"] == dict.fromkeys(means, 64)
    recorded = mixture.provenance["settings"]
    assert recorded["center"] is True and recorded["normalize"] is True and recorded["ridge"]["absolute"] == 10
    assert mixture.ledger == embeddings.ledger


def test_the_variant_only_presets_the_other_fields() -> None:
    embeddings = noisy_embeddings(spread(4), 64)
    released = Chameleon(variant="released").weigh(embeddings)
    assert Chameleon(variant="paper", center=True, normalize=True).weigh(embeddings).weights == released.weights
    assert Chameleon(variant="released", center=False, normalize=False).weigh(embeddings).weights == Chameleon(variant="paper").weigh(embeddings).weights


def test_fit_trains_one_proxy_on_uniform_weights_and_adds_up_the_cost() -> None:
    context = make_context({"a": 10, "b": 20, "c": 5}, seed=3)
    mixture = Chameleon().fit(context)
    (job,) = context.backend.jobs
    assert job.role == "proxy" and job.seed == 3 and job.training == context.proxy
    assert job.weights == dict.fromkeys("abc", 1 / 3)
    (model,) = context.backend.train_many(context.corpus, [job])
    embeddings = context.backend.embed(model, context.corpus, context.embedding)
    seen = context.backend.glance(model, context.corpus, GLANCE_TOKENS)
    assert mixture.cost == model.cost + embeddings.ledger["embeddings"] + seen.cost != Cost()
    assert mixture.weights == Chameleon().weigh(embeddings).weights


def test_domains_without_samples_or_embedded_twice_are_named() -> None:
    embeddings = noisy_embeddings(spread(3), 64)
    counts = embeddings.group_counts.copy()
    counts[1] = 0
    with pytest.raises(UserError, match="'d1'"):
        Chameleon().weigh(replace(embeddings, group_counts=counts))
    with pytest.raises(UserError, match="'d0'.*twice"):
        Chameleon().weigh(Embeddings.concat([embeddings, embeddings.select(["d0"])]))
    sums = embeddings.group_sums.copy()
    sums[2, 5, 0] = np.nan
    with pytest.raises(UserError, match="'d2'.*not finite"):
        Chameleon().weigh(replace(embeddings, group_sums=sums))


@pytest.mark.parametrize("fields", [{"bootstrap_draws": 1}, {"bootstrap_draws": -1}, {"variant": "mine"}, {"temperature": {}}, {"tau": 5}])
def test_wrong_settings_are_refused(fields: dict) -> None:
    with pytest.raises(ValidationError):
        Chameleon(**fields)


def test_finetuning_weights_of_a_proxy_trained_from_scratch_are_refused() -> None:
    told = r"methods\.mine\.stage: finetune, but here a proxy is trained from scratch, and finetuning weights come from .* proxy\.model: \{pretrained: NAME\}"
    with pytest.raises(UserError, match=told):
        Chameleon(stage="finetune").check_settings("mine", make_context({"a": 1}).proxy)
    Chameleon().check_settings("mine", make_context({"a": 1}).proxy)


def test_a_layer_that_the_proxy_does_not_have_is_found_before_it_is_trained() -> None:
    context = make_context({"a": 10, "b": 20})
    context = replace(context, embedding=context.embedding.model_copy(update={"layer": 99}))
    with pytest.raises(UserError, match=r"embedding\.layer: 99, but the proxy has 2 layers; choose 1 to 2, or middle"):
        Chameleon().fit(context)
    assert context.backend.jobs == []


def test_the_number_format_of_embeddings_is_recorded_and_several_are_warned_of() -> None:
    embeddings = noisy_embeddings({name: rng(name).standard_normal(8) for name in "abcd"}, samples=64, noise=0.3)
    one, two = (Chameleon().weigh(replace(embeddings, precisions=formats)) for formats in (("fp32",), ("bf16", "fp32")))
    assert (one.provenance["embedded_in"], two.provenance["embedded_in"]) == ("fp32", "bf16 and fp32")
    told = "Text was embedded in bf16 and fp32, so that embeddings differ by more than their text; set embedding.precision."
    assert told in two.warnings and told not in one.warnings
    beside = replace(noisy_embeddings({"use": rng("use").standard_normal(8)}, samples=64, noise=0.3), precisions=("bf16",))
    aimed = Chameleon(targets={"use": 1.1}).weigh(replace(embeddings, precisions=("fp32",)), others=beside)
    assert aimed.provenance["embedded_in"] == "bf16 and fp32" and told in aimed.warnings, "text that is looked towards counts too"
    assert Embeddings.concat([replace(embeddings.select(["a"]), precisions=("fp32",)), replace(embeddings.select(["b"]), precisions=("bf16",))]).precisions == (
        "bf16",
        "fp32",
    )
