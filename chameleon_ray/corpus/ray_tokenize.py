"""From raw text to a `TokenCorpus` on Ray Data: read -> normalise -> drop copies -> tokenize -> pack -> shuffle once -> write.

Four passes, each a stream of tasks over files: `partition` sorts documents into buckets by hash, `count_bucket` counts what is left of them
without copies, which decides what is held out, `tokenize_bucket` makes rows of them, `gather_*` writes shuffled shards. What passes between them
lies on disk and not in the object store, so memory stays flat when the corpus grows, and an interrupted run goes on with the tasks that are missing.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from chameleon_ray import storage
from chameleon_ray.artifacts import DomainCounts, Quality, SplitCounts, TokenCorpus
from chameleon_ray.config import CorpusConfig
from chameleon_ray.corpus import scatter
from chameleon_ray.corpus.heldout import heldout_borders, refuse_unmeasured
from chameleon_ray.corpus.partition import DomainStats, check_skipped, count_bucket, num_buckets, partition
from chameleon_ray.corpus.quality import sample_bytes
from chameleon_ray.corpus.sources import Part
from chameleon_ray.corpus.tokenizer import load_tokenizer
from chameleon_ray.corpus.unigrams import entropy_nats
from chameleon_ray.errors import UserError, as_outcome, from_outcome
from chameleon_ray.progress import Phase, Reporter
from chameleon_ray.ray_session import cluster_cpus, quiet_data
from chameleon_ray.settings import listed

GROUP_BYTES = 64 << 20
MAX_GROUPS = 256


@dataclass(frozen=True)
class Task:
    """One call of a task function."""

    function: Callable[..., Mapping[str, Any]]
    arguments: tuple[Any, ...]


def run_tasks(tasks: Sequence[Task], phase: Phase, label: str) -> Iterator[dict[str, Any]]:
    """Stream tasks through Ray Data, one CPU each; results in the order of the tasks, as they come.

    Raises:
        UserError: as soon as a task finds something that the user must mend.
    """
    quiet_data()
    shared = ray.put(list(tasks))

    def call(row: dict[str, Any]) -> dict[str, Any]:
        task = ray.get(shared)[row["id"]]
        outcome = as_outcome(task.function, *task.arguments)
        _give_back()
        return {"id": row["id"], "outcome": outcome}

    results: dict[int, dict[str, Any]] = {}
    delivered = 0
    for done, row in enumerate(ray.data.range(len(tasks), override_num_blocks=len(tasks)).map(call, num_cpus=1).iter_rows()):
        results[row["id"]] = from_outcome(row["outcome"])
        phase.update(label, done + 1, len(tasks))
        while delivered in results:
            yield results.pop(delivered)
            delivered += 1
    _give_back()


def _give_back() -> None:
    """Return to the system what this process has freed; the C library would keep it."""
    pa.system_memory_pool().release_unused()


def tokenize(config: CorpusConfig, parts: Sequence[Part], seed: int, address: str, reporter: Reporter) -> dict[str, Any]:
    """Make the corpus of the parts at `address`; what its record is to hold. The folder `scratch` there may then be removed.

    Raises:
        UserError: unreadable input, unusable documents past 1 %, a domain with too little text for one row to train on, a target that cannot be measured,
            or with `corpus.require_heldout` such a domain.
    """
    started = time.perf_counter()
    with reporter.phase("reading and tokenizing the corpus") as phase:
        buckets = num_buckets(parts)
        pieces = storage.join(address, "scratch", "pieces")
        groups = _groups(parts)
        names_of_groups = tuple(_group_name(i, group) for i, group in enumerate(groups))
        tasks = [Task(partition, (n, group, config.text_column, pieces, buckets)) for n, group in zip(names_of_groups, groups, strict=True)]
        stats: dict[str, DomainStats] = {}
        for result in run_tasks(tasks, phase, "read"):
            for name, found in result.items():
                stats[name] = stats.get(name, DomainStats()).merge(DomainStats(**found))
        check_skipped(stats, config.targets)
        names = _names(config, parts, stats)
        spec = _specify(config, address, names, stats, names_of_groups, buckets, seed)
        spec = _with_tokenizer(config, _with_borders(config, spec, stats, phase), phase)
        domains = _write_rows(config, spec, stats, phase)
    targets = tuple(config.targets)
    corpus = TokenCorpus(address, "", names, domains, config.row_tokens, spec.vocab_size, spec.end_of_document, spec.tokenizer_sha256, targets)
    _say(corpus, reporter)
    manifest = [entry for part in parts for entry in part.manifest()]
    return {**corpus.content(), "seconds": time.perf_counter() - started, "sources": manifest}


def _groups(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts read by one task: whole files, consecutive, of some 64 MB or a 256th of everything; at least one group per CPU where there are files."""
    total = sum(part.size_bytes for part in parts)
    limit = min(max(GROUP_BYTES, total // MAX_GROUPS), max(1, total // cluster_cpus()))
    groups: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        if groups[-1] and size + part.size_bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.size_bytes
    return groups


def _group_name(number: int, group: Sequence[Part]) -> str:
    """With what is in it: an interrupted run may go on where another number of CPUs cuts other groups, and must not take one for another."""
    content = hashlib.sha256("\n".join(f"{part.index} {part.fingerprint}" for part in group).encode()).hexdigest()
    return f"{number:05d}-{content[:12]}"


def _names(config: CorpusConfig, parts: Sequence[Part], stats: Mapping[str, DomainStats]) -> tuple[str, ...]:
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


def _specify(
    config: CorpusConfig, address: str, names: tuple[str, ...], stats: Mapping[str, DomainStats], groups: tuple[str, ...], buckets: int, seed: int
) -> scatter.TokenizeSpec:
    names = (*names, *config.targets)
    shards = {name: scatter.num_shards(stats.get(name, DomainStats()).text_bytes) for name in names}
    return scatter.TokenizeSpec(
        address, names, groups, buckets, {}, shards, config.row_tokens, config.heldout_tokens, 0, 0, "", seed, targets=tuple(config.targets)
    )


def _with_borders(config: CorpusConfig, spec: scatter.TokenizeSpec, stats: Mapping[str, DomainStats], phase: Phase) -> scatter.TokenizeSpec:
    """What is held out, chosen from 32 bytes for every domain and bucket."""
    counts = {name: np.zeros((spec.buckets, 2, 2), np.int64) for name in spec.names}
    pieces = storage.join(spec.scratch, "pieces")
    tasks = [Task(count_bucket, (pieces, spec.groups, bucket, spec.names)) for bucket in range(spec.buckets)]
    for bucket, result in enumerate(run_tasks(tasks, phase, "drop copies")):
        for name, found in result.items():
            counts[name][bucket] = found
    declared = {name for name in spec.names if name in config.targets or stats[name].heldout_documents}
    borders = heldout_borders(counts, declared, config.heldout_fraction, config.heldout_tokens)
    for name in config.targets:
        if name not in borders:
            raise UserError(f"corpus.targets.{name}: too little text to be measured: two distinct documents are needed that nothing else holds out; add some")
    if config.require_heldout:
        refuse_unmeasured(name for name in spec.names if name not in borders)
    return replace(spec, borders=borders)


def _with_tokenizer(config: CorpusConfig, spec: scatter.TokenizeSpec, phase: Phase) -> scatter.TokenizeSpec:
    training, pretrained = config.tokenizer.train, config.tokenizer.pretrained
    if training is not None:
        task = Task(scatter.make_tokenizer, (spec, training.vocab_size, training.bytes_per_domain))
        (found,) = run_tasks([task], phase, "train tokenizer")
    else:
        assert pretrained is not None
        found = scatter.publish_tokenizer(spec.address, *load_tokenizer(pretrained))
    return replace(spec, **found)


@dataclass(frozen=True)
class Totals:
    """What the buckets came to, by domain: documents, tokens and bytes [3] to train on and held out, copies and held-out documents left out."""

    train: dict[str, NDArray[np.int64]]
    heldout: dict[str, NDArray[np.int64]]
    duplicates: Counter[str]
    unused: Counter[str]


def _write_rows(config: CorpusConfig, spec: scatter.TokenizeSpec, stats: Mapping[str, DomainStats], phase: Phase) -> dict[str, DomainCounts]:
    totals = _tokenize(spec, phase)
    spec = replace(spec, trained_whole=_trained_whole(spec, totals))
    if config.require_heldout:
        refuse_unmeasured(spec.trained_whole)
    trained = [name for name in spec.names if name not in spec.targets]
    _check_train(trained, spec, totals)
    places = [(name, shard) for name in trained for shard in range(spec.shards[name])]
    train = run_tasks([Task(scatter.gather_train, (spec, *place)) for place in places], phase, "shuffle")
    rows: dict[str, list[int]] = {name: [] for name in spec.names}
    histograms: dict[str, Counter[int]] = {name: Counter() for name in spec.names}
    for (name, _), result in zip(places, train, strict=True):
        rows[name].append(result["rows"])
        histograms[name].update(dict(result["unigrams"]))
    heldout = dict(zip(spec.names, run_tasks([Task(scatter.gather_heldout, (spec, name)) for name in spec.names], phase, "hold out"), strict=True))
    most = sample_bytes(len(trained))
    wanted = {name: min(most, int(totals.train[name][2])) for name in trained}
    (quality,) = run_tasks([Task(scatter.measure_quality, (spec, wanted))], phase, "look at quality")
    return {name: _counts(name, stats.get(name, DomainStats()), totals, rows[name], histograms[name], heldout[name], quality.get(name)) for name in spec.names}


def _tokenize(spec: scatter.TokenizeSpec, phase: Phase) -> Totals:
    train, heldout = ({name: np.zeros(3, np.int64) for name in spec.names} for _ in range(2))
    totals = Totals(train, heldout, Counter(), Counter())
    for result in run_tasks([Task(scatter.tokenize_bucket, (spec, bucket)) for bucket in range(spec.buckets)], phase, "tokenize"):
        for total, found in ((totals.train, result["train"]), (totals.heldout, result["heldout"])):
            for name, sizes in found.items():
                total[name] += sizes
        totals.duplicates.update(result["duplicates"])
        totals.unused.update(result["unused"])
    return totals


def _trained_whole(spec: scatter.TokenizeSpec, totals: Totals) -> tuple[str, ...]:
    """Domains whose held-out documents were split off, and left less than a row to train on; those documents become train documents in `totals`."""
    whole = tuple(name for name, border in spec.borders.items() if not border.declared and totals.train[name][1] < spec.row_tokens)
    for name in whole:
        totals.train[name] += totals.heldout[name]
        totals.heldout[name][:] = 0
    return whole


def _check_train(names: Sequence[str], spec: scatter.TokenizeSpec, totals: Totals) -> None:
    for name in names:
        documents, tokens, _ = totals.train[name]
        if tokens < spec.row_tokens:
            raise UserError(
                f"corpus.domains.{name}: no rows in split 'train' ({documents} distinct documents, rows of {spec.row_tokens} tokens); "
                "add documents, or lower corpus.row_tokens"
            )


def _counts(
    name: str,
    stats: DomainStats,
    totals: Totals,
    rows: Sequence[int],
    histogram: Mapping[int, int],
    heldout: Mapping[str, Any],
    quality: Mapping[str, Any] | None,
) -> DomainCounts:
    documents, tokens, text_bytes = totals.train[name].tolist()
    train = SplitCounts(documents, tokens, text_bytes, tuple(rows))
    valid, test = (SplitCounts(**{**heldout[split], "shard_rows": tuple(heldout[split]["shard_rows"])}) for split in ("valid", "test"))
    unused = totals.unused[name] + int(totals.heldout[name][0]) - valid.documents - test.documents
    skipped = dict(sorted(stats.skipped.items()))
    return DomainCounts(
        train, valid, test, stats.text_bytes, totals.duplicates[name], skipped, entropy_nats(histogram), unused, Quality(**quality) if quality else None
    )


def _say(corpus: TokenCorpus, reporter: Reporter) -> None:
    skipped = Counter[str]()
    for counts in corpus.domains.values():
        skipped.update(counts.skipped)
    tokens, rows = sum(corpus.tokens().values()), sum(corpus.rows().values())
    copies = sum(counts.duplicates for counts in corpus.domains.values())
    left_out = "".join(f", {count:,} {reason}" for reason, count in sorted(skipped.items()))
    if unmeasured := corpus.unmeasured:
        reporter.say(f"trained on and not measured, for lack of held-out text: {listed(unmeasured)}")
    reporter.say(f"{len(corpus.names)} domains: {tokens:,} train tokens in {rows:,} rows of {corpus.row_tokens}; left out: {copies:,} copies{left_out}")
