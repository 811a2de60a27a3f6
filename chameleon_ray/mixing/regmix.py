"""RegMix: weights from a regression of held-out loss on the mixtures of a swarm of tiny proxies (Liu et al. 2024).

    n        proxies, each trained on a mixture of its own (see swarm.py)
    r        [n, k] those mixtures
    L        [n] the target: one domain's loss on held-out text, that of a target of the corpus, which is not trained on, or the mean over the domains that
             have any, in nats per token
    f        the regression from a mixture to the target (see regression.py); of the mean over domains, the mean of one regression per domain. Regressors that
             know what domains contain take the embeddings of the experiment's proxy
    answer   mean of the `top` draws from Dirichlet(prior) for which f predicts least

Deviations: `top` is 128 as in the released code (paper: 100); nothing is stopped early on test runs, since the authors' early stopping sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from chameleon_ray.artifacts import Embeddings, TokenCorpus
from chameleon_ray.backend import FitContext, TrainJob, Work
from chameleon_ray.config import ModelConfig, ProxyChanges, TrainingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.limits import Limits
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.proxy import check_layer, embedded, embedded_in, formats_of, texts_to_embed, uniform_proxy
from chameleon_ray.mixing.regression import BEST, REGRESSORS, candidates, cross_validated_spearman, fit, known_regressor, mean_loss, possible
from chameleon_ray.mixing.regressors.regressor import Array
from chameleon_ray.mixing.remarks import format_warnings
from chameleon_ray.mixing.runs import ONE_SIZE, first_of, prefix, runs_of, unseen
from chameleon_ray.mixing.simplex import domain_names, effective_domains, in_order, named, normalised, spread, token_shares
from chameleon_ray.mixing.swarm import MEAN, Swarm, dirichlet, draw_mixtures, swarm_files
from chameleon_ray.mixture import Mixture, check_weights
from chameleon_ray.settings import PositiveInt, listed, nearest

STEPS = 1000
LEARNING_RATE = 4e-4
WARMUP_STEPS = 100


class RegMix(Method):
    """Train many tiny proxies on mixtures of their own, learn how the mixture decides the loss, take the mixture that is predicted best.

    `proxy` is what differs from RegMix's own proxy (preset 1M, 1000 steps, learning rate 4e-4, constant after 100 warm-up steps, or after a tenth of
    the steps when that is less; batches as in the experiment's proxy). `prior` defaults to the domains' shares of tokens when the swarm is drawn,
    and to the swarm's mean ratios in the search for the optimum. `regressor: best` takes the one with the best cross-validated rank correlation.
    `content`, and `best`, embed the domains with the experiment's proxy; with it or with `additive` 16 to 32 proxies do what others need 128 for
    (analysis/results/content.md). A proxy is measured on at most `valid_tokens` of each domain.
    """

    name: ClassVar[str] = "regmix"
    version: ClassVar[int] = 3
    needs: ClassVar[frozenset[str]] = frozenset({"proxy"})
    num_proxies: PositiveInt = 512
    proxy: ProxyChanges | None = None
    target: str = MEAN
    regressor: Annotated[str, AfterValidator(known_regressor)] = "lightgbm"
    samples: PositiveInt = 100_000
    top: PositiveInt = 128
    valid_tokens: PositiveInt = 1 << 17
    prior: dict[str, float] | None = None
    min_spearman: Annotated[float, Field(ge=-1, le=1)] = 0.7

    @model_validator(mode="after")
    def _consistent(self) -> RegMix:
        if self.top > self.samples:
            raise ValueError(f"top {self.top} exceeds samples {self.samples}; lower top or raise samples")
        if self.prior is not None:
            check_weights(self.prior, "prior")
        return self

    @property
    def embeds(self) -> bool:
        """Whether the regression takes embeddings."""
        return self.regressor == BEST or REGRESSORS[self.regressor].from_content

    @property
    def sections(self) -> frozenset[str]:
        """The embedding decides where the regression takes it."""
        return self.needs | {"embedding"} if self.embeds else self.needs

    @property
    def by_size(self) -> bool:
        """Where mixtures are drawn around shares of tokens."""
        return self.prior is None

    def check_settings(self, label: str, proxy: TrainingConfig) -> None:
        """Raise `UserError` for a swarm of pretrained models, or a regressor for several sizes of them."""
        if self.regressor != BEST and REGRESSORS[self.regressor].across_sizes:
            raise UserError(f"methods.{label}.regressor: {self.regressor} learns from models of several sizes, and the swarm is of one; choose another")
        if self.proxy and self.proxy.model and self.proxy.model.pretrained:
            raise UserError(f"methods.{label}.proxy.model: the swarm trains from scratch; give a preset, or layers, heads and width")

    def trainings(self, proxy: TrainingConfig) -> list[TrainingConfig]:
        """Of the swarm, and of the experiment's proxy where the regression takes its embeddings."""
        return [self.training(proxy), *([proxy] if self.embeds else [])]

    def check(self, context: FitContext) -> None:
        """Raise `UserError` for a domain that is empty, a corpus or target without held-out text, a target, prior or proxy that does not fit, or too few
        proxies."""
        names, where = domain_names(context.corpus), f"methods.{context.label}"
        known = (MEAN, *names, *context.corpus.targets)
        if self.target not in known:
            raise UserError(
                f"{where}: target {self.target!r} is no domain and no target of the corpus; there are {', '.join(known)}{nearest(self.target, known)}"
            )
        self._prior(names)
        self.training(context.proxy)
        if len(names) > 1:
            self._check_measured(context.corpus, where)
            possible(self.regressor, self.num_proxies, len(names), f"{where}: num_proxies", embedded=True)
            if self.embeds:
                check_layer(context)

    def jobs(self, context: FitContext) -> list[TrainJob]:
        """The proxy that embeds, where the regression takes embeddings; the swarm's own are too many to be listed."""
        return [uniform_proxy(context)] if self.embeds and len(context.corpus.names) > 1 else []

    def fit(self, context: FitContext) -> Mixture:
        """Draw mixtures, train a proxy on each, measure all on the valid split, and find the optimum.

        Returns:
            A mixture whose ledger has all proxies; `details` is that of `optimum`, and the swarm lies beside it as `ratios.csv` and `metrics.csv`.
        Raises:
            UserError: what `check` raises, or losses that are not finite.
        Cost: `num_proxies` tiny runs, and where the regression takes embeddings the experiment's proxy. One domain needs none.
        """
        self.check(context)
        names, provenance = context.corpus.names, self.provenance(context)
        prior = self._prior(names) or token_shares(context.corpus.tokens(), names, f"methods.{context.label}.prior")
        if len(names) == 1:
            return Mixture(self.name, {names[0]: 1.0}, provenance=provenance)
        measured = context.corpus.heldout
        jobs, ratios = self._swarm(context, prior)
        found = context.backend.train_swarm(context.corpus, jobs, "valid", self.valid_tokens)
        metrics = np.array([[proxy.losses[name] for name in measured] for proxy in found])  # [n, m]
        swarm = Swarm(tuple(f"{i:05d}" for i in range(len(jobs))), names, ratios, measured, metrics)
        ledger = {proxy.digest: proxy.cost for proxy in found}
        embeddings, there_before = None, tuple[str, ...]()
        if self.embeds:
            looked = embedded(context, uniform_proxy(context))
            embeddings, there_before = looked.embeddings, looked.there_before
            ledger = {looked.proxy.run: looked.proxy.cost, **embeddings.ledger, **ledger}
            provenance |= embedded_in(formats_of(embeddings))
        by_size = {ONE_SIZE: swarm}
        correlations = self.rank_correlations(by_size, ONE_SIZE, context.seed, embeddings)
        mixture = self.optimum(by_size, ONE_SIZE, correlations, context.seed, embeddings, context.limits)
        warnings = (*mixture.warnings, *self._target_warnings(context.corpus), *format_warnings(formats_of(embeddings)))
        return replace(mixture, ledger=ledger, there_before=there_before, provenance=provenance, warnings=warnings, files=swarm_files(swarm))

    def work(self, context: FitContext) -> Work:
        """The swarm, and the proxy that embeds, where the regression takes embeddings."""
        names, embedding = context.corpus.names, self.jobs(context)
        if len(names) == 1:
            return Work()
        prior = self._prior(names) or token_shares(context.corpus.tokens(), names, f"methods.{context.label}.prior")
        swarm, _ = self._swarm(context, prior)
        texts = texts_to_embed(context.corpus, context.transfer) if embedding else ()
        return Work(trains=tuple(embedding), swarm=tuple(swarm), valid_tokens=self.valid_tokens, embeds=embedding[0] if embedding else None, texts=texts)

    def _swarm(self, context: FitContext, prior: Mapping[str, float]) -> tuple[list[TrainJob], Array]:
        """The runs of the swarm, and their mixtures [n, k]."""
        ratios, training = draw_mixtures(prior, self.num_proxies, context.seed), self.training(context.proxy)
        return [TrainJob("swarm", training, named(context.corpus.names, row), seed=context.seed, keys=self._keys(context)) for row in ratios], ratios

    def _keys(self, context: FitContext) -> dict[str, str]:
        """Where the settings of a swarm's proxy stand: what RegMix sets itself, and what is changed, beside the method; the rest with the proxy."""
        own = {"model", "steps", "learning_rate", "min_learning_rate", "warmup_steps", *(self.proxy.model_fields_set if self.proxy else ())}
        return {setting: f"methods.{context.label}.proxy.{setting}" for setting in own}

    def training(self, experiment: TrainingConfig) -> TrainingConfig:
        """How a proxy of the swarm is trained, given the experiment's proxy.

        Raises:
            UserError: changes that do not fit together.
        """
        changes = self.proxy or ProxyChanges()
        steps, rate = changes.steps or STEPS, changes.learning_rate or LEARNING_RATE
        own = ProxyChanges(
            model=ModelConfig(preset="1M"),
            steps=steps,
            learning_rate=rate,
            min_learning_rate=rate,
            warmup_steps=min(WARMUP_STEPS, steps // 10),
        )
        given = {key: value for key in changes.model_fields_set if (value := getattr(changes, key)) is not None}
        # What else the experiment's proxy has is not for models that are compared with each other after equal runs in one process each.
        # Models this small gain nothing from bf16, so that every proxy is computed in fp32.
        plain = experiment.model_copy(update={"stop": None, "schedule_steps": None, "zero_stage": 0, "precision": "fp32"})
        return own.model_copy(update=given).applied_to(plain)

    def rank_correlations(self, swarms: Mapping[float, Swarm], parameters: float, seed: int, embeddings: Embeddings | None = None) -> dict[str, float]:
        """Regressor -> cross-validated rank correlation on the target, to be read before any optimum.

        Args:
            swarms: parameters of the models -> their runs, all of the same domains and targets.
            parameters: of the models that the optimum is for.
            embeddings: of the domains, or of some of them. A prior may then name domains that no run has: what they do is told by their embeddings.
        Raises:
            UserError: no such target, a prior over other domains, metrics that are not finite or constant, or a swarm smaller than the regression needs.
        Cost: five fits per regressor.
        """
        new = self._unseen(swarms, embeddings)
        _, runs = runs_of(swarms, self.target, embeddings, new)
        tried = candidates(self.regressor, runs, parameters, "swarm", bool(new))
        return {name: cross_validated_spearman(name, runs, parameters, seed) for name in tried}

    def optimum(
        self,
        swarms: Mapping[float, Swarm],
        parameters: float,
        correlations: Mapping[str, float],
        seed: int,
        embeddings: Embeddings | None = None,
        limits: Limits | None = None,
    ) -> Mixture:
        """The mixture that the regression on the swarms predicts best: the mean of the `top` of `samples` draws from Dirichlet(prior).

        Args:
            correlations: what `rank_correlations` found of the same; the regressor with the largest is used, the first of equal ones.
            limits: the search is among draws brought within them, and what is found without stands beside as `unconstrained`.
        Returns:
            A mixture whose `details` hold target, regressor, rank correlations, number of runs, prior, the loss predicted at the optimum, and the domains
            that no run has; `ledger` is empty, since what the swarm took is not known here. Neither the order of the domains nor that of the targets
            changes a digit.
        Raises:
            UserError: as `rank_correlations`.
        Cost: one fit and `samples` predictions, about ten core seconds for 100,000 draws of 17 domains by 1000 trees; for `mean` times the number of domains.
        """
        first = first_of(swarms)
        target = first.target(self.target)
        regressor = max(correlations, key=lambda name: correlations[name])
        new = self._unseen(swarms, embeddings)
        _, runs = runs_of(swarms, self.target, embeddings, new)
        names, here = [*sorted(first.domains), *new], runs.parameters == parameters
        near = runs.only(here) if here.any() else runs
        given = self._prior((*first.domains, *new), embeddings is not None)
        prior = normalised([given[name] for name in names] if given else near.ratios.mean(axis=0))  # [k]
        predict = mean_loss(fit(regressor, runs, parameters))
        draws = dirichlet(names, prior, self.samples, seed, "optimum")  # [samples, k]
        free = weights = self._best(draws, predict)
        if limits is not None and not (kept := replace(limits, names=tuple(names))).hold(free[None]).all():
            weights = self._best(kept.project(draws), predict)
        details = {
            "target": target,
            "regressor": regressor,
            "spearman": {target: dict(correlations)},
            "num_runs": len(runs) if REGRESSORS[regressor].across_sizes else int(here.sum()),
            "predicted_loss": float(predict(weights[None])[0]),
            **({} if weights is free else {"predicted_loss_unconstrained": float(predict(free[None])[0])}),
            **({"best_loss_of_swarm": float(near.losses.mean(axis=1).min())} if here.any() else {}),
            "prior": named(names, prior),
            **({"unseen": new} if new else {}),
        }
        by_name, beside = named(names, weights), named(names, free)
        warnings = (*_unseen_warnings(new), *self._quality_warnings(target, regressor, correlations[regressor]), *_collapse_warnings(weights, target))
        provenance = {"settings": self.model_dump(mode="json")}
        order = (*first.domains, *new)
        unconstrained = None if weights is free else {name: beside[name] for name in order}
        found = {name: by_name[name] for name in order}
        return Mixture(self.name, found, unconstrained=unconstrained, provenance=provenance, details=details, warnings=warnings)

    def _best(self, draws: Array, predict: Callable[[Array], Array]) -> Array:
        """The mean of the draws [samples, k] that are predicted best."""
        return normalised(draws[np.argsort(predict(draws), kind="stable")[: self.top]].mean(axis=0))

    def _unseen(self, swarms: Mapping[float, Swarm], embeddings: Embeddings | None) -> list[str]:
        """The domains of the prior that no run has and whose embeddings are known; raises `UserError` for a prior over other domains."""
        domains = first_of(swarms).domains
        asked = [name for name, share in (self.prior or {}).items() if share > 0 and name not in domains] if embeddings is not None else []
        new = unseen([name.removeprefix(prefix(domains)) for name in asked], swarms, embeddings, "prior")
        self._prior((*domains, *new), embeddings is not None)
        return new

    def _prior(self, domains: tuple[str, ...], embedded: bool = False) -> dict[str, float] | None:
        """With embeddings a prior may also name domains that no run has, and gives those that it leaves nothing no place."""
        if self.prior is None:
            return None
        given = {name: share for name, share in self.prior.items() if share > 0 or name in domains or not embedded}
        return in_order(given, domains, "prior", "weight")

    def _check_measured(self, corpus: TokenCorpus, where: str) -> None:
        if self.target not in corpus.targets:
            corpus.check_measured()
        if self.target in corpus.unmeasured:
            raise UserError(
                f"{where}: target {self.target!r} has too little held-out text to be measured; add documents or heldout files to it, or choose "
                f"{MEAN}, {', '.join(corpus.measured)}"
            )

    def _target_warnings(self, corpus: TokenCorpus) -> list[str]:
        if self.target != MEAN or not corpus.unmeasured:
            return []
        return [
            f"The target is the mean over the {len(corpus.measured)} domains of {len(corpus.names)} that have held-out text; how well "
            f"{listed(corpus.unmeasured)} is learned counts for nothing."
        ]

    def _quality_warnings(self, target: str, regressor: str, correlation: float) -> list[str]:
        if correlation >= self.min_spearman:
            return []
        return [
            f"The regression ({regressor}) orders runs it has not seen with a rank correlation of only {correlation:.2f} on {target!r}, under "
            f"{self.min_spearman:g}: do not trust the optimum; train more proxies or longer ones, use more held-out text, or try regressor: best."
        ]


def _unseen_warnings(new: Sequence[str]) -> list[str]:
    return [f"No run has any of {listed(new)}: what they do is told by their embeddings alone."] if new else []


def _collapse_warnings(weights: Array, target: str) -> list[str]:
    if spread(weights) != "collapsed":
        return []
    cause = "all proxies may have been too small or too few to show that domains help each other" if target == MEAN else f"the target is {target!r} alone"
    return [
        f"{effective_domains(weights)}: the weights collapse; {cause}, or the prior leaves "
        "little else; use target: mean, give a flatter prior, or draw a larger swarm."
    ]
