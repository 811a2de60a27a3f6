"""DoReMi's and DoGE's steps in the real loop: against direct computation, over two ranks, and killed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import ModelConfig, TrainingConfig
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.doge import DoGERule
from chameleon_ray.mixing.doremi import DoReMiRule
from chameleon_ray.models.build import build_model
from chameleon_ray.training.checkpoint import load_tree
from chameleon_ray.training.loop import check_job
from chameleon_ray.training.plan import MixturePlan
from tests.corpora import make_corpus
from tests.training.worlds import run_world, run_worlds

WEIGHTS = {"alpha": 1 / 3, "beta": 1 / 3, "gamma": 1 / 3}
MODEL = {"layers": 2, "heads": 2, "width": 32}
RATE = 5e-4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def reference(corpus: TokenCorpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("reference"))
    fresh(corpus, seed=7).save_pretrained(folder)
    return folder


def fresh(corpus: TokenCorpus, seed: int) -> Any:
    return build_model(ModelConfig(**MODEL), corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, seed)


def settings(corpus: TokenCorpus, method: str, reference: str, steps: int = 12, **others: Any) -> dict[str, Any]:
    training = {"model": MODEL, "steps": steps, "batch_rows": 12, "learning_rate": RATE, "min_learning_rate": RATE, "warmup_steps": 0}
    training |= {"gradient_clipping": 1e9, "checkpoint_every_steps": 4, **others.pop("training", {})}
    fields = {"doremi": {"step_size": 5.0}, "doge": {"mu": 1e-4, "max_norm": 2.0}}[method]
    extra = {"reference": reference} if method == "doremi" else {}
    return {"corpus": corpus.address, "weights": WEIGHTS, "training": training, "rule": {"name": method, "fields": fields}, **extra, **others}


def first_batch(corpus: TokenCorpus) -> tuple[torch.Tensor, np.ndarray]:
    plan = MixturePlan(WEIGHTS, corpus.rows(), 0)
    planned, _ = plan.take(plan.start(), 12)
    return torch.from_numpy(RowReader(corpus).read_mixed(plan.names, planned.domain, planned.row).tokens.astype(np.int64)), planned.domain


def token_losses(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)


def weights_after(result: dict[str, Any], step: int) -> list[float]:
    assert set(result["exit"]) == {0}, result["output"]
    return [entry["weight"] for entry in result["weights"] if entry["step"] == step]


def adam_step(model: Any, gradients: list[torch.Tensor], rate: float = RATE) -> None:
    """The engine's first step: weight decay 0.01 on matrices, betas (0.9, 0.95)."""
    parameters = list(model.parameters())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01}, {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95)).step()


def first_moments(folder: Path) -> float:
    """Norm of AdamW's in the last checkpoint; single parameters move as their gradients' signs do, whatever factor these have."""
    state = load_tree(str(folder / "checkpoint" / "state" / "mp_rank_00_model_states.pt"))["optimizer"]["state"]
    return float(sum(each["exp_avg"].double().square().sum() for each in state.values()) ** 0.5)


def disagreement(start: Any, expected: Any, result: dict[str, Any]) -> float:
    """|found - expected| over |expected - start|: where a gradient is all but zero, rounding decides Adam's first step, so that single elements tell little."""
    found, wanted, before = (
        torch.cat([part.detach().double().flatten() for part in parts])
        for parts in (
            [torch.tensor(result["state"][name]) for name, _ in expected.named_parameters()],
            list(expected.parameters()),
            list(start.parameters()),
        )
    )
    return float((found - wanted).norm() / (wanted - before).norm())


def test_doge_agrees_with_k_gradients_computed_directly(corpus: TokenCorpus, tmp_path: Path) -> None:
    tokens, domains = first_batch(corpus)
    model = fresh(corpus, seed=0)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(token_losses(model, tokens[torch.from_numpy(domains == i)]).mean(), parameters) for i in range(3)]
    flat = torch.stack([torch.cat([part.flatten() for part in gradient]) for gradient in gradients]).double()
    norms = flat.norm(dim=1)
    assert norms.max() > 2.0, "the clip must bite"
    flat *= (2.0 / norms.clamp(min=2.0))[:, None]
    scores = RATE / 2 * ((flat @ flat.sum(0)) / (flat.norm(dim=1).mean() + 1e-6)).clamp(0, 5)
    alpha = torch.softmax(scores / 1e-4, 0)
    combined = (alpha @ flat).float().split([p.numel() for p in parameters])
    adam_step(model, [share.view_as(p) for share, p in zip(combined, parameters, strict=True)], RATE / 2)

    found = run_world(tmp_path, 1, **settings(corpus, "doge", "", steps=1, training={"warmup_steps": 2, "schedule_steps": 4}))
    assert weights_after(found, 1) == pytest.approx(alpha.tolist(), abs=1e-5)
    assert max(alpha) - min(alpha) > 1e-3, "the weights must move"
    assert disagreement(fresh(corpus, seed=0), model, found) < 1e-3


