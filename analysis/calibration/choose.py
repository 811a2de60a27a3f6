"""How ridge, floor and temperature of the `calibrated` variant do: how steady they are over proxies, how near published weights, how good by public runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.calibration.public import PILE_NAMES, Judge
from analysis.calibration.sets import PRETRAIN7
from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.formula import Stage, Temperature
from chameleon_ray.mixing.krls import Ridge
from chameleon_ray.mixing.published import PUBLISHED
from chameleon_ray.mixing.regressors.regressor import Array
from chameleon_ray.mixing.simplex import effective_number

RHOS, GAMMAS, TS = (0.1, 0.3, 1.0, 3.0), (0.0, 0.125, 0.25, 0.5, 1.0), (0.7, 1.0, 1.5, 2.0, 3.0)
UNCENTRED_RHOS, UNCENTRED_TS = (0.003, 0.01, 0.03, 0.1), (0.35, 0.7, 1.0, 1.5)
FINETUNE_RHOS, FINETUNE_GAMMAS, FINETUNE_TS = (0.3, 1.0, 3.0), (0.0, 0.25, 0.5, 1.0), (0.35, 0.5, 0.7, 1.0, 1.5, 2.0)
CAP = 3.0
TABLES = {"wiki7": "wiki40b_chameleon", "stack7": "stack_chameleon"}


@dataclass(frozen=True)
class Setting:
    """One formula: `center`, rho, gamma and t of `calibrated`, the cap when finetuning; or another variant as it is."""

    center: bool = True
    rho: float = 1.0
    gamma: float = 0.5
    t: float = 1.5
    cap: float | None = None
    stage: Stage = "pretrain"
    variant: str = "calibrated"

    @property
    def method(self) -> Chameleon:
        """The method with these settings."""
        if self.variant != "calibrated":
            return Chameleon.model_validate({"variant": self.variant, "stage": self.stage, "bootstrap_draws": 0})
        formula = {"ridge": Ridge(energy=self.rho), "temperature": Temperature(relative=self.t), "center": self.center, "floor": self.gamma}
        return Chameleon(stage=self.stage, cap=self.cap, bootstrap_draws=0, **formula)  # type: ignore[arg-type]

    @property
    def label(self) -> str:
        """In a table."""
        if self.variant != "calibrated":
            return f"*{self.variant}*"
        return f"{'centred' if self.center else 'uncentred'} {self.rho:g}, {self.gamma:g}, {self.t:g}" + (f", cap {self.cap:g}" if self.cap else "")

    def weigh(self, embeddings: Embeddings) -> Array:
        """[k] weights in the order of the embeddings."""
        return np.array([self.method.weigh(embeddings).weights[name] for name in embeddings.names])


def pretraining_settings() -> list[Setting]:
    """Everything that is tried for pretraining."""
    centred = [Setting(True, *found) for found in itertools.product(RHOS, GAMMAS, TS)]
    uncentred = [Setting(False, rho, 0.0, t) for rho, t in itertools.product(UNCENTRED_RHOS, UNCENTRED_TS)]
    return [*centred, *uncentred, Setting(variant="paper"), Setting(variant="released")]


def finetuning_settings() -> list[Setting]:
    """Everything that is tried for finetuning."""
    grid = itertools.product(FINETUNE_RHOS, FINETUNE_GAMMAS, FINETUNE_TS)
    tried = [Setting(True, rho, gamma, t, CAP, "finetune") for rho, gamma, t in grid]
    return [*tried, Setting(variant="paper", stage="finetune"), Setting(variant="released", stage="finetune")]


@dataclass(frozen=True)
class Found:
    """What a setting came to.

    Attributes:
        unsteady: L1 distance of a model's weights to the mean of the other models', over that of its weights to uniform; mean over models and both sets of
            domains. Under 1 models agree on more than that something is to be done.
        effective: smallest and mean effective number of domains over all sets, as a part of k.
        table9: L1 distance to the paper's weights, mean over models; of SmolLM2 alone.
        nats, perplexity: predicted change against uniform over the eleven Pile-like domains, by model size; mean over models, and of SmolLM2 alone.
    """

    setting: Setting
    unsteady: float
    effective: tuple[float, float]
    table9: tuple[float, float]
    nats: Mapping[str, tuple[float, float]]
    perplexity: Mapping[str, tuple[float, float]]


def examine(settings: Sequence[Setting], sets: Mapping[str, Embeddings], judges: Mapping[str, Judge], best: str) -> list[Found]:
    """Every setting on every set.

    Args:
        sets: model -> embeddings of the thirteen domains, and `quickstart`.
        judges: model size -> predictions by public runs.
        best: the model whose numbers are also given alone.
    """
    models = [name for name in sets if name != "quickstart"]
    seven = {name: sets[name].select(PRETRAIN7) for name in models}
    eleven = {name: sets[name].select(list(PILE_NAMES)) for name in models}
    published = np.array([PUBLISHED["slimpajama_chameleon"].weights[name] for name in PRETRAIN7])
    found = []
    for setting in settings:
        weights7, weights13, weights11 = ({name: setting.weigh(of[name]) for name in models} for of in (seven, sets, eleven))
        every = [*weights7.values(), *weights13.values(), setting.weigh(sets["quickstart"])]
        effective = [effective_number(weights) / len(weights) for weights in every]
        distance = {name: float(np.abs(weights - published).sum()) for name, weights in weights7.items()}
        changes = {size: {name: judge.change(weights11[name]) for name in models} for size, judge in judges.items()}
        found.append(
            Found(
                setting,
                float(np.mean([_unsteady(list(weights.values())) for weights in (weights7, weights13)])),
                (min(effective), float(np.mean(effective))),
                (float(np.mean(list(distance.values()))), distance[best]),
                {size: (_mean(nats for nats, _ in by.values()), by[best][0]) for size, by in changes.items()},
                {size: (_mean(change for _, change in by.values()), by[best][1]) for size, by in changes.items()},
            )
        )
    return found


def finetuning(settings: Sequence[Setting], sets: Mapping[str, Embeddings]) -> list[tuple[Setting, dict[str, float], float]]:
    """Of every setting the L1 distance to the tables, and the smallest effective number of domains, as a part of k."""
    found = []
    for setting in settings:
        weights = {name: setting.weigh(sets[name]) for name in TABLES}
        distance = {
            name: float(sum(abs(weight - PUBLISHED[table].weights[domain]) for domain, weight in zip(sets[name].names, weights[name], strict=True)))
            for name, table in TABLES.items()
        }
        found.append((setting, distance, min(effective_number(each) / len(each) for each in weights.values())))
    return found


def _unsteady(weights: Sequence[Array]) -> float:
    """Leave one model out."""
    uniform = 1 / len(weights[0])
    parts = []
    for i, mine in enumerate(weights):
        others = np.mean([other for j, other in enumerate(weights) if j != i], axis=0)
        parts.append((np.abs(mine - others).sum(), np.abs(mine - uniform).sum()))
    away, from_uniform = np.sum(parts, axis=0)
    return float(away / from_uniform) if from_uniform > 0 else float("nan")


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
