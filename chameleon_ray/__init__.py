"""How much of each data domain to train a language model on: mixtures, training on them, and proof on held-out text.

    from chameleon_ray import RayBackend, compare, load_experiment

    experiment = load_experiment("jobs/quickstart.yaml", ["base.steps=100"])
    result = compare(experiment, RayBackend(experiment.storage, experiment.resources))
    result.data.mixtures["chameleon"].weights     # {'python_library': 0.14, ...}

`finetune`, `mix`, `train`, `evaluate` and `extend` (with `load_changes`) are the other commands; `Chameleon().weigh(embeddings)` needs no backend at all.
"""

# ruff: noqa: F401
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chameleon_ray.artifacts import Embeddings, TokenCorpus, TrainedModel
    from chameleon_ray.corpus_config import load_changes
    from chameleon_ray.errors import UserError
    from chameleon_ray.experiment import Experiment, load_experiment, parse_experiment
    from chameleon_ray.mixing.chameleon import Chameleon
    from chameleon_ray.mixing.methods import METHODS
    from chameleon_ray.mixture import Mixture
    from chameleon_ray.pipeline import Comparison, compare, evaluate, extend, finetune, mix, train
    from chameleon_ray.ray_backend import RayBackend

# What the package offers, and where it lies: found when it is asked for, so that a part of the package costs no more than what that part needs.
_MODULES = {
    "artifacts": ("Embeddings", "TokenCorpus", "TrainedModel"),
    "corpus_config": ("load_changes",),
    "errors": ("UserError",),
    "experiment": ("Experiment", "load_experiment", "parse_experiment"),
    "mixing.chameleon": ("Chameleon",),
    "mixing.methods": ("METHODS",),
    "mixture": ("Mixture",),
    "pipeline": ("Comparison", "compare", "evaluate", "extend", "finetune", "mix", "train"),
    "ray_backend": ("RayBackend",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
