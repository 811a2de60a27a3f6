"""What a report is made of: everything one experiment produced, and nothing that has to be fetched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from chameleon_ray.artifacts import Embeddings, SplitLosses, TokenCorpus
from chameleon_ray.config import TrainingConfig
from chameleon_ray.experiment import Experiment
from chameleon_ray.mixture import Mixture
from chameleon_ray.report.significance import PairedDifference, paired_differences

BASELINE = "uniform"
BEFORE = "before training"  # no label of a method: it has a space


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The results of one experiment.

    Attributes:
        experiment: the settings.
        corpus: counts per split and domain; its order of domains is the order of the report.
        mixtures: label -> mixture, in the order of the report.
        measurements: long form: method, seed, task, split, domain, metric, value, stderr, n, documents. Only task "perplexity" and split "test" are reported.
            Metrics per domain and target: "loss_nats" (nats per token), "perplexity", "bits_per_byte"; of domain "all": "mean_loss_nats",
            "mean_perplexity" and "mean_bits_per_byte", arithmetic means over domains.
        curves: method, seed, step, domain, loss (nats per token); domain "all" is the whole batch.
        embeddings: of the proxy, or None when no method embedded anything.
        seconds: phase -> wall seconds.
        losses: (label, seed) -> held-out losses by document, for paired comparisons.
        histories: method, step, domain, weight, mean: weights while a proxy trained; for methods that learn them step by step `mean` is the mean
            over the steps so far, which is their answer; elsewhere it equals `weight`.
        failures: label, or "label, seed N" -> what went wrong, in one line; the other runs are reported without them.
        precisions: (label, seed) -> the number format that the base model was trained in.
        before: as `measurements`, of the pretrained model that base models went on from; None where they started from scratch. before_losses: its losses by
            document.
        clusters: one row for every domain that was found among documents (`Clusters.table`), or None where domains were given.
        addresses: (label, seed) -> where the base model lies.
        bases: label -> how its base models are trained, at a point of the sweep as that has it; as the experiment has it for those that are not there.
        sweep: point, label, domain, weight, stderr, tokens, flops, seconds: weights at every point of a sweep; `point` reads "key=value, …".
    """

    experiment: Experiment
    corpus: TokenCorpus
    mixtures: Mapping[str, Mixture]
    measurements: pa.Table
    curves: pa.Table
    embeddings: Embeddings | None
    seconds: Mapping[str, float]
    losses: Mapping[tuple[str, int], SplitLosses] = field(default_factory=dict)
    histories: pa.Table | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    sweep: pa.Table | None = None
    clusters: pa.Table | None = None
    before: pa.Table | None = None
    before_losses: SplitLosses | None = None
    precisions: Mapping[tuple[str, int], str] = field(default_factory=dict)
    addresses: Mapping[tuple[str, int], str] = field(default_factory=dict)
    bases: Mapping[str, TrainingConfig] = field(default_factory=dict)

    def base_of(self, label: str) -> TrainingConfig:
        """How the base models of a method are trained, at its point of the sweep where it is one."""
        return self.bases.get(label, self.experiment.base)

    @property
    def refitted(self) -> bool:
        """Whether mixtures were fitted anew with every seed, and that made a difference, or only a fit of a later seed is left."""
        first = self.experiment.seeds[0]
        return any(mixture.provenance.get("fits", 1) > 1 or mixture.provenance.get("seed", first) != first for mixture in self.mixtures.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The k domain names."""
        return self.corpus.names

    @property
    def measured(self) -> tuple[str, ...]:
        """The domains with held-out text; averages are over these."""
        return self.corpus.measured

    @cached_property
    def differences(self) -> list[PairedDifference]:
        """Every pair of methods on the test split of the domains, with its interval."""
        return self._differences(self.measured)

    @cached_property
    def unseen(self) -> dict[str, list[PairedDifference]]:
        """Every pair of methods on each target's test half."""
        return {target: self._differences([target]) for target in self.corpus.targets}

    def since_before(self, label: str) -> PairedDifference | None:
        """The average perplexity of a method's models less that of the model that they went on from, with its interval; None where that is not known."""
        if self.before_losses is None:
            return None
        before = {name: self.before_losses["test"][name] for name in self.measured}
        mine = {seed: {name: losses["test"][name] for name in self.measured} for (other, seed), losses in self.losses.items() if other == label}
        runs = {(label, seed): found for seed, found in mine.items()} | {(BEFORE, seed): before for seed in mine}
        return next((pair for pair in paired_differences(runs) if pair.metric == "mean_perplexity"), None)

    def _differences(self, names: Collection[str]) -> list[PairedDifference]:
        return paired_differences({run: {name: losses["test"][name] for name in names} for run, losses in self.losses.items()})

    @property
    def labels(self) -> tuple[str, ...]:
        """Every method of the report: those with a mixture, then any that was only evaluated or trained."""
        seen = (*self.mixtures, *self.measurements["method"].to_pylist(), *self.curves["method"].to_pylist())
        return tuple(dict.fromkeys(seen))
