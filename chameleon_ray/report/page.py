"""A report as one HTML file that fetches nothing, and as Markdown."""

from __future__ import annotations

import base64
import re

import jinja2

from chameleon_ray.report.content import Block, Code, Report
from chameleon_ray.report.styles import Picture
from chameleon_ray.report.tables import Cell, Table


def to_html(report: Report) -> str:
    """The page with its pictures inside; every text is escaped."""
    loader = jinja2.PackageLoader("chameleon_ray.report", package_path="")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(kind=lambda block: type(block).__name__, data_uri=_data_uri)
    return environment.get_template("page.html.j2").render(report=report)


def to_markdown(report: Report) -> str:
    """The same as Markdown; its pictures are files in `pictures/` beside it."""
    lines = [f"# {_escape(report.title)}", "", _escape(report.verdict), ""]
    if report.findings:
        lines += [*(f"- {_escape(finding)}" for finding in report.findings), ""]
    if report.warnings:
        lines += ["> **Warnings**", ">", *(f"> - {_escape(warning)}" for warning in report.warnings), ""]
    for section in report.sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    lines += ["## Numbers", "", *(f"- [numbers/{name}.parquet](numbers/{name}.parquet)" for name in report.numbers)]
    return "\n".join(lines) + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, Picture):
        return [f"![{_escape(block.title)}](pictures/{block.name}.png)", "", _escape(block.caption)]
    if isinstance(block, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        return [f"{_escape(block.title)}:", "", f"{fence}yaml", *block.text.rstrip("\n").split("\n"), fence]
    if isinstance(block, Table):
        return table_markdown(block).split("\n")
    return [_escape(block)]


def table_markdown(table: Table) -> str:
    """A table, and its note beneath."""
    header = f"| {' | '.join(map(_escape, table.columns))} |"
    rule = f"|---|{('---|' if table.is_text else '---:|') * (len(table.columns) - 1)}"
    rows = (" | ".join(map(_cell, row)) for row in table.rows)
    return "\n".join([header, rule, *(f"| {row} |" for row in rows), *(("", _escape(table.note)) if table.note else ())])


def _cell(cell: Cell) -> str:
    text = f"**{_escape(cell.text)}**" if cell.best else _escape(cell.text)
    return f"{text} ({_escape(cell.detail)})" if cell.detail else text


def _escape(text: str) -> str:
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
