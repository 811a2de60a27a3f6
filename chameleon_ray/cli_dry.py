"""`--dry-run`: what a command would do and take, on the terminal or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from chameleon_ray.dry_backend import DryBackend
from chameleon_ray.dry_run import Forecast, forecast
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment
from chameleon_ray.models.devices import device_of
from chameleon_ray.pace import check_room, measured_pace, stated_pace
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be done and what it would take. Nothing is started; a pretrained model that is named is fetched.")
]
Mfu = Annotated[float | None, typer.Option("--mfu", help="For --dry-run: share of the device's peak, as 0.4, instead of rates measured here.")]
DeviceName = Annotated[str | None, typer.Option("--device", help="For --dry-run with --mfu: the GPU that it is for, as H100.")]


def is_plan(dry_run: bool, mfu: float | None, device: str | None) -> bool:
    """Whether a command is only to be planned; raises `UserError` for what is only for plans."""
    if not dry_run and (mfu is not None or device is not None):
        raise UserError(f"{'--mfu' if mfu is not None else '--device'}: is for --dry-run; add it, or remove this")
    return dry_run


def show_plan(experiment: Experiment, plan: Callable[[DryBackend], None], mfu: float | None, device: str | None, as_json: bool) -> None:
    """Plan a command and print what it would take.

    Raises:
        UserError: what the command itself would raise before it starts anything, or a rate that can neither be measured nor is stated.
    """
    from chameleon_ray.terminal import show_forecast

    found = _forecast(experiment, plan, mfu, device)
    if as_json:
        steps = [{**_plain(asdict(step.item)), "seconds": step.seconds} for step in found.steps]
        document = {"steps": steps, "seconds": found.seconds, "how": found.how, "memory_bytes": found.memory_bytes}
        typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        show_forecast(Console(), found)


def _forecast(experiment: Experiment, plan: Callable[[DryBackend], None], mfu: float | None, device: str | None) -> Forecast:
    if (mfu is None) != (device is None):
        raise UserError("--mfu: a share of a peak needs the device that has it, and the other way round; give both, as --mfu 0.4 --device H100")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu: {mfu:g} is no share of a peak; give one from 0 to 1, as 0.4")
    known = device_of(device) if device else None
    if known is None:
        check_room(experiment.resources)
    dry = DryBackend(RayBackend(experiment.storage, experiment.resources, Reporter.silent()), known)
    plan(dry)
    if mfu is None or known is None:
        return forecast(dry, measured_pace(dry.items, experiment.resources))
    return forecast(dry, stated_pace(dry.items, experiment.resources, mfu, known))


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("shape", "group", "beside")}
