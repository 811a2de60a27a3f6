"""The tables of `analysis/results/calibration.md`, as Markdown.

    CHAMELEON_DATA=… python -m analysis.calibration --smollm2 FILE.gguf --storage runs > tables.md

About 45 minutes on two CPU cores, nearly all of it for the proxies; what is in storage is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from analysis.calibration.choose import Found, Setting, examine, finetuning, finetuning_settings, pretraining_settings
from analysis.calibration.public import Judge
from analysis.calibration.sets import SMOLLM2, embedding_sets
from chameleon_ray.mixing.formula import Stage
from chameleon_ray.mixing.variants import VARIANTS

BEST = "SmolLM2-135M"
SIZES = ("1M", "60M")
SHOWN = 16
LEAST_EFFECTIVE = 0.7


def main() -> None:
    """All tables on standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", required=True, type=Path, help="SmolLM2-135M as a GGUF file")
    parser.add_argument("--storage", default="runs", help="where the proxies and their embeddings lie")
    options = parser.parse_args()
    sets = embedding_sets(str(options.smollm2), options.storage)
    english = {name: found for name, found in sets.items() if name not in ("wiki7", "stack7")}
    found = examine(pretraining_settings(), english, {size: Judge.of(size) for size in SIZES}, BEST)
    chosen = chosen_for("pretrain")
    print(f"## Pretraining: of the settings at least {LEAST_EFFECTIVE:.0%} effective everywhere the {SHOWN} nearest to table 9, and the other variants\n")
    ordered = sorted((each for each in found if each.effective[0] >= LEAST_EFFECTIVE), key=lambda each: each.table9[0])
    named = [each for each in found if each.setting == chosen or each.setting.variant != "calibrated"]
    _table([*ordered[:SHOWN], *(each for each in named if each not in ordered[:SHOWN])])
    print("\n## Pretraining: around the setting that was chosen\n")
    _table(each for each in found if _near(each.setting, chosen))
    print("\n## Finetuning\n")
    print("| setting | L1 to table 16 | L1 to table 17 | least effective domains, of k |\n|---|---|---|---|")
    tuned = sorted(finetuning(finetuning_settings(), sets), key=lambda each: sum(each[1].values()))
    own = chosen_for("finetune")
    for setting, distance, effective in [*tuned[:SHOWN], *(each for each in tuned[SHOWN:] if each[0] == own or each[0].variant != "calibrated")]:
        print(f"| {setting.label} | {distance['wiki7']:.3f} | {distance['stack7']:.3f} | {effective:.2f} |")
    print(f"\n{len(english)} sets of embeddings: {', '.join(english)}; SmolLM2 on {SMOLLM2.samples} rows a domain.")


def chosen_for(stage: Stage) -> Setting:
    """What `calibrated` has."""
    formula = VARIANTS["calibrated"][stage]
    assert formula.ridge.energy and formula.temperature.relative
    return Setting(formula.center, formula.ridge.energy, formula.floor, formula.temperature.relative, formula.cap, stage)


def _near(setting: Setting, chosen: Setting) -> bool:
    """Whether at most one of ridge, floor and temperature is another."""
    same = [getattr(setting, name) == getattr(chosen, name) for name in ("rho", "gamma", "t")]
    return setting.variant == "calibrated" and setting.center == chosen.center and sum(same) >= 2


def _table(rows: Iterable[Found]) -> None:
    print(
        "| rho, gamma, t | unsteady | effective: least, mean | L1 to table 9: mean, SmolLM2 | nats at 1M: mean, SmolLM2 | at 60M | "
        "average perplexity at 1M: mean, SmolLM2 | at 60M |\n|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        nats, change = ([f"{by[size][0]:{form}}, {by[size][1]:{form}}" for size in SIZES] for by, form in ((row.nats, "+.3f"), (row.perplexity, "+.1%")))
        print(
            f"| {row.setting.label} | {row.unsteady:.2f} | {row.effective[0]:.2f}, {row.effective[1]:.2f} | {row.table9[0]:.3f}, {row.table9[1]:.3f} | "
            f"{nats[0]} | {nats[1]} | {change[0]} | {change[1]} |"
        )


if __name__ == "__main__":
    main()
