"""RegMix on swarms whose optimum is known, and its command."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from chameleon_ray.artifacts import Cost, Embeddings
from chameleon_ray.cli import main
from chameleon_ray.config import ModelConfig, ProxyChanges, TrainingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.regmix import RegMix
from chameleon_ray.mixing.runs import ONE_SIZE
from chameleon_ray.mixing.swarm import Swarm, draw_mixtures, read_swarm, swarm_files
from chameleon_ray.mixture import Mixture
from tests.fakes import best_mixture, leave_unmeasured, make_context, swarm_losses, with_target

ROWS = {"web": 400, "books": 200, "code": 120, "math": 80}
EXPERIMENT = TrainingConfig(model=ModelConfig(layers=2, heads=2, width=8), steps=10, batch_rows=16, micro_batch_rows=4)
SMALL = {"samples": 2000, "top": 32}


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def kept_swarm(mixture: Mixture, folder: Path) -> Swarm:
    write_files(mixture.files, folder)
    return read_swarm(str(folder / "ratios.csv"), str(folder / "metrics.csv"))


def fake_swarm(count: int = 100, seed: int = 0) -> Swarm:
    names = tuple(ROWS)
    ratios = draw_mixtures(dict.fromkeys(names, 0.25), count, seed)
    losses = [swarm_losses(dict(zip(names, row, strict=True))) for row in ratios.tolist()]
    return Swarm(tuple(map(str, range(count))), names, ratios, names, np.array([[row[name] for name in names] for row in losses]))


def optimum(swarm: Swarm, seed: int = 0, **settings) -> Mixture:
    method = RegMix(**{**SMALL, **settings})
    by_size = {ONE_SIZE: swarm}
    return method.optimum(by_size, ONE_SIZE, method.rank_correlations(by_size, ONE_SIZE, seed), seed)


def test_a_planted_optimum_is_found(tmp_path: Path) -> None:
    mixture = RegMix(num_proxies=300, samples=20_000, top=64).fit(make_context(ROWS))
    best, swarm = best_mixture(tuple(ROWS)), kept_swarm(mixture, tmp_path)
    excess = np.mean(list(swarm_losses(mixture.weights).values())) - 3
    # Trees are constant around the bottom of the bowl: the loss there is what they find, the place only as far as it matters.
    assert excess < swarm.losses("mean").min() - 3 < 0.05 * (np.median(swarm.losses("mean")) - 3)
    assert max(abs(mixture.weights[name] - best[name]) for name in ROWS) < 0.1
    assert mixture.details["predicted_loss"] == pytest.approx(3, abs=0.01)
    assert mixture.details["spearman"]["mean"]["lightgbm"] > 0.9
    assert mixture.warnings == ()


def test_the_target_is_one_domain_or_the_mean() -> None:
    best, swarm = best_mixture(tuple(ROWS)), fake_swarm(200)
    for name in ROWS:
        assert optimum(swarm, target=name).weights[name] == pytest.approx(best[name], abs=0.06)
    assert optimum(swarm).details["target"] == "mean"


def test_fit_asks_for_one_proxy_per_mixture_and_adds_up_what_they_took(tmp_path: Path) -> None:
    context = make_context(ROWS, seed=7)
    mixture = RegMix(num_proxies=60, **SMALL).fit(context)
    jobs = context.backend.jobs
    assert len(jobs) == 60 and {job.role for job in jobs} == {"swarm"} and {job.seed for job in jobs} == {7}
    assert all(list(job.weights) == list(ROWS) and abs(math.fsum(job.weights.values()) - 1) < 1e-12 for job in jobs)
    assert len({tuple(job.weights.values()) for job in jobs}) == 60
    tokens = 1000 * context.proxy.batch_rows * 16
    assert mixture.cost.tokens == 60 * tokens and mixture.cost.seconds == pytest.approx(60e-6 * tokens)
    swarm = kept_swarm(mixture, tmp_path)
    assert swarm.ratios.tolist() == [list(job.weights.values()) for job in jobs]
    again = optimum(swarm, seed=7)
    assert again.weights == mixture.weights and again.cost == Cost()


def test_a_swarm_written_and_read_gives_the_same_weights(tmp_path: Path) -> None:
    mixture = RegMix(num_proxies=60, **SMALL).fit(make_context(ROWS))
    paths = str(tmp_path / "ratios.csv"), str(tmp_path / "metrics.csv")
    write_files(mixture.files, tmp_path)
    for path in paths:
        header, *lines = Path(path).read_text().splitlines()
        Path(path).write_text("\n".join([header, *random.Random(path).sample(lines, len(lines))]))
    assert optimum(read_swarm(*paths)).weights == mixture.weights


def test_the_best_regressor_is_chosen_and_all_are_reported() -> None:
    found = optimum(fake_swarm(), regressor="best").details
    correlations = found["spearman"]["mean"]
    assert set(correlations) == {"lightgbm", "linear", "law", "log-ridge", "additive"}
    assert correlations[found["regressor"]] == max(correlations.values())


def test_content_embeds_the_domains_with_the_experiments_proxy() -> None:
    context = make_context(ROWS)
    few = {"num_proxies": 16, **SMALL}
    plain, told = (RegMix(regressor=name, **few).fit(context) for name in ("additive", "content"))
    assert set(told.details["spearman"]["mean"]) == {"content"}
    assert len(told.ledger) == len(plain.ledger) + 2, "the proxy and the embeddings"
    assert [len(RegMix(regressor=name).jobs(context)) for name in ("additive", "content", "best")] == [0, 1, 1]
    assert [sorted(RegMix(regressor=name).sections) for name in ("additive", "best")] == [["proxy"], ["embedding", "proxy"]]


def test_a_domain_that_no_run_has_gets_a_weight_by_its_embedding() -> None:
    """News are near web, which helps every target; poems near nothing."""
    names, ratios = tuple(ROWS), draw_mixtures(dict.fromkeys(ROWS, 0.25), 60, 0)
    losses = 3 - 0.1 * np.log(ratios + 1e-2) - 0.3 * np.log(ratios[:, :1] + 1e-2)
    swarm = {ONE_SIZE: Swarm(tuple(map(str, range(60))), names, ratios, names, losses)}
    places = {"web": [0, 0], "books": [9, 0], "code": [0, 9], "math": [9, 9], "news": [0.1, 0], "poems": [40, 40]}
    embedded = Embeddings(tuple(places), np.array(list(places.values()))[:, None] * 1.0, np.ones((6, 1), dtype=np.int64), layer=1)
    prior = dict.fromkeys(places, 1 / 6)
    method = RegMix(regressor="best", prior=prior, **SMALL)
    correlations = method.rank_correlations(swarm, ONE_SIZE, 0, embedded)
    assert set(correlations) == {"content"}
    mixture = method.optimum(swarm, ONE_SIZE, correlations, 0, embedded)
    assert list(mixture.weights) == [*ROWS, "news", "poems"] and mixture.details["unseen"] == ["news", "poems"]
    assert mixture.weights["news"] > mixture.weights["poems"] + 0.05
    assert "No run has any of news, poems: what they do is told by their embeddings alone." in mixture.warnings
    with pytest.raises(UserError, match="swarm: regressor 'law' knows nothing of domains that no run has; use content, or best"):
        RegMix(regressor="law", prior=prior).rank_correlations(swarm, ONE_SIZE, 0, embedded)
    assert method.model_copy(update={"prior": {**prior, "news": 0.0, "poems": 1 / 3}}).rank_correlations(swarm, ONE_SIZE, 0, embedded)
    with pytest.raises(UserError, match="prior: 'news' is no domain"):
        RegMix(regressor="best", prior=prior).rank_correlations(swarm, ONE_SIZE, 0)


def test_a_target_that_is_not_trained_on(tmp_path: Path) -> None:
    context = make_context(ROWS)
    context = replace(context, corpus=with_target(context.corpus, "letters", "mails"))
    mixture = RegMix(target="letters", num_proxies=60, regressor="linear", **SMALL).fit(context)
    assert mixture.weights["web"] == max(mixture.weights.values()) > 0.5, "what the fake target is learned by"
    swarm = kept_swarm(mixture, tmp_path)
    assert swarm.targets == (*ROWS, "letters", "mails") and swarm.averaged == tuple(sorted(ROWS)), "the mean is over domains"
    mean = RegMix(num_proxies=60, regressor="linear", **SMALL).fit(context)
    assert mean.weights == RegMix(num_proxies=60, regressor="linear", **SMALL).fit(make_context(ROWS)).weights


def test_a_swarm_of_one_size_cannot_tell_of_several() -> None:
    with pytest.raises(UserError, match=r"methods.regmix.regressor: shrinking learns from models of several sizes, and the swarm is of one"):
        RegMix(regressor="shrinking").check_settings("regmix", EXPERIMENT)


def test_the_prior_says_where_to_look() -> None:
    swarm = fake_swarm()
    assert optimum(swarm).details["prior"] == pytest.approx(dict(zip(sorted(ROWS), swarm.ratios[:, [1, 2, 3, 0]].mean(axis=0), strict=True)))
    prior = {"web": 0.5, "books": 0.0, "code": 0.25, "math": 0.25}
    assert optimum(swarm, prior=prior).weights["books"] == 0
    for odd in ({"web": 0.5, "books": 0.5}, {**prior, "poems": 0.0}):
        with pytest.raises(UserError, match="prior: '(code|poems)' .* give one weight for each of web, books, code, math"):
            optimum(swarm, prior=odd)


def test_a_poor_regression_is_warned_about() -> None:
    swarm = fake_swarm()
    noise = np.random.default_rng(0).standard_normal(swarm.metrics.shape)
    noisy = Swarm(swarm.runs, swarm.domains, swarm.ratios, swarm.targets, noise)
    assert any("rank correlation of only" in warning and "under 0.7" in warning for warning in optimum(noisy).warnings)
    assert not any("rank correlation" in warning for warning in optimum(noisy, min_spearman=-1).warnings)


def test_collapsed_weights_are_warned_about() -> None:
    swarm = fake_swarm()
    greedy = Swarm(swarm.runs, swarm.domains, swarm.ratios, ("web",), 3 - swarm.ratios[:, :1])
    (warning,) = optimum(greedy, target="web", regressor="linear").warnings
    assert "of 4: the weights collapse; the target is 'web' alone" in warning and "flatter prior" in warning


def test_the_proxy_is_regmix_own_but_for_what_is_changed() -> None:
    own = RegMix().training(EXPERIMENT)
    assert (own.model.preset, own.steps, own.warmup_steps, own.batch_rows, own.micro_batch_rows) == ("1M", 1000, 100, 16, 4)
    assert own.learning_rate == own.min_learning_rate == 4e-4
    short = RegMix(proxy=ProxyChanges(steps=50, learning_rate=1e-3, model=ModelConfig(preset="cpu-tiny"))).training(EXPERIMENT)
    assert (short.steps, short.warmup_steps, short.model.preset) == (50, 5, "cpu-tiny")
    assert short.learning_rate == short.min_learning_rate == 1e-3
    assert RegMix(proxy=ProxyChanges(steps=5)).training(EXPERIMENT).warmup_steps == 0
    assert RegMix(proxy=ProxyChanges(min_learning_rate=0, warmup_steps=3, batch_rows=8)).training(EXPERIMENT).min_learning_rate == 0
    with pytest.raises(UserError, match=r"proxy.* not a multiple of micro_batch_rows"):
        RegMix(proxy=ProxyChanges(batch_rows=6)).training(EXPERIMENT)


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"target": "bokks"},
            r"methods\.label: target 'bokks' is no domain and no target of the corpus; there are mean, .*, math \(did you mean 'books'\?\)",
        ),
        ({"num_proxies": 52}, r"methods\.label: num_proxies: 52 runs are too few for regressor 'lightgbm' with 4 domains"),
        ({"prior": {"web": 1.0}}, "prior: 'books' has no weight"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(settings: dict, words: str) -> None:
    context = make_context(ROWS)
    with pytest.raises(UserError, match=words):
        RegMix(**settings).fit(context)
    assert context.backend.jobs == []


def test_a_domain_without_held_out_text_is_mixed_and_is_no_target(tmp_path: Path) -> None:
    context = make_context(ROWS)
    context = replace(context, corpus=leave_unmeasured(context.corpus, "books"))
    mixture = RegMix(num_proxies=60, **SMALL).fit(context)
    assert list(mixture.weights) == list(ROWS)
    swarm = kept_swarm(mixture, tmp_path)
    assert (swarm.domains, swarm.targets) == (tuple(ROWS), ("web", "code", "math"))
    best = min(swarm_losses(dict(zip(ROWS, row, strict=True)))[name] for row in swarm.ratios.tolist() for name in swarm.targets)
    assert swarm.metrics.min() == best
    assert any("the mean over the 3 domains of 4 that have held-out text; how well books is learned counts for nothing" in w for w in mixture.warnings)
    assert not any("held-out text;" in warning for warning in RegMix(num_proxies=60, target="web", **SMALL).fit(context).warnings)
    trained = len(context.backend.jobs)
    with pytest.raises(
        UserError, match=r"^methods\.label: target 'books' has too little held-out text to be measured; add documents .* choose mean, web, code, math$"
    ):
        RegMix(num_proxies=60, target="books").fit(context)
    with pytest.raises(UserError, match=r"^corpus: no domain has two distinct held-out documents"):
        RegMix(num_proxies=60).fit(replace(context, corpus=leave_unmeasured(context.corpus, *ROWS)))
    assert len(context.backend.jobs) == trained, "refused before anything is trained"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"top": 10, "samples": 5}, "top 10 exceeds samples 5"),
        ({"prior": {"a": 0.4}}, "sum to 0.4"),
        ({"regressor": "forest"}, "regressor"),
        ({"num_proxies": 0}, "num_proxies"),
    ],
)
def test_settings_that_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RegMix(**fields)


def run(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `regmix fit` on the swarm in a folder."""
    with pytest.raises(SystemExit) as status:
        main(["regmix", "fit", "--ratios", str(folder / "ratios.csv"), "--metrics", str(folder / "metrics.csv"), *options])
    return int(status.value.code or 0), *capsys.readouterr()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(swarm_files(fake_swarm(60)), tmp_path)
    return tmp_path


