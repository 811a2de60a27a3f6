"""`chameleon judge`: what mixtures would score, by runs that exist."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chameleon_ray import storage
from chameleon_ray.artifacts import Embeddings
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.judge import judge as judge_by
from chameleon_ray.mixing.published import PUBLISHED
from chameleon_ray.mixing.regression import BEST, REGRESSORS, known_regressor
from chameleon_ray.mixing.runs import by_size, size_asked
from chameleon_ray.mixing.swarm import MEAN, Swarm, read_swarm
from chameleon_ray.mixture import Mixture
from chameleon_ray.settings import nearest

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def judge(
    files: Annotated[
        list[str], typer.Argument(metavar="MIXTURE.json...", help="Mixture files, or names of published mixtures; all are compared with the first.")
    ],
    swarm: Annotated[list[str], typer.Option(metavar="RATIOS.csv METRICS.csv", help="Two files of runs, joined on the run id; may be given several times.")],
    sizes: Annotated[str | None, typer.Option(help="Model size of each swarm, as in 1M,1M,60M; runs of one size are taken together.")] = None,
    at: Annotated[list[str] | None, typer.Option(metavar="SIZE", help="Judge for this size too, which need not have runs; may be given several times.")] = None,
    embeddings: Annotated[
        str | None, typer.Option(help="Folder of embeddings (runs/embeddings/…), for domains that no run has and for the regressors content.")
    ] = None,
    target: Annotated[str, typer.Option(help="A column of the metrics, or mean for the mean of all.")] = MEAN,
    regressor: Annotated[str, typer.Option(help=f"{', '.join(REGRESSORS)}, or best for the best by cross-validation.")] = BEST,
    seed: Annotated[int, typer.Option(min=0, help="Decides the folds of the cross-validation and the draws of the intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else there.")] = False,
) -> None:
    """What mixtures would score, from runs that exist: nothing is trained."""
    from chameleon_ray.terminal import show_verdict

    try:
        known_regressor(regressor)
    except ValueError as error:
        raise UserError(f"--regressor: {error}") from None
    # An option takes one word here: the metrics file of each swarm comes as a word of its own.
    metrics = [file for file in files if file.endswith(".csv")]
    mixtures = [file for file in files if not file.endswith(".csv")]
    if not mixtures:
        raise UserError("judge: give at least one mixture file, or the name of a published mixture")
    if len(metrics) != len(swarm):
        raise UserError(f"--swarm: {len(swarm)} files of ratios and {len(metrics)} of metrics; give both after each --swarm: --swarm RATIOS.csv METRICS.csv")
    weights = dict(_labelled(file) for file in mixtures)
    if len(weights) < len(mixtures):
        raise UserError("judge: two of the mixtures have the same name; rename one of the files")
    swarms = by_size([read_swarm(*pair) for pair in zip(swarm, metrics, strict=True)], sizes)
    content = Embeddings.load(storage.absolute(embeddings)) if embeddings else None
    verdicts = [judge_by(weights, swarms, size, target, regressor, seed, content) for size in _asked(swarms, at or ())]
    if as_json:
        typer.echo(json.dumps([asdict(verdict) for verdict in verdicts], ensure_ascii=False, allow_nan=False))
        return
    for verdict in verdicts:
        show_verdict(Console(), verdict)


def _asked(swarms: Mapping[str, Swarm], at: Sequence[str]) -> list[str]:
    """The sizes of the swarms, and those asked for beside them, each once."""
    found = {size_asked(size, swarms): size for size in reversed([*swarms, *at])}
    return list(reversed(found.values()))


def _labelled(name: str) -> tuple[str, dict[str, float]]:
    """A mixture by the name of its file, or a published one by its own."""
    if name in PUBLISHED:
        return name, PUBLISHED[name].weights
    if not name.endswith(".json"):
        raise UserError(f"judge: {name!r} is neither a .json file nor a published mixture; these are {', '.join(PUBLISHED)}{nearest(name, PUBLISHED)}")
    return Path(name).stem, dict(Mixture.load(name).weights)