def test_doge_takes_a_target_that_is_not_trained_on(tmp_path: Path) -> None:
    """G is the gradient on rows of the target's valid half, and of a domain that is a target too, whatever the number of ranks."""
    corpus = make_corpus(tmp_path / "corpus", targets=("gamma",))
    weights = {"alpha": 1 / 2, "beta": 1 / 2}
    plan = MixturePlan(weights, corpus.rows(), 0)
    planned, _ = plan.take(plan.start(), 12)
    tokens = torch.from_numpy(RowReader(corpus).read_mixed(plan.names, planned.domain, planned.row).tokens.astype(np.int64))
    full = corpus.domains["gamma"].valid.tokens // corpus.row_tokens
    order = np.random.default_rng([0, *b"gamma"]).permutation(full)[:6]
    unseen = torch.from_numpy(RowReader(corpus, "valid").read("gamma", order).tokens.astype(np.int64))
    model = fresh(corpus, seed=0)
    parameters = list(model.parameters())
    parts = [*(tokens[torch.from_numpy(planned.domain == i)] for i in range(2)), unseen]
    flat = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(token_losses(model, part).mean(), parameters)]) for part in parts]).double()
    assert float(flat[2].norm()) > 1.7, "the clip must bite"
    flat *= (1.5 / flat.norm(dim=1).clamp(min=1.5))[:, None]
    goal = flat[1] + flat[2]
    scores = RATE * ((flat[:2] @ goal) / (flat[:2].norm(dim=1).mean() + 1e-6)).clamp(0, 5)
    alpha = torch.softmax(scores / 2e-3, 0)
    fields = {"mu": 2e-3, "max_norm": 1.5, "targets": [1], "external": ["gamma"]}
    asked = settings(corpus, "doge", "", steps=1) | {"weights": weights, "rule": {"name": "doge", "fields": fields}}
    for found in run_worlds(*((tmp_path / str(ranks), ranks, asked) for ranks in (1, 2))):
        assert weights_after(found, 1) == pytest.approx(alpha.tolist(), abs=1e-5), found["output"]
    assert 1e-2 < float(alpha.min()) < 0.45, "the weights must move and not saturate"


def test_a_target_of_less_than_a_row_is_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, row_tokens=4096, rows={"alpha": 1, "beta": 1, "gamma": 1}, targets=("gamma",))
    training = TrainingConfig(model=ModelConfig(**MODEL), steps=1, batch_rows=4)
    job = TrainJob("doge", training, {"alpha": 1 / 2, "beta": 1 / 2}, 0, DoGERule(targets=(), external=("gamma",)))
    with pytest.raises(
        UserError, match=r"corpus.targets.gamma: its valid half has \d+ tokens, less than a row of 4096, and DoGE takes gradients on whole rows"
    ):
        check_job(job, corpus, 1)


def test_doremi_agrees_with_the_loss_written_down(corpus: TokenCorpus, reference: str, tmp_path: Path) -> None:
    tokens, domains = first_batch(corpus)
    model, frozen = fresh(corpus, seed=0), fresh(corpus, seed=7)
    losses = token_losses(model, tokens)
    with torch.no_grad():
        excess = (losses - token_losses(frozen, tokens)).clamp(min=0)
    per_domain = torch.stack([excess[torch.from_numpy(domains == i)].mean() for i in range(3)]).double()
    alpha = torch.softmax(5.0 * per_domain, 0)
    alpha = (1 - 1e-3) * alpha + 1e-3 / 3
    means = torch.stack([losses[torch.from_numpy(domains == i)].mean() for i in range(3)])
    adam_step(model, list(torch.autograd.grad((alpha.float() * means).sum(), list(model.parameters()))))

    ways = ((12, 0), (4, 0), (4, 1))  # one graph that waits, one gradient per domain, one forward pass more
    asked = [settings(corpus, "doremi", reference, steps=1, micro_batch_rows=micro, training={"zero_stage": stage}, domain_tokens=1) for micro, stage in ways]
    results = run_worlds(*((tmp_path / str(i), 1, each) for i, each in enumerate(asked)))
    one, by_domain, twice = (found["flops"] for found in results)
    assert one < by_domain < 0.9 * twice, "each takes the way it is here for"
    for found in results:
        assert weights_after(found, 1) == pytest.approx(alpha.tolist(), abs=1e-5)
        assert disagreement(fresh(corpus, seed=0), model, found) < 1e-3


