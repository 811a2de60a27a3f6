"""What the experiment says in plain sentences, and what speaks against believing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chameleon_ray.mixing.budget import read_over
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.report.data import BASELINE, BEFORE, ReportData
from chameleon_ray.report.formatting import fixed, interval_decimals, measured, number, plural
from chameleon_ray.report.numbers import AVERAGE, chameleon_label, domains_won, evaluated, reported
from chameleon_ray.report.significance import PairedDifference, by_pair
from chameleon_ray.report.statistics import Measurement, SeedMean, common_seeds, mean_difference, over_seeds, summarise
from chameleon_ray.settings import listed

MIN_TOKENS_PER_PARAMETER = 100
SINGLE_DOCUMENT = "A domain has a single test document"


def verdict(data: ReportData) -> str:
    """The headline method against uniform by the arithmetic mean over domains of test perplexities.

    It is called noise when the 95 % interval of `data.differences` includes zero, as everywhere on the page.
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
    tested = by_pair(data.differences, "mean_perplexity").get((label, BASELINE))
    sentences = _comparison(label, averages[label], averages[BASELINE], wins, tested, data.refitted)
    if len(averages) > 2:
        sentences += " " + _best(averages)
    return sentences


def findings(data: ReportData) -> list[str]:
    """What training did to a model that was there before; with several methods beside uniform one sentence each against uniform, lowest average first; then
    the methods that chameleon loses to.

    "Significant" means that the 95 % interval of `data.differences` excludes zero.
    """
    averages = _averages(data)
    since = [_since_before(data, label) for label in averages] if data.before else []
    challengers = sorted((label for label in averages if label != BASELINE), key=lambda label: summarise(averages[label]).mean)
    if len(challengers) < 2:
        return since
    tested = by_pair(data.differences, "mean_perplexity")
    found = []
    if BASELINE in averages:
        for label in challengers:
            found.append(_against_uniform(data, label, averages, tested))
    chameleon = chameleon_label(data)
    if chameleon in averages:
        found += _losses_to_others(chameleon, [label for label in challengers if label != chameleon], averages, tested)
    return [*since, *found, _meaning(data.differences, data.refitted)]


def _against_uniform(data: ReportData, label: str, averages: Mapping[str, dict[int, Measurement]], tested: Mapping[tuple[str, str], PairedDifference]) -> str:
    ours, uniform = averages[label], averages[BASELINE]
    whole = summarise(ours)
    gave = f"{label}: average perplexity {measured(whole.mean, _seed_error(whole))}"
    seeds = common_seeds(ours, uniform)
    if not seeds:
        return f"{gave}; no seed in common with {BASELINE}."
    change = _change(*(over_seeds([found[seed].value for seed in seeds]) for found in (ours, uniform)))
    compared = f"{change} as {BASELINE}" if change.startswith("the same") else f"{change} than {BASELINE}"
    return f"{gave}, {compared}{_noise(tested.get((label, BASELINE)))}; better on {domains_won(data, label)} of {_domains(data)}."


def _since_before(data: ReportData, label: str) -> str:
    """What training did to the model that all went on from, on average and on the domains where the perplexity rose."""
    assert data.before is not None
    found, before = reported(data.measurements), {key: next(iter(by_seed.values())).value for key, by_seed in reported(data.before).items()}
    after = {name: summarise(found[label, name, "perplexity"]).mean for name in data.measured}
    was = {name: before[BEFORE, name, "perplexity"] for name in data.measured}
    higher = [f"{name} ({number(was[name])} to {number(after[name])})" for name in data.measured if after[name] > was[name]]
    whole, start = summarise(found[label, AVERAGE, "mean_perplexity"]).mean, before[BEFORE, AVERAGE, "mean_perplexity"]
    pair = data.since_before(label)
    harms = ": training on this mixture harms" if whole > start and pair is not None and pair.excludes_zero else ""
    change = f"{abs(100 * (whole / start - 1)):.1f} % {'worse' if whole > start else 'better'}{harms}{_noise(pair)}"
    rose = f"higher than before on {listed(higher)}" if higher else "higher than before on no domain"
    return f"{label}: from an average perplexity of {number(start)} before training to {number(whole)} after it, {change}; {rose}."


