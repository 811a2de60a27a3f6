"""Where documents come from: the plan of what to read, made once on the driver, which finds every mistake that shows without reading the text."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from chameleon_ray import storage
from chameleon_ray.artifacts import Clusters
from chameleon_ray.backend import Reads
from chameleon_ray.corpus.data_sets import find_data_set
from chameleon_ray.corpus.formats import KNOWN, file_format, is_plain, likely_text_bytes
from chameleon_ray.corpus.heldout import BYTES_PER_TOKEN, MARGIN
from chameleon_ray.corpus.python_environment import environment_files
from chameleon_ray.corpus_config import CorpusConfig, HuggingFaceSource
from chameleon_ray.errors import UserError, naming

_MAX_PART_BYTES = 16 << 20  # small files are read together, so that 100,000 text files are not as many worker tasks
_MAX_PART_FILES = 1000
_LISTINGS = 16  # at a time: each waits for an object store
UNKNOWN_BYTES = 64 << 20  # what is taken for the size of a shard that does not tell it
TEXT = "all text"  # the one domain that everything is before domains are found
_SPAN_BYTES = 64 << 20  # large files of lines are read in pieces


@dataclass(frozen=True)
class File:
    """One file, or one shard of a data set that `datasets` streams.

    `size_bytes` is the size as stored, 0 when unknown; `fingerprint` tells the content, not the path; `name` is what a copy of the whole source calls it
    too, wherever that lies; `records` is how many it has, where that is known.
    """

    address: str
    size_bytes: int
    fingerprint: str
    name: str = ""
    records: int | None = None


@dataclass(frozen=True)
class Origin:
    """Whose text it is, and how it is read.

    Attributes:
        domain: None when each record names its domain, in the column `domain_column`.
        kind: "files" are read by their extension; of "environment" each file is one document; "stream" is a data set that `datasets` reads.
        only: the domains that are wanted, where records name them; all when empty.
        options: of "stream": name, data_dir, split, revision, num_shards; the address of a file ends with the number of its shard.
        bytes_literals: whether text that is written as Python prints bytes stands for these. replace: pieces of text, and what stands for each.
    """

    domain: str | None
    heldout: bool = False
    kind: Literal["files", "environment", "stream"] = "files"
    domain_column: str | None = None
    only: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    bytes_literals: bool = False
    replace: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Wanted:
    """How much text of a source is read.

    Attributes:
        reads: what the experiment needs to train on; None where nothing of the source is trained on.
        heldout_tokens: to be measured, of each of its domains; of a source that held-out text is split off at most `heldout_bytes` of it.
        least_bytes: of each domain to train on, whatever the experiment needs.
        num_domains: of the corpus; None where they are yet to be discovered.
    """

    reads: Reads | None
    heldout_tokens: int
    heldout_bytes: float
    least_bytes: int
    num_domains: int | None

    def text_bytes(self, bytes_per_token: float, num_domains: int) -> int:
        """Bytes of text of one domain."""
        heldout = round(min(self.heldout_bytes, MARGIN * self.heldout_tokens * bytes_per_token))
        if self.reads is None:
            return heldout
        return max(round(MARGIN * self.reads.per_domain(num_domains) * bytes_per_token), self.least_bytes) + heldout


@dataclass(frozen=True)
class Source:
    """Text of one domain to train on, or to measure, or of several domains that a column tells apart. `wanted`: how much of it is read; None: all."""

    index: int
    origin: Origin
    files: tuple[File, ...]
    wanted: Wanted | None = None

    @property
    def fingerprint(self) -> str:
        return combined(file.fingerprint for file in self.files)

    @property
    def likely_text_bytes(self) -> int | None:
        """How much text there is at most, about; None when sizes are not known."""
        if not all(file.size_bytes for file in self.files):
            return None
        return sum(likely_text_bytes(file.address, file.size_bytes) for file in self.files)


@dataclass(frozen=True)
class Part:
    """What one task reads as a whole: a few files of a source, or with `span` the lines of a file that begin between two of its bytes."""

    index: int
    origin: Origin
    files: tuple[File, ...]
    span: tuple[int, int] | None = None

    @property
    def size_bytes(self) -> int:
        unknown = UNKNOWN_BYTES if self.origin.kind == "stream" else 0
        return self.span[1] - self.span[0] if self.span else sum(file.size_bytes or unknown for file in self.files)

    @property
    def fingerprint(self) -> str:
        return combined([str(self.index), str(self.span), *(file.fingerprint for file in self.files)])


def plan_sources(corpus: CorpusConfig, reads: Reads | None = None, clusters: Clusters | None = None) -> list[Source]:
    """Everything there is to read, in the order of the experiment file; files of one pattern in the order of their names.

    A source that is read whole is known by the content of its files, of which local ones up to 64 MiB are read for that; one that is read in part by the
    names, sizes and tags of its files, which a listing shows.

    Args:
        clusters: where the corpus's domains are to be found among documents, what was found.
    Raises:
        UserError: a pattern matches nothing, a format is unknown, a file is both trained on and held out, a data set or its split does not
            exist, or the Python environment has text of fewer than two domains.
    """
    plan = _Plan(corpus, reads)
    plan.add_domains(clusters)
    plan.add_targets()
    return plan.sources


def documents_of(config: CorpusConfig) -> CorpusConfig:
    """What to read of a corpus whose domains are to be found: its documents, by the column that clusters are found within."""
    found = config.domains_from and config.domains_from.clusters
    assert found
    given = {
        "text_column": config.text_column,
        "bytes_literals": config.bytes_literals,
        "replace": config.replace,
        "tokenizer": config.tokenizer.model_dump(exclude_none=True),
        "row_tokens": config.row_tokens,
    }
    if found.within is None:
        return CorpusConfig.model_validate({**given, "domains": {TEXT: found.source}})
    data_set = found.huggingface
    where = {"huggingface": data_set.path, **data_set.model_dump(exclude={"path"})} if data_set else {"files": found.of}
    return CorpusConfig.model_validate({**given, "domains_from": {**where, "domain_column": found.within}})


def plan_documents(config: CorpusConfig, reads: Reads | None) -> list[Source]:
    """The sources of the documents that domains are to be found among; raises what planning them raises, and for a target that is among them."""
    documents = documents_of(config).model_copy(update={"targets": config.targets})
    return [source for source in plan_sources(documents, reads) if not source.origin.heldout]


def parts_of(sources: Iterable[Source]) -> list[Part]:
    """Sources that are read whole, cut into parts."""
    pieces = [(source.origin, *piece) for source in sources if source.wanted is None for piece in _pieces(source)]
    return [Part(index, *piece) for index, piece in enumerate(pieces)]


def _pieces(source: Source) -> Iterator[tuple[tuple[File, ...], tuple[int, int] | None]]:
    group: list[File] = []
    for file in source.files:
        if source.origin.kind == "files" and file.size_bytes > _SPAN_BYTES and is_plain(file.address) and not file.address.lower().endswith(".txt"):
            yield from (((file,), (start, min(start + _SPAN_BYTES, file.size_bytes))) for start in range(0, file.size_bytes, _SPAN_BYTES))
            continue
        if group and (sum(member.size_bytes for member in group) + file.size_bytes > _MAX_PART_BYTES or len(group) == _MAX_PART_FILES):
            yield tuple(group), None
            group = []
        group.append(file)
        if source.origin.kind == "stream":
            yield (group.pop(),), None
    if group:
        yield tuple(group), None


def manifest(source: Source, files: Iterable[File]) -> list[dict[str, Any]]:
    """One JSON object per file that was read, for the corpus record."""
    origin = {key: value for key, value in asdict(source.origin).items() if value or key in ("domain", "heldout")}
    return [{**origin, "address": file.address, "size_bytes": file.size_bytes, "fingerprint": file.fingerprint} for file in files]


class _Plan:
    """The sources of a corpus, as they are added."""

    def __init__(self, corpus: CorpusConfig, reads: Reads | None) -> None:
        self._corpus, self._reads, self._listings = corpus, reads, _listings(corpus)
        self.sources: list[Source] = []

    def add_domains(self, clusters: Clusters | None) -> None:
        discovered, k = self._corpus.domains_from, len(self._corpus.domains)
        for name, config in self._corpus.domains.items():
            where = f"corpus.domains.{name}"
            files = _matches(f"{where}.files", config.files, self._listings)
            heldout = _matches(f"{where}.heldout", config.heldout, self._listings)
            if shared := {file.address for file in files} & {file.address for file in heldout}:
                raise UserError(f"{where}.heldout: {min(shared)} is also in files; a file is held out or trained on, narrow one pattern")
            if config.huggingface is not None:
                self._add_data_set(f"{where}.huggingface", config.huggingface, Origin(name), k, not config.heldout and not config.heldout_split)
                if config.heldout_split:
                    held_out = config.huggingface.model_copy(update={"split": config.heldout_split})
                    self._add_data_set(f"{where}.heldout_split", held_out, Origin(name, heldout=True), k)
            self._add(Origin(name), files, k, not heldout)
            self._add(Origin(name, heldout=True), heldout, k)
        if discovered is None:
            return
        origin = Origin(None, domain_column=discovered.domain_column, only=discovered.only)
        if discovered.huggingface is not None:
            given = discovered.model_dump(include={"name", "data_dir", "split", "revision"})
            source = HuggingFaceSource(path=discovered.huggingface, **given)
            self._add_data_set("corpus.domains_from.huggingface", source, origin, len(discovered.only) or None, True)
        elif discovered.files:
            self._add(origin, _matches("corpus.domains_from.files", discovered.files, self._listings), len(discovered.only) or None, True)
        elif discovered.clusters is not None:
            assert clusters is not None, "clusters are found before their documents are read"
            self._add_clusters(clusters)
        else:
            self._add_environment(discovered.bytes_per_domain)

    def add_targets(self) -> None:
        trained = {key: (source, file) for source in self.sources for file in source.files for key in (file.fingerprint, file.address)}
        for name, config in self._corpus.targets.items():
            before = len(self.sources)
            if config.huggingface is not None:
                self._add_data_set(f"corpus.targets.{name}.huggingface", config.huggingface, Origin(name, heldout=True), None)
            self._add(Origin(name, heldout=True), _matches(f"corpus.targets.{name}.files", config.files, self._listings), None)
            for file in (file for source in self.sources[before:] for file in source.files):
                if found := trained.get(file.fingerprint) or trained.get(file.address):
                    other, same = found
                    domain = other.origin.domain
                    told = f"{file.address} is the text of domain {domain!r} too" if domain else f"{file.address} is text of the domains too"
                    copy = "" if same.address == file.address else f" (a copy of {same.address})"
                    raise UserError(f"corpus.targets.{name}: {told}{copy}; a target is never trained on, leave it out of one of them")

    def _add_environment(self, bytes_per_domain: int) -> None:
        domains = environment_files(bytes_per_domain)
        if len(domains) < 2:
            raise UserError(f"corpus.domains_from.python_environment: found {len(domains)} domain(s), two are needed; list files under corpus.domains")
        for name, paths in domains.items():
            files = [File(str(path), path.stat().st_size, "", path.name) for path in paths]
            self._add(Origin(name, kind="environment"), files, len(domains))

    def _add_clusters(self, clusters: Clusters) -> None:
        """The documents that domains were found among, all of them: how many are wanted was said when they were read."""
        names = {address: address.rpartition("/")[2] for address in clusters.files}
        files = [File(address, size, f"{clusters.digest} {names[address]}", names[address]) for address, size in clusters.files.items()]
        self.sources.append(Source(len(self.sources), Origin(None, domain_column=clusters.domain_column), tuple(files)))

    def _add_data_set(self, where: str, source: HuggingFaceSource, origin: Origin, num_domains: int | None, splits: bool = False) -> None:
        found = find_data_set(where, source)
        if found.readable:
            stored = storage.stored(found.files)
            self._add(origin, [_file(each, found.folder) for each in stored], num_domains, splits)
            return
        tags = [f"{each.address if '://' in each.address else ''} {each.size_bytes} {each.tag}" for each in storage.stored(found.files)]
        content = combined(tags) if tags else found.builder
        records = None if found.num_records is None else found.num_records // found.num_shards
        shards = range(found.num_shards)
        files = [File(f"{found.address}#{i}", 0, combined([content, f"{i}/{len(shards)}"]), str(i), records) for i in shards]
        self._add(replace(origin, kind="stream", options={**found.options, "num_shards": len(shards)}), files, num_domains, splits)

    def _add(self, origin: Origin, files: Sequence[File], num_domains: int | None, splits: bool = False) -> None:
        """Args:
        num_domains: of the corpus, where that is known and matters.
        splits: whether what is held out is split off this source.
        """
        if not files:
            return
        cleaned = replace(origin, bytes_literals=self._corpus.bytes_literals, replace=tuple(self._corpus.replace.items()))
        source = Source(len(self.sources), cleaned, tuple(files))
        wanted = self._wanted(source, num_domains, splits)
        if origin.kind != "stream":
            with ThreadPoolExecutor(8) as pool:
                source = replace(source, files=tuple(pool.map(_by_content if wanted is None else _by_tag, source.files)))
        self.sources.append(replace(source, wanted=wanted))

    def _wanted(self, source: Source, num_domains: int | None, splits: bool) -> Wanted | None:
        """How much of a source; None where that is all of it, by the sizes of its files."""
        if self._reads is None or source.origin.kind == "environment":
            return None
        corpus, there = self._corpus, source.likely_text_bytes
        measured = 2 * corpus.heldout_tokens
        if source.origin.heldout:
            wanted = Wanted(None, measured, math.inf, 0, num_domains)
        else:
            part = math.inf if there is None else corpus.heldout_fraction * there
            training = corpus.tokenizer.train
            wanted = Wanted(self._reads, measured if splits else 0, part, training.bytes_per_domain if training else 0, num_domains)
        k = num_domains or 1
        return None if there is not None and there <= max(wanted.text_bytes(BYTES_PER_TOKEN, k), self._reads.small_bytes // k) else wanted


def _listings(corpus: CorpusConfig) -> dict[str, list[storage.Stored] | Exception]:
    """What every pattern of a corpus matches, many at a time; what listing one raised is told where the pattern's turn comes."""
    found = corpus.domains_from.files if corpus.domains_from else ()
    patterns = {*found, *(each for domain in corpus.domains.values() for each in (*domain.files, *domain.heldout))}
    patterns |= {each for target in corpus.targets.values() for each in target.files}

    def listed(pattern: str) -> list[storage.Stored] | Exception:
        try:
            return storage.listing(pattern)
        except Exception as error:
            return error

    with ThreadPoolExecutor(_LISTINGS) as pool:
        return dict(zip(patterns, pool.map(listed, patterns), strict=True))


