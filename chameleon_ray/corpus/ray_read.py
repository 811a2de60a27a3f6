"""The first pass over the text: whole sources at once, and of the others as much as is wanted, in waves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chameleon_ray.corpus.buckets import Contents
from chameleon_ray.corpus.documents import DomainStats, add_up
from chameleon_ray.corpus.heldout import BYTES_PER_TOKEN
from chameleon_ray.corpus.layout import Layout
from chameleon_ray.corpus.partition import check_skipped, partition, split, text_bytes_of
from chameleon_ray.corpus.ray_tasks import Task, run_tasks
from chameleon_ray.corpus.sampling import Estimate, Found, SourceSample, Stretches
from chameleon_ray.corpus.sources import Part, Source, combined, manifest, parts_of
from chameleon_ray.corpus.token_bytes import bytes_per_token
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.errors import UserError
from chameleon_ray.progress import Phase
from chameleon_ray.ray_session import cluster_cpus

GROUP_BYTES, MOST_GROUP_BYTES = 64 << 20, 1 << 30
MAX_GROUPS = 1024
MORE_DOMAINS = 4  # there may be so many times the domains that the beginnings of files show


@dataclass(frozen=True)
class Reading:
    """What was read of a corpus.

    Attributes:
        layout: of the buckets that it was sorted into.
        groups: names of the groups of parts and stretches, in the order of the plan.
        stats: by domain, copies included.
        limits: (domain, held out) -> order from which on documents were read beyond what is wanted.
        estimates: of the train text of every domain of a source that was not to be read whole.
        bytes_per_token: of these domains, about.
        manifest: one JSON object for every file that was read.
    """

    layout: Layout
    groups: tuple[str, ...]
    stats: dict[str, DomainStats]
    limits: dict[tuple[str, bool], int]
    estimates: dict[str, Estimate]
    bytes_per_token: dict[str, float]
    manifest: list[dict[str, Any]]


def read_into_buckets(config: CorpusConfig, sources: Sequence[Source], folder: str, phase: Phase) -> tuple[Reading, Contents]:
    """Read the sources, documents sorted by hash; the names of what buckets contain are those of the domains, then of the targets.

    Raises:
        UserError: unreadable input, unusable documents past 1 %, a domain without documents, or with the name of a target.
    """
    reading = _read(config, sources, folder, phase)
    check_skipped(reading.stats, config.targets)
    names = (*_names(config, reading.stats), *config.targets)
    contents = Contents(folder, reading.layout, reading.groups, names, reading.limits)
    for _ in run_tasks([Task(split, (contents, *place)) for place in contents.all_splits()], phase, "sort"):
        pass
    return reading, contents


def _names(config: CorpusConfig, stats: Mapping[str, DomainStats]) -> tuple[str, ...]:
    """Listed domains in the order of the file, `only` in its order, discovered ones sorted; every one must have documents."""
    for name in config.targets:
        if stats.get(name, DomainStats()).documents > stats.get(name, DomainStats()).heldout_documents:
            raise UserError(f"corpus.targets.{name}: a domain has that name too, and a target is never trained on; choose another name")
    listed = list(config.domains) or list(config.domains_from.only if config.domains_from else ()) or sorted(set(stats) - set(config.targets))
    for name in listed:
        found = stats.get(name, DomainStats())
        if found.documents - found.heldout_documents < 1:
            empty = found.skipped.get("empty", 0)
            raise UserError(
                f"corpus.domains.{name}: no train documents ({empty} empty ones skipped); check its files and corpus.text_column, or remove the domain"
            )
    if len(listed) < 1:
        raise UserError("corpus: no domains found; add files")
    return tuple(listed)


def _read(config: CorpusConfig, sources: Sequence[Source], folder: str, phase: Phase) -> Reading:
    """Read the sources into the buckets of a folder. The text of a source that is not read whole is sampled until every domain has what is wanted; how many
    bytes that takes is known by a look at the beginning of it, tokenized."""
    sampled = [source for source in sources if source.wanted is not None]
    sizes: dict[str, float] = {}
    if trained := [source for source in sampled if not source.origin.heldout]:
        (sizes,) = run_tasks([Task(bytes_per_token, (trained, config.text_column, config.tokenizer))], phase, "look at the text")
    mean = sum(sizes.values()) / len(sizes) if sizes else float(BYTES_PER_TOKEN)
    layout = Layout.of(text_bytes_of(sources, MORE_DOMAINS * max(1, len(sizes))))
    samples = {source.index: SourceSample(source, sizes, mean) for source in sampled}
    groups: list[str] = []
    stats: dict[str, DomainStats] = {}
    work: list[Part | Stretches] = list(parts_of(sources))
    while work := [*work, *(stretches for sample in samples.values() for stretches in sample.next_wave())]:
        named = {_group_name(len(groups) + i, group): group for i, group in enumerate(_groups(work))}
        tasks = [Task(partition, (name, group, config.text_column, folder, layout)) for name, group in named.items()]
        for result in run_tasks(tasks, phase, "read on" if groups else "read"):
            stats = add_up([stats, {name: DomainStats(**found) for name, found in result["stats"].items()}])
            for found in map(Found.of, result["stretches"]):
                samples[found.source].note(found)
        groups += named
        work = []
    limits = {(name, sample.source.origin.heldout): limit for sample in samples.values() for name, limit in sample.limits().items()}
    estimates = {name: estimate for source in trained for name, estimate in samples[source.index].estimates().items()}
    files = [(source, samples[source.index].files_read() if source.index in samples else source.files) for source in sources]
    entries = [entry for source, read_of_it in files for entry in manifest(source, read_of_it)]
    per_token = {name: sizes.get(name, mean) for name in estimates}
    return Reading(layout, tuple(groups), add_up([stats, *(sample.stats() for sample in samples.values())]), limits, estimates, per_token, entries)


def _groups(work: Sequence[Part | Stretches]) -> list[list[Part | Stretches]]:
    """What is read by one task: consecutive parts of some 64 MB, or a 1024th of everything up to 1 GB; at least one group per CPU where there are parts."""
    total = sum(each.size_bytes for each in work)
    limit = min(max(GROUP_BYTES, total // MAX_GROUPS), MOST_GROUP_BYTES, max(1, total // cluster_cpus()))
    groups: list[list[Part | Stretches]] = [[]]
    size = 0
    for each in work:
        if groups[-1] and size + each.size_bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(each)
        size += each.size_bytes
    return groups


def _group_name(number: int, group: Sequence[Part | Stretches]) -> str:
    """With what is in it: an interrupted run may go on where another number of CPUs cuts other groups, and must not take one for another."""
    return f"{number:05d}-{combined(each.fingerprint for each in group)[:12]}"