def _losses_to_others(
    chameleon: str, others: Sequence[str], averages: Mapping[str, dict[int, Measurement]], tested: Mapping[tuple[str, str], PairedDifference]
) -> list[str]:
    paired = [label for label in others if common_seeds(averages[chameleon], averages[label])]
    differences = {label: mean_difference(averages[chameleon], averages[label]).mean for label in paired}
    lost = [label for label in paired if differences[label] > 0]
    if not lost:
        return [f"{chameleon} loses to none of the other methods."] if paired else []
    sentences = []
    for label in lost:
        pair = tested.get((chameleon, label))
        within = f" (95 % interval {_interval(pair)})" if pair is not None and pair.has_interval else ""
        sentences.append(f"{chameleon} loses to {label} by {number(differences[label], 3)}{within}{_noise(pair)}.")
    return sentences


def _noise(pair: PairedDifference | None) -> str:
    if pair is None or not pair.has_interval:
        return ""
    if pair.num_seeds == 1:
        return ", significant over documents only" if pair.excludes_zero else ", within the noise of the documents"
    return ", significant" if pair.excludes_zero else ", within the noise"


def _interval(pair: PairedDifference) -> str:
    decimals = interval_decimals(pair.low, pair.high)
    return f"{fixed(pair.low, decimals)} to {fixed(pair.high, decimals)}"


def _meaning(pairs: Sequence[PairedDifference], refitted: bool) -> str:
    if not pairs:
        return "No losses by document are at hand, so none of these differences was tested."
    if not any(pair.has_interval for pair in pairs):
        return f"{SINGLE_DOCUMENT}, so none of these differences was tested."
    over = "held-out documents, not the fit of the mixtures; with one seed, nothing says what another seed would do"
    if max(pair.num_seeds for pair in pairs) > 1:
        once, anew = "not the fit of the mixtures, which was made once, with the first seed", "and the fit of the mixtures, made anew with every seed"
        over = f"seeds of base models and held-out documents, {anew if refitted else once}"
    return f"Significant: the 95 % interval of the difference excludes zero. It covers {over}."


def _averages(data: ReportData) -> dict[str, dict[int, Measurement]]:
    by_seed = reported(data.measurements)
    return {label: by_seed[label, AVERAGE, "mean_perplexity"] for label in evaluated(data)}


def warnings(data: ReportData) -> list[str]:
    """The mixtures' own warnings; the domains that are not measured; base models with few tokens a parameter or in several number formats; and every method
    whose models know a domain no better than its token frequencies do (worst seed)."""
    found = [f"{label}: {text}" for label, mixture in data.mixtures.items() for text in mixture.warnings]
    if unmeasured := data.corpus.unmeasured:
        found.append(
            f"Trained on and not measured, because fewer than two distinct documents could be held out: {listed(unmeasured)}. "
            f"Averages are over the other {plural(len(data.measured), 'domain')}."
        )
    found += read_over(data.corpus, ((mixture.weights, data.base_of(label).rows) for label, mixture in data.mixtures.items()))
    found += _few_tokens(data) if evaluated(data) else []
    formats = sorted(set(data.precisions.values()))
    if len(formats) > 1:
        runs = [f"{label}, seed {seed} in {found_in}" for (label, seed), found_in in data.precisions.items()]
        found.append(
            f"Base models were trained in {' and '.join(formats)} ({listed(runs)}), so that they differ by more than mixtures and seeds; set base.precision."
        )
    return found + [text for label in evaluated(data) if (text := _undertrained(data, label))]


def _few_tokens(data: ReportData) -> list[str]:
    corpus = data.corpus
    found: dict[float, list[str]] = {}
    for label in evaluated(data):
        if (model := data.base_of(label).model).pretrained is None:
            parameters = Architecture.gpt2(model, corpus.vocab_size, corpus.row_tokens).num_parameters
            found.setdefault(data.base_of(label).rows * corpus.row_tokens / parameters, []).append(label)
    few = {each: labels for each, labels in found.items() if each < MIN_TOKENS_PER_PARAMETER}
    if not few:
        return []
    all_alike = len(found) == 1 and len(few[min(few)]) == len(evaluated(data))
    seen = listed([f"{number(each, 2)}{'' if all_alike else f' ({listed(labels)})'}" for each, labels in sorted(few.items())])
    return [
        f"Base models start from scratch and see {seen} tokens a parameter: not trained long enough to compare what mixtures are worth. Under some "
        f"{MIN_TOKENS_PER_PARAMETER} such models tell how fast they learn, which text that repeats itself speeds up: look whether domains that got less text "
        "gain with the rest."
    ]


