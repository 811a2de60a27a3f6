"""From raw text to a `TokenCorpus` on Ray Data: read -> normalise -> drop copies -> tokenize -> pack -> shuffle once -> write.

Passes, each a stream of tasks over files: `partition` sorts documents into buckets by hash (with `split`, where they are too many for one step), `count`
counts what is left of them without copies, which decides what is held out, `tokenize_buckets` makes rows of them, `gather_…` writes shuffled shards. What
passes between them lies on disk and not in the object store, so memory stays flat when the corpus grows, and an interrupted run goes on with the tasks that
are missing.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon_ray import storage
from chameleon_ray.artifacts import Clusters, TokenCorpus
from chameleon_ray.corpus.buckets import Contents, count, read_counts
from chameleon_ray.corpus.documents import DomainStats
from chameleon_ray.corpus.gather import condense_rest, gather_lane, gather_rest
from chameleon_ray.corpus.heldout import Sampled, heldout_borders, heldout_bytes, refuse_unmeasured
from chameleon_ray.corpus.layout import Lanes
from chameleon_ray.corpus.quality import sample_bytes
from chameleon_ray.corpus.ray_read import Reading, read_into_buckets
from chameleon_ray.corpus.ray_tasks import Task, run_tasks
from chameleon_ray.corpus.sampling import Estimate
from chameleon_ray.corpus.scatter import TokenizeSpec, tokenize_buckets
from chameleon_ray.corpus.sources import Source
from chameleon_ray.corpus.tokenizer import load_tokenizer
from chameleon_ray.corpus.train_text import make_tokenizer, measure_quality, publish_tokenizer
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.counts import DomainCounts, Excerpt, Quality, SplitCounts
from chameleon_ray.errors import UserError
from chameleon_ray.progress import Phase, Reporter
from chameleon_ray.settings import listed


def tokenize(config: CorpusConfig, sources: Sequence[Source], seed: int, address: str, reporter: Reporter, clusters: Clusters | None = None) -> dict[str, Any]:
    """Make the corpus of the sources at `address`; what its record is to hold. The folder `scratch` there may then be removed.

    Raises:
        UserError: unreadable input, unusable documents past 1 %, a domain with too little text for one row to train on, a target that cannot be measured,
            or with `corpus.require_heldout` such a domain.
    """
    started = time.perf_counter()
    with reporter.phase("reading and tokenizing the corpus") as phase:
        reading, contents = read_into_buckets(config, sources, storage.join(address, "scratch", "pieces"), phase)
        names = tuple(name for name in contents.names if name not in config.targets)
        spec = _specify(config, address, contents, reading.stats, seed)
        spec = _with_tokenizer(config, _with_borders(config, spec, reading, phase), phase)
        domains = _write_rows(config, spec, reading, phase)
    targets = tuple(config.targets)
    corpus = TokenCorpus(address, "", names, domains, config.row_tokens, spec.vocab_size, spec.end_of_document, spec.tokenizer_sha256, targets)
    _say(replace(corpus, domains=clusters.estimated(domains)) if clusters else corpus, config, reporter)
    return {**corpus.content(), "seconds": time.perf_counter() - started, "sources": reading.manifest}


def _specify(config: CorpusConfig, address: str, contents: Contents, stats: Mapping[str, DomainStats], seed: int) -> TokenizeSpec:
    text_bytes = {name: stats.get(name, DomainStats()).text_bytes for name in contents.names}
    trained = [name not in config.targets for name in contents.names]
    lanes = Lanes.of(contents.layout, text_bytes, trained, config.row_tokens, heldout_bytes(config.heldout_tokens))
    return TokenizeSpec(address, contents, {}, lanes, config.row_tokens, config.heldout_tokens, 0, 0, "", seed, targets=tuple(config.targets))


def _with_borders(config: CorpusConfig, spec: TokenizeSpec, reading: Reading, phase: Phase) -> TokenizeSpec:
    """What is held out: where the totals of every domain say, found by going over what was counted of bucket after bucket."""
    runs, totals = spec.contents.layout.runs(), {name: np.zeros((2, 2), np.int64) for name in spec.names}
    for result in run_tasks([Task(count, (spec.contents, run)) for run in runs], phase, "drop copies"):
        for name, found in result.items():
            totals[name] += found
    stats = reading.stats
    declared = {name for name in spec.names if name in config.targets or stats[name].heldout_documents}
    sampled = {name: Sampled(found.text_bytes or math.inf, reading.bytes_per_token[name]) for name, found in reading.estimates.items()}
    counts = (read_counts(spec.contents, run) for run in runs)
    borders = heldout_borders(spec.names, totals, counts, declared, config.heldout_fraction, config.heldout_tokens, sampled)
    for name in config.targets:
        if name not in borders:
            raise UserError(f"corpus.targets.{name}: too little text to be measured: two distinct documents are needed that nothing else holds out; add some")
    if config.require_heldout:
        refuse_unmeasured(name for name in spec.names if name not in borders)
    return replace(spec, borders=borders)


def _with_tokenizer(config: CorpusConfig, spec: TokenizeSpec, phase: Phase) -> TokenizeSpec:
    training, pretrained = config.tokenizer.train, config.tokenizer.pretrained
    if training is not None:
        task = Task(make_tokenizer, (spec, training.vocab_size, training.bytes_per_domain))
        (found,) = run_tasks([task], phase, "train tokenizer")
    else:
        assert pretrained is not None
        found = publish_tokenizer(spec.address, *load_tokenizer(pretrained), like=pretrained)
    return replace(spec, **found)


@dataclass(frozen=True)
class Totals:
    """What the buckets came to, by domain: documents, tokens and bytes [3] to train on and held out, copies and held-out documents left out; and `rows` of
    every shard [slices, shards of a slice]."""

    train: dict[str, NDArray[np.int64]]
    heldout: dict[str, NDArray[np.int64]]
    duplicates: Counter[str]
    unused: Counter[str]
    rows: NDArray[np.int64]


def _write_rows(config: CorpusConfig, spec: TokenizeSpec, reading: Reading, phase: Phase) -> dict[str, DomainCounts]:
    totals = _tokenize(spec, phase)
    spec = replace(spec, trained_whole=_trained_whole(spec, totals))
    if config.require_heldout:
        refuse_unmeasured(spec.trained_whole)
    trained = [name for name in spec.names if name not in spec.targets]
    _check_train(trained, spec, totals)
    rows = _gather_lanes(spec, totals.rows, phase)
    rests: dict[str, dict[str, Any]] = {}
    for result in run_tasks([Task(gather_rest, (spec, rest)) for rest in range(spec.lanes.num_rests)], phase, "hold out"):
        rests.update(result)
    most = sample_bytes(len(trained))
    wanted = {name: min(most, int(totals.train[name][2])) for name in trained}
    (quality,) = run_tasks([Task(measure_quality, (spec, wanted))], phase, "look at quality")
    return {name: _counts(name, reading, totals, [*rows[name], rests[name]["rows"]], rests[name], quality.get(name)) for name in spec.names}


def _gather_lanes(spec: TokenizeSpec, found: NDArray[np.int64], phase: Phase) -> dict[str, list[int]]:
    """Write the shards of all lanes, whose rows are `found`; by domain the rows of each, slice after slice."""
    lanes, slices = spec.lanes, range(spec.lanes.layout.slices)
    condensed = [[0] * len(spec.names) for _ in slices]
    if len(slices) > 1:
        places = [(each, rest) for each in slices for rest in range(lanes.num_rests)]
        place_of = {name: i for i, name in enumerate(spec.names)}
        for (each, _), result in zip(places, run_tasks([Task(condense_rest, (spec, *place)) for place in places], phase, "condense"), strict=True):
            for name, count in result["rows"].items():
                condensed[each][place_of[name]] = count
    shards = [lanes.shards_of_lane(lane) for lane in range(lanes.num_lanes)]
    tasks = [Task(gather_lane, (spec, each, lane, found[each, mine.start : mine.stop])) for each in slices for lane, mine in enumerate(shards)]
    for _ in run_tasks(tasks, phase, "shuffle"):
        pass
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(spec.names):
        first, stop = int(lanes.first_shard[i]), int(lanes.first_shard[i + 1])
        rows[name] = []
        for each in slices:
            rows[name] += found[each, first:stop].tolist()
            rows[name] += [condensed[each][i]] if len(slices) > 1 else []
    return rows


def _tokenize(spec: TokenizeSpec, phase: Phase) -> Totals:
    train, heldout = ({name: np.zeros(3, np.int64) for name in spec.names} for _ in range(2))
    layout = spec.contents.layout
    totals = Totals(train, heldout, Counter(), Counter(), np.zeros((layout.slices, int(spec.lanes.first_shard[-1])), np.int64))
    runs = layout.runs()
    for run, result in zip(runs, run_tasks([Task(tokenize_buckets, (spec, run)) for run in runs], phase, "tokenize"), strict=True):
        shards, rows = result["rows"]
        totals.rows[run.start // layout.per_slice, np.array(shards, np.int64)] += np.array(rows, np.int64)
        for total, found in ((totals.train, result["train"]), (totals.heldout, result["heldout"])):
            for name, sizes in found.items():
                total[name] += sizes
        totals.duplicates.update(result["duplicates"])
        totals.unused.update(result["unused"])
    return totals


def _trained_whole(spec: TokenizeSpec, totals: Totals) -> tuple[str, ...]:
    """Domains whose held-out documents were split off, and left less than a row to train on; those documents become train documents in `totals`."""
    whole = tuple(name for name, border in spec.borders.items() if not border.declared and totals.train[name][1] < spec.row_tokens)
    for name in whole:
        totals.train[name] += totals.heldout[name]
        totals.heldout[name][:] = 0
    return whole


def _check_train(names: Sequence[str], spec: TokenizeSpec, totals: Totals) -> None:
    for name in names:
        documents, tokens, _ = totals.train[name]
        if tokens < spec.row_tokens:
            raise UserError(
                f"corpus.domains.{name}: no rows in split 'train' ({documents} distinct documents, rows of {spec.row_tokens} tokens); "
                "add documents, or lower corpus.row_tokens; where only part of the text was read, raise corpus.tokens_per_domain"
            )


def _counts(
    name: str,
    reading: Reading,
    totals: Totals,
    rows: Sequence[int],
    rest: Mapping[str, Any],
    quality: Mapping[str, Any] | None,
) -> DomainCounts:
    documents, tokens, text_bytes = totals.train[name].tolist()
    train = SplitCounts(documents, tokens, text_bytes, tuple(rows))
    valid, test = (SplitCounts(**{**rest[split], "shard_rows": tuple(rest[split]["shard_rows"])}) for split in ("valid", "test"))
    unused = totals.unused[name] + int(totals.heldout[name][0]) - valid.documents - test.documents
    stats = reading.stats.get(name, DomainStats())
    return DomainCounts(
        train,
        valid,
        test,
        stats.text_bytes,
        totals.duplicates[name],
        dict(sorted(stats.skipped.items())),
        rest["entropy"],
        unused,
        Quality(**quality) if quality else None,
        _excerpt(reading.estimates.get(name), totals.train[name], totals.heldout[name] * (not stats.heldout_documents)),
    )


def _excerpt(estimate: Estimate | None, train: NDArray[np.int64], heldout: NDArray[np.int64]) -> Excerpt | None:
    """What was read of a domain, some of which may be held out; None where that is all of it."""
    if estimate is None or estimate.text_bytes == estimate.read_bytes:
        return None
    found = Excerpt(estimate.read_bytes, estimate.files_read, estimate.num_files, estimate.text_bytes, None, None)
    if estimate.text_bytes is None:
        return found
    per_byte = float(train[1] + heldout[1]) / max(1, estimate.read_bytes)
    stderr = None if math.isnan(estimate.stderr_bytes) else estimate.stderr_bytes * per_byte
    return replace(found, tokens=max(float(train[1]), estimate.text_bytes * per_byte - float(heldout[1])), stderr_tokens=stderr)


def _say(corpus: TokenCorpus, config: CorpusConfig, reporter: Reporter) -> None:
    skipped = Counter[str]()
    for counts in corpus.domains.values():
        skipped.update(counts.skipped)
    trained = [corpus.domains[name].train for name in corpus.names]
    tokens, rows = sum(each.tokens for each in trained), sum(each.rows for each in trained)
    copies = sum(counts.duplicates for counts in corpus.domains.values())
    left_out = "".join(f", {count:,} {reason}" for reason, count in sorted(skipped.items()))
    if unmeasured := corpus.unmeasured:
        reporter.say(f"trained on and not measured, for lack of held-out text: {listed(unmeasured)}")
    reporter.say(f"{len(corpus.names)} domains: {tokens:,} train tokens in {rows:,} rows of {corpus.row_tokens}; left out: {copies:,} copies{left_out}")
    if isinstance(wanted := config.tokens_per_domain, int):
        short = [name for name in corpus.names if corpus.domains[name].train.tokens < wanted]
        whole = [name for name in short if corpus.domains[name].excerpt is None]
        if whole:
            reporter.say(f"fewer than corpus.tokens_per_domain ({wanted:,}), all that there is: {listed(whole)}")
        if rest := [name for name in short if name not in whole]:
            told = "for copies and held-out text, or because too few documents of it are in what was read"
            reporter.say(f"fewer than corpus.tokens_per_domain ({wanted:,}), {told}; raise it if that is too little: {listed(rest)}")
    excerpts = {name: found for name in corpus.names if (found := corpus.domains[name].excerpt)}
    if excerpts:
        shares = [found.share for found in excerpts.values() if found.share is not None]
        told = f": {100 * min(shares):.2g} to {100 * max(shares):.2g} % of their text" if shares else ""
        reporter.say(f"read in part, as much as is needed: {listed(list(excerpts))}{told}; corpus.tokens_per_domain: null reads everything")
