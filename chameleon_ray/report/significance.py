"""Is the difference between two methods more than noise? Its 95 % interval over seeds of the base models and held-out documents, for every pair.

A difference is *significant* when its interval excludes zero, and within the noise when it does not; a page has no other meaning of either word. The
interval (`intervals.py`) speaks of other seeds for the base models and of other documents of the same domains. It speaks of the mixture
only where `fit_every_seed` has it fitted anew with every seed; elsewhere it is fitted once, with the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from chameleon_ray.artifacts import DocumentLosses
from chameleon_ray.evaluation.losses import mean_nats, mean_perplexity
from chameleon_ray.report.intervals import METRICS, Array, DomainPart, difference_interval, domain_part, without_each_document

MEANS = {"mean_perplexity": mean_perplexity, "mean_loss_nats": mean_nats}


@dataclass(frozen=True)
class PairedDifference:
    """first - second, averaged over the seeds that both have, with its 95 % interval; negative: the first method is better.

    `fewest_documents`: of any domain. With a single one nothing says how far that domain's documents lie apart, so the interval is the whole line.
    """

    first: str
    second: str
    metric: str
    difference: float
    low: float
    high: float
    num_seeds: int
    fewest_documents: int

    @property
    def has_interval(self) -> bool:
        """Whether its noise is known."""
        return math.isfinite(self.high - self.low)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def turned(self) -> PairedDifference:
        """second - first."""
        return PairedDifference(self.second, self.first, self.metric, -self.difference, -self.high, -self.low, self.num_seeds, self.fewest_documents)


def paired_differences(losses: Mapping[tuple[str, int], Mapping[str, DocumentLosses]]) -> list[PairedDifference]:
    """The difference of every pair of methods that have a seed in common, in both metrics.

    Args:
        losses: (method, seed) -> domain -> losses by document, all of the same domains and documents; their order does not matter.
    Returns:
        One entry per pair and metric. With one seed in common only documents count, and nothing is known of other seeds.
    Cost: O(n) per domain, pair and seed, and the memory of the losses once more.
    """
    if not losses:
        return []
    losses = {run: {name: _in_order(loss) for name, loss in by_domain.items()} for run, by_domain in losses.items()}
    runs, names = list(losses), list(next(iter(losses.values())))
    fewest = min(len(losses[runs[0]][name].document) for name in names)
    pairs = {pair: seeds for pair in combinations(dict.fromkeys(method for method, _ in runs), 2) if (seeds := _common_seeds(runs, *pair))}
    parts: dict[tuple[tuple[str, str], str], list[DomainPart]] = {(pair, metric): [] for pair in pairs for metric in METRICS}
    for name in names if fewest > 1 else ():
        nats, tokens = _aligned([losses[run][name] for run in runs])
        for metric in METRICS:
            values, moved = without_each_document(nats, tokens, metric)
            for pair, seeds in pairs.items():
                ours, theirs = ([runs.index((method, seed)) for seed in seeds] for method in pair)
                parts[pair, metric].append(domain_part(values[ours] - values[theirs], moved[ours] - moved[theirs], tokens))
    found = []
    for ((first, second), metric), of_domains in parts.items():
        by_seed = [MEANS[metric](losses[first, seed]) - MEANS[metric](losses[second, seed]) for seed in pairs[first, second]]
        low, high = map(float, difference_interval(of_domains)) if fewest > 1 else (-math.inf, math.inf)
        found.append(PairedDifference(first, second, metric, float(np.mean(by_seed)), low, high, len(by_seed), fewest))
    return found


def by_pair(pairs: Sequence[PairedDifference], metric: str) -> dict[tuple[str, str], PairedDifference]:
    """(row, column) -> row minus column, in both directions."""
    kept = [pair for pair in pairs if pair.metric == metric]
    return {(pair.first, pair.second): pair for pair in (*kept, *(pair.turned() for pair in kept))}


def _common_seeds(runs: Sequence[tuple[str, int]], first: str, second: str) -> list[int]:
    return sorted({seed for method, seed in runs if method == first} & {seed for method, seed in runs if method == second})


def _in_order(loss: DocumentLosses) -> DocumentLosses:
    order = np.argsort(loss.document, kind="stable")
    return DocumentLosses(loss.document[order], loss.nats[order], loss.tokens[order])


def _aligned(by_run: Sequence[DocumentLosses]) -> tuple[Array, Array]:
    """[R, n] nats of every run and [n] tokens."""
    for loss in by_run:
        assert np.array_equal(loss.document, by_run[0].document), "runs were measured on different documents"
        assert np.array_equal(loss.tokens, by_run[0].tokens), "runs were measured on different tokens"
    return np.stack([loss.nats for loss in by_run]), by_run[0].tokens.astype(np.float64)
