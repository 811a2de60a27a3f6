"""The whole path on a tiny corpus: every command, for real, through the command line."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import yaml

from chameleon_ray import ray_session, storage
from chameleon_ray.artifacts import TokenCorpus, TrainedModel
from chameleon_ray.backend import TrainJob
from chameleon_ray.cli import main
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.experiment import Experiment
from chameleon_ray.mixing.methods import METHODS
from chameleon_ray.mixture import Mixture
from chameleon_ray.pipeline import compare
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.ray_session import worth

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("session")]
NAMES = ("recipes", "letters", "numbers")
PASSAGE_TOKENS = 24  # words are drawn at random, so that no two documents share a passage this long


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error of a command."""
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def backend(experiment: Experiment) -> RayBackend:
    return RayBackend(experiment.storage, experiment.resources, Reporter.silent())


@pytest.fixture(scope="module")
def corpus(experiment: Experiment, backend: RayBackend) -> TokenCorpus:
    return backend.tokenize(experiment.corpus, experiment.seeds[0], experiment.reads)


def test_corpus_counts_and_splits(corpus: TokenCorpus) -> None:

    assert corpus.names == NAMES
    assert sum(counts.duplicates for counts in corpus.domains.values()) == 3 + 2
    passages: dict[str, set[tuple[int, ...]]] = {"train": set(), "valid": set(), "test": set()}
    for split, name in itertools.product(passages, NAMES):
        counts = corpus.domains[name].split(split)
        rows = RowReader(corpus, split).read(name, np.arange(counts.rows))
        assert (rows.length == corpus.row_tokens).all() or split != "train"
        assert counts.tokens >= rows.length.sum()
        for row, length in zip(rows.tokens.tolist(), rows.length, strict=True):
            found = (tuple(row[i : i + PASSAGE_TOKENS]) for i in range(length - PASSAGE_TOKENS + 1))
            passages[split].update(passage for passage in found if corpus.end_of_document not in passage)
    assert all(len(found) > 100 for found in passages.values())
    assert not passages["valid"] & passages["test"]
    assert not (passages["valid"] | passages["test"]) & passages["train"]
    assert not storage.exists(storage.join(corpus.address, "scratch"))


def test_compare_prints_what_was_asked_and_returns_at_once_the_second_time(experiment_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "compare", experiment_file)
    assert status == 0, err
    for word in ("chameleon", "uniform", *NAMES, "Mixture", "Test perplexity", "Cost of each mixture", "report:"):
        assert word in out
    assert "±" in out
    report = Path(out.rsplit("report: ", 1)[1].strip())
    assert report.exists()
    assert (report.parent / "report.md").exists()
    started = time.perf_counter()
    again, out_again, _ = run(capsys, "compare", experiment_file, "--json")
    assert again == 0
    assert time.perf_counter() - started < 10
    found = json.loads(out_again)
    assert set(found["mixtures"]) == {"uniform", "chameleon"}
    assert abs(sum(found["mixtures"]["chameleon"]["weights"].values()) - 1) < 1e-9
    assert found["mixtures"]["chameleon"]["cost"]["flops"] > 0


