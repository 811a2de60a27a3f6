"""Methods that decide how much of each domain to train on: one file each and one line in `METHODS`."""

from __future__ import annotations

from typing import ClassVar, Protocol

from chameleon_ray.artifacts import Mixture
from chameleon_ray.backend import FitContext
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.static import Fixed, Proportional, Uniform


class Mixer(Protocol):
    """A method: frozen settings that are only stored, and `fit`, which does the work."""

    name: ClassVar[str]

    def fit(self, context: FitContext) -> Mixture:
        """The mixture for the corpus. Raises `UserError` for a domain that is missing or empty."""
        ...


METHODS: dict[str, type[Mixer]] = {
    "uniform": Uniform,
    "proportional": Proportional,
    "fixed": Fixed,
    "chameleon": Chameleon,
}
