"""Chameleon: weights from how well the domains explain each other in the embedding space of a proxy (ICML 2025, algorithm 1).

    S        [k] leverage scores (see krls.py)
    tau      temperature; pretraining alpha = softmax(1 / (S tau)), finetuning alpha = softmax(S / tau)
    t        relative temperature: softmax((mean S / S) / t), softmax((S / mean S) / t)
    alpha    [k] weights on the simplex

The proxy is trained once, on uniform weights; domains that come later are embedded with it and weighed anew, without training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from chameleon_ray.artifacts import Embeddings, TrainedModel
from chameleon_ray.backend import Changes, FitContext, RuleState, Seen, TrainJob
from chameleon_ray.errors import UserError
from chameleon_ray.mixing import krls
from chameleon_ray.mixing.formula import Formula, Stage, Temperature
from chameleon_ray.mixing.krls import Array, Ridge
from chameleon_ray.mixing.learned import trajectory_of
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.simplex import domain_names, effective_domains, named, spread, uniform
from chameleon_ray.mixing.standard_errors import standard_errors
from chameleon_ray.mixture import Mixture

MAX_EIGENVALUES = 1000
MAX_AFFINITY_DOMAINS = 200
MAX_SAMPLE_WARNINGS = 10
MIN_RELATIVE_SPREAD = 0.01

_PRESETS: dict[str, dict[str, bool]] = {
    "paper": {"center": False, "normalize": False},
    "released": {"center": True, "normalize": True},
}
_RIDGE = Ridge(absolute=10.0)
_TEMPERATURE: dict[Stage, Temperature] = {"pretrain": Temperature(absolute=5.0), "finetune": Temperature(absolute=0.2)}


def proxy_job(context: FitContext) -> TrainJob:
    """The proxy on uniform weights, which may end early where `proxy.stop` says so."""
    training, stop = context.proxy, context.proxy.stop
    rule = SettledRule(stop.tolerance, stop.every_steps or max(1, training.steps // 20), stop.samples_per_domain) if stop else None
    weights = uniform(domain_names(context.corpus))
    return TrainJob("proxy", training.model_copy(update={"stop": None}), weights, context.seed, rule)


def proxy_embeddings(context: FitContext) -> tuple[TrainedModel, Embeddings]:
    """Train the proxy on uniform weights and embed every domain with it (algorithm 1, steps 3 and 5).

    Raises:
        UserError: a domain that is empty or without samples.
    """
    names = domain_names(context.corpus)
    (proxy,) = context.backend.train_many(context.corpus, [proxy_job(context)])
    embeddings = context.backend.embed(proxy, context.corpus, context.embedding)
    for name in names:
        if name not in embeddings.names:
            raise UserError(f"domain {name!r} has no embedding; add documents or remove the domain")
    return proxy, embeddings


class Chameleon(Method):
    """Weigh domains by kernel ridge leverage: general ones up when pretraining, distinct ones up when finetuning.

    `variant` presets the fields that are left None. `paper`: no centring, no normalisation; `released` (the authors' script): centred Gram matrix,
    scores divided by their sum. Both: lam = 10, tau = 5 (pretrain) or 0.2 (finetune).

    Beyond the paper: relative ridge and temperature, standard errors over the hash groups of the samples (by `bootstrap_draws`, 0 for none; in closed
    form where domains are too many to repeat everything), warnings where the weights say little.
    """

    name: ClassVar[str] = "chameleon"
    variant: Literal["paper", "released"] = "paper"
    needs: ClassVar[frozenset[str]] = frozenset({"proxy", "embedding"})
    stage: Stage = "pretrain"
    ridge: Ridge | None = None
    temperature: Temperature | None = None
    center: bool | None = None
    normalize: bool | None = None
    bootstrap_draws: Annotated[int, Field(ge=0)] = 200

    @field_validator("bootstrap_draws")
    @classmethod
    def _none_or_two(cls, draws: int) -> int:
        if draws == 1:
            raise ValueError("one draw has no spread; give 0 for no standard errors, or at least 2")
        return draws

    def check_settings(self, label: str) -> None:
        """Raise `UserError` for finetuning weights, which the paper takes from the embeddings of the pretrained model itself (algorithm 1)."""
        if self.stage == "finetune":
            raise UserError(
                f"methods.{label}.stage: finetune, but here a proxy is trained from scratch, and finetuning weights come from the embeddings of the pretrained "
                f"model itself (algorithm 1 of the paper); set stage=pretrain, or weigh with that model by `chameleon extend … --proxy MODEL --method {label}`"
            )

    def check(self, context: FitContext) -> None:
        """Raise `UserError` for a domain that is empty, or a layer that the proxy does not have."""
        super().check(context)
        layers, _, _ = context.proxy.model.shape
        if context.embedding.layer != "middle" and context.embedding.layer > layers:
            raise UserError(f"embedding.layer: {context.embedding.layer}, but the proxy has {layers} layers; choose 1 to {layers}, or middle")

    def jobs(self, context: FitContext) -> list[TrainJob]:
        """The proxy."""
        return [proxy_job(context)]

    def fit(self, context: FitContext) -> Mixture:
        """Train the proxy on uniform weights, embed the domains with it and weigh them.

        Raises:
            UserError: a domain that is empty or without samples, or embeddings that are not finite.
        Cost: the proxy's training and one forward pass over the samples; the weights themselves take milliseconds for tens of domains.
        """
        self.check(context)
        proxy, embeddings = proxy_embeddings(context)
        mixture = self.weigh(embeddings)
        provenance = {**mixture.provenance, "corpus": context.corpus.digest, "proxy": proxy.digest, "proxy_address": proxy.address}
        if "snapshot_of" in proxy.details:
            provenance["proxy_is_snapshot_of"] = proxy.details["snapshot_of"]
        return replace(mixture, ledger={proxy.run: proxy.cost, **embeddings.ledger}, trajectory=trajectory_of(proxy), provenance=provenance)

    def weigh(self, embeddings: Embeddings) -> Mixture:
        """Weights of embedded domains, old or new, without training (algorithm 1, steps 6 to 14).

        Domains are taken in the order of their names, so that another order of the input changes no digit.

        Returns:
            A mixture whose ledger is that of the embeddings; `details` holds the spectrum, effective dimension, lam, tau and, up to 200 domains, Omega.
        Raises:
            UserError: a domain without samples, embeddings that are not finite, or a ridge lost in rounding.
        Cost: O(k p min(k, p)), times 1 + bootstrap_draws up to 1,000 domains, a few times that beyond (see standard_errors.py).
        """
        formula = self._formula()
        order = sorted(range(len(embeddings.names)), key=embeddings.names.__getitem__)
        names = [embeddings.names[i] for i in order]
        for name, following in pairwise(names):
            if name == following:
                raise UserError(f"domain {name!r} is embedded twice; rename one of the two or leave it out")
        means = embeddings.means_of(order)  # X, [k, p]
        affinity = {"affinity": {"names": names, "values": (means @ means.T).tolist()}} if len(names) <= MAX_AFFINITY_DOMAINS else {}
        leverage = krls.scores(means, formula.ridge, formula.center, names, overwrite=True)
        scores = formula.scores(leverage.scores)
        weights = formula.weights(scores)
        errors = standard_errors(embeddings, order, leverage, formula, self.bootstrap_draws) if self.bootstrap_draws else None

        def labelled(values: Array) -> dict[str, float]:
            by_name = named(names, values)
            return {name: by_name[name] for name in embeddings.names}

        return Mixture(
            method=self.name,
            weights=labelled(weights),
            scores=labelled(scores),
            weights_stderr=labelled(errors.weights) if errors else None,
            scores_stderr=labelled(errors.scores) if errors else None,
            ledger=embeddings.ledger,
            provenance={**self._provenance(formula, embeddings), **({"standard_errors": errors.method} if errors else {})},
            details={
                "eigenvalues": leverage.eigenvalues[:MAX_EIGENVALUES].tolist(),
                "effective_dimension": leverage.effective_dimension,
                "ridge": leverage.ridge,
                "temperature": formula.tau(scores),
                **affinity,
            },
            warnings=(*_spread_warnings(leverage.scores, formula.center), *_weight_warnings(weights), *_sample_warnings(embeddings)),
        )

    def _formula(self) -> Formula:
        preset = _PRESETS[self.variant]
        return Formula(
            stage=self.stage,
            ridge=self.ridge or _RIDGE,
            temperature=self.temperature or _TEMPERATURE[self.stage],
            center=preset["center"] if self.center is None else self.center,
            normalize=preset["normalize"] if self.normalize is None else self.normalize,
        )

    def _provenance(self, formula: Formula, embeddings: Embeddings) -> dict[str, Any]:
        samples = embeddings.group_counts.sum(axis=1).tolist()
        settings = {**self.model_dump(mode="json"), **formula.model_dump(mode="json")}
        return {"settings": settings, "layer": embeddings.layer, "samples": dict(zip(embeddings.names, samples, strict=True))}


@dataclass(frozen=True)
class SettledRule:
    """Ends a proxy's training when Chameleon's weights have settled (they do so early: table 12 of the paper); nothing else of the run is changed.

    After every `every_steps` steps a small fixed sample of every domain is embedded with the model as it is, and weighed by the paper's formula whatever
    the method's variant, so that methods that share a proxy stop alike. Training ends when the weights are within `tolerance`, in L1 distance, of the
    weights at half the steps, at two such comparisons running. `bootstrap` takes the sum of the weights' standard errors as the tolerance.
    """

    name: ClassVar[str] = "settled"
    version: ClassVar[int] = 1
    signal: ClassVar[str] = "embeddings"
    changes: ClassVar[Changes] = "nothing"
    tolerance: float | Literal["bootstrap"] = 0.05
    every_steps: int = 1
    samples_per_domain: int = 64

    def start(self, names: Sequence[str], prior: Array, horizon_steps: int) -> RuleState:
        """No look taken yet."""
        k = len(names)
        return RuleState.start(names, prior, {"steps": np.zeros(0), "weights": np.zeros((0, k)), "errors": np.zeros((0, k))}, self.every_steps)

    def update(self, state: RuleState, seen: Seen) -> RuleState:
        """Weigh the embeddings and remember the weights and their standard errors."""
        counts = seen.values["group_counts"].astype(np.int64)
        embeddings = Embeddings(state.names, seen.values["group_sums"], counts, int(seen.values["layer"]))
        mixture = Chameleon().weigh(embeddings)
        errors = mixture.weights_stderr or {}
        now = {"steps": float(seen.step), "weights": [mixture.weights[name] for name in state.names], "errors": [errors.get(name, 0.0) for name in state.names]}
        memory = {part: np.concatenate([state.memory[part], np.array(value)[None]]) for part, value in now.items()}
        return state.updated(memory["weights"][-1], memory, seen.step + self.every_steps)

    def answer(self, state: RuleState) -> Array:
        """The weights at the last look."""
        return state.weights

    def done(self, state: RuleState) -> bool:
        """Whether the last two comparisons, of the weights at t and t / 2 steps, were within the tolerance, the last of them just now."""
        place = {int(step): i for i, step in enumerate(state.memory["steps"])}
        compared = [step for step in place if step % 2 == 0 and step // 2 in place]
        if len(compared) < 2 or compared[-1] != max(place):
            return False
        return all(self._close(state, place[step], place[step // 2]) for step in compared[-2:])

    def _close(self, state: RuleState, now: int, before: int) -> bool:
        weights, errors = state.memory["weights"], state.memory["errors"]
        tolerance = errors[now].sum() if self.tolerance == "bootstrap" else self.tolerance
        return bool(np.abs(weights[now] - weights[before]).sum() <= tolerance)


def _spread_warnings(leverage: Array, centered: bool) -> list[str]:
    if len(leverage) == 1:
        return []
    if not leverage.any():
        what = "all domains have the same embedding" if centered else "all embeddings are zero"
        return [f"The weights are uniform because {what}; look for copies of one domain, or for a proxy that has not learned anything."]
    spread = float((leverage.max() - leverage.min()) / leverage.mean())
    if spread >= MIN_RELATIVE_SPREAD:
        return []
    if leverage.mean() > 0.5:
        cause, remedy = "the ridge is far below the spectrum, so that every score saturates near 1", "raise ridge, for example to {relative: 1}"
    else:
        cause, remedy = "the embeddings hardly differ at this ridge", "lower ridge, set center: true or train the proxy longer"
    return [f"The scores differ by only {spread:.2%} of their mean and say little about the domains: {cause}; {remedy}."]


def _weight_warnings(weights: Array) -> list[str]:
    domains = effective_domains(weights)
    found = spread(weights)
    if found == "collapsed":
        return [
            f"{domains}: the weights collapse, since the temperature is too low for these scores; "
            "raise temperature, or give it relative to the mean score, for example {relative: 0.7} (pretrain) or {relative: 1.4} (finetune)."
        ]
    if found == "flat":
        return [
            f"{domains}: the weights are nearly uniform, since the temperature is too high for these "
            "scores or they do not spread; lower temperature, or give it relative to the mean score and check ridge."
        ]
    return []


def _sample_warnings(embeddings: Embeddings) -> list[str]:
    filled = (embeddings.group_counts > 0).sum(axis=1)  # [k]
    alone = [embeddings.names[i] for i in (filled < 2).nonzero()[0]]
    what = "samples in only 1 hash group, so that {} standard errors leave out {} own noise; embed more samples."
    named = [f"Domain {name!r} has {what.format('its', 'its')}" for name in alone[:MAX_SAMPLE_WARNINGS]]
    more = len(alone) - len(named)
    return [*named, f"{more:,} more domains have {what.format('their', 'their')}"] if more else named