def _matches(where: str, patterns: Sequence[str], listings: Mapping[str, list[storage.Stored] | Exception]) -> list[File]:
    """The files of all patterns, each once; without fingerprints."""
    found: dict[str, File] = {}
    for i, pattern in enumerate(patterns):
        listed = listings[pattern]
        with naming(f"{where}[{i}]"):
            if isinstance(listed, Exception):
                raise listed
        if not listed:
            raise UserError(f"{where}[{i}]: {pattern!r} matches no file; give a local path, s3://… or gs://… (wildcards *, ? and **)")
        for stored in listed:
            if file_format(stored.address) is None:
                raise UserError(f"{where}[{i}]: {pattern!r} matches {stored.address}, whose format is unknown; known: {KNOWN}")
            found[stored.address] = _file(stored, _folder_of(pattern))
    return list(found.values())


def _folder_of(pattern: str) -> str:
    """The folder that a pattern's files are named from: its part before the first wildcard."""
    folder = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
    return folder if "://" in pattern else str(Path(folder).expanduser().absolute())


def _file(stored: storage.Stored, folder: str) -> File:
    """A file of a listing; its tag stands for the fingerprint until that is decided."""
    return File(stored.address, stored.size_bytes, stored.tag, stored.address.removeprefix(folder.rstrip("/") + "/"))


def _by_content(file: File) -> File:
    """Remote files are not read for it: an object's tag changes with its content."""
    local = not storage.is_remote(file.address) and not file.address.startswith("hf://")
    return replace(file, fingerprint=storage.fingerprint(file.address) if local else f"{file.size_bytes} {file.fingerprint}")


def _by_tag(file: File) -> File:
    return replace(file, fingerprint=f"{file.name} {file.size_bytes} {file.fingerprint}")


def combined(fingerprints: Iterable[str]) -> str:
    """What tells several things together from others, in their order."""
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()
