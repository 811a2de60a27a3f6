"""What weights are asked for: a budget of tokens in which no domain is repeated too often, and least and most shares; and the answers that keep to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import QuestionConfig
from chameleon_ray.errors import UserError
from chameleon_ray.limits import Limits, Row
from chameleon_ray.mixing.budget import MANY_EPOCHS, largest_remainder
from chameleon_ray.mixing.simplex import named
from chameleon_ray.mixture import Mixture
from chameleon_ray.settings import listed, nearest


@dataclass(frozen=True)
class Question:
    """The limits of the weights of some domains; with a budget its tokens, and how many there are of each domain where that is known. `estimates` are sentences
    on sizes that are not counted."""

    names: tuple[str, ...]
    limits: Limits
    budget_tokens: int | None
    available: Mapping[str, float]
    estimates: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: QuestionConfig, names: Sequence[str], tokens: Mapping[str, float], is_changed: bool = False, estimates: Sequence[str] = ()) -> Question:
        """The question for some domains.

        Args:
            tokens: that there are of every domain, where known; what the budget says of a domain comes before it.
            estimates: sentences on those of them that are not counted.
            is_changed: the domains are not those of the experiment: what is said of others does not count.
        Raises:
            UserError: a domain that does not exist, one of which nothing tells how much there is, or limits that no mixture keeps to.
        """
        place = frozenset(names)

        def check(where: str, name: str) -> None:
            if name not in place and not is_changed:
                raise UserError(f"{where}: {name!r} is no domain of the corpus; it has {listed(list(names))}{nearest(name, names)}")

        rows: list[Row | None] = []
        for name, share in config.constraints.domains.items():
            check(f"constraints.domains.{name}", name)
            rows += [Row(f"constraints.domains.{name}", (name,), share.min, share.max)] if name in place else []
        for label, group in config.constraints.groups.items():
            for name in group.of:
                check(f"constraints.groups.{label}.of", name)
            members = tuple(dict.fromkeys(name for name in group.of if name in place))
            rows += [Row(f"constraints.groups.{label}", members, group.min, group.max)] if members else []
        available = {name: float(count) for name, count in tokens.items() if name in place}
        if config.budget is not None:
            given = {} if config.budget.domain_tokens == "estimated" else config.budget.domain_tokens
            for name, count in given.items():
                check("budget.domain_tokens", name)
                available[name] = float(count)
            if config.max_repetition is not None:
                rows += [_cap(name, config.max_repetition, available, config.budget.tokens) for name in names]
        question = cls(
            tuple(names), Limits(tuple(names), tuple(row for row in rows if row)), config.budget.tokens if config.budget else None, available, tuple(estimates)
        )
        question.limits.check()
        return question

    def epochs(self, weights: Mapping[str, float]) -> dict[str, float]:
        """How often each domain is read in the budget, where it is known how much there is of it."""
        if self.budget_tokens is None:
            return {}
        return {name: weights[name] * self.budget_tokens / count for name, count in self.available.items() if name in weights and count}

    def check(self, mixture: Mixture) -> None:
        """Raise `UserError` for a mixture, made elsewhere, that does not keep to the limits; of other domains it is not known what it is."""
        if set(mixture.weights) == set(self.names):
            weights = np.array([mixture.weights[name] for name in self.names])
            if not self.limits.hold(weights[None]).all():
                rows = listed([str(row) for row in self.limits.broken(weights)])
                raise UserError(f"mixture {mixture.label!r}: its weights do not keep to {rows}; make it anew with `chameleon mix`, or remove these limits")

    def answer(self, mixture: Mixture, by_size: bool = False) -> Mixture:
        """The mixture with the nearest weights that keep to the limits, those of the method beside, and how often and how much each domain is read.

        Args:
            by_size: whether the weights follow from how much there is of the domains.
        """
        weights = np.array([mixture.weights[name] for name in self.names])
        before = np.array([(mixture.unconstrained or mixture.weights)[name] for name in self.names])
        kept = self.limits.project(weights)
        sentences = [*mixture.explanation, *(self.estimates if by_size or self.budget_tokens is not None else ())]
        if not np.array_equal(kept, before):
            broken = [str(row) for row in self.limits.broken(before)]
            sentences.append(f"Without limits the weights would be those beside, outside of {listed(broken)}.")
            mixture = replace(
                mixture,
                weights=named(self.names, kept),
                weights_stderr=_scaled(mixture.weights_stderr, self.names, weights, kept, self.limits.binding(kept)),
                unconstrained=named(self.names, before),
            )
        epochs = self.epochs(mixture.weights)
        warnings = list(mixture.warnings)
        often = {name: times for name, times in epochs.items() if times > MANY_EPOCHS}
        if often:
            told = listed([f"{name} {times:.1f} times over" for name, times in sorted(often.items(), key=lambda item: -item[1])])
            text = (
                f"A budget of {self.budget_tokens:,} tokens reads {told}; beyond {MANY_EPOCHS} epochs repeated text is worth less: set corpus.max_repetition."
            )
            warnings.append(text)
        budget = largest_remainder(mixture.weights, self.budget_tokens) if self.budget_tokens is not None else {}
        return replace(mixture, epochs=epochs, budget=budget, explanation=tuple(sentences), warnings=tuple(warnings))


def estimated(corpus: TokenCorpus, names: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """A sentence on the sizes of domains that were not read whole, for weights that follow from them.

    Args:
        names: what those that count are called now, one name for several that were merged; all, by their own names, by default.
    """
    asked = names if names is not None else {name: name for name in corpus.names}
    excerpts = {name: found for name in asked if (found := corpus.domains[name].excerpt) is not None and found.tokens}
    if not excerpts:
        return ()
    errors = [found.stderr_tokens / found.tokens for found in excerpts.values() if found.stderr_tokens is not None and found.tokens]
    told = f", with relative standard errors up to {100 * max(errors):.2g} %" if errors else ""
    return (f"The sizes of {listed(list(dict.fromkeys(asked[name] for name in excerpts)))} are estimates from what was read of them{told}.",)


def _cap(name: str, most: float, available: Mapping[str, float], budget: int) -> Row | None:
    if name not in available:
        raise UserError(
            f"corpus.max_repetition: nothing tells how much text domain {name!r} has; give budget.domain_tokens, or set corpus.tokens_per_domain to null to "
            "read all of it"
        )
    share = most * available[name] / budget
    return Row(f"{name}, {most:g} times over", (name,), 0.0, share) if share < 1 else None


def _scaled(errors: Mapping[str, float] | None, names: Sequence[str], before: np.ndarray, after: np.ndarray, binding: Sequence[Row]) -> dict[str, float] | None:
    """Errors of weights that were scaled; a weight at a limit of its own has none."""
    if errors is None:
        return None
    fixed = {row.domains[0] for row in binding if len(row.domains) == 1}
    scale = np.where(before > 0, after / np.where(before > 0, before, 1.0), 1.0)
    return {name: 0.0 if name in fixed else errors[name] * float(scale[i]) for i, name in enumerate(names)}
