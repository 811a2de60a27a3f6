"""Chameleon: weights from how well the domains explain each other in the embedding space of a proxy (ICML 2025, algorithm 1).

The proxy is trained once, on uniform weights; domains that come later are embedded with it and weighed anew, without training. The scores are in `krls.py`,
what makes weights of them in `formula.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.backend import FitContext, Rule, Text, TrainJob, Work
from chameleon_ray.config import TrainingConfig
from chameleon_ray.errors import UserError, naming
from chameleon_ray.mixing.estimate import Estimate, estimate
from chameleon_ray.mixing.formula import Formula, Stage, Temperature, structureless
from chameleon_ray.mixing.krls import Array, Ridge
from chameleon_ray.mixing.learned import trajectory_of
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.proxy import Embedded, check_layer, embedded, embedded_in, formats_of, rows_of_targets, texts_to_embed, uniform_proxy
from chameleon_ray.mixing.remarks import explanation_of, warnings_of
from chameleon_ray.mixing.settled import SettledRule
from chameleon_ray.mixing.simplex import domain_names, in_order, named, token_shares, uniform
from chameleon_ray.mixing.target import check_outside
from chameleon_ray.mixing.text_quality import GLANCE_TOKENS, LAST_PART, TextQuality, factors, proxy_losses, quality_details, quality_warnings, text_quality
from chameleon_ray.mixing.variants import VARIANTS, Variant
from chameleon_ray.mixture import Mixture, check_weights
from chameleon_ray.settings import NonNegativeFloat, PositiveFloat, nearest

MAX_EIGENVALUES = 1000
STAGES: dict[Stage, str] = {"pretrain": "pretraining", "finetune": "finetuning"}


class Chameleon(Method):
    """Weigh domains by kernel ridge leverage: general ones up when pretraining, distinct ones up when finetuning.

    `variant` presets the fields that are left None. `calibrated`: free of the scale of the embeddings, the number of domains and the noise of the samples
    (analysis/results/calibration.md). `paper`: no centring, no normalisation; `released` (the authors' script):
    centred Gram matrix, scores divided by their sum; both with lam = 10, tau = 5 (pretrain) or 0.2 (finetune), which mean something else for every model.

    `prior` is what the weights are where the embeddings say nothing: `uniform`, `tokens` (the domains' shares of the train tokens), or shares by name.

    `quality` counts each domain less, in front of its scores, by how poor its text looks (text_quality.py), which embeddings do not say; `proxy.stop` watches
    the weights without it, and without `targets`. Where a domain gains although it looks poor there is a warning in any case.

    `targets`: name of a domain, or of a target of the corpus -> by how much the odds of such text are multiplied, its neighbours' rising too; when finetuning
    how many times a domain counts, which lowers its neighbours (target.py).

    Beyond the paper: that prior, ridge and temperature relative to the scores, the floor and the noise (formula.py), standard errors over the hash groups
    of the samples (by `bootstrap_draws`, 0 for none; in closed form where domains are too many to repeat everything), warnings where the weights say little.
    """

    name: ClassVar[str] = "chameleon"
    version: ClassVar[int] = 4
    needs: ClassVar[frozenset[str]] = frozenset({"proxy", "embedding"})
    rule: ClassVar[type[Rule] | None] = SettledRule
    variant: Variant = "calibrated"
    stage: Stage = "pretrain"
    prior: Literal["uniform", "tokens"] | dict[str, float] = "uniform"
    ridge: Ridge | None = None
    temperature: Temperature | None = None
    center: bool | None = None
    normalize: bool | None = None
    noise: bool | None = None
    floor: NonNegativeFloat | None = None
    cap: PositiveFloat | None = None
    quality: bool = False
    targets: dict[str, PositiveFloat] = Field(default_factory=dict)
    bootstrap_draws: Annotated[int, Field(ge=0)] = 200

    @field_validator("bootstrap_draws")
    @classmethod
    def _none_or_two(cls, draws: int) -> int:
        if draws == 1:
            raise ValueError("one draw has no spread; give 0 for no standard errors, or at least 2")
        return draws

    @model_validator(mode="after")
    def _consistent(self) -> Chameleon:
        if isinstance(self.prior, dict):
            check_weights(self.prior, "prior")
        if self.cap is not None and (self.stage == "pretrain" or self.formula.temperature.absolute):
            raise ValueError("cap is for stage: finetune with temperature: {relative: …}, since it is a multiple of the mean score")
        if self.targets and self.formula.normalize:
            raise ValueError("targets needs scores that are not divided by their sum: set normalize: false, or variant: calibrated")
        return self

    @property
    def by_size(self) -> bool:
        """Where the prior is."""
        return self.prior == "tokens"

    def check_settings(self, label: str, proxy: TrainingConfig) -> None:
        """Raise `UserError` for finetuning weights of a fresh proxy: the paper takes them from the embeddings of the pretrained model itself (algorithm 1)."""
        if self.stage == "finetune" and proxy.model.pretrained is None:
            raise UserError(
                f"methods.{label}.stage: finetune, but here a proxy is trained from scratch, and finetuning weights come from the embeddings of the pretrained "
                "model itself (algorithm 1 of the paper); remove the section proxy (proxy=null) from an experiment with stage: finetune, give that model as "
                "proxy.model: {pretrained: NAME} with proxy.steps: 0, or set stage: pretrain"
            )

    def trainings(self, proxy: TrainingConfig) -> list[TrainingConfig]:
        """Of the experiment's proxy."""
        return [proxy]

    def check(self, context: FitContext) -> None:
        """Raise `UserError` for a domain that is empty, a prior over other domains, or a layer that the proxy does not have."""
        super().check(context)
        self.prior_of(context.corpus.names, context.corpus.tokens(), f"methods.{context.label}.prior")
        check_layer(context)
        if context.transfer and context.proxy.stop and isinstance(self.prior, dict):
            raise UserError(
                f"methods.{context.label}.prior: by name, over the domains to weigh, and proxy.stop watches weights of those that the proxy is trained on "
                "(transfer); remove proxy.stop"
            )
        known = (*context.corpus.names, *context.corpus.targets)
        with naming(f"methods.{context.label}"):
            for name, boost in self.targets.items():
                if name not in known:
                    raise UserError(f"targets.{name}: neither a domain nor one of corpus.targets; there are {', '.join(known)}{nearest(name, known)}")
                if name in context.corpus.targets:
                    check_outside(name, boost, self.stage == "finetune")

    def looked_at(self, targets: Collection[str]) -> tuple[str, ...]:
        """Those of the corpus's targets, which are no domains, that the weights look towards."""
        return tuple(name for name in targets if name in self.targets)

    def jobs(self, context: FitContext) -> list[TrainJob]:
        """The proxy."""
        return [self.proxy_job(context)]

    def work(self, context: FitContext) -> Work:
        """The proxy, the domains' embeddings by it, and a look at its losses where it was not trained on them."""
        job, corpus = self.proxy_job(context), context.corpus
        seen_at_last = 0.0 if context.transfer else (1 - LAST_PART) * job.training.rows * corpus.row_tokens
        aims = self.looked_at(corpus.targets)
        return Work(
            trains=(job,),
            embeds=job,
            texts=(*texts_to_embed(context.corpus, context.transfer), *((Text(corpus, aims),) if aims else ())),
            glance_tokens=GLANCE_TOKENS if seen_at_last < GLANCE_TOKENS * len(corpus.names) else 0,
        )

    def proxy_job(self, context: FitContext) -> TrainJob:
        """The proxy on uniform weights, which may end early where `proxy.stop` says so: when the weights of this formula have settled. A pretrained one goes
        on from what it is."""
        training, stop, corpus = context.proxy, context.proxy.stop, context.transfer.corpus if context.transfer else context.corpus
        rule = None
        if stop:
            prior = self.prior_of(domain_names(corpus), corpus.tokens())
            shares = () if self.prior == "uniform" else tuple(prior.values())
            every = stop.every_steps or max(1, training.steps // 20)
            rule = SettledRule(self.formula, shares, stop.tolerance, every, stop.samples_per_domain, context.embedding.layer)
        return uniform_proxy(context, rule)

    def fit(self, context: FitContext) -> Mixture:
        """Train the proxy on uniform weights, embed the domains with it and weigh them (algorithm 1, steps 3 to 14).

        Raises:
            UserError: a domain that is empty or without samples, or embeddings that are not finite.
        Cost: the proxy's training and one forward pass over the samples (of a proxy that is taken as it is, another one over a few rows of held-out text); the
        weights themselves take milliseconds for tens of domains.
        """
        self.check(context)
        found = self.embed(context)
        proxy = found.proxy
        losses, looking = proxy_losses(proxy, context.corpus, context.backend)
        aims = self.looked_at(context.corpus.targets)
        others = context.backend.embed(proxy, context.corpus, context.embedding, aims) if aims else None
        with naming(f"methods.{context.label}"):
            mixture = self.weigh(found.embeddings, context.corpus.tokens(), text_quality(context.corpus, losses), others)
        provenance = {**mixture.provenance, "corpus": context.corpus.digest, "proxy": proxy.digest, "proxy_address": proxy.address}
        if "snapshot_of" in proxy.details:
            provenance["proxy_is_snapshot_of"] = proxy.details["snapshot_of"]
        if context.transfer:
            rows = {name: provenance["samples"][name] for name in context.corpus.names if name not in context.transfer.same}
            provenance["embedded_rows"] = rows | (rows_of_targets(others) if others else {})
        ledger = {proxy.run: proxy.cost, **mixture.ledger, **looking}
        trajectory = None if context.transfer else trajectory_of(proxy)  # that of a transferred proxy is of other domains
        return replace(mixture, ledger=ledger, there_before=found.there_before, trajectory=trajectory, provenance=provenance)

    def embed(self, context: FitContext) -> Embedded:
        """Train the proxy on uniform weights and embed every domain with it (algorithm 1, steps 3 and 5).

        Raises:
            UserError: a domain without samples.
        """
        return embedded(context, self.proxy_job(context))

    def weigh(
        self,
        embeddings: Embeddings,
        tokens: Mapping[str, float] | None = None,
        texts: Mapping[str, TextQuality] | None = None,
        others: Embeddings | None = None,
    ) -> Mixture:
        """Weights of embedded domains, old or new, without training (algorithm 1, steps 6 to 14).

        Domains are taken in the order of their names, so that another order of the input changes no digit.

        Args:
            tokens: train tokens by domain, for `prior: tokens`.
            texts: how good the domains' text is, for warnings and `quality: true`.
            others: texts that are no domains and that `targets` may name.
        Returns:
            A mixture whose ledger is that of the embeddings; `details` holds the spectrum, effective dimension, energy, lam, tau and, up to 200 domains,
            Omega; with `noise` the reliability; under another prior than a uniform one that prior, and what it says by itself (`structureless`).
        Raises:
            UserError: a domain without samples, embeddings that are not finite, a prior over other domains, a boost that cannot be had, or a ridge lost in
                rounding.
        Cost: O(k p min(k, p)), times 1 + bootstrap_draws up to 1,000 domains, a few times that beyond (see standard_errors.py).
        """
        prior = self.prior_of(embeddings.names, tokens)
        counted = None
        if self.quality:
            if texts is None:
                raise UserError("quality: true needs the domains' text; weigh within an experiment, or leave it out")
            counted = factors(texts, embeddings.names)
        found = estimate(embeddings, self.formula, prior, self.bootstrap_draws, counted, self.targets, others)
        errors, formats = found.errors, formats_of(embeddings, others)

        def labelled(values: Array) -> dict[str, float]:
            by_name = named(found.names, values)
            return {name: by_name[name] for name in embeddings.names}

        samples = dict(zip(embeddings.names, embeddings.group_counts.sum(axis=1).tolist(), strict=True))
        settings = {**self.model_dump(mode="json"), **self.formula.model_dump(mode="json")}
        method = {"standard_errors": errors.method} if errors else {}
        return Mixture(
            method=self.name,
            weights=labelled(found.weights),
            scores=labelled(found.scores),
            weights_stderr=labelled(errors.weights) if errors else None,
            scores_stderr=labelled(errors.scores) if errors else None,
            ledger={**embeddings.ledger, **(others.ledger if others else {})},
            provenance={"settings": settings, "layer": embeddings.layer, "samples": samples, **method, **embedded_in(formats)},
            details={
                **_details(found),
                **(_prior_details(found) if found.leverage.prior is not None else {}),
                **({"quality": quality_details(texts)} if texts else {}),
            },
            explanation=(self._made_by(), *explanation_of(found)),
            warnings=(*warnings_of(found, embeddings, formats), *quality_warnings(texts or {}, labelled(found.weights), prior, self.quality)),
        )

    def _made_by(self) -> str:
        """Variant, stage, and what was set beside them."""
        given = self.model_dump(mode="json", exclude_defaults=True, exclude={"variant", "stage", "bootstrap_draws"}, exclude_none=True)
        if isinstance(self.prior, dict):
            given["prior"] = "by name"
        settings = yaml.safe_dump(given, default_flow_style=True, sort_keys=False, width=math.inf).strip()
        return f"Variant {self.variant}, weights for {STAGES[self.stage]}{f', with {settings}' if given else ''}."

    @property
    def formula(self) -> Formula:
        """What the variant and the settings that are given beside it amount to."""
        preset = VARIANTS[self.variant][self.stage]
        given = {name: value for name in Formula.model_fields if (value := getattr(self, name)) is not None}
        if self.temperature and self.temperature.absolute:
            given["cap"] = None
        return preset.model_copy(update=given)

    def prior_of(self, names: Sequence[str], tokens: Mapping[str, float] | None, where: str = "prior") -> dict[str, float]:
        """The prior over these domains.

        Args:
            tokens: train tokens by domain, where they are known.
            where: the setting's key, for errors.
        Raises:
            UserError: one that is given over other domains.
        """
        if self.prior == "uniform":
            return uniform(names)
        if self.prior == "tokens":
            if tokens is None:
                raise UserError(f"{where}: tokens needs the domains' train tokens; weigh within an experiment, or give shares by name")
            return token_shares(tokens, names, where)
        return in_order(self.prior, names, where, "share")


def _details(found: Estimate) -> dict[str, Any]:
    leverage, weighing = found.leverage, found.weighing
    affinity = {} if found.affinity is None else {"affinity": {"names": list(found.names), "values": found.affinity.tolist()}}
    return {
        "eigenvalues": leverage.eigenvalues[:MAX_EIGENVALUES].tolist(),
        "effective_dimension": leverage.effective_dimension,
        "energy": leverage.energy,
        "ridge": leverage.ridge,
        "temperature": weighing.tau(leverage.scores),
        **({"reliability": found.reliability} if weighing.formula.noise and not math.isnan(found.reliability) else {}),
        **affinity,
    }


def _prior_details(found: Estimate) -> dict[str, Any]:
    assert found.leverage.prior is not None
    by_itself = structureless(found.weighing, found.leverage)
    return {"prior": named(found.names, found.leverage.prior), "structureless": named(found.names, by_itself)}
