"""A page of a comparison whose mixtures were fitted anew with every seed says so wherever it speaks of fits; any other page says what was fitted once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chameleon_ray.experiment import parse_experiment
from chameleon_ray.report import ReportData
from chameleon_ray.report.content import build_report
from chameleon_ray.report.page import to_markdown
from chameleon_ray.report.verdict import verdict


def experiment_of(fit_every_seed: bool) -> object:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 10}
    corpus = {"domains": {name: {"files": ["a.txt"]} for name in ("books", "code", "news", "web")}}
    return parse_experiment({"name": "x", "seeds": [0, 1, 2], "fit_every_seed": fit_every_seed, "corpus": corpus, "proxy": training, "base": training})


def anew_of(data: ReportData) -> ReportData:
    """The same with fits that differ."""
    return replace(data, mixtures={label: replace(mixture, provenance={**mixture.provenance, "fits": 3}) for label, mixture in data.mixtures.items()})


def test_a_page_says_what_its_intervals_cover(many_methods: Callable[..., ReportData]) -> None:
    asked = many_methods(experiment=experiment_of(True))
    pages = (many_methods(experiment=experiment_of(False)), anew_of(asked), asked)
    once, anew, alike = (" ".join(to_markdown(build_report(data)).split()) for data in pages)
    assert "fits with every seed" not in alike, "of a model that is taken as it is every fit is the same"
    assert "was made once, with the first seed" in once and "Mixtures and the corpus: seed 0." in once
    assert "each was fitted once, with the first seed" in once and "fits with every seed" not in once
    assert "the fit of the mixtures, made anew with every seed" in anew
    assert "Every mixture was fitted anew with every seed, so that other seeds mean other fits too" in anew
    assert "Mixtures: each with the seed of the base model that trains on it; the corpus: seed 0." in anew
    assert "Means over the fits with every seed ± standard error over these fits (its own where they are one, or one is left)" in anew
    assert "A mixture's fits with every seed count together." in anew
    assert "fitted once" not in anew and "made once" not in anew


def test_the_sentence_of_a_single_challenger_says_it_too(many_methods: Callable[..., ReportData]) -> None:
    of_two = {"shifts": {"uniform": 0.0, "chameleon": -0.05}}
    once, anew = (verdict(change(many_methods(**of_two, experiment=experiment_of(change is anew_of)))) for change in (lambda data: data, anew_of))
    assert "over seeds of base models and held-out documents" in once
    assert "over seeds of base models, fits and held-out documents" in anew