def _undertrained(data: ReportData, label: str) -> str | None:
    by_seed = reported(data.measurements)
    poor: dict[str, dict[int, float]] = {}
    for name in data.measured:
        entropy = data.corpus.domains[name].unigram_entropy_nats
        losses = {seed: each.value for seed, each in by_seed[label, name, "loss_nats"].items() if not each.value < entropy}
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
        f"token frequencies, in nats per token: {listed(named)}."
    )


def _domains(data: ReportData) -> str:
    return plural(len(data.measured), "domain" if data.measured == data.names else "measured domain")


def _comparison(label: str, ours: dict[int, Measurement], uniform: dict[int, Measurement], wins: str, pair: PairedDifference | None, refitted: bool) -> str:
    seeds = common_seeds(ours, uniform)
    first, second = (over_seeds([found[seed].value for seed in seeds]) for found in (ours, uniform))
    change = _change(first, second)
    gave = (
        f"{label[:1].upper()}{label[1:]}'s mixture gave an average perplexity of {measured(first.mean, first.stderr)} against "
        f"{measured(second.mean, second.stderr)} for {BASELINE} {'with one seed' if len(seeds) == 1 else f'over {len(seeds)} seeds'}"
    )
    if pair is None or not pair.has_interval:
        missing = "No losses by document are at hand" if pair is None else SINGLE_DOCUMENT
        return f"{gave}: {change}; {wins}. {missing}, so nothing tells this difference from noise."
    if pair.low == pair.high == 0:
        return f"{gave}: no difference on any {'document' if len(seeds) == 1 else 'seed'}; {wins}."
    noise = "" if pair.excludes_zero else f", but{_noise(pair).removeprefix(',')}"
    over = "held-out documents" if pair.num_seeds == 1 else f"seeds of base models{', fits' if refitted else ''} and held-out documents"
    alone = " With one seed, nothing says what another seed would do." if pair.num_seeds == 1 else ""
    return (
        f"{gave}: {change}{noise}; {wins}. The paired difference is {fixed(pair.difference, interval_decimals(pair.low, pair.high))}, and its 95 % interval "
        f"over {over}, {_interval(pair)}, {'excludes' if pair.excludes_zero else 'includes'} zero.{alone}"
    )


def _change(ours: SeedMean, uniform: SeedMean) -> str:
    percent = 100 * (ours.mean / uniform.mean - 1)
    if abs(percent) < 0.05:
        return "the same to 0.1 %"
    return f"{abs(percent):.1f} % {'better' if percent < 0 else 'worse'}"


def _best(averages: dict[str, dict[int, Measurement]]) -> str:
    estimates = {label: summarise(by_seed) for label, by_seed in averages.items()}
    best = min(estimates, key=lambda label: estimates[label].mean)
    return f"The lowest average of all {len(averages)} mixtures is that of {best}, {measured(estimates[best].mean, _seed_error(estimates[best]))}."


def _without_comparison(averages: dict[str, dict[int, Measurement]]) -> str:
    estimates = {label: summarise(by_seed) for label, by_seed in averages.items()}
    parts = (f"{label} {measured(found.mean, _seed_error(found))} ({plural(found.num_seeds, 'seed')})" for label, found in estimates.items())
    missing = f" The {BASELINE} mixture was not evaluated, so there is no baseline to compare with." if BASELINE not in averages else ""
    alone = " There is no other mixture to compare it with." if list(averages) == [BASELINE] else ""
    return f"Average perplexity: {'; '.join(parts)}.{missing}{alone}"


def _seed_error(estimate: SeedMean) -> float | None:
    return estimate.stderr if estimate.over == "seeds" else None