def test_command_reports_the_rank_correlation_before_the_mixture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(folder / "mixture.json")
    status, text, _ = run(capsys, folder, "--target", "metric/web_val_loss", "--regressor", "law", "--out", out)
    assert status == 0
    assert 0 <= text.index("law: cross-validated rank correlation") < text.index("Mixture 'regmix'") < text.index("predicted loss")
    found = Mixture.load(out)
    assert found.details["target"] == "web" and list(found.weights) == list(ROWS) and found.provenance["ratios"][0]["file"].endswith("ratios.csv")


def test_command_prints_json_alone_and_takes_a_prior(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prior = {"web": 0.1, "books": 0.4, "code": 0.0, "math": 0.5}
    file = folder / "prior.json"
    Mixture("fixed", prior).save(str(file))
    texts = [",".join(f"{name}={value}" for name, value in prior.items()), str(file)]
    (first, second) = [json.loads(run(capsys, folder, "--target", "mean", "--regressor", "linear", "--json", "--prior", text)[1]) for text in texts]
    assert first["weights"] == second["weights"] and first["weights"]["code"] == 0 and first["details"]["prior"] == prior


@pytest.mark.parametrize(
    "options, words",
    [
        (("--target", "wbe"), "target 'wbe': nothing by that name was measured; there are mean, books, code, math, web (did you mean 'web'?)"),
        (("--target", "web", "--regressor", "forest"), "regmix fit: regressor: unknown regressor 'forest'; known: lightgbm, "),
        (("--target", "web", "--prior", "web=1"), "prior: 'books' has no weight"),
        (("--target", "web", "--prior", "web=half"), "--prior: 'web=half' is not of the form name=value"),
        (("--target", "web", "--prior", "web=0.5,web=0.5"), "--prior: 'web=0.5' gives a domain twice"),
        (("--target", "web", "--prior", "web=0.5,code=0.4"), "prior: sum to 0.9, not 1"),
        (("--target", "web", "--prior", "nowhere.json"), "nowhere.json: no such mixture file"),
    ],
)
def test_command_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str) -> None:
    status, text, error = run(capsys, folder, *options)
    assert (status, text) == (2, "")
    assert words in error and len(error.splitlines()) == 1


