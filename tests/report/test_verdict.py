"""The sentences on top: win, loss, noise, one seed, nothing to compare, and the warnings."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pyarrow as pa

from chameleon_ray.artifacts import DocumentLosses
from chameleon_ray.evaluation.measurements import perplexity_measurements
from chameleon_ray.mixture import Mixture
from chameleon_ray.report.comparison_tables import significance_table
from chameleon_ray.report.verdict import findings, verdict, warnings
from tests.report.conftest import corpus

UNIFORM = [[20, 40], [22, 44], [24, 48]]


def test_win(tested):
    text = verdict(tested({"uniform": UNIFORM, "chameleon": [[18, 38], [20, 42], [22, 46]]}))
    assert text.startswith("Chameleon's mixture gave an average perplexity of 31.0 ± 1.7 against 33.0 ± 1.7 for uniform over 3 seeds: ")
    assert "6.1 % better; better on 2 of 2 domains." in text
    assert "excludes zero" in text
    assert "noise" not in text


def test_loss(tested):
    text = verdict(tested({"uniform": UNIFORM, "chameleon": [[22, 50], [24, 53], [26, 58]]}))
    assert "17.7 % worse; better on 0 of 2 domains." in text
    assert "excludes zero" in text


def test_difference_within_the_noise(tested):
    text = verdict(tested({"uniform": UNIFORM, "chameleon": [[18, 40], [23, 45], [23, 48]]}))
    # differences of the averages: -1, 1, -0.5; mean -1/6, standard error 0.60, t interval -2.75 to 2.42
    assert "0.5 % better, but within the noise; better on 1 of 2 domains." in text
    interval = "its 95 % interval over seeds of base models and held-out documents, −2.8 to 2.4, includes zero."
    assert f"The paired difference is −0.2, and {interval}" in text


def test_one_seed(tested):
    text = verdict(tested({"uniform": [[20, 40]], "chameleon": [[18, 38]]}))
    assert text == (
        "Chameleon's mixture gave an average perplexity of 28.00 against 30.00 for uniform with one seed: 6.7 % better; better on 2 of 2 domains. "
        "The paired difference is −2.000000, and its 95 % interval over held-out documents, −2.000000 to −2.000000, excludes zero. "
        "With one seed, nothing says what another seed would do."
    )


def test_equal_models(tested):
    text = verdict(tested({"uniform": UNIFORM, "chameleon": UNIFORM}))
    assert text.endswith("for uniform over 3 seeds: no difference on any seed; better on 0 of 2 domains.")


def test_without_losses_the_headline_tells_no_noise(make_data):
    text = verdict(make_data({"uniform": UNIFORM, "chameleon": [[18, 38], [20, 42], [22, 46]]}))
    assert text.endswith("6.1 % better; better on 2 of 2 domains. No losses by document are at hand, so nothing tells this difference from noise.")


def test_a_page_has_one_meaning_of_noise(many_methods):
    """Seeds that agree to .001 nats, documents that differ by .1: Student's t over seeds alone would call this significant."""
    names, tokens, losses = ("books", "code"), np.full(10, 100), {}
    taste = np.where(np.arange(10) % 2, 0.1, -0.1)
    for method, shift in (("uniform", 0.0), ("chameleon", -0.02), ("doge", 0.02)):
        for seed, of_run in enumerate((0.0, 0.001, -0.001)):
            nats = tokens * (3 + of_run * (method == "chameleon") + shift + taste * (method != "uniform"))
            losses[method, seed] = {"test": dict.fromkeys(names, DocumentLosses(np.arange(10), nats, tokens))}
    measurements = pa.concat_tables(perplexity_measurements(method, seed, found, corpus(names)) for (method, seed), found in losses.items())
    data = many_methods(names=names, shifts=dict.fromkeys(("uniform", "chameleon", "doge"), 0.0), losses=losses, measurements=measurements)
    assert "2.0 % better, but within the noise; better on 2 of 2 domains." in verdict(data)
    assert "includes zero" in verdict(data)
    assert "2.0 % better than uniform, within the noise;" in findings(data)[0]
    (row,) = (row for row in significance_table(data.differences, "mean_perplexity", data.labels).rows if row[0].text == "chameleon")
    assert not row[1].text.endswith("*")


def test_a_single_document_leaves_the_headline_untested(many_methods):
    data = many_methods()
    for losses in data.losses.values():
        losses["test"]["code"] = DocumentLosses(*(column[:1] for column in astuple(losses["test"]["code"])))
    assert verdict(data).startswith("Chameleon's mixture")
    assert "A domain has a single test document, so nothing tells this difference from noise." in verdict(data)
    assert findings(data)[-1] == "A domain has a single test document, so none of these differences was tested."
    assert not any("significant" in text for text in findings(data))


def test_the_best_of_several_is_named(make_data):
    text = verdict(make_data({"uniform": UNIFORM, "chameleon": [[18, 38]] * 3, "doremi": [[10, 20]] * 3}))
    assert text.startswith("Chameleon's mixture")
    assert text.endswith("The lowest average of all 3 mixtures is that of doremi, 15.00.")


