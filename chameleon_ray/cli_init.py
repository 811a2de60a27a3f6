"""`chameleon init`: an experiment file for text that is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from chameleon_ray.corpus.survey import survey
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import parse_experiment
from chameleon_ray.first_file import Machine, experiment_text, names_of, num_clusters
from chameleon_ray.settings import listed

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def init(
    place: Annotated[str, typer.Argument(metavar="PATH|s3://…|NAME", help="A folder or files (local, s3://…, gs://…), or a data set of the hub by name.")],
    out: Annotated[str, typer.Option(help="The experiment file to write.")] = "experiment.yaml",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else there.")] = False,
) -> None:
    """Write a commented experiment file for the text that is found: formats, columns, domains, sizes, and models for this machine."""
    target = Path(out).expanduser()
    if target.exists():
        raise UserError(f"--out: {out} exists already; give another name, or remove it")
    if not target.parent.is_dir():
        raise UserError(f"--out: there is no folder {target.parent}; make it, or give another place")
    found = survey(place)
    text = experiment_text(place, found, Machine.here(), out)
    parse_experiment(yaml.safe_load(text), "what would be written")
    target.write_text(text, encoding="utf-8")
    names = names_of(found)
    if as_json:
        clusters = 0 if names else num_clusters(found.likely_bytes)
        document = {"file": out, "text_column": found.text_column, "domain_column": found.column, "domains": dict(names), "clusters": clusters}
        typer.echo(json.dumps(document, ensure_ascii=False))
        return
    by = f"by column {found.column!r}, at a first look" if found.column else "by folder or file name"
    told = f"{len(names)} domains {by}: {listed(list(names))}"
    if not names:
        told = f"nothing labels it: {num_clusters(found.likely_bytes)} domains will be found among its documents"
    typer.echo(f"{told}; text in {found.text_column!r}")
    typer.echo(f"written to {out}; next: chameleon mix {out}, or chameleon compare {out}")
