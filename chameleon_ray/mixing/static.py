"""Weights that need no model: uniform, proportional to size, given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from pydantic import model_validator

from chameleon_ray.backend import FitContext, TrainJob
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.published import PUBLISHED
from chameleon_ray.mixing.simplex import domain_names, named, softmax, uniform
from chameleon_ray.mixture import Mixture, check_weights
from chameleon_ray.settings import PositiveFloat, Settings


class _Static(Settings):
    needs: ClassVar[frozenset[str]] = frozenset()

    def jobs(self, context: FitContext) -> list[TrainJob]:
        """None: nothing is trained."""
        return []


class Uniform(_Static):
    """The same fraction of tokens from every domain."""

    name: ClassVar[str] = "uniform"
    version: ClassVar[int] = 1

    def fit(self, context: FitContext) -> Mixture:
        """1/k each. Raises `UserError` for an empty domain."""
        return Mixture(self.name, uniform(domain_names(context.corpus)), provenance=_provenance(self, context))


class Proportional(_Static):
    """Weights ~ train tokens ** (1 / temperature): 1 draws every token equally often, larger values lean towards uniform."""

    name: ClassVar[str] = "proportional"
    version: ClassVar[int] = 1
    temperature: PositiveFloat = 1.0

    def fit(self, context: FitContext) -> Mixture:
        """Weights from the train split's token counts. Raises `UserError` for an empty domain."""
        names = domain_names(context.corpus)
        tokens = context.corpus.tokens("train")
        logits = np.log([tokens[name] for name in names]) / self.temperature  # [k]
        return Mixture(self.name, named(names, softmax(logits)), provenance=_provenance(self, context))


class Fixed(_Static):
    """Weights given by name, or a table published in a paper (`preset`, renormalised)."""

    name: ClassVar[str] = "fixed"
    version: ClassVar[int] = 1
    weights: dict[str, float] | None = None
    preset: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Fixed:
        if (self.weights is None) == (self.preset is None):
            raise ValueError("give either weights or preset")
        if self.weights is not None:
            check_weights(self.weights, "weights")
        elif self.preset not in PUBLISHED:
            raise ValueError(f"unknown preset {self.preset!r}; known: {', '.join(PUBLISHED)}{_nearest(str(self.preset), PUBLISHED)}")
        return self

    def fit(self, context: FitContext) -> Mixture:
        """The given weights in the corpus's order.

        Raises:
            UserError: a domain without a weight, a weight without a domain, or an empty domain.
        """
        names = domain_names(context.corpus)
        given, source, origin = self._given()
        for name in names:
            if name not in given:
                raise UserError(f"{source}: no weight for domain {name!r} of the corpus; add it (0 is allowed) or rename it{_nearest(name, given)}")
        for name in given:
            if name not in names:
                raise UserError(f"{source}: {name!r} is not a domain of the corpus; remove it or rename the domain{_nearest(name, names)}")
        return Mixture(self.name, {name: given[name] for name in names}, provenance={**_provenance(self, context), **origin})

    def _given(self) -> tuple[dict[str, float], str, dict[str, Any]]:
        """Weights, the words that name them in an error, and what their origin adds to the provenance."""
        if self.weights is not None:
            return self.weights, "fixed weights", {}
        assert self.preset is not None
        table = PUBLISHED[self.preset]
        return table.weights, f"preset {self.preset}", table.provenance()


def _nearest(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _provenance(method: Settings, context: FitContext) -> dict[str, Any]:
    return {"settings": method.model_dump(mode="json"), "corpus": context.corpus.digest}
