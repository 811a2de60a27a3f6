"""Methods that decide how much of each domain to train on: one file each and one line in `METHODS`."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.backend import FitContext, TrainJob
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.doge import DoGE
from chameleon_ray.mixing.doremi import DoReMi
from chameleon_ray.mixing.regmix import RegMix
from chameleon_ray.mixing.static import Fixed, Proportional, Uniform
from chameleon_ray.mixture import Mixture


class Mixer(Protocol):
    """A method: frozen settings that are only stored, and `fit`, which does the work. `version` is raised when the same inputs give another mixture;
    `needs` names the sections of the experiment that decide it, beside its own settings, the corpus and the seed.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    needs: ClassVar[frozenset[str]]

    def jobs(self, context: FitContext) -> list[TrainJob]:
        """Runs that `fit` will ask for and that need nothing of each other, so that those of several methods can go on side by side."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        ...

    def fit(self, context: FitContext) -> Mixture:
        """The mixture for the corpus. Raises `UserError` for a domain that is missing or empty."""
        ...


@runtime_checkable
class Weigher(Protocol):
    """A method whose weights follow from embeddings alone, so that new domains need no training."""

    name: ClassVar[str]

    def weigh(self, embeddings: Embeddings) -> Mixture:
        """The mixture of embedded domains, old or new."""
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
