"""Published and our own mixtures of Pile domains judged by public runs: the tables and the figure of `analysis/results/published_mixtures.md`.

    CHAMELEON_DATA=… python -m analysis.published_mixtures RUNS/embeddings/… [--law] [--sizes 1M,60M,1B] --figure FILE.svg

The embeddings are SmolLM2's of the thirteen English domains (`analysis.calibration`). `--law` shows instead how laws across sizes order runs that they have
not seen: 60M from 1M, and with 1B among the sizes, 1B from both. About half an hour.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from analysis.calibration.choose import Setting
from analysis.calibration.public import PILE_NAMES, as_in_the_pile, public_part, public_runs
from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing.judge import Interval, Verdict, judge
from chameleon_ray.mixing.published import PUBLISHED
from chameleon_ray.mixing.regression import REGRESSORS, fit, spearman
from chameleon_ray.mixing.regressors.regressor import Runs
from chameleon_ray.mixing.runs import parameters_of, prefix, runs_of
from chameleon_ray.mixing.swarm import Swarm

NAMED = ("pile_chameleon", "pile_human", "pile_doge", "pile_doremi", "pile_regmix")
REGRESSOR = "additive"
OWN = {
    "calibrated": Setting(),
    "paper": Setting(variant="paper"),
    "released": Setting(variant="released"),
}
FEW = 16


def main() -> None:
    """Tables as Markdown on standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", help="folder of SmolLM2's embeddings of the thirteen domains")
    parser.add_argument("--sizes", default="1M,60M")
    parser.add_argument("--law", action="store_true", help="how laws across sizes order runs they have not seen")
    parser.add_argument("--figure", help="an SVG file to write")
    options = parser.parse_args()
    sizes = options.sizes.split(",")
    if options.law:
        _laws(sizes)
        return
    embeddings = as_in_the_pile(Embeddings.load(options.embeddings))
    even17 = dict.fromkeys(PUBLISHED["pile_human"].weights, 1 / 17)
    published = {"uniform": even17, **{name.removeprefix("pile_"): PUBLISHED[name].weights for name in NAMED}}
    own = {"uniform over eleven": dict.fromkeys(embeddings.names, 1 / 11)}
    own |= {label: dict(zip(embeddings.names, setting.weigh(embeddings).tolist(), strict=True)) for label, setting in OWN.items()}
    verdicts = {size: judge(published, {size: public_runs(size)}, size, regressor=REGRESSOR) for size in sizes}
    print("\n## Published mixtures, against uniform over the seventeen\n")
    _table(verdicts)
    print("\n## Our own, against uniform over the eleven, on the nine of them that were measured\n")
    _table({size: judge(own, {size: _of_the_eleven(public_runs(size))}, size, regressor=REGRESSOR) for size in sizes})
    print("\n## Chameleon's published mixture against the others\n")
    others = {name: published[name] for name in ("chameleon", *(name for name in published if name != "chameleon"))}
    _table({size: judge(others, {size: public_runs(size)}, size, regressor=REGRESSOR) for size in sizes}, turned=True)
    if options.figure:
        _draw(verdicts, options.figure)


def _of_the_eleven(swarm: Swarm) -> Swarm:
    """The runs with the losses of domains that our mixtures have."""
    places = [j for j, name in enumerate(swarm.targets) if name.removeprefix(prefix(swarm.domains)) in PILE_NAMES.values()]
    return replace(swarm, targets=tuple(swarm.targets[j] for j in places), metrics=swarm.metrics[:, places])


def _table(verdicts: Mapping[str, Verdict], turned: bool = False) -> None:
    """Changes against the first mixture; `turned`: of the first against each other one."""
    ordered = ", ".join(f"{size} {verdict.spearman[verdict.regressor]:.3f}" for size, verdict in verdicts.items())
    drawn = f"In brackets nine tenths of {REGRESSORS[REGRESSOR].draws} fits to runs drawn anew; ! lies outside the runs."
    print(f"Cross-validated rank correlation of the mean loss: {ordered}. {drawn}\n")
    heads = [f"nats, {size} | average perplexity, {size} | nearest run, {size}" for size in verdicts]
    print(f"| mixture | {' | '.join(heads)} |\n|---|{'---|' * 3 * len(verdicts)}")
    first = next(iter(verdicts.values()))
    for i in range(1, len(first.mixtures)):
        cells = []
        for verdict in verdicts.values():
            each = verdict.mixtures[i]
            assert each.nats_change and each.perplexity_change
            nats = _turned(each.nats_change) if turned else each.nats_change
            change = _turned_share(each.perplexity_change) if turned else each.perplexity_change
            cells += [_within(nats, "+.3f"), _within(change, "+.1%"), f"{each.distance:.2f}{'' if each.covered else ' !'}"]
        print(f"| {first.mixtures[i].mixture} | {' | '.join(cells)} |")


