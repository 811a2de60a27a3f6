"""Where documents come from: the plan of what to read, made once on the driver, which finds every mistake that shows without reading the text."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import zstandard

from chameleon_ray import storage
from chameleon_ray.config import CorpusConfig, DomainConfig, DomainsFrom, HuggingFaceSource, TargetConfig
from chameleon_ray.corpus.python_environment import environment_files
from chameleon_ray.errors import UserError, naming

_FORMATS = (".jsonl", ".json", ".txt")  # each also with a compression; .json holds one object per line, as .jsonl does
_COMPRESSIONS = (".gz", ".zst")
_MAX_PART_BYTES = 16 << 20  # small files are read together, so that 100,000 text files are not as many worker tasks
_MAX_PART_FILES = 1000
# What `datasets` and its file systems raise for a data set, split or file they cannot open or read.
DATASETS_ERRORS = (OSError, ValueError, RuntimeError, KeyError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException)


@dataclass(frozen=True)
class Source:
    """One file or one shard of a data set. `size_bytes` is the size as stored, 0 when unknown; `fingerprint` tells the content, not the path."""

    address: str
    size_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class Part:
    """What one worker task reads: a few files, or one shard of a Hugging Face data set.

    Attributes:
        index: position in the plan, which follows the order of the experiment file.
        domain: None when each record names its domain, in the column `options["domain_column"]`.
        kind: "files" are read by their extension; of "environment" each file is one document; "huggingface" is one shard.
        options: of "huggingface": name, split, revision, num_shards, shard; with several domains also domain_column and only.
    """

    index: int
    domain: str | None
    heldout: bool
    kind: Literal["files", "environment", "huggingface"]
    sources: tuple[Source, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(source.size_bytes for source in self.sources)

    @property
    def fingerprint(self) -> str:
        return _combined(source.fingerprint for source in self.sources)

    def manifest(self) -> list[dict[str, Any]]:
        """One JSON object per source, for the corpus record."""
        return [{"domain": self.domain, "heldout": self.heldout, **asdict(source), **self.options} for source in self.sources]


def plan_parts(corpus: CorpusConfig) -> list[Part]:
    """Everything there is to read, in the order of the experiment file; files of one pattern in the order of their names.

    Cost: one fingerprint per file (reads files up to 64 MiB), eight at a time.

    Raises:
        UserError: a pattern matches nothing, a format is unknown, a file is both trained on and held out, a data set or its split does not
            exist, or the Python environment has text of fewer than two domains.
    """
    if corpus.domains_from is not None:
        parts = list(_discovered_parts(corpus.domains_from))
    else:
        parts = [part for name, config in corpus.domains.items() for part in _domain_parts(name, config)]
    trained = {source.fingerprint: (part, source) for part in parts for source in part.sources}
    for name, target in corpus.targets.items():
        mine = list(_target_parts(name, target))
        for source in (source for part in mine for source in part.sources):
            if source.fingerprint in trained:
                other, same = trained[source.fingerprint]
                told = f"{source.address} is the text of domain {other.domain!r} too" if other.domain else f"{source.address} is text of the domains too"
                copy = "" if same.address == source.address else f" (a copy of {same.address})"
                raise UserError(f"corpus.targets.{name}: {told}{copy}; a target is never trained on, leave it out of one of them")
        parts += mine
    return [replace(part, index=index) for index, part in enumerate(parts)]


def _domain_parts(name: str, config: DomainConfig) -> Iterator[Part]:
    files = _matches(f"corpus.domains.{name}.files", config.files)
    heldout = _matches(f"corpus.domains.{name}.heldout", config.heldout)
    shared = set(files) & set(heldout)
    if shared:
        raise UserError(f"corpus.domains.{name}.heldout: {min(shared)} is also in files; a file is held out or trained on, narrow one pattern")
    if config.huggingface is not None:
        yield from _huggingface_parts(f"corpus.domains.{name}.huggingface", config.huggingface, domain=name)
    yield from _file_parts(name, files)
    yield from _file_parts(name, heldout, heldout=True)


def _target_parts(name: str, config: TargetConfig) -> Iterator[Part]:
    if config.huggingface is not None:
        yield from _huggingface_parts(f"corpus.targets.{name}.huggingface", config.huggingface, domain=name, heldout=True)
    yield from _file_parts(name, _matches(f"corpus.targets.{name}.files", config.files), heldout=True)


def _discovered_parts(config: DomainsFrom) -> Iterator[Part]:
    if config.huggingface is not None:
        source = HuggingFaceSource(path=config.huggingface, name=config.name, split=config.split, revision=config.revision)
        yield from _huggingface_parts("corpus.domains_from.huggingface", source, domain_column=config.domain_column, only=config.only)
        return
    domains = environment_files(config.bytes_per_domain)
    if len(domains) < 2:
        raise UserError(f"corpus.domains_from.python_environment: found {len(domains)} domain(s), two are needed; list files under corpus.domains")
    for name, paths in domains.items():
        yield from _file_parts(name, [str(path) for path in paths], kind="environment")


def _file_parts(domain: str, addresses: Sequence[str], kind: Literal["files", "environment"] = "files", heldout: bool = False) -> Iterator[Part]:
    with ThreadPoolExecutor(8) as pool:
        sources = list(pool.map(lambda address: Source(address, storage.size_bytes(address), storage.fingerprint(address)), addresses))
    group: list[Source] = []
    for source in sources:
        if group and (sum(member.size_bytes for member in group) + source.size_bytes > _MAX_PART_BYTES or len(group) == _MAX_PART_FILES):
            yield Part(0, domain, heldout, kind, tuple(group))
            group = []
        group.append(source)
    if group:
        yield Part(0, domain, heldout, kind, tuple(group))


def _matches(where: str, patterns: Sequence[str]) -> list[str]:
    """The files of all patterns, each once."""
    found: dict[str, None] = {}
    for i, pattern in enumerate(patterns):
        with naming(f"{where}[{i}]"):
            addresses = storage.glob(pattern)
        if not addresses:
            raise UserError(f"{where}[{i}]: {pattern!r} matches no file; give a local path, s3://… or gs://… (wildcards *, ? and **)")
        for address in addresses:
            if file_format(address) is None:
                known = f"{', '.join(_FORMATS)} (also with {' or '.join(_COMPRESSIONS)}), .parquet"
                raise UserError(f"{where}[{i}]: {pattern!r} matches {address}, whose format is unknown; known: {known}")
            found[address] = None
    return list(found)


def _huggingface_parts(where: str, source: HuggingFaceSource, domain: str | None = None, heldout: bool = False, **columns: Any) -> Iterator[Part]:
    from datasets import load_dataset_builder

    folder = Path(source.path).expanduser()
    address = str(folder.absolute()) if folder.is_dir() else source.path
    options: dict[str, Any] = {"name": source.name, "split": source.split, "revision": source.revision}
    try:
        builder = load_dataset_builder(address, source.name, revision=source.revision)
        num_shards = open_dataset(address, options).num_shards
    except DATASETS_ERRORS as error:
        mistake = f"{source.path!r} cannot be opened (datasets: {first_line(error)})"
        raise UserError(f"{where}: {mistake}; correct path, name, split or revision") from error
    groups = (builder.config.data_files or {}).items()
    files = [file for split, group in groups if source.split == "all" or str(split) in source.split.split("+") for file in group]
    # A file on the hub is named by its commit. Workers read that commit, even when the data set changes while they do.
    commits = (match[1] for file in files if (match := re.match(r"hf://datasets/[^@]+@([^/]+)/", file)))
    options["revision"] = next(commits, source.revision)
    content = _combined(file if "://" in file else storage.fingerprint(file) for file in files) if files else builder.hash
    for shard in range(num_shards):
        sources = (Source(address, 0, _combined([content, f"{shard}/{num_shards}"])),)
        shard_options = {**options, **columns, "num_shards": num_shards, "shard": shard}
        yield Part(0, domain, heldout, "huggingface", sources, shard_options)


def open_dataset(address: str, options: Mapping[str, Any]) -> Any:
    """A Hugging Face data set as a stream; raises one of `DATASETS_ERRORS`."""
    from datasets import load_dataset

    return load_dataset(address, options["name"], split=options["split"], revision=options["revision"], streaming=True)


def _combined(fingerprints: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()


def file_format(address: str) -> tuple[str, str] | None:
    """(format, compression or ""), by the extension; None when it is unknown."""
    path = PurePosixPath(address.lower())
    compression = path.suffix if path.suffix in _COMPRESSIONS else ""
    suffix = PurePosixPath(path.stem).suffix if compression else path.suffix
    return (suffix, compression) if suffix in _FORMATS or (suffix == ".parquet" and not compression) else None


def first_line(error: BaseException) -> str:
    """What a library said, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
