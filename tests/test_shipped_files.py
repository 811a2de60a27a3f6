"""Every experiment file that ships loads, and the README shows what is true."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

import chameleon_ray
from chameleon_ray import load_experiment
from chameleon_ray.cli import app
from chameleon_ray.experiment import Experiment, parse_experiment
from chameleon_ray.mixing.published import PUBLISHED

REPOSITORY = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((REPOSITORY / "jobs").glob("*.yaml"))
README = (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_experiment_files_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_DATA", "/anywhere")
    experiment = load_experiment(path)
    assert experiment.name
    assert parse_experiment(experiment.model_dump(mode="json")) == experiment


@pytest.mark.parametrize(("job", "text"), [("finetune_wiki40b", "wiki7"), ("finetune_stack", "stack7")])
def test_finetuning_jobs_run_on_local_text(job: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_DATA", "/anywhere")
    hub, local = load_experiment(REPOSITORY / f"jobs/{job}.yaml"), load_experiment(REPOSITORY / f"jobs/{job}.yaml", [f"@{REPOSITORY}/jobs/local/{text}.yaml"])
    assert tuple(hub.corpus.domains) == tuple(local.corpus.domains) == tuple(PUBLISHED[f"{job.removeprefix('finetune_')}_chameleon"].weights)
    assert hub.stage == local.stage == "finetune" and hub.methods == local.methods
    assert all(source.huggingface for source in hub.corpus.domains.values()) and all(source.files for source in local.corpus.domains.values())


def test_the_transfer_runs_on_local_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_DATA", "/anywhere")
    job = REPOSITORY / "jobs/pile_transfer.yaml"
    hub, local = load_experiment(job), load_experiment(job, [f"@{REPOSITORY}/jobs/local/pile13.yaml"])
    assert hub.transfer and hub.transfer.domains_from and local.transfer and len(local.transfer.domains) == 7
    assert set(local.transfer.domains) < set(local.corpus.domains) and len(local.corpus.domains) == 13 and tuple(hub.methods) == tuple(local.methods)


def test_there_are_experiment_files() -> None:
    assert {"quickstart.yaml", "pretrain7.yaml"} <= {path.name for path in EXPERIMENTS}


def test_every_key_of_the_experiment_file_is_explained_in_the_readme() -> None:
    def keys(model: type) -> set[str]:
        found = set()
        for name, field in model.model_fields.items():
            found.add(name)
            for module, inner in re.findall(r"chameleon_ray\.(config|corpus_config)\.(\w+)", str(field.annotation)):
                found |= keys(getattr(importlib.import_module(f"chameleon_ray.{module}"), inner))
        return found

    missing = sorted(key for key in keys(Experiment) if not re.search(rf"`[^`]*\b{key}\b[^`]*`", README))
    assert missing == []


def test_commands_of_the_readme_exist() -> None:
    groups = [group.typer_instance for group in app.registered_groups]
    named = {group.info.name for group in groups if isinstance(group.info.name, str)}
    commands = [app, *(group for group in groups if group.info.name not in named)]  # a group without a name adds to the commands themselves
    known = named | {command.name or command.callback.__name__ for each in commands for command in each.registered_commands}
    shown = {shlex.split(line)[1] for line in re.findall(r"^chameleon [^\n]*", README, re.M)}
    assert shown
    assert shown <= known
    assert known <= shown


def test_yaml_in_the_readme_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        assert isinstance(yaml.safe_load(block), dict)


def test_files_named_in_the_readme_exist() -> None:
    for name in re.findall(r"`((?:chameleon_ray|jobs|analysis|tests)/[\w./]+)`", README):
        assert (REPOSITORY / name).exists(), name


def test_public_names_are_documented() -> None:
    for name in chameleon_ray.__all__:
        assert getattr(chameleon_ray, name).__doc__ or isinstance(getattr(chameleon_ray, name), dict), name