def _turned(found: Interval) -> Interval:
    return Interval(-found.value, -found.high, -found.low)


def _turned_share(found: Interval) -> Interval:
    return Interval(1 / (1 + found.value) - 1, 1 / (1 + found.high) - 1, 1 / (1 + found.low) - 1)


def _within(found: Interval, form: str) -> str:
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def _laws(sizes: list[str]) -> None:
    """Rank correlation x 100 with runs of the second size, given those of the first (their 512, and both parts) and some of its own; then of 1B given both."""
    _, small = runs_of({parameters_of("1M", "size"): public_part("train", "1m")})
    _, large = runs_of({parameters_of("60M", "size"): public_runs("60M")})
    print("| law | 60M from 1M | with 16 runs of 60M | with 64 | error, nats |\n|---|---|---|---|---|")
    for name in ("additive", "lightgbm", *(name for name, each in REGRESSORS.items() if each.across_sizes and not each.from_content)):
        cells, errors = [], 0.0
        for count in (0, FEW, 64):
            across = REGRESSORS[name].across_sizes
            if across and not count:
                cells.append("–")
                continue
            pick = np.random.default_rng(0).permutation(len(large))[:count]
            others = np.setdiff1d(np.arange(len(large)), pick)
            seen = _together(small, large.only(pick)) if across else small
            predicted = (fit(name, seen, 6e7) if across else REGRESSORS[name].fit(seen, 6e7))(large.ratios[others])
            cells.append(_both(predicted, large.losses[others]))
            errors = float(np.abs(predicted - large.losses[others]).mean())
        print(f"| {name} | {' | '.join(cells)} | {errors:.3f} |")
    if "1B" not in sizes:
        return
    _, both = runs_of({parameters_of(size, "size"): public_runs(size) for size in ("1M", "60M")})
    _, billion = runs_of({parameters_of("1B", "size"): public_runs("1B")})
    print("\n| law | 1B from 1M and 60M | error, nats |\n|---|---|---|")
    for name in (name for name, each in REGRESSORS.items() if each.across_sizes and not each.from_content):
        predicted = fit(name, both, 1e9)(billion.ratios)
        print(f"| {name} | {_both(predicted, billion.losses)} | {np.abs(predicted - billion.losses).mean():.3f} |")
    for name, size in (("additive", 1e6), ("lightgbm", 1e6), ("additive", 6e7), ("lightgbm", 6e7)):
        print(f"| {name} at {size / 1e6:.0f}M alone | {_both(fit(name, both, size)(billion.ratios), billion.losses)} | |")


def _together(small: Runs, large: Runs) -> Runs:
    parts = [np.concatenate([getattr(each, field) for each in (small, large)]) for field in ("ratios", "losses", "parameters")]
    return Runs(parts[0], parts[1], small.own, parts[2])


def _both(predicted: np.ndarray, losses: np.ndarray) -> str:
    each = np.mean([spearman(predicted[:, j], losses[:, j]) for j in range(losses.shape[1])])
    return f"{100 * each:.1f} / {100 * spearman(predicted.mean(axis=1), losses.mean(axis=1)):.1f}"


def _draw(verdicts: Mapping[str, Verdict], address: str) -> None:
    """Change of mean nats against uniform by model size, a line for each mixture."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    sizes = [parameters_of(size, "size") for size in verdicts]
    for i, each in enumerate(next(iter(verdicts.values())).mixtures):
        found = [verdict.mixtures[i].nats_change for verdict in verdicts.values()]
        if all(found):
            values = [change.value for change in found if change]
            errors = [[abs(change.value - end) for change, end in ((c, getattr(c, side)) for c in found if c)] for side in ("low", "high")]
            axes.errorbar(sizes, values, yerr=errors, marker="o", capsize=3, label=each.mixture)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(sizes, list(verdicts))
    axes.minorticks_off()
    axes.set_xlabel("parameters of the models")
    axes.set_ylabel("mean loss against uniform, nats per token")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(address, metadata={"Date": None})


if __name__ == "__main__":
    main()