@pytest.mark.long
def test_a_plan_has_the_numbers_that_the_run_recorded(
    experiment_file: Path, experiment: Experiment, backend: RayBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "compare", experiment_file, "--dry-run", "--json")
    assert status == 0, err
    done = json.loads(out)
    assert done["seconds"] == 0 and all(step["is_done"] for step in done["steps"])
    corpora = Path(experiment.storage) / "corpora"
    corpora.rename(tmp_path / "aside")
    try:
        status, out, err = run(capsys, "compare", experiment_file, "--dry-run", "--json")
    finally:
        (tmp_path / "aside").rename(corpora)
    assert status == 0, err
    assert [step["kind"] for step in json.loads(out)["steps"] if not step["is_done"]] == ["read"], "text is read again, and nothing trained"
    status, out, err = run(capsys, "compare", experiment_file, "--dry-run", "--json", f"storage={tmp_path}/empty")
    assert status == 0, err
    steps = json.loads(out)["steps"]
    assert not any(step["is_done"] for step in steps) and not (tmp_path / "empty").exists()
    found = compare(experiment, backend)
    mixture = found.data.mixtures["chameleon"]
    (trained,) = (step for step in steps if step["kind"] == "train")
    assert trained["flops"] == mixture.ledger[mixture.provenance["proxy"]].flops
    (embedded,) = (step for step in steps if step["what"].startswith("embedding"))
    assert (embedded["tokens"], embedded["flops"]) in {(cost.tokens, cost.flops) for cost in mixture.ledger.values()}
    trials = [step for step in steps if step["kind"] == "trial"]
    assert [step["flops"] for step in trials] == [model.cost.flops for model in found.models.values()]
    (read,) = (step for step in steps if step["kind"] == "read")
    corpus = backend.tokenize(experiment.corpus, experiment.seeds[0], experiment.reads)
    assert read["tokens"] == pytest.approx(sum(each.train.tokens + each.valid.tokens + each.test.tokens for each in corpus.domains.values()), rel=0.25)


def test_models_are_hugging_face_models_and_better_than_chance(experiment: Experiment, backend: RayBackend, corpus: TokenCorpus) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = compare(experiment, backend)
    for model in found.models.values():
        assert sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model.address).parameters()) == model.details["parameters"]
        assert len(AutoTokenizer.from_pretrained(model.address)) == corpus.vocab_size
        assert sum(model.details["rows_drawn"].values()) == 24 * 8
        assert model.cost.tokens == 24 * 8 * 32
        assert model.details["precision"] in ("fp32", "bf16")
    losses = {(row["method"], row["domain"]): row for row in found.data.measurements.to_pylist() if row["metric"] == "loss_nats" and row["split"] == "test"}
    assert set(losses) == {(method, name) for method in ("uniform", "chameleon") for name in NAMES}
    assert all(row["value"] < np.log(corpus.vocab_size) for row in losses.values())


def test_mix_train_evaluate_extend(experiment_file: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mixture.json"
    status, out, err = run(capsys, "mix", experiment_file, "--method", "chameleon", "--out", file)
    assert status == 0, err
    mixture = Mixture.load(str(file))
    assert tuple(mixture.weights) == NAMES
    proxy = mixture.provenance["proxy_address"]
    assert proxy in out.replace("\n", "")
    status, out, err = run(capsys, "train", experiment_file, "--mixture", file, "--json")
    assert status == 0, err
    (trained,) = json.loads(out)["models"]
    assert TrainedModel.load(trained["address"]).weights == mixture.weights
    status, out, err = run(capsys, "evaluate", experiment_file, "--model", trained["address"])
    assert status == 0, err
    assert "Perplexity on valid and test" in out and "bits/byte" in out
    before = sorted(Path(load_storage(experiment_file), "models").iterdir())
    more = tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump({"domains": {"new": {"files": [str(texts / "recipes.jsonl")]}, "letters": None}}))
    status, out, err = run(capsys, "extend", experiment_file, "--proxy", proxy, "--corpus", more, "--json")
    assert status == 0, err
    weights = json.loads(out)["weights"]
    assert list(weights) == ["recipes", "numbers", "new"]
    assert sorted(Path(load_storage(experiment_file), "models").iterdir()) == before


def load_storage(experiment_file: Path) -> str:
    return str(yaml.safe_load(experiment_file.read_text())["storage"])


