"""Methods that decide how much of each domain to train on: one file each and one line in `METHODS`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Protocol, runtime_checkable

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.backend import FitContext
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.doge import DoGE
from chameleon_ray.mixing.doremi import DoReMi
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.proxy import Embedded
from chameleon_ray.mixing.regmix import RegMix
from chameleon_ray.mixing.static import Fixed, Proportional, Uniform
from chameleon_ray.mixing.text_quality import TextQuality
from chameleon_ray.mixture import Mixture


@runtime_checkable
class Weigher(Protocol):
    """A method whose weights follow from embeddings alone, so that new domains need no training."""

    name: ClassVar[str]

    @property
    def by_size(self) -> bool:
        """Whether weights follow from how much there is of the domains."""
        ...

    def embed(self, context: FitContext) -> Embedded:
        """The model, trained if need be, and what it makes of the corpus's domains."""
        ...

    def looked_at(self, targets: Collection[str]) -> tuple[str, ...]:
        """Those of the corpus's targets whose embeddings `weigh` is to be given."""
        ...

    def weigh(
        self,
        embeddings: Embeddings,
        tokens: Mapping[str, float] | None = None,
        texts: Mapping[str, TextQuality] | None = None,
        others: Embeddings | None = None,
    ) -> Mixture:
        """The mixture of embedded domains, old or new; `tokens` are their train tokens and `texts` how good their text is, where that is known; `others` are
        texts that are no domains and that it may look towards."""
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
