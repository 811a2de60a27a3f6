"""`chameleon …`: each command is a few lines of the public API, and what it prints."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.models import TyperInfo

from chameleon_ray import storage
from chameleon_ray.artifacts import TrainedModel
from chameleon_ray.cli_dry import DeviceName, DryRun, Mfu, is_plan, show_plan
from chameleon_ray.cli_init import app as init_app
from chameleon_ray.cli_judge import app as judge_app
from chameleon_ray.cli_regmix import app as regmix_app
from chameleon_ray.cli_regmix import check_out
from chameleon_ray.config import Resources
from chameleon_ray.corpus_config import load_changes
from chameleon_ray.dry_run import plan_compare, plan_evaluate, plan_extend, plan_mix, plan_train
from chameleon_ray.errors import UserError, as_user_error
from chameleon_ray.experiment import Experiment, load_experiment
from chameleon_ray.mixture import Mixture
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.ray_doctor import examine
from chameleon_ray.records import is_complete

app = typer.Typer(
    name="chameleon",
    help="How much of each data domain to train a language model on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.registered_groups = [TyperInfo(init_app), TyperInfo(regmix_app), TyperInfo(judge_app)]

ExperimentFile = Annotated[str, typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE | @FILE]...", help="Settings that replace those of the file, or @FILE with such keys and their values."),
]
AllowRemoteCode = Annotated[bool, typer.Option("--allow-remote-code", help="Run code that lies beside the model; read it first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else there.")]


@app.command()
def compare(
    experiment: ExperimentFile, overrides: Overrides = None, as_json: AsJson = False, dry_run: DryRun = False, mfu: Mfu = None, device: DeviceName = None
) -> None:
    """Fit every method, train one base model per mixture and seed, evaluate, write the report."""
    from chameleon_ray import pipeline
    from chameleon_ray.terminal import show_comparison

    loaded = load_experiment(experiment, overrides or ())
    if is_plan(dry_run, mfu, device):
        show_plan(loaded, partial(plan_compare, loaded), mfu, device, as_json)
        return
    found = pipeline.compare(loaded, _backend(loaded, as_json))
    if as_json:
        mixtures = {label: json.loads(mixture.to_json()) for label, mixture in found.data.mixtures.items()}
        document = {
            "report": found.report,
            "mixtures": mixtures,
            "measurements": found.data.measurements.to_pylist(),
            "before": [] if found.data.before is None else found.data.before.to_pylist(),
            "models": [{"label": label, **_model(model)} for (label, _), model in found.models.items()],
        }
        sweep = [] if found.data.sweep is None else found.data.sweep.to_pylist()
        _print_json({**document, "failures": dict(found.data.failures), "sweep": sweep})
    else:
        show_comparison(Console(), found)
    raise typer.Exit(1 if found.data.failures else 0)


@app.command()
def finetune(
    experiment: ExperimentFile, overrides: Overrides = None, as_json: AsJson = False, dry_run: DryRun = False, mfu: Mfu = None, device: DeviceName = None
) -> None:
    """Finetune the pretrained base model under every mixture, evaluate before and after, write the report: compare with stage=finetune."""
    compare(experiment, ["stage=finetune", *(overrides or ())], as_json, dry_run, mfu, device)


@app.command()
def mix(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    method: Annotated[str | None, typer.Option(help="A label under methods, or a method's name; the first of Chameleon if not given.")] = None,
    out: Annotated[str | None, typer.Option(help="Also write the mixture to this file.")] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    mfu: Mfu = None,
    device: DeviceName = None,
) -> None:
    """Only the weights of one method."""
    from chameleon_ray import pipeline

    loaded = load_experiment(experiment, overrides or ())
    label = _label(loaded, method)
    check_out(out)
    if is_plan(dry_run, mfu, device):
        show_plan(loaded, partial(plan_mix, loaded, label), mfu, device, as_json)
        return
    _show_mixture(pipeline.mix(loaded, label, _backend(loaded, as_json)), out, as_json)


@app.command()
def train(
    experiment: ExperimentFile,
    mixture: Annotated[str, typer.Option(help="A mixture.json.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    mfu: Mfu = None,
    device: DeviceName = None,
) -> None:
    """Train base models, one per seed, on a mixture."""
    from chameleon_ray import pipeline

    loaded, weights = load_experiment(experiment, overrides or ()), Mixture.load(mixture)
    if is_plan(dry_run, mfu, device):
        show_plan(loaded, partial(plan_train, loaded, weights), mfu, device, as_json)
        return
    models = pipeline.train(loaded, weights, _backend(loaded, as_json))
    if as_json:
        _print_json({"models": [_model(model) for model in models]})
    else:
        for model in models:
            typer.echo(f"{model.address}  {model.cost.tokens:,} tokens  {model.cost.flops:.3g} FLOPs  {model.details['tokens_per_second']:,.0f} tokens/s")


@app.command()
def evaluate(
    experiment: ExperimentFile,
    model: Annotated[str, typer.Option(help="Folder of a model in Hugging Face layout, with the corpus's tokenizer.")],
    overrides: Overrides = None,
    allow_remote_code: AllowRemoteCode = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    mfu: Mfu = None,
    device: DeviceName = None,
) -> None:
    """Loss and perplexity per domain of one model on held-out text."""
    from chameleon_ray import pipeline
    from chameleon_ray.terminal import show_measurements

    loaded = load_experiment(experiment, overrides or ())
    if is_plan(dry_run, mfu, device):
        show_plan(loaded, partial(plan_evaluate, loaded, model, allow_remote_code=allow_remote_code), mfu, device, as_json)
        return
    measured = pipeline.evaluate(loaded, model, _backend(loaded, as_json), allow_remote_code)
    if as_json:
        _print_json({"model": model, "measurements": measured.to_pylist()})
    else:
        show_measurements(Console(), measured, model, tuple(loaded.corpus.targets))


@app.command()
def extend(
    experiment: ExperimentFile,
    proxy: Annotated[str, typer.Option(help="A trained proxy: its folder, a GGUF file or a hub name.")],
    corpus: Annotated[
        list[str],
        typer.Option(
            help="YAML file with a section `domains`: new ones, `name: null`, and renamed, merged or split ones. Several, in their order, when domains changed "
            "more than once: what an earlier one embedded is not embedded again."
        ),
    ],
    overrides: Overrides = None,
    only: Annotated[bool, typer.Option("--only", help="Take the new domains alone.")] = False,
    method: Annotated[str | None, typer.Option(help="A label of Chameleon's; the first if not given.")] = None,
    out: Annotated[str | None, typer.Option(help="Also write the mixture to this file.")] = None,
    allow_remote_code: AllowRemoteCode = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    mfu: Mfu = None,
    device: DeviceName = None,
) -> None:
    """Weights for a changed set of domains: new, removed, renamed, merged, split. Nothing is trained; what did not change is not embedded again."""
    from chameleon_ray import pipeline

    loaded = load_experiment(experiment, overrides or ())
    label = _label(loaded, method)
    check_out(out)
    changes = [load_changes(path) for path in corpus]
    if is_plan(dry_run, mfu, device):
        show_plan(loaded, partial(plan_extend, loaded, proxy, changes, label, only=only, allow_remote_code=allow_remote_code), mfu, device, as_json)
        return
    _show_mixture(pipeline.extend(loaded, proxy, changes, _backend(loaded, as_json), only, label, allow_remote_code), out, as_json)


@app.command()
def merge(
    model: Annotated[str, typer.Argument(help="Folder of a model, as `chameleon train` or `finetune` left it.")],
    out: Annotated[str, typer.Option(help="A new folder.")],
    allow_remote_code: AllowRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Write a model that was finetuned with LoRA as an ordinary one, its adapters merged into the weights."""
    from chameleon_ray.models.load import save_merged

    if not is_complete(storage.absolute(model)):
        raise UserError(f"MODEL: {model} is no finished model of `chameleon train` or `finetune`; give the folder that they print or name in --json")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft imports DeepSpeed, which would say that it found no GPU
    backend = RayBackend(os.path.dirname(storage.absolute(model)), Resources(), Reporter.silent())
    found = backend.find_model(model, 1, "MODEL", allow_remote_code)
    save_merged(found, storage.absolute(out))
    if as_json:
        _print_json({"model": model, "merged": out})
    else:
        typer.echo(f"written to {out}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, number format, cluster, free disk and memory; what is wrong and how to mend it."""
    from chameleon_ray.terminal import show_examination

    found = examine(Path.cwd())
    if as_json:
        _print_json(asdict(found))
    else:
        show_examination(Console(), found)
    raise typer.Exit(1 if found.problems else 0)


def _backend(experiment: Experiment, as_json: bool) -> Any:
    reporter = Reporter.silent() if as_json else Reporter(Console(stderr=True))
    return RayBackend(experiment.storage, experiment.resources, reporter)


def _show_mixture(mixture: Mixture, out: str | None, as_json: bool) -> None:
    from chameleon_ray.terminal import show_mixture

    if out:
        mixture.save(storage.absolute(out))
    if as_json:
        _print_json(json.loads(mixture.to_json()))
    else:
        show_mixture(Console(), mixture)
        if out:
            typer.echo(f"written to {out}")


def _label(experiment: Experiment, method: str | None) -> str:
    try:
        label = method or next(iter(experiment.chameleons), "chameleon")
        experiment.mixer(label)
    except UserError as error:
        raise UserError(f"--method: {error}") from None
    return label


def _model(model: TrainedModel) -> dict[str, Any]:
    return {"address": model.address, "weights": dict(model.weights), "cost": asdict(model.cost), **model.details}


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))


def quiet_libraries() -> None:
    """Silence what libraries say that means nothing to the user; everything else still speaks."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DS_ACCELERATOR_QUIET", "1")
    warnings.filterwarnings("ignore", message="Can't initialize NVML")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # what peft asks transformers
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # logs the traceback of what it raises


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a mistake the user can mend is one line on standard error and exit status 2."""
    quiet_libraries()
    try:
        status = app(args=arguments or sys.argv[1:] or ["--help"], prog_name="chameleon", standalone_mode=False)
        if status == 130:  # what typer makes of Ctrl-C
            typer.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(status or 0)
    except Exception as error:
        # What typer raises for a missing argument or an unknown option can format itself; its class is private.
        usage = getattr(error, "format_message", None)
        found = usage() if usage else as_user_error(error)
        if found is None:
            raise
        typer.echo(f"error: {' '.join(str(found).split())}{'; see chameleon --help' if usage else ''}", err=True)
        sys.exit(2)
