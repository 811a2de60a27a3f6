"""What the experiment says in plain sentences, and what speaks against believing it."""

from __future__ import annotations

from chameleon_ray.report.data import BASELINE, ReportData
from chameleon_ray.report.formatting import error_decimals, fixed, measured, number, plural
from chameleon_ray.report.numbers import AVERAGE, domains_won, evaluated, reported_scores
from chameleon_ray.report.statistics import Estimate, Score, common_seeds, interval, over_seeds, paired_difference, summarise, within_noise

HEADLINE = "chameleon"
MAX_NAMED_DOMAINS = 6


def verdict(data: ReportData) -> str:
    """The headline method against uniform by the arithmetic mean over domains of test perplexities.

    The difference is paired by seed; it is called noise when its 95 % t interval over seeds holds 0.
    """
    scores = reported_scores(data.scores)
    averages = {label: scores[label, AVERAGE, "mean_perplexity"] for label in evaluated(data)}
    if not averages:
        return "No base model was evaluated, so nothing can be said about perplexity; the mixtures are below."
    challengers = [label for label in averages if label != BASELINE]
    if BASELINE not in averages or not challengers:
        return _without_comparison(averages)
    label = HEADLINE if HEADLINE in challengers else challengers[0]
    if not common_seeds(averages[label], averages[BASELINE]):
        return f"{_without_comparison(averages)} No seed was trained with both {label} and {BASELINE}, so they are not compared."
    wins = f"better on {domains_won(data, label)} of {plural(len(data.names), 'domain')}"
    sentences = _comparison(label, averages[label], averages[BASELINE], wins)
    if len(averages) > 2:
        sentences += " " + _best(averages)
    return sentences


def warnings(data: ReportData) -> list[str]:
    """The mixtures' own warnings, then every method whose models know a domain no better than its token frequencies do (worst seed)."""
    found = [f"{label}: {text}" for label, mixture in data.mixtures.items() for text in mixture.warnings]
    return found + [text for label in evaluated(data) if (text := _undertrained(data, label))]


def _undertrained(data: ReportData, label: str) -> str | None:
    scores = reported_scores(data.scores)
    poor: dict[str, dict[int, float]] = {}
    for name in data.names:
        entropy = data.corpus.domains[name].unigram_entropy_nats
        losses = {seed: score.value for seed, score in scores[label, name, "loss_nats"].items() if not score.value < entropy}
        if losses:
            poor[name] = losses
    if not poor:
        return None
    seeds = sorted({seed for losses in poor.values() for seed in losses})
    named = [
        f"{name} ({number(max(losses.values()))} against {number(data.corpus.domains[name].unigram_entropy_nats)})"
        for name, losses in list(poor.items())[:MAX_NAMED_DOMAINS]
    ]
    if len(poor) > MAX_NAMED_DOMAINS:
        named.append(f"{len(poor) - MAX_NAMED_DOMAINS} more")
    models = f"{label}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    domains = f"{len(poor)} of {plural(len(data.names), 'domain')}"
    return (
        f"{models}: not trained long enough to compare. On {domains} the test loss does not beat the entropy of the domain's "
        f"token frequencies, in nats per token: {', '.join(named)}."
    )


def _comparison(label: str, ours: dict[int, Score], uniform: dict[int, Score], wins: str) -> str:
    seeds = common_seeds(ours, uniform)
    first, second = (over_seeds([found[seed].value for seed in seeds]) for found in (ours, uniform))
    difference = paired_difference(ours, uniform)
    subject = f"{label[:1].upper()}{label[1:]}'s mixture gave an average perplexity of"
    change = _change(first, second)
    if difference.stderr is None:
        return (
            f"{subject} {number(first.mean)} against {number(second.mean)} for {BASELINE} with one seed: {change}; {wins}. "
            "With one seed no error over seeds exists, so nothing tells this difference from noise."
        )
    gave = f"{subject} {measured(first.mean, first.stderr)} against {measured(second.mean, second.stderr)} for {BASELINE} over {len(seeds)} seeds"
    if difference.mean == difference.stderr == 0:
        return f"{gave}: no difference on any seed; {wins}."
    low, high = (fixed(bound, error_decimals(difference.stderr)) for bound in interval(difference))
    noise = within_noise(difference)
    return (
        f"{gave}: {change}{', but within the noise' if noise else ''}; {wins}. The paired difference is "
        f"{measured(difference.mean, difference.stderr)} (standard error over seeds), and its 95 % interval (Student's t), {low} to {high}, "
        f"{'includes' if noise else 'excludes'} zero."
    )


def _change(ours: Estimate, uniform: Estimate) -> str:
    percent = 100 * (ours.mean / uniform.mean - 1)
    if abs(percent) < 0.05:
        return "the same to 0.1 %"
    return f"{abs(percent):.1f} % {'better' if percent < 0 else 'worse'}"


def _best(averages: dict[str, dict[int, Score]]) -> str:
    estimates = {label: summarise(by_seed) for label, by_seed in averages.items()}
    best = min(estimates, key=lambda label: estimates[label].mean)
    return f"The lowest average of all {len(averages)} mixtures is that of {best}, {measured(estimates[best].mean, _seed_error(estimates[best]))}."


def _without_comparison(averages: dict[str, dict[int, Score]]) -> str:
    estimates = {label: summarise(by_seed) for label, by_seed in averages.items()}
    parts = (f"{label} {measured(found.mean, _seed_error(found))} ({plural(found.num_seeds, 'seed')})" for label, found in estimates.items())
    listed = "; ".join(parts)
    missing = f" The {BASELINE} mixture was not evaluated, so there is no baseline to compare with." if BASELINE not in averages else ""
    alone = " There is no other mixture to compare it with." if list(averages) == [BASELINE] else ""
    return f"Average perplexity: {listed}.{missing}{alone}"


def _seed_error(estimate: Estimate) -> float | None:
    return estimate.stderr if estimate.over == "seeds" else None
