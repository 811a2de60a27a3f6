"""What was read in part, and how often domains are read, are tables of the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_ray.config import BudgetConfig
from chameleon_ray.counts import Excerpt
from chameleon_ray.mixing.budget import MANY_EPOCHS
from chameleon_ray.report import corpus_tables, write_report
from chameleon_ray.report.numbers import epoch_numbers
from chameleon_ray.report.verdict import warnings
from tests.report.conftest import corpus

NAMES = ("books", "code")


def test_what_was_read_in_part(make_data, tmp_path: Path) -> None:
    plain = corpus(NAMES)
    known = Excerpt(2_500_000, 12, 3400, 5e11, 1.2e11, 3.4e9)
    unknown = Excerpt(2_500_000, 1, 1, None, None, None)
    sampled = replace(plain, domains={"books": replace(plain.domains["books"], excerpt=known), "code": replace(plain.domains["code"], excerpt=unknown)})
    data = make_data({"uniform": [[20, 40]]}, names=NAMES, corpus=sampled)
    table = corpus_tables.reading_table(data)
    assert table is not None
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["books", "2.50", "0.000500 %", "12 of 3,400", "120,000 ± 3,400"],
        ["code", "2.50", "–", "1 of 1", "–"],
    ]
    write_report(data, str(tmp_path))
    assert "12 of 3,400" in (tmp_path / "report.html").read_text()
    assert corpus_tables.reading_table(make_data({"uniform": [[20, 40]]}, names=NAMES)) is None


def test_epochs_of_the_base_model_where_there_is_no_budget(make_data) -> None:
    data = make_data({"uniform": [[20, 40]], "chameleon": [[20, 40]]}, names=NAMES)
    drawn = data.experiment.base.steps * data.experiment.base.batch_rows
    rows = epoch_numbers(data).to_pylist()
    assert {row["of"] for row in rows} == {"base model"}
    weights = {label: mixture.weights for label, mixture in data.mixtures.items()}
    assert all(row["epochs"] == pytest.approx(weights[row["method"]][row["domain"]] * drawn / 1250) for row in rows)
    shorter = data.experiment.base.model_copy(update={"steps": 100})
    at = replace(data, bases={"chameleon": shorter})
    found = {(row["method"], row["domain"]): row["epochs"] for row in epoch_numbers(at).to_pylist()}
    assert all(found[row["method"], row["domain"]] == pytest.approx(row["epochs"] / (11 if row["method"] == "chameleon" else 1)) for row in rows)
    tokens = drawn * data.corpus.row_tokens
    of_both = corpus_tables.epochs_table(at)
    assert of_both and f"base model of {tokens // 11:,} and {tokens:,} tokens" in of_both.note
    table = corpus_tables.epochs_table(data)
    assert table is not None and "How often a base model of" in table.note


def test_epochs_in_a_budget(make_data) -> None:
    data = make_data({"uniform": [[20, 40]], "chameleon": [[20, 40]]}, names=NAMES)
    asked = replace(
        data,
        experiment=data.experiment.model_copy(update={"budget": BudgetConfig(tokens=10**9)}),
        mixtures={label: replace(mixture, epochs={"books": 12.345}) for label, mixture in data.mixtures.items()},
    )
    table = corpus_tables.epochs_table(asked)
    assert table is not None and "in the budget of 1,000,000,000 tokens" in table.note
    assert [cell.text for cell in table.rows[0]] == ["books", *["12.3"] * len(asked.mixtures)]
    assert [cell.text for cell in table.rows[1]] == ["code", *["–"] * len(asked.mixtures)]


def test_a_sample_that_base_models_read_over_and_over_is_warned_of(make_data) -> None:
    plain = corpus(NAMES)
    sampled = {name: replace(counts, excerpt=Excerpt(3_000_000, 2, 9, 5e9, 1e9, None)) for name, counts in plain.domains.items()}
    data = make_data({"uniform": [[20, 40]]}, names=NAMES, corpus=replace(plain, domains=sampled))
    shorter, longer = (
        replace(data, experiment=data.experiment.model_copy(update={"base": data.experiment.base.model_copy(update={"steps": steps, "batch_rows": 100})}))
        for steps in (50, 1000)
    )
    (found,) = [text for text in warnings(longer) if "Only part of the text was read" in text]
    assert "books" in found and "code" in found and "Set corpus.tokens_per_domain to" in found
    asked, epochs = int(found.split("tokens_per_domain to ")[1].split(" ")[0].replace(",", "")), 100_000 * data.mixtures["chameleon"].weights["code"] / 1250
    assert asked == pytest.approx(640_000 * epochs / MANY_EPOCHS * 3_000_000 / 2_380_000, rel=1e-6), "a fifth of what was read is no train text"
    assert not any("Only part" in text for text in warnings(shorter))
    whole = replace(longer, corpus=plain)
    assert not any("Only part" in text for text in warnings(whole)), "who reads everything knows"