def test_several_methods_get_one_sentence_each_best_first(many_methods):
    found = findings(many_methods())
    assert [text.split(":")[0] for text in found[:4]] == ["doge", "regmix", "chameleon", "doremi"]
    assert found[0].startswith("doge: average perplexity 19.548 ± 0.015, 6.0 % better than uniform, significant; better on 4 of 4 domains")
    assert found[3].startswith("doremi: average perplexity 21.198 ± 0.036, 1.9 % worse than uniform, significant; better on 0 of 4 domains")
    assert found[4].startswith("chameleon loses to doge by 0.418 (95 % interval 0.13 to 0.7")
    assert found[4].endswith("), significant.")
    assert found[5].startswith("chameleon loses to regmix by 0.0171 (95 % interval −0.")
    assert found[5].endswith("), within the noise.")
    assert found[6] == (
        "Significant: the 95 % interval of the difference excludes zero. It covers seeds of base models and held-out documents, "
        "not the fit of the mixtures, which was made once, with the first seed."
    )


def test_one_seed_is_significant_over_documents_only(many_methods):
    found = findings(many_methods(num_seeds=1))
    assert "better than uniform, significant over documents only; better on" in found[0]
    assert found[-1].endswith("with one seed, nothing says what another seed would do.")


def test_a_winner_loses_to_none(many_methods):
    shifts = {"uniform": 0.0, "chameleon": -0.2, "doremi": 0.1}
    assert "chameleon loses to none of the other methods." in findings(many_methods(shifts=shifts))


def test_without_losses_nothing_is_called_significant(many_methods):
    found = findings(many_methods(losses={}))
    assert not any("significant" in text or "noise" in text for text in found)
    assert found[-1] == "No losses by document are at hand, so none of these differences was tested."


def test_one_method_beside_uniform_needs_no_list(make_data):
    assert findings(make_data({"uniform": UNIFORM, "chameleon": [[18, 38]] * 3})) == []


def test_a_chameleon_of_another_label_is_the_headline(many_methods):
    shifts = {"uniform": 0.0, "doremi": 0.03, "leverage": -0.04}
    data = many_methods(shifts=shifts)
    assert verdict(data).startswith("Doremi's mixture")
    named = replace(data.mixtures["leverage"], provenance={"method": "chameleon"})
    assert verdict(replace(data, mixtures={**data.mixtures, "leverage": named})).startswith("Leverage's mixture")


def test_without_a_baseline(make_data):
    text = verdict(make_data({"chameleon": [[18, 38], [20, 40]]}))
    assert text == "Average perplexity: chameleon 29.0 ± 1.0 (2 seeds). The uniform mixture was not evaluated, so there is no baseline to compare with."


def test_uniform_alone_and_nothing_evaluated(make_data):
    assert verdict(make_data({"uniform": [[18, 38]]})) == "Average perplexity: uniform 28.00 (1 seed). There is no other mixture to compare it with."
    assert verdict(make_data({})).startswith("No base model was evaluated")


def test_no_seed_in_common(make_data):
    data = make_data({"uniform": [[20, 40]], "chameleon": [[18, 38]]})
    seeds = [
        seed + 5 * (method == "chameleon") for seed, method in zip(data.measurements["seed"].to_pylist(), data.measurements["method"].to_pylist(), strict=True)
    ]
    text = verdict(replace(data, measurements=data.measurements.set_column(data.measurements.schema.get_field_index("seed"), "seed", [seeds])))
    assert text.endswith("No seed was trained with both chameleon and uniform, so they are not compared.")


def test_warnings_of_mixtures_come_first(make_data):
    mixture = Mixture("chameleon", {"books": 0.5, "code": 0.5}, warnings=("the scores hardly spread",))
    found = warnings(make_data({"uniform": [[20, 40]]}, mixtures={"chameleon": mixture}))
    assert found == ["chameleon: the scores hardly spread"]


def test_models_that_know_no_more_than_frequencies_are_named(make_data):
    # unigram entropy is 7 nats: perplexity 1096.6
    found = warnings(make_data({"uniform": [[20, 40], [20, 1200], [1100, 1300]], "chameleon": [[20, 40]]}))
    assert len(found) == 1
    assert found[0].startswith("uniform, seeds 1, 2: not trained long enough to compare. On 2 of 2 domains")
    assert "books (7.003 against 7.000), code (7.170 against 7.000)" in found[0]


def test_base_models_with_few_tokens_a_parameter_are_told(make_data):
    data = make_data({"uniform": [[20.0, 30.0]], "chameleon": [[19.0, 29.0]]})
    assert not [text for text in warnings(data) if "tokens a parameter" in text]
    short = replace(data, experiment=data.experiment.model_copy(update={"base": data.experiment.base.model_copy(update={"steps": 100})}))
    (told,) = [text for text in warnings(short) if "tokens a parameter" in text]
    assert told.startswith("Base models start from scratch and see 10.0 tokens a parameter: not trained long enough to compare")
    long = data.experiment.base
    (of_one,) = [text for text in warnings(replace(short, bases={"uniform": long})) if "tokens a parameter" in text]
    assert "see 10.0 (chameleon) tokens a parameter" in of_one, "base models of a point are trained as it says"
    assert not [text for text in warnings(replace(short, bases=dict.fromkeys(data.mixtures, long))) if "tokens a parameter" in text]
    assert not warnings(replace(short, measurements=short.measurements.slice(0, 0)))


def test_base_models_in_several_number_formats_are_told(make_data):
    data = make_data({"uniform": [[20.0, 30.0]], "chameleon": [[19.0, 29.0]]})
    assert not [text for text in warnings(replace(data, precisions={("uniform", 0): "fp32", ("chameleon", 0): "fp32"})) if "set base.precision" in text]
    (told,) = [text for text in warnings(replace(data, precisions={("uniform", 0): "fp32", ("chameleon", 0): "bf16"})) if "set base.precision" in text]
    assert told.startswith("Base models were trained in bf16 and fp32 (uniform, seed 0 in fp32, chameleon, seed 0 in bf16), so that they differ")
