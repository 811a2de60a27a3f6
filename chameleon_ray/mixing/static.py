"""Weights that need no model: uniform, proportional to size, given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import model_validator

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import FitContext
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.published import PUBLISHED
from chameleon_ray.mixing.simplex import domain_names, named, softmax, token_shares, uniform
from chameleon_ray.mixture import Mixture, check_weights
from chameleon_ray.settings import PositiveFloat, nearest

GPT2_TOKENS = 50257  # of the vocabulary that every published table was found with


class Uniform(Method):
    """The same fraction of tokens from every domain."""

    name: ClassVar[str] = "uniform"

    def fit(self, context: FitContext) -> Mixture:
        """1/k each. Raises `UserError` for an empty domain."""
        return replace(uniform_mixture(context.corpus), provenance=self.provenance(context))


def uniform_mixture(corpus: TokenCorpus) -> Mixture:
    """1/k for every domain of a corpus. Raises `UserError` for an empty domain."""
    return Mixture(Uniform.name, uniform(domain_names(corpus)))


class Proportional(Method):
    """Weights ~ train tokens ** (1 / temperature): 1 draws every token equally often, larger values lean towards uniform."""

    name: ClassVar[str] = "proportional"
    temperature: PositiveFloat = 1.0

    @property
    def by_size(self) -> bool:
        """Always."""
        return True

    def fit(self, context: FitContext) -> Mixture:
        """Weights from how many tokens there are to train on. Raises `UserError` for an empty domain, or one of which that is not known."""
        names = domain_names(context.corpus)
        shares = token_shares(context.corpus.tokens(), names, f"methods.{context.label}")
        logits = np.log([shares[name] for name in names]) / self.temperature  # [k]
        return Mixture(self.name, named(names, softmax(logits)), provenance=self.provenance(context))


class Fixed(Method):
    """Weights given by name, or a table published in a paper (`preset`, renormalised).

    `names`: domain -> what the table calls it, where that is something else; null for a domain that it does not have, which gets nothing. What the table has
    beyond these domains is left out then, and the rest renormalised.
    """

    name: ClassVar[str] = "fixed"
    weights: dict[str, float] | None = None
    preset: str | None = None
    names: dict[str, str | None] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Fixed:
        if (self.weights is None) == (self.preset is None):
            raise ValueError("give either weights or preset")
        if self.names is not None and self.preset is None:
            raise ValueError("names says what a preset calls the domains; give preset, or remove names")
        if self.weights is not None:
            check_weights(self.weights, "weights")
        elif self.preset not in PUBLISHED:
            raise ValueError(f"unknown preset {self.preset!r}; known: {', '.join(PUBLISHED)}{nearest(str(self.preset), PUBLISHED)}")
        claimed = [name for name in (self.names or {}).values() if name is not None]
        if twice := next((name for name in claimed if claimed.count(name) > 1), None):
            raise ValueError(f"names: {twice!r} is given to two domains; its weight can be that of one")
        for name in claimed:
            if name not in PUBLISHED[str(self.preset)].raw:
                known = PUBLISHED[str(self.preset)].raw
                raise ValueError(f"names: {self.preset} has no {name!r}; it has {', '.join(known)}{nearest(name, known)}")
        return self

    def check(self, context: FitContext) -> None:
        """Raise `UserError` for a domain without a weight, a weight without a domain, or an empty domain."""
        names = domain_names(context.corpus)
        given, source, _ = self._given(names)
        for name in names:
            if name not in given:
                raise UserError(f"{source}: no weight for domain {name!r} of the corpus; add it (0 is allowed) or rename it{nearest(name, given)}")
        for name in given:
            if name not in names:
                raise UserError(f"{source}: {name!r} is not a domain of the corpus; remove it or rename the domain{nearest(name, names)}")

    def fit(self, context: FitContext) -> Mixture:
        """The given weights in the corpus's order."""
        self.check(context)
        given, _, origin = self._given(context.corpus.names)
        told: tuple[str, ...] = ()
        if origin and context.corpus.vocab_size != GPT2_TOKENS:
            told = (f"{origin['table']}: found with the tokenizer of {origin['tokenizer']}, and a fraction of its tokens is not quite the same fraction here.",)
        weights = {name: given[name] for name in context.corpus.names}
        return Mixture(self.name, weights, provenance={**self.provenance(context), **origin}, warnings=told)

    def _given(self, domains: Sequence[str]) -> tuple[dict[str, float], str, dict[str, Any]]:
        """Weights, the words that name them in an error, and what their origin adds to the provenance."""
        if self.weights is not None:
            return self.weights, "fixed weights", {}
        assert self.preset is not None
        table = PUBLISHED[self.preset]
        if self.names is not None:
            called = {name: self.names.get(name, name) for name in domains}
            raw = {name: 0.0 if other is None else table.raw[other] for name, other in called.items() if other is None or other in table.raw}
            total = math.fsum(raw.values())
            if total == 0:
                raise UserError(f"preset {self.preset}: it has none of the domains with a weight; correct names")
            return {name: value / total for name, value in raw.items()}, f"preset {self.preset}", {**table.provenance(), "raw_sum": total}
        return table.weights, f"preset {self.preset}", table.provenance()
