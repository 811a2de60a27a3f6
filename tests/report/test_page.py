"""The files of a report: self-contained, escaped, and the same numbers everywhere."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from chameleon_ray.mixture import Mixture
from chameleon_ray.pipeline import Comparison
from chameleon_ray.records import read_table
from chameleon_ray.report import ReportData, tables, write_report
from chameleon_ray.report.content import MAX_DRAWN_DOMAINS, build_report, drawn_names
from chameleon_ray.report.figures import history_figure
from chameleon_ray.report.page import to_html, to_markdown
from chameleon_ray.report.styles import Picture, domain_styles
from chameleon_ray.terminal import show_comparison

HOSTILE = ("<script>alert(1)</script>", "a|b `c` *d* $e$ _f_ [g](h)", "x" * 100)
PERPLEXITIES = {"uniform": [[20, 40], [22, 42]], "chameleon": [[18, 42], [20, 42]]}


class Page(HTMLParser):
    """Tags, the addresses they point to, and the cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset"):
                self.addresses.append(value)
            if name == "id":
                self.anchors.add(f"#{value}")
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def written(make_data, tmp_path_factory) -> Path:
    return Path(write_report(make_data(PERPLEXITIES), str(tmp_path_factory.mktemp("report"))))


def test_files(written):
    assert written.name == "report.html"
    folder = written.parent
    numbers = {path.stem for path in (folder / "numbers").glob("*.parquet")}
    assert numbers == {"mixture", "spread", "perplexity", "affinity", "spectrum", "curves", "costs", "epochs", "embedding_map"}
    pictures = re.findall(r"\]\((pictures/[^)]+)\)", (folder / "report.md").read_text())
    assert len(pictures) == 6
    assert all((folder / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_html_fetches_nothing_and_runs_nothing(written):
    page = Page(written.read_text())
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    outside = [address for address in page.addresses if not address.startswith(("data:image/png;base64,", "#", "numbers/"))]
    assert outside == []
    assert {address for address in page.addresses if address.startswith("#")} <= page.anchors
    assert all((written.parent / address).exists() for address in page.addresses if address.startswith("numbers/"))
    assert "prefers-color-scheme: dark" in written.read_text()
    assert "width=device-width" in written.read_text()


def test_parquet_html_and_markdown_hold_the_same_numbers(written, make_data):
    table = tables.perplexity_table(make_data(PERPLEXITIES))
    html, markdown = Page(written.read_text()), (written.parent / "report.md").read_text()
    rows = {(row["method"], row["domain"]): row for row in read_table(str(written.parent / "numbers" / "perplexity.parquet")).to_pylist()}
    for name, row in zip(("books", "code", "all"), table.rows, strict=False):
        for label, cell in zip(table.columns[1:], row[1:], strict=True):
            assert cell.text in [text.strip() for text in html.cells]
            assert cell.text in markdown
            assert float(cell.text.split(" ")[0]) == pytest.approx(rows[label, name]["perplexity"], abs=0.05)


def test_many_methods(many_methods, tmp_path):
    address = Path(write_report(many_methods(embeddings=None), str(tmp_path)))
    html, markdown = Page(address.read_text()), (tmp_path / "report.md").read_text()
    assert {"#failures", "#significance", "#steps", "#sweep"} <= html.anchors
    assert html.tags.count("details") == 2
    assert "- doge: average perplexity" in markdown
    assert "seeds: \n" in markdown or "seeds:\n" in markdown
    significance = {(row["first"], row["second"]): row for row in read_table(str(tmp_path / "numbers" / "significance.parquet")).to_pylist()[::2]}
    assert len(significance) == 10
    assert significance["chameleon", "doge"]["difference"] > 0
    assert {"histories", "drift", "sweep"} <= {path.stem for path in (tmp_path / "numbers").iterdir()}


@pytest.mark.parametrize("num_domains", [2, 20])
def test_histories_of_few_and_many_domains(many_methods, num_domains):
    data = many_methods(names=tuple(f"domain-{i}" for i in range(num_domains)), num_seeds=1)
    figure = history_figure(data.histories, data.names, num_domains, domain_styles(data.names))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["chameleon", "doremi", "doge", "regmix"]
    assert all(len(axes.lines) == 1 + num_domains for axes in figure.axes)


def test_names_are_escaped(make_data):
    data = make_data({"uniform": [[20, 40, 60]], "chameleon": [[18, 42, 60]]}, names=HOSTILE)
    report = build_report(data)
    html, markdown = to_html(report), to_markdown(report)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "script" not in Page(html).tags
    assert HOSTILE[1] in [cell.strip() for cell in Page(html).cells]
    outside_code = markdown.split("```")[0]
    assert "<script" not in outside_code
    row = next(line for line in outside_code.splitlines() if line.startswith("| a"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 4


def test_sections_without_data_are_left_out(make_data):
    data = make_data({}, mixtures={"uniform": Mixture("uniform", {"books": 0.5, "code": 0.5})}, embeddings=None, seconds={})
    assert [section.anchor for section in build_report(data).sections] == ["mixture", "cost", "settings"]


def test_one_domain(make_data):
    report = build_report(make_data({"uniform": [[20]], "chameleon": [[20]]}, names=("only",)))
    assert "only" in to_html(report)


def test_many_domains_are_all_in_the_tables_and_the_heaviest_are_drawn(make_data):
    names = tuple(f"domain-{i:03d}" for i in range(60))
    data = make_data({}, names=names, embeddings=None)
    (mixture, *_) = build_report(data).sections
    table, picture, epochs = mixture.blocks
    assert len(table.rows) == 60 + table.num_summary_rows
    assert len(epochs.rows) == 60
    assert isinstance(picture, Picture)
    assert f"the {MAX_DRAWN_DOMAINS} domains of 60" in picture.caption
    assert set(names[30:]) <= set(drawn_names(data)), "those whose largest weight is over the uniform one"


def test_what_made_and_drove_the_weights_and_their_prior_are_shown(make_data, tmp_path):
    data = make_data({"uniform": [[10.0, 20.0]], "chameleon": [[11.0, 19.0]]})
    details = {**data.mixtures["chameleon"].details, "prior": {"books": 0.7, "code": 0.3}, "structureless": {"books": 0.8125, "code": 0.1875}}
    explanation = ("Variant calibrated, weights for pretraining.", "Against the prior books gains.")
    weighed = replace(data.mixtures["chameleon"], details=details, explanation=explanation)
    write_report(replace(data, mixtures={**data.mixtures, "chameleon": weighed}), str(tmp_path))
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for shown in (page, text):
        assert "chameleon: Variant calibrated, weights for pretraining. Against the prior books gains." in shown
        assert "by itself, chameleon" in shown and "0.8125" in shown
    write_report(data, str(tmp_path / "plain"))
    assert "by itself" not in (tmp_path / "plain" / "report.html").read_text()


def test_where_base_models_lie_is_said_whole_and_of_many_in_the_report_alone(make_data: Callable[..., ReportData]) -> None:
    data = make_data({"uniform": [[20.0, 30.0]] * 7, "chameleon": [[19.0, 29.0]] * 7})
    address = "s3://bucket/" + "long/" * 40 + "base-0123456789ab"
    few, many = ({(label, seed): address for label in data.mixtures for seed in seeds} for seeds in ((0,), range(7)))
    printed = {}
    for name, addresses in (("few", few), ("many", many)):
        console = Console(file=io.StringIO(), width=80)
        shown = replace(data, addresses=addresses)
        show_comparison(console, Comparison(shown, {}, {}, "report.html"))
        printed[name] = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert to_markdown(build_report(shown)).count(address) == len(addresses)
    assert f"model: chameleon, seed 0: {address}" in printed["few"] and not any(address in line for line in printed["many"])
