"""Exact resumption and independence of the number of workers, with real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import TrainingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.settled import SettledRule
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.training.loop import check_job, checkpoint_interval
from chameleon_ray.training.micro_batch import MicroBatch
from chameleon_ray.training.steps import Worker
from tests.corpora import make_corpus
from tests.families import publish
from tests.training.worlds import run_world, run_worlds

WEIGHTS = {"alpha": 0.5, "beta": 0.3, "gamma": 0.2}
# Adam's first step is the learning rate times the sign of the gradient, and where the gradient is all but zero rounding decides its size:
# at a small rate what is left is what the summing of gradients does.
SMALL_RATE = 5e-4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def settings(corpus: TokenCorpus, steps: int = 12, stage: int = 0, learning_rate: float = 5e-3, **others: Any) -> dict[str, Any]:
    model = {"layers": 2, "heads": 2, "width": 32}
    training = {
        "model": model,
        "steps": steps,
        "batch_rows": 8,
        "learning_rate": learning_rate,
        "min_learning_rate": learning_rate / 10,
        "zero_stage": stage,
        "checkpoint_every_steps": 4,
    }
    return {"corpus": corpus.address, "weights": WEIGHTS, "training": training, **others}


def difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    assert first["state"].keys() == second["state"].keys()
    return max(float(np.abs(np.subtract(first["state"][name], second["state"][name])).max()) for name in first["state"])


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_killed_twice_is_bit_identical(corpus: TokenCorpus, tmp_path: Path, stage: int) -> None:
    world = 1 if stage == 0 else 2
    first = settings(corpus, stage=stage, die_after=6)
    whole, killed = run_worlds((tmp_path / "whole", world, settings(corpus, stage=stage)), (tmp_path / "killed", world, first))
    assert whole["exit"] == [0] * world, whole["output"]
    again = run_world(tmp_path / "killed", world, **settings(corpus, stage=stage, die_after=9))
    for found in (killed, again):
        assert 9 in found["exit"], found["output"]
        assert "state" not in found
    resumed = run_world(tmp_path / "killed", world, **settings(corpus, stage=stage))
    assert resumed["exit"] == [0] * world, resumed["output"]
    assert (whole["begun"], resumed["begun"]) == ([0], [0, 4, 8])
    assert resumed["state"] == whole["state"]
    assert resumed["curve"] == whole["curve"]
    assert resumed["rows"] == whole["rows"]


LONG_STARTS = [("llama", 1), ("llama", 2), ("llama_tied", 3), ("gemma2", 0)]


@pytest.mark.parametrize(("family", "stage"), [("llama_tied", 0), *(pytest.param(*start, marks=pytest.mark.long) for start in LONG_STARTS)])
def test_a_pretrained_model_goes_on_the_same_whether_interrupted_or_cut_over_ranks(corpus: TokenCorpus, tmp_path: Path, family: str, stage: int) -> None:
    """Gemma caps its logits, so that its head is not a plain one; all drop a tenth of attention in their own configuration."""
    start = publish(family, corpus, tmp_path / "start", layers=2)
    asked = settings(corpus, steps=8, stage=stage, learning_rate=SMALL_RATE, start=start)
    dying = {**asked, "die_after": 6}
    whole, two, killed = run_worlds((tmp_path / "whole", 1, asked), (tmp_path / "two", 2, asked), (tmp_path / "killed", 1, dying))
    assert killed["exit"] == [9]
    resumed = run_world(tmp_path / "killed", 1, **asked)
    assert resumed["exit"] == [0] and resumed["begun"] == [0, 4] and resumed["state"] == whole["state"]
    assert difference(whole, two) < 1e-4
    before = {name: value.double().reshape(-1).tolist() for name, value in load_file(f"{start}/model.safetensors").items()}
    assert before.keys() == whole["state"].keys() and 0 < difference({"state": before}, whole) < 0.1


def test_two_ranks_equal_one(corpus: TokenCorpus, tmp_path: Path) -> None:
    asked = settings(corpus, steps=20, learning_rate=SMALL_RATE, snapshots=[1])
    one, two = run_worlds(*((tmp_path / str(world), world, asked) for world in (1, 2)))
    assert difference({"state": one["kept"]["1"]}, {"state": two["kept"]["1"]}) < 1e-6
    assert difference(one, two) < 1e-4
    assert one["rows"] == two["rows"] == [80, 48, 32]
    assert one["curve"][0]["loss"] == pytest.approx(two["curve"][0]["loss"], abs=1e-6)
    assert one["curve"][-1]["loss"] < one["curve"][0]["loss"]


@pytest.mark.parametrize(
    ("model", "steps", "configured", "every"),
    [("cpu-tiny", 40, None, 50), ("cpu-tiny", 1000, None, 100), ("684M", 40, None, 4), ("684M", 5, None, 1), ("684M", 40, 7, 7)],
)
def test_what_takes_longer_than_a_minute_is_kept(corpus: TokenCorpus, model: str, steps: int, configured: int | None, every: int) -> None:
    training = TrainingConfig.model_validate({"model": {"preset": model}, "steps": steps, "batch_rows": 256, "checkpoint_every_steps": configured})
    job = TrainJob("base", training, dict.fromkeys(corpus.names, 1 / 3), 0)
    assert checkpoint_interval(Worker(job, corpus, Hardware(torch.device("cpu"), torch.float32, "test"), MicroBatch(8))) == every


def test_micro_batches_change_only_rounding(corpus: TokenCorpus, tmp_path: Path) -> None:
    asked = {micro: settings(corpus, steps=1, learning_rate=SMALL_RATE, micro_batch_rows=micro) for micro in (8, 2)}
    whole, parts = run_worlds(*((tmp_path / str(micro), 1, each) for micro, each in asked.items()))
    assert difference(whole, parts) < 1e-6


def test_after_memory_ran_out_a_run_goes_on_with_half_as_many_rows_at_a_time(corpus: TokenCorpus, tmp_path: Path) -> None:
    failing = settings(corpus, learning_rate=SMALL_RATE, out_of_memory_after=6)
    whole, failed = run_worlds((tmp_path / "whole", 1, settings(corpus, learning_rate=SMALL_RATE)), (tmp_path / "failed", 1, failing))
    assert failed["exit"] != [0] and "made up" in failed["output"]
    resumed = run_world(tmp_path / "failed", 1, **settings(corpus, learning_rate=SMALL_RATE))
    assert resumed["exit"] == [0], resumed["output"]
    assert (whole["micro_batch_rows"], resumed["micro_batch_rows"], resumed["begun"]) == (8, 4, [0, 4])
    assert resumed["rows"] == whole["rows"] and difference(resumed, whole) < 1e-4


def test_resuming_with_another_number_of_workers_is_refused(corpus: TokenCorpus, tmp_path: Path) -> None:
    run_world(tmp_path, 1, **settings(corpus, die_after=6))
    refused = run_world(tmp_path, 2, **settings(corpus))
    assert refused["exit"] != [0, 0]
    assert "resources.num_workers: the checkpoint at step 4 was written by 1 workers and this run has 2" in refused["output"]


@pytest.mark.long
def test_resuming_with_another_zero_stage_is_refused(corpus: TokenCorpus, tmp_path: Path) -> None:
    run_world(tmp_path, 1, **settings(corpus, die_after=6))
    refused = run_world(tmp_path, 1, **settings(corpus, stage=1))
    assert refused["exit"] != [0]
    assert "zero_stage: the checkpoint at step 4 was written with ZeRO 0 in float32 and this run has ZeRO 1 in float32" in refused["output"]


def test_checkpoints_hold_no_pickle(corpus: TokenCorpus, tmp_path: Path) -> None:
    run_world(tmp_path, 1, **settings(corpus, die_after=6))
    files = [path for path in (tmp_path / "checkpoint").rglob("*") if path.is_file()]
    assert files
    for path in files:
        head = path.read_bytes()[:4096]
        assert not head.startswith((b"PK", b"\x80\x02", b"\x80\x04")), path
        assert path.name == "latest" or b'"tree"' in head, path


def test_jobs_that_cannot_run_are_refused(corpus: TokenCorpus) -> None:
    training = TrainingConfig(model={"preset": "cpu-tiny"}, steps=2, batch_rows=6)
    with pytest.raises(UserError, match=r"base\.batch_rows: 6 is not a multiple of resources\.num_workers 4"):
        check_job(TrainJob("base", training, WEIGHTS, 0), corpus, 4)
    with pytest.raises(UserError, match="'delta'"):
        check_job(TrainJob("base", training, {**WEIGHTS, "delta": 0.0}, 0), corpus, 1)


@pytest.mark.long
def test_a_longer_run_passes_through_a_shorter_one_on_its_schedule(corpus: TokenCorpus, tmp_path: Path) -> None:
    asked = settings(corpus, steps=6, stage=3)
    asked["training"]["schedule_steps"] = 12
    long, short = run_worlds((tmp_path / "long", 2, settings(corpus, stage=3, snapshots=[6])), (tmp_path / "short", 2, asked))
    assert long["exit"] == short["exit"] == [0, 0], long["output"] + short["output"]
    assert short["state"] == long["kept"]["6"] != long["state"]


def test_a_proxy_stops_when_its_weights_have_settled(corpus: TokenCorpus, tmp_path: Path) -> None:
    def rule(tolerance: float) -> dict[str, Any]:
        return {"name": "settled", "fields": {"every_steps": 2, "samples_per_domain": 8, "tolerance": tolerance}}

    short = settings(corpus, steps=2, rule=rule(2.0))
    short["training"]["schedule_steps"] = 40
    asked = {"never": settings(corpus, steps=40, rule=rule(1e-9)), "soon": settings(corpus, steps=40, rule=rule(2.0))}
    never, soon, two = run_worlds(*((tmp_path / name, 1, each) for name, each in asked.items()), (tmp_path / "two", 2, short))
    assert (never["step"], soon["step"]) == (40, 8), "comparisons are at 4, 8, 12, …: weights at t against t / 2, twice running"
    assert never["curve"][: len(soon["curve"])] == soon["curve"], "looking changes nothing"
    weights = [entry["weight"] for entry in never["weights"] if entry["step"] == 40]
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    assert [e["weight"] for e in two["weights"]] == pytest.approx([e["weight"] for e in never["weights"][:3]], abs=1e-4)


def test_what_a_watched_proxy_computes_is_what_embedding_computes(corpus: TokenCorpus, tmp_path: Path) -> None:
    import torch
    import torch.distributed as dist

    from chameleon_ray.corpus.rows import RowReader
    from chameleon_ray.models.architecture import middle_layer
    from chameleon_ray.models.build import build_model
    from chameleon_ray.models.hardware import Hardware
    from chameleon_ray.models.head import TokenLosses
    from chameleon_ray.models.load import load_truncated
    from chameleon_ray.models.pooling import MeanHiddenState
    from chameleon_ray.training.signals import embeddings
    from chameleon_ray.training.signals.embeddings import EmbeddingLook
    from chameleon_ray.training.worker import place

    training = TrainingConfig(model={"layers": 3, "heads": 2, "width": 32}, steps=4)
    model: Any = build_model(training.model, corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, 0)
    model.save_pretrained(tmp_path)
    hardware = Hardware(torch.device("cpu"), torch.float32, "test")
    rows = RowReader(corpus).read("alpha", np.arange(8))
    expected = MeanHiddenState(load_truncated(str(tmp_path), middle_layer(3), hardware), middle_layer(3))(rows.tokens, rows.length).numpy()
    found = MeanHiddenState(model, middle_layer(3))(rows.tokens, rows.length).numpy()
    assert np.abs(found - expected).max() < 1e-6

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for wanted, layer in (("middle", 2), (1, 1), (3, 3)):
        rule = SettledRule(Chameleon().formula, samples_per_domain=8, layer=wanted)  # type: ignore[arg-type]
        worker = place(TrainJob("proxy", training, WEIGHTS, 0, rule), corpus, hardware)
        seen = EmbeddingLook(worker)(TokenLosses(model))
        vectors = MeanHiddenState(load_truncated(str(tmp_path), layer, hardware), layer)(rows.tokens, rows.length).numpy()
        assert seen["layer"] == layer and np.abs(seen["group_sums"][0].sum(axis=0) - vectors.sum(axis=0)).max() < 1e-5
        assert embeddings.flops(worker, 4) == pytest.approx(4 * 24 * corpus.row_tokens * worker.architecture.embedding_flops(layer, corpus.row_tokens))


def test_watching_is_refused_where_no_worker_has_the_whole_model(corpus: TokenCorpus) -> None:
    training = TrainingConfig(model={"preset": "cpu-tiny"}, steps=2, batch_rows=4, zero_stage=3)
    with pytest.raises(UserError, match=r"proxy\.stop: .* set proxy\.zero_stage to 2 or less"):
        check_job(TrainJob("proxy", training, WEIGHTS, 0, SettledRule(Chameleon().formula)), corpus, 1)
