"""How much of each data domain to train a language model on: mixtures, training on them, and proof on held-out text.

    from chameleon_ray import RayBackend, compare, load_experiment

    experiment = load_experiment("jobs/quickstart.yaml", ["base.steps=100"])
    result = compare(experiment, RayBackend(experiment.storage, experiment.resources))
    result.data.mixtures["chameleon"].weights     # {'python_library': 0.14, ...}

`mix`, `train`, `evaluate` and `extend` are the other commands; `Chameleon().weigh(embeddings)` needs no backend at all.
"""

from chameleon_ray.artifacts import Embeddings, TokenCorpus, TrainedModel
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import Experiment, load_experiment, parse_experiment
from chameleon_ray.mixing import METHODS
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixture import Mixture
from chameleon_ray.pipeline import Comparison, compare, evaluate, extend, mix, train
from chameleon_ray.ray_backend import RayBackend

__all__ = [
    "METHODS",
    "Chameleon",
    "Comparison",
    "Embeddings",
    "Experiment",
    "Mixture",
    "RayBackend",
    "TokenCorpus",
    "TrainedModel",
    "UserError",
    "compare",
    "evaluate",
    "extend",
    "load_experiment",
    "mix",
    "parse_experiment",
    "train",
]
