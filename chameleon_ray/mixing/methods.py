"""Methods that decide how much of each domain to train on: one file each and one line in `METHODS`."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.doge import DoGE
from chameleon_ray.mixing.doremi import DoReMi
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.regmix import RegMix
from chameleon_ray.mixing.static import Fixed, Proportional, Uniform
from chameleon_ray.mixture import Mixture


@runtime_checkable
class Weigher(Protocol):
    """A method whose weights follow from embeddings alone, so that new domains need no training."""

    name: ClassVar[str]

    def weigh(self, embeddings: Embeddings) -> Mixture:
        """The mixture of embedded domains, old or new."""
        ...


METHODS: dict[str, type[Method]] = {
    "uniform": Uniform,
    "proportional": Proportional,
    "fixed": Fixed,
    "chameleon": Chameleon,
    "doremi": DoReMi,
    "doge": DoGE,
    "regmix": RegMix,
}
