"""The answer: how much of each domain to train on, with where it comes from and what it took."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from chameleon_ray import storage
from chameleon_ray.artifacts import Cost
from chameleon_ray.counts import DomainSize
from chameleon_ray.errors import UserError


@dataclass(frozen=True)
class Trajectory:
    """Weights while a model trained: at each of `steps`, those in force and, as `answer`, what the rule stood for by then; by domain."""

    steps: tuple[int, ...]
    weights: Mapping[str, tuple[float, ...]]
    answer: Mapping[str, tuple[float, ...]]

    @classmethod
    def from_table(cls, table: pa.Table) -> Trajectory:
        """From `TrainedModel.weight_history`: step, domain, weight, mean."""
        names = dict.fromkeys(table["domain"].to_pylist())
        parts = {name: table.filter(pc.equal(table["domain"], name)) for name in names}
        weights, answer = ({name: tuple(part[column].to_pylist()) for name, part in parts.items()} for column in ("weight", "mean"))
        return cls(tuple(dict.fromkeys(table["step"].to_pylist())), weights, answer)


@dataclass(frozen=True)
class Mixture:
    """The answer: for every domain the fraction of training tokens to draw from it.

    Attributes:
        method: the name of the method.
        weights: name -> fraction of tokens; non-negative, sums to 1 within 1e-9.
        label: what the experiment calls it; the method's name where nothing else is given.
        scores, weights_stderr, scores_stderr: per domain where the method has them.
        unconstrained: the method's weights where those asked for had to keep to limits, which changed them; None otherwise.
        epochs: how often each domain is read in the budget that the weights are for; empty without one. budget: the tokens of each in it, which sum to it.
        ledger: what was needed to get the weights: digest of an artifact -> its cost. Shared work has one digest, so that a sum over several mixtures
            counts it once (`total_cost`).
        there_before: digests of the ledger that were there before the domains changed: what is left is what the change took (`extra`).
        tokenizer_sha256: of the tokenizer whose tokens the fractions count; None where that is not known.
        domains: tokens, documents and mean tokens per document of every domain's train text, where known.
        trajectory: of a method that learned the weights while a proxy trained.
        provenance: settings, inputs and versions. details: method-specific numbers (spectrum, effective dimension, …).
        explanation: sentences that say what made the weights and what drove them.
        warnings: sentences a person should read before trusting the weights.
        files: name -> content of what the method leaves beside `mixture.json`.
    """

    method: str
    weights: Mapping[str, float]
    label: str = ""
    scores: Mapping[str, float] | None = None
    weights_stderr: Mapping[str, float] | None = None
    scores_stderr: Mapping[str, float] | None = None
    unconstrained: Mapping[str, float] | None = None
    epochs: Mapping[str, float] = field(default_factory=dict)
    budget: Mapping[str, int] = field(default_factory=dict)
    ledger: Mapping[str, Cost] = field(default_factory=dict)
    there_before: tuple[str, ...] = ()
    tokenizer_sha256: str | None = None
    domains: Mapping[str, DomainSize] = field(default_factory=dict)
    trajectory: Trajectory | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    explanation: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_weights(self.weights, "weights")
        object.__setattr__(self, "label", self.label or self.method)

    @property
    def cost(self) -> Cost:
        """Everything that was needed to get the weights."""
        return total_cost([self.ledger])

    @property
    def extra(self) -> Cost:
        """What a change of the domains took, beside what was there before."""
        return total_cost([{digest: cost for digest, cost in self.ledger.items() if digest not in self.there_before}])

    def to_json(self) -> str:
        """mixture.json: `weights` is an object name -> float; `unit` says of what; `cost` sums the ledger."""
        content = {key: value for key, value in asdict(self).items() if key != "files"}
        document = {"unit": "fraction of training tokens", **content, "cost": asdict(self.cost), "extra": asdict(self.extra)}
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, address: str) -> None:
        """Write mixture.json."""
        storage.write_bytes(address, self.to_json().encode())

    @classmethod
    def load(cls, address: str) -> Mixture:
        """Read mixture.json.

        Raises:
            UserError: no such file, not such a file, or weights that are not a mixture.
        """
        if not storage.is_file(address):
            raise UserError(f"{address}: no such mixture file; `chameleon mix … --out {address}` writes one")
        try:
            document = json.loads(storage.read_bytes(address), object_pairs_hook=_unique)
        except ValueError as error:
            raise UserError(f"{address}: not valid JSON ({error}); `chameleon mix … --out FILE` writes a mixture file") from None
        if not isinstance(document, dict) or not isinstance(document.get("weights"), dict):
            raise UserError(f"{address}: no object 'weights' of name -> fraction; `chameleon mix … --out FILE` writes a mixture file")
        document.pop("unit", None)
        document.setdefault("method", "fixed")
        known = [*(key for key in cls.__dataclass_fields__ if key != "files"), "cost", "extra"]
        unknown = sorted(set(document) - set(known))
        if unknown:
            raise UserError(f"{address}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
        check_weights(document["weights"], f"{address}: weights")
        try:
            TypeAdapter(dict[str, Cost]).validate_python({key: document.pop(key, {}) for key in ("cost", "extra")})  # derived from the ledger
            return TypeAdapter(cls).validate_python(document)
        except ValidationError as error:
            mistake = error.errors(include_url=False)[0]
            place = ".".join(map(str, mistake["loc"]))
            raise UserError(f"{address}: {place}: {mistake['msg']} (found {mistake['input']!r}); `chameleon mix … --out FILE` writes a mixture file") from None


def averaged(fits: Sequence[Mixture]) -> Mixture:
    """One method's fits with several seeds as one mixture: mean weights and scores, with their standard errors over the fits, and what all took together.

    What else a fit has (details, trajectory, provenance but for `embedded_rows`) is that of the first. A single fit is itself. Fits that a seed does not
    change are one, whose errors are its own; `provenance["fits"]` says how many differ. Of several `budget` is that of no mixture, and left out.
    """
    first, *others = fits
    if not others:
        return first
    different = len({tuple(tuple(values.values()) for values in (fit.weights, fit.unconstrained or {}, fit.scores or {})) for fit in fits})
    weights, weights_stderr = _mean_and_error([fit.weights for fit in fits])
    scores, scores_stderr = _mean_and_error([fit.scores for fit in fits if fit.scores is not None]) if first.scores is not None else (None, None)
    total = math.fsum(weights.values())
    limited = [fit.unconstrained or fit.weights for fit in fits] if any(fit.unconstrained for fit in fits) else []
    return replace(
        first,
        unconstrained=_mean_and_error(limited)[0] if limited else None,
        epochs=_mean_and_error([fit.epochs for fit in fits])[0],
        budget=first.budget if different == 1 else {},
        weights={name: weight / total for name, weight in weights.items()},
        weights_stderr=weights_stderr if different > 1 else first.weights_stderr,
        scores=scores,
        scores_stderr=scores_stderr if different > 1 else first.scores_stderr,
        ledger={digest: cost for fit in fits for digest, cost in fit.ledger.items()},
        there_before=tuple(dict.fromkeys(digest for fit in fits for digest in fit.there_before)),
        provenance={**first.provenance, "seeds": [fit.provenance.get("seed") for fit in fits], "fits": different, **_embedded_rows(fits)},
        warnings=tuple(dict.fromkeys(warning for fit in fits for warning in fit.warnings)),
    )


def _embedded_rows(fits: Sequence[Mixture]) -> dict[str, dict[str, int]]:
    """Rows that were embedded for all fits, by domain; what took the same work once."""
    different = {tuple(fit.ledger): fit.provenance["embedded_rows"] for fit in fits if "embedded_rows" in fit.provenance}
    rows: dict[str, int] = {}
    for name, count in (pair for each in different.values() for pair in each.items()):
        rows[name] = rows.get(name, 0) + count
    return {"embedded_rows": rows} if different else {}


def _mean_and_error(values: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    means = {name: statistics.fmean(each[name] for each in values) for name in values[0]}
    return means, {name: statistics.stdev(each[name] for each in values) / math.sqrt(len(values)) for name in values[0]}


def total_cost(ledgers: Iterable[Mapping[str, Cost]]) -> Cost:
    """What several mixtures took together, shared work counted once. Of runs that are the beginning of one run the longest counts."""
    largest: dict[str, Cost] = {}
    for digest, cost in (entry for ledger in ledgers for entry in ledger.items()):
        largest[digest] = max(largest.get(digest, Cost()), cost, key=lambda found: (found.tokens, found.flops))
    return sum(largest.values(), Cost())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"name {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return dict(pairs)


def check_weights(weights: Mapping[str, float], where: str) -> None:
    """Raise `UserError` unless the weights are finite, non-negative and sum to 1 within 1e-9; `where` names them."""
    if not weights:
        raise UserError(f"{where}: empty; give one weight per domain")
    for name, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise UserError(f"{where}.{name}: {value!r} is not a weight; give a finite number that is at least 0")
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-9:
        raise UserError(f"{where}: sum to {total!r}, not 1; divide each by the sum")
