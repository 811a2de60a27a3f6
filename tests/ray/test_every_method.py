"""Methods that train in one comparison, with a sweep and with failures, through the command line (DoGE's step: tests/training/test_rules.py)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from chameleon_ray.experiment import load_experiment
from chameleon_ray.mixing.swarm import read_swarm
from chameleon_ray.mixture import Mixture
from chameleon_ray.pipeline import SPLITS, base_job
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.records import read_record
from tests.ray.test_end_to_end import NAMES, run

# Every method is also run without Ray in tests/conformance, and its training in tests/training.
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("session"), pytest.mark.long]
FITTED = ("uniform", "chameleon", "doremi", "regmix")


@pytest.fixture(scope="module")
def every_method(experiment_file: Path) -> Path:
    """Beside the tiny experiment and in its storage: all methods, and one that cannot be fitted."""
    document = yaml.safe_load(experiment_file.read_text())
    document |= {"name": "every", "sweep": {"grid": {"methods.chameleon.ridge.absolute": [0.1, 1000.0]}}}
    document["proxy"] |= {"steps": 12, "schedule_steps": 24}
    document["methods"] = {
        "uniform": {},
        "chameleon": {},
        "doremi": {"proxy": {"steps": 24}},
        "regmix": {"num_proxies": 12, "regressor": "linear", "samples": 1000, "top": 10, "proxy": {"model": {"preset": "cpu-tiny"}, "steps": 3}},
        "fixed": {"weights": {"recipes": 0.5, "elsewhere": 0.5}},
    }
    path = experiment_file.parent / "every.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def folders(experiment_file: Path, kind: str, prefix: str = "") -> list[Path]:
    return sorted(Path(yaml.safe_load(experiment_file.read_text())["storage"], kind).glob(f"{prefix}*"))


def test_every_method_in_one_comparison(every_method: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {kind: set(folders(every_method, kind)) for kind in ("models", "proxies")}
    uniform_is_there = bool(folders(every_method, "models", "base-"))
    status, out, err = run(capsys, "compare", every_method, "--json")
    assert status == 1, f"a method failed, so the status says so: {err}"
    found = json.loads(out)
    assert tuple(found["mixtures"]) == FITTED
    assert list(found["failures"]) == ["fixed"]
    assert "no weight for domain 'letters'" in found["failures"]["fixed"]
    for mixture in found["mixtures"].values():
        assert sum(mixture["weights"].values()) == pytest.approx(1, abs=1e-9)
        assert set(mixture["weights"]) == set(NAMES)
    assert {row["method"] for row in found["measurements"]} == set(FITTED)

    made = [folder.name.split("-")[0] for folder in set(folders(every_method, "models")) - before["models"]]
    assert sorted(made) == ["base"] * (len(FITTED) - uniform_is_there) + ["doremi", "proxy", "proxy"], "one run is Chameleon's proxy and DoReMi's reference"
    assert len(set(folders(every_method, "proxies")) - before["proxies"]) == 12
    origin = found["mixtures"]["chameleon"]["provenance"]["proxy_is_snapshot_of"]
    assert (origin["at_step"], origin["steps"]) == (12, 24)
    assert origin["model"] == found["mixtures"]["doremi"]["provenance"]["reference"]
    cost = {label: mixture["cost"] for label, mixture in found["mixtures"].items()}
    tokens = 8 * 32
    assert cost["doremi"]["tokens"] == 48 * tokens
    assert cost["doremi"]["flops"] == pytest.approx(cost["doremi"]["paper_flops"] * 7 / 6), "the reference runs forward beside the proxy"
    assert cost["regmix"]["flops"] > cost["regmix"]["paper_flops"] > 0

    swept = found["sweep"]
    assert {row["label"] for row in swept} == {"chameleon"}
    assert [row["point"] for row in swept[:: len(NAMES)]] == [f"methods.chameleon.ridge.absolute={ridge}" for ridge in (0.1, 1000.0)]
    report = Path(found["report"])
    assert report.exists()
    assert "elsewhere" in report.with_suffix(".md").read_text()


def test_the_same_comparison_again_returns_at_once(every_method: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    status, out, _ = run(capsys, "compare", every_method)
    assert status == 1
    assert time.monotonic() - started < 15
    assert "failed: fixed: " in out


def test_a_swarm_is_written_as_two_files(every_method: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = folders(every_method, "mixtures", "regmix-")
    swarm = read_swarm(str(folder / "ratios.csv"), str(folder / "metrics.csv"))
    assert swarm.ratios.shape == (12, 3)
    assert set(swarm.domains) == set(swarm.targets) == set(NAMES)
    out = tmp_path / "mixture.json"
    arguments = ("--ratios", folder / "ratios.csv", "--metrics", folder / "metrics.csv", "--target", "letters", "--regressor", "linear", "--out", out)
    status, printed, err = run(capsys, "regmix", "fit", *arguments)
    assert status == 0, err
    assert "rank correlation" in printed + err
    assert set(Mixture.load(str(out)).weights) == set(NAMES)


def test_weights_of_a_proxy_that_learns_them_are_kept(every_method: Path) -> None:
    (folder,) = folders(every_method, "models", "doremi-")
    rule = read_record(str(folder))["content"]["details"]["rule"]
    assert (rule["name"], rule["updates"]) == ("doremi", 24)
    assert (folder / "weights.parquet").exists()


@pytest.mark.long
def test_a_trial_that_fails_does_not_stop_the_others(every_method: Path) -> None:
    experiment = load_experiment(every_method)
    backend = RayBackend(experiment.storage, experiment.resources, Reporter.silent())
    corpus = backend.tokenize(experiment.corpus, 0)
    uniform = Mixture("uniform", dict.fromkeys(NAMES, 1 / 3))
    wild = experiment.at({"base.learning_rate": 1e8, "base.min_learning_rate": 1e8, "base.gradient_clipping": 1e30})
    tame = experiment.at({"base.steps": 3})
    jobs = {("wild", 0): base_job(wild, corpus, uniform, 0), ("tame", 0): base_job(tame, corpus, uniform, 0)}
    runs = backend.run_trials("failing", corpus, jobs, SPLITS)
    assert [key for key, outcome in runs.items() if outcome.failure] == [("wild", 0)]
    assert "the training loss is not finite" in str(runs["wild", 0].failure) and runs["wild", 0].model is None
    assert runs["tame", 0].model is not None and runs["tame", 0].losses is not None
    assert backend.run_trials("failing", corpus, {"tame": jobs["tame", 0]}, SPLITS)["tame"].failure is None
