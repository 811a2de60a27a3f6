"""What the experiment says in plain sentences, and what speaks against believing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chameleon_ray.report.data import BASELINE, ReportData
from chameleon_ray.report.formatting import error_decimals, fixed, measured, number, plural
from chameleon_ray.report.numbers import AVERAGE, chameleon_label, domains_won, evaluated, reported_scores
from chameleon_ray.report.significance import PairedDifference, by_pair
from chameleon_ray.report.statistics import Estimate, Score, common_seeds, interval, over_seeds, paired_difference, summarise, within_noise
from chameleon_ray.settings import listed

MAX_NAMED_DOMAINS = 6


def verdict(data: ReportData) -> str:
    """The headline method against uniform by the arithmetic mean over domains of test perplexities.

    The difference is paired by seed; it is called noise when its 95 % t interval over seeds holds 0.
    """
    averages = _averages(data)
    if not averages:
        return "No base model was evaluated, so nothing can be said about perplexity; the mixtures are below."
    challengers = [label for label in averages if label != BASELINE]
    if BASELINE not in averages or not challengers:
        return _without_comparison(averages)
    chameleon = chameleon_label(data)
    label = chameleon if chameleon in challengers else challengers[0]
    if not common_seeds(averages[label], averages[BASELINE]):
        return f"{_without_comparison(averages)} No seed was trained with both {label} and {BASELINE}, so they are not compared."
    wins = f"better on {domains_won(data, label)} of {_domains(data)}"
    sentences = _comparison(label, averages[label], averages[BASELINE], wins)
    if len(averages) > 2:
        sentences += " " + _best(averages)
    return sentences


def findings(data: ReportData) -> list[str]:
    """With several methods beside uniform: one sentence each against uniform, lowest average first; then the methods that chameleon loses to.

    "Significant" means that the 95 % interval of `data.differences` excludes zero.
    """
    averages = _averages(data)
    challengers = sorted((label for label in averages if label != BASELINE), key=lambda label: summarise(averages[label]).mean)
    if len(challengers) < 2:
        return []
    tested = by_pair(data.differences, "mean_perplexity")
    found = []
    if BASELINE in averages:
        for label in challengers:
            found.append(_against_uniform(data, label, averages, tested))
    chameleon = chameleon_label(data)
    if chameleon in averages:
        found += _losses_to_others(chameleon, [label for label in challengers if label != chameleon], averages, tested)
    return [*found, _meaning(data.differences)]


def _against_uniform(data: ReportData, label: str, averages: Mapping[str, dict[int, Score]], tested: Mapping[tuple[str, str], PairedDifference]) -> str:
    ours, uniform = averages[label], averages[BASELINE]
    whole = summarise(ours)
    gave = f"{label}: average perplexity {measured(whole.mean, _seed_error(whole))}"
    seeds = common_seeds(ours, uniform)
    if not seeds:
        return f"{gave}; no seed in common with {BASELINE}."
    change = _change(*(over_seeds([found[seed].value for seed in seeds]) for found in (ours, uniform)))
    compared = f"{change} as {BASELINE}" if change.startswith("the same") else f"{change} than {BASELINE}"
    return f"{gave}, {compared}{_noise(tested.get((label, BASELINE)))}; better on {domains_won(data, label)} of {_domains(data)}."


def _losses_to_others(
    chameleon: str, others: Sequence[str], averages: Mapping[str, dict[int, Score]], tested: Mapping[tuple[str, str], PairedDifference]
) -> list[str]:
    paired = [label for label in others if common_seeds(averages[chameleon], averages[label])]
    differences = {label: paired_difference(averages[chameleon], averages[label]).mean for label in paired}
    lost = [label for label in paired if differences[label] > 0]
    if not lost:
        return [f"{chameleon} loses to none of the other methods."] if paired else []
    sentences = []
    for label in lost:
        pair = tested.get((chameleon, label))
        if pair is None:
            sentences.append(f"{chameleon} loses to {label} by {number(differences[label], 3)}.")
            continue
        low, high = (fixed(bound, error_decimals(pair.high - pair.low)) for bound in (pair.low, pair.high))
        sentences.append(f"{chameleon} loses to {label} by {number(differences[label], 3)} (95 % interval {low} to {high}){_noise(pair)}.")
    return sentences


def _noise(pair: PairedDifference | None) -> str:
    if pair is None:
        return ""
    if pair.num_seeds == 1:
        return ", significant over documents only" if pair.excludes_zero else ", within the noise of the documents"
    return ", significant" if pair.excludes_zero else ", within the noise"


def _meaning(pairs: Sequence[PairedDifference]) -> str:
    if not pairs:
        return "No losses by document are at hand, so none of these differences was tested."
    over = "held-out documents; with one seed, nothing says what another seed would do"
    if max(pair.num_seeds for pair in pairs) > 1:
        over = "seeds and held-out documents"
    return f"Significant: the 95 % interval of a paired bootstrap excludes zero, over {over}."


def _averages(data: ReportData) -> dict[str, dict[int, Score]]:
    scores = reported_scores(data.scores)
    return {label: scores[label, AVERAGE, "mean_perplexity"] for label in evaluated(data)}


def warnings(data: ReportData) -> list[str]:
    """The mixtures' own warnings, then the domains that are not measured, then every method whose models know a domain no better than its token
    frequencies do (worst seed)."""
    found = [f"{label}: {text}" for label, mixture in data.mixtures.items() for text in mixture.warnings]
    if unmeasured := data.corpus.unmeasured:
        found.append(
            f"Trained on and not measured, because fewer than two distinct documents could be held out: {listed(unmeasured, MAX_NAMED_DOMAINS)}. "
            f"Averages are over the other {plural(len(data.measured), 'domain')}."
        )
    return found + [text for label in evaluated(data) if (text := _undertrained(data, label))]


def _undertrained(data: ReportData, label: str) -> str | None:
    scores = reported_scores(data.scores)
    poor: dict[str, dict[int, float]] = {}
    for name in data.measured:
        entropy = data.corpus.domains[name].unigram_entropy_nats
        losses = {seed: score.value for seed, score in scores[label, name, "loss_nats"].items() if not score.value < entropy}
        if losses:
            poor[name] = losses
    if not poor:
        return None
    seeds = sorted({seed for losses in poor.values() for seed in losses})
    named = [f"{name} ({number(max(losses.values()))} against {number(data.corpus.domains[name].unigram_entropy_nats)})" for name, losses in poor.items()]
    models = f"{label}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    domains = f"{len(poor)} of {_domains(data)}"
    return (
        f"{models}: not trained long enough to compare. On {domains} the test loss does not beat the entropy of the domain's "
        f"token frequencies, in nats per token: {listed(named, MAX_NAMED_DOMAINS)}."
    )


def _domains(data: ReportData) -> str:
    return plural(len(data.measured), "domain" if data.measured == data.names else "measured domain")


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
