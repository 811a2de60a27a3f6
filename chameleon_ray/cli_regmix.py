"""`chameleon regmix …`: the regression alone, for a swarm that was trained anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console

from chameleon_ray import storage
from chameleon_ray.artifacts import Embeddings
from chameleon_ray.errors import UserError, naming
from chameleon_ray.mixing.regmix import RegMix
from chameleon_ray.mixing.regression import REGRESSORS
from chameleon_ray.mixing.runs import THE_RUNS, by_parameters, by_size, first_of, size_asked
from chameleon_ray.mixing.swarm import Swarm, read_swarm
from chameleon_ray.mixture import Mixture
from chameleon_ray.settings import validate

app = typer.Typer(name="regmix", help="Weights by regression on a swarm of small runs.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def regmix() -> None:
    """Weights by regression on a swarm of small runs."""


@app.command()
def fit(
    ratios: Annotated[list[str], typer.Option(help="CSV file: run, then one column of ratios per domain. Give one for each model size.")],
    metrics: Annotated[list[str], typer.Option(help="CSV file: run, then one column of losses per target. As many as --ratios.")],
    target: Annotated[str, typer.Option(help="The target to bring down: a column of the metrics, or mean for the mean of all.")],
    prior: Annotated[str | None, typer.Option(help="Where to look: a mixture.json or name=value,…; by default the mean of the ratios.")] = None,
    regressor: Annotated[str, typer.Option(help=f"{', '.join(REGRESSORS)}, or best for the best by cross-validation.")] = "lightgbm",
    sizes: Annotated[str | None, typer.Option(help="Model size of each pair of files, as in 1M,60M; pairs of one size are taken together.")] = None,
    at: Annotated[str | None, typer.Option(help="The model size that the mixture is for, which need not have runs; by default the largest.")] = None,
    embeddings: Annotated[str | None, typer.Option(help="Folder of the domains' embeddings (runs/embeddings/…), for the regressors content.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the folds of the cross-validation and the mixtures that are tried.")] = 0,
    out: Annotated[str | None, typer.Option(help="Also write the mixture to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else there.")] = False,
) -> None:
    """The best mixture by a regression on two CSV files joined on the run id."""
    from chameleon_ray.terminal import show_mixture

    given = {"target": target, "regressor": regressor, "prior": _read_prior(prior) if prior else None}
    method = validate(RegMix, given, "regmix fit")
    check_out(out)
    if len(ratios) != len(metrics):
        raise UserError(f"--ratios: {len(ratios)} files, and {len(metrics)} of --metrics; give one of each for every model size")
    swarms = by_size([read_swarm(*pair) for pair in zip(ratios, metrics, strict=True)], sizes)
    by_number = by_parameters(swarms)
    size = at or max(zip(by_number, swarms, strict=True))[1]
    parameters = size_asked(size, swarms)
    content = Embeddings.load(storage.absolute(embeddings)) if embeddings else None
    correlations = method.rank_correlations(by_number, parameters, seed, content)
    if not as_json:
        _show_correlations(correlations, first_of(swarms).target(target), swarms, size)
    mixture = method.optimum(by_number, parameters, correlations, seed, content)
    files = {"ratios": ratios, "metrics": metrics}
    origin: dict[str, Any] = {name: [{"file": file, "fingerprint": storage.fingerprint(file)} for file in found] for name, found in files.items()}
    origin |= {"sizes": sizes, "size": None if size == THE_RUNS else size, "embeddings": embeddings, "seed": seed}
    mixture = replace(mixture, provenance={**mixture.provenance, **origin})
    if out:
        mixture.save(storage.absolute(out))
    if as_json:
        typer.echo(json.dumps(json.loads(mixture.to_json()), ensure_ascii=False, allow_nan=False))
        return
    show_mixture(Console(), mixture)
    best = f" (best run of the swarm: {mixture.details['best_loss_of_swarm']:.4f})" if "best_loss_of_swarm" in mixture.details else ""
    typer.echo(f"predicted loss: {mixture.details['predicted_loss']:.4f}{best}")
    if out:
        typer.echo(f"written to {out}")


def check_out(out: str | None) -> None:
    """Raise `UserError` when the file of --out cannot be written, before anything is computed for it."""
    if out:
        with naming("--out"):
            storage.check_file(storage.absolute(out))


def _show_correlations(correlations: Mapping[str, float], target: str, swarms: Mapping[str, Swarm], size: str) -> None:
    counts = {name: len(swarm.runs) for name, swarm in swarms.items()}
    told = f"{counts[THE_RUNS]} runs" if THE_RUNS in counts else f"for {size}; " + ", ".join(f"{count} runs of {name}" for name, count in counts.items())
    for name, correlation in correlations.items():
        typer.echo(f"{name}: cross-validated rank correlation {correlation:.3f} on {target!r} ({told})")


def _read_prior(text: str) -> dict[str, Any]:
    """Weights from a mixture file or from `name=value,name=value`."""
    if "=" not in text:
        return dict(Mixture.load(text).weights)
    weights: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.rpartition("="))
        try:
            number = float(value)
        except ValueError:
            raise UserError(f"--prior: {part.strip()!r} is not of the form name=value") from None
        if not name or name in weights:
            raise UserError(f"--prior: {part.strip()!r} {'gives a domain twice' if name else 'names no domain'}; give name=value once per domain")
        weights[name] = number
    return weights