def test_command_finds_the_optimum_at_a_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Books matter less as models grow, so that their share falls with the size."""
    names, ratios = tuple(ROWS), draw_mixtures(dict.fromkeys(ROWS, 0.25), 60, 0)
    small = Swarm(tuple(map(str, range(60))), names, ratios, names, 3 - 0.2 * np.log(ratios + 1e-2))
    less = np.where(np.array(names) == "books", 0.3, 1.0)
    large = replace(small, metrics=2 + less * (small.metrics - 3)[::2], ratios=ratios[::2], runs=small.runs[::2])
    write_files(swarm_files(small), folder)
    (folder / "large").mkdir()
    write_files(swarm_files(large), folder / "large")
    both = ("--ratios", str(folder / "large" / "ratios.csv"), "--metrics", str(folder / "large" / "metrics.csv"), "--sizes", "1M,100M")
    weights = {}
    for size in ("1M", "100M", "1B"):
        status, text, error = run(capsys, folder, *both, "--target", "mean", "--regressor", "shrinking", "--at", size, "--json")
        assert status == 0, error
        weights[size] = json.loads(text)["weights"]
    assert weights["1M"]["books"] > weights["100M"]["books"] > weights["1B"]["books"]
    status, text, _ = run(capsys, folder, *both, "--target", "mean", "--regressor", "shrinking", "--at", "1B")
    assert "shrinking: cross-validated rank correlation" in text and "(for 1B; 60 runs of 1M, 30 runs of 100M)" in text
    for options, words in (
        (("--at", "1B"), "swarm: regressor 'lightgbm' knows only models of a size that was run; choose one that carries on to other sizes"),
        (("--regressor", "bimix", "--at", "large"), "--at: 'large' is no model size; write parameters as in 1M, 60M, 1.2B"),
    ):
        status, _, error = run(capsys, folder, *both, "--target", "mean", *options)
        assert status == 2 and words in error and error.count("\n") == 1
    status, _, error = run(capsys, folder, *both[:2], "--target", "mean")
    assert status == 2 and "--ratios: 2 files, and 1 of --metrics; give one of each for every model size" in error
