"""How many runs a swarm needs, and what embeddings tell of a domain that no run has: the tables of `analysis/results/content.md`.

    CHAMELEON_DATA=… python -m analysis.content RUNS/embeddings/…

The embeddings are those of the thirteen English domains (`analysis.calibration`); eleven of them stand in for domains of the Pile. About ten minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from analysis.calibration.public import PILE_NAMES, as_in_the_pile, public_part
from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing.published import PUBLISHED
from chameleon_ray.mixing.regression import REGRESSORS, fit, spearman
from chameleon_ray.mixing.regressors.regressor import Array, Predict, Runs
from chameleon_ray.mixing.runs import ONE_SIZE, joined, runs_of

REGRESSED = ("log-ridge", "lightgbm", "additive", "content")
COUNTS = (12, 16, 24, 32, 64, 128, 512)
DRAWS = 5
ADDED = 0.2
ALMOST_NONE = 0.002


def main() -> None:
    """Both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", help="folder of the embeddings of the thirteen domains")
    embeddings = as_in_the_pile(Embeddings.load(parser.parse_args().embeddings))
    _, train = runs_of({ONE_SIZE: public_part("train", "1m")}, embeddings=embeddings)
    _, test = runs_of({ONE_SIZE: public_part("test", "1m")}, embeddings=embeddings)
    print(f"| runs | {' | '.join(REGRESSED)} |\n|---|{'---|' * len(REGRESSED)}")
    for count in COUNTS:
        cells = (_correlations(name, count, train, test) if count >= REGRESSORS[name].min_runs(17) else "–" for name in REGRESSED)
        print(f"| {count} | {' | '.join(cells)} |")
    names, runs = runs_of({ONE_SIZE: joined([public_part("train", "1m"), public_part("test", "1m")])}, embeddings=embeddings)
    print("\n| domain left out | runs without it | content | additive | as the others by size | as the others alike |\n|---|---|---|---|---|---|")
    sizes = np.array([PUBLISHED["pile_human"].weights[name] for name in names])
    found = {name: left_out(names.index(name), runs, sizes) for name in PILE_NAMES.values()}
    for name, (count, ranks) in found.items():
        print(f"| {name} | {count} | {' | '.join(f'{ranks[way]:.2f}' for way in ranks)} |")
    means = {way: np.mean([ranks[way] for _, ranks in found.values()]) for way in next(iter(found.values()))[1]}
    print(f"| mean | | {' | '.join(f'{value:.2f}' for value in means.values())} |")


def _correlations(name: str, count: int, train: Runs, test: Runs) -> str:
    """Rank correlation x 100 on the test runs, mean per loss / of the mean loss, over draws of so many runs."""
    found = []
    for draw in range(DRAWS if count < len(train) else 1):
        seen = train.only(np.random.default_rng(draw).permutation(len(train))[:count])
        predicted = fit(name, seen, ONE_SIZE)(test.ratios)
        each = np.mean([spearman(predicted[:, j], test.losses[:, j]) for j in range(predicted.shape[1])])
        found.append((100 * float(each), 100 * spearman(predicted.mean(axis=1), test.losses.mean(axis=1))))
    each, mean = np.array(found).mean(axis=0)
    return f"{each:.1f} / {mean:.1f}"


def left_out(domain: int, runs: Runs, sizes: Array) -> tuple[int, Mapping[str, float]]:
    """What a fifth of a domain added to the mean mixture does for the other targets, told by fits on runs without it: rank correlation over the targets with
    what the law fitted to all runs says."""
    others = [j for j, own in enumerate(runs.own) if own != domain]
    base = runs.ratios.mean(axis=0)
    base[domain] = 0
    base /= base.sum()
    truth = _effect(fit("additive", runs, ONE_SIZE), base, _only(domain, base))[others]
    rows = runs.ratios[:, domain] < ALMOST_NONE
    ratios = np.where(np.arange(runs.ratios.shape[1]) == domain, 0.0, runs.ratios[rows])
    assert runs.alike is not None
    seen = replace(
        runs.only(rows),
        ratios=ratios / ratios.sum(axis=1, keepdims=True),
        losses=runs.losses[rows][:, others],
        own=tuple(runs.own[j] for j in others),
        alike=runs.alike[others],
    )
    laws = {name: fit(name, seen, ONE_SIZE) for name in ("content", "additive")}
    even = np.where(base > 0, 1.0, 0.0) / (base > 0).sum()
    told = {
        **{name: _effect(law, base, _only(domain, base)) for name, law in laws.items()},
        "by size": _effect(laws["additive"], base, np.where(base > 0, sizes, 0.0) / sizes[base > 0].sum()),
        "alike": _effect(laws["additive"], base, even),
    }
    return int(rows.sum()), {way: spearman(effect, truth) for way, effect in told.items()}


def _effect(law: Predict, base: Array, added: Array) -> Array:
    """[m] change of the losses when a fifth of the mixture becomes another one."""
    before, after = law(np.stack([base, (1 - ADDED) * base + ADDED * added]))
    return np.asarray(after - before)


def _only(domain: int, base: Array) -> Array:
    return np.eye(len(base))[domain]


if __name__ == "__main__":
    main()
