"""Methods that decide how much of each domain to train on: one file each and one line in `METHODS`."""

from __future__ import annotations

from typing import ClassVar, Protocol

from chameleon_ray.artifacts import Mixture
from chameleon_ray.backend import FitContext, TrainJob
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.doge import DoGE
from chameleon_ray.mixing.doremi import DoReMi
from chameleon_ray.mixing.regmix import RegMix
from chameleon_ray.mixing.static import Fixed, Proportional, Uniform


class Mixer(Protocol):
    """A method: frozen settings that are only stored, and `fit`, which does the work. `version` is raised when the same inputs give another mixture."""

    name: ClassVar[str]
    version: ClassVar[int]

    def jobs(self, context: FitContext) -> list[TrainJob]:
        """Runs that `fit` will ask for and that need nothing of each other, so that those of several methods can go on side by side."""
        ...

    def fit(self, context: FitContext) -> Mixture:
        """The mixture for the corpus. Raises `UserError` for a domain that is missing or empty."""
        ...


METHODS: dict[str, type[Mixer]] = {
    "uniform": Uniform,
    "proportional": Proportional,
    "fixed": Fixed,
    "chameleon": Chameleon,
    "doremi": DoReMi,
    "doge": DoGE,
    "regmix": RegMix,
}