@pytest.mark.long
@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_worker_resumes_from_its_checkpoint_and_ends_the_same(experiment: Experiment, corpus: TokenCorpus, tmp_path: Path, times: int) -> None:
    slow = {"model": {"layers": 2, "heads": 2, "width": 64}, "steps": 120 * times, "batch_rows": 16, "checkpoint_every_steps": 20, "zero_stage": 1}
    training = experiment.base.model_validate({**slow, "learning_rate": 1e-2, "min_learning_rate": 1e-3})
    job = TrainJob("base", training, dict.fromkeys(NAMES, 1 / 3), seed=5)
    two = experiment.resources.model_copy(update={"num_workers": 2})
    (whole,) = RayBackend(str(tmp_path / "whole"), two, Reporter.silent()).train_many(corpus, [job])
    other = RayBackend(str(tmp_path), two, Reporter.silent())
    kills, over = [0], threading.Event()

    def kill() -> None:
        """Once Ray Train has noted down a checkpoint, since one that it has not is never gone on from; and again when new workers' is noted down."""
        noted, dead = "", set[int]()
        while kills[0] < times and not over.wait(0.05):
            try:
                found = "".join(path.read_text() for path in tmp_path.glob("unfinished/base-*/checkpoint_manager_snapshot.json"))
                workers = {p.pid for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())}  # this session's
                if "checkpoint_dir_name" in found and found != noted and workers - dead:
                    os.kill(min(workers - dead), signal.SIGKILL)
                    kills[0], noted, dead = kills[0] + 1, found, dead | workers
            except (OSError, psutil.Error):
                continue  # what was looked at is gone by now

    thread = threading.Thread(target=kill)
    thread.start()
    (resumed,) = other.train_many(corpus, [job])
    over.set()
    thread.join()
    begun = resumed.details["begun_at_steps"]
    assert kills == [times] and begun[0] == 0 and len(begun) == times + 1, f"killed {kills[0]} times, begun after steps {begun}"
    assert all(step > 0 and step % 20 == 0 for step in begun[1:]), "it goes on from checkpoints"
    assert resumed.digest == whole.digest
    assert storage.read_bytes(storage.join(resumed.address, "model.safetensors")) == storage.read_bytes(storage.join(whole.address, "model.safetensors"))
    assert resumed.metrics().equals(whole.metrics())


def test_embeddings_do_not_depend_on_the_number_of_actors(
    experiment: Experiment, backend: RayBackend, corpus: TokenCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = TrainJob("proxy", experiment.proxy, dict.fromkeys(NAMES, 1 / 3), experiment.seeds[0])
    (proxy,) = backend.train_many(corpus, [job])
    one = backend.embed(proxy, corpus, experiment.embedding)
    assert worth(one.ledger[next(iter(one.ledger))].flops, experiment.resources) == 1
    monkeypatch.setattr(ray_session, "CPU_FLOPS_OF_A_START", 1.0)
    assert worth(5.0, experiment.resources) == 6
    two = RayBackend(str(tmp_path), experiment.resources, Reporter.silent()).embed(proxy, corpus, experiment.embedding)
    assert one.means == pytest.approx(two.means, rel=1e-6, abs=1e-9)
    assert np.array_equal(one.group_counts, two.group_counts)
    weights = [METHODS["chameleon"]().weigh(found).weights for found in (one, two)]
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)


def test_requests_that_can_never_be_met_are_refused(experiment_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "compare", experiment_file, "base.steps=3", "resources.num_workers=8", "resources.gpus_per_worker=1")
    assert status == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: resources: asked for 8 workers of 1 CPU and 1 GPU each; the cluster has")


def test_mistakes_found_by_workers_are_one_line(experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"body": "no text column"}\n' * 5)
    status, _, err = run(capsys, "mix", experiment_file, "--method", "uniform", f"corpus.domains.recipes.files=['{tmp_path}/bad.jsonl']")
    assert status == 2
    assert "Traceback" not in err
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "bad.jsonl" in line
    assert "text_column" in line


def test_curves_have_every_domain(experiment: Experiment, backend: RayBackend) -> None:
    curves: pa.Table = compare(experiment, backend).data.curves
    assert set(curves["domain"].unique().to_pylist()) == {"all", *NAMES}