def test_excess_is_clipped_token_by_token(corpus: TokenCorpus, reference: str) -> None:
    """Two models whose losses differ both ways: the mean of clipped tokens exceeds the clipped mean, which is all but 0."""
    from chameleon_ray.artifacts import Cost, TrainedModel
    from chameleon_ray.models.hardware import Hardware
    from chameleon_ray.training.learner import Learner
    from chameleon_ray.training.micro_batch import MicroBatch
    from chameleon_ray.training.signals.excess_losses import ExcessLossStep
    from chameleon_ray.training.steps import Worker

    tokens, _ = first_batch(corpus)
    losses = [token_losses(fresh(corpus, seed), tokens) for seed in (0, 7)]
    mean_clip = (losses[0].mean() - losses[1].mean()).clamp(min=0)
    training = TrainingConfig(model=ModelConfig(**MODEL), steps=1, batch_rows=12)
    job = TrainJob("doremi", training, WEIGHTS, 0, DoReMiRule(), TrainedModel(reference, "", {}, 0, "", Cost()))
    worker = Worker(job, corpus, Hardware(torch.device("cpu"), torch.float32, ""), MicroBatch(12))
    step = ExcessLossStep(worker, Learner(job, None))
    with torch.no_grad():
        excess = step._excess(F.pad(losses[0], (0, 1)), tokens)
    expected = (losses[0] - losses[1]).clamp(min=0).sum(dim=1)
    assert excess.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert expected.mean() / (corpus.row_tokens - 1) > 2 * mean_clip


@pytest.mark.parametrize("method", ["doremi", "doge"])
def test_two_ranks_equal_one(corpus: TokenCorpus, reference: str, tmp_path: Path, method: str) -> None:
    one, two = run_worlds(*((tmp_path / str(world), world, settings(corpus, method, reference, 20)) for world in (1, 2)))
    norms = [first_moments(tmp_path / str(world)) for world in (1, 2)]
    assert norms[0] == pytest.approx(norms[1], rel=0.02), "the gradient that the engine is handed is the whole batch's"
    for step, tolerance in ((1, 1e-6), (20, 1e-4)):
        assert weights_after(one, step) == pytest.approx(weights_after(two, step), abs=tolerance)
        assert len(weights_after(one, step)) == 3


@pytest.mark.parametrize(("method", "world"), [pytest.param(method, 2, marks=pytest.mark.long) for method in ("doremi", "doge")])
def test_killed_twice_is_bit_identical(corpus: TokenCorpus, reference: str, tmp_path: Path, method: str, world: int) -> None:
    first = settings(corpus, method, reference, die_after=6)
    whole, killed = run_worlds((tmp_path / "whole", world, settings(corpus, method, reference)), (tmp_path / "killed", world, first))
    again = run_world(tmp_path / "killed", world, **settings(corpus, method, reference, die_after=9))
    assert 9 in killed["exit"] and 9 in again["exit"]
    resumed = run_world(tmp_path / "killed", world, **settings(corpus, method, reference))
    assert set(resumed["exit"]) == {0}, resumed["output"]
    assert (whole["begun"], resumed["begun"]) == ([0], [0, 4, 8])
    assert all(resumed[part] == whole[part] for part in ("state", "curve", "rows", "weights"))
    assert weights_after(whole, 12) != weights_after(whole, 4)


def test_doge_refuses_what_it_cannot_work_with(corpus: TokenCorpus) -> None:
    training = TrainingConfig(model=ModelConfig(**MODEL), steps=2, batch_rows=12, zero_stage=1)
    with pytest.raises(UserError, match=r"proxy\.zero_stage: 1, but DoGE compares whole gradients .* set proxy\.zero_stage=0"):
        check_job(TrainJob("doge", training, WEIGHTS, 0, DoGERule()), corpus, 1)
    with pytest.raises(UserError, match=r"resources\.num_workers: 4 workers but 3 domains"):
        check_job(TrainJob("doge", training.model_copy(update={"zero_stage": 0}), WEIGHTS, 0, DoGERule()), corpus, 4)
