"""Which stretches are read of a source that is not read whole, and what they say of all of it.

Files are put in the order of a hash of their names; the sample is the first stretch of every file, then the second of every file, …, until every domain has
the text that is wanted. It is thereby spread over the source, the same for any number of workers and whenever it is taken again, and a larger sample holds a
smaller one. What tasks happened to read beyond its end is left out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon_ray.corpus.documents import DomainStats
from chameleon_ray.corpus.formats import file_format, likely_text_bytes
from chameleon_ray.corpus.sources import File, Origin, Source
from chameleon_ray.corpus.stretches import PAGE_BYTES, STRETCH_BYTES

Array = NDArray[np.float64]
RANK_BITS, DOCUMENT_BITS = 22, 20
SEARCH = 4  # a rare domain is looked for in so many times the text that all domains together want
_CAUTION = 0.9  # of what is wanted is asked for at first, when little is known of what stretches yield
_FIRST_BYTES = 4 << 20  # where the domains are yet to be discovered
_PATIENT_WAVES = 4
_LEAST_YIELD = 1 / 16  # of what a stretch should have: less is not counted on, or a beginning of empty documents would ask for everything at once


@dataclass(frozen=True)
class Stretches:
    """What one task reads of a file: its stretches from `first` to `stop`."""

    source: int
    rank: int
    origin: Origin
    file: File
    first: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return (self.stop - self.first) * STRETCH_BYTES

    @property
    def fingerprint(self) -> str:
        return f"{self.source} {self.file.fingerprint} {self.first} {self.stop}"


@dataclass
class Found:
    """What a task found in stretches of a file: by stretch its extent and what it has of every domain; the extent of the whole file, as far as that can be
    told; whether nothing is left; how much text was of domains that are not wanted (`StretchReading`)."""

    source: int
    rank: int
    extent: dict[int, float]
    stats: dict[int, dict[str, DomainStats]]
    whole: float | None
    exhausted: bool
    other_bytes: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Found:
        """Back from JSON, which knows only strings as keys."""
        content = {int(stretch): size for stretch, size in fields["extent"].items()}
        stats = {int(stretch): {name: DomainStats(**each) for name, each in found.items()} for stretch, found in fields["stats"].items()}
        return cls(**{**fields, "extent": content, "stats": stats})


@dataclass(frozen=True)
class Estimate:
    """Of all text of a domain, in bytes, with the standard error of its mean over files and stretches (NaN where one stretch alone was read); None where the
    source does not tell how much there is. `read_bytes` of it were read, in so many of its files."""

    text_bytes: float | None
    stderr_bytes: float
    read_bytes: int
    files_read: int
    num_files: int


def order_of(stretch: int, rank: int, document: int = 0) -> int:
    """The place of a document in the order of a source, as one number."""
    return (stretch << RANK_BITS | rank) << DOCUMENT_BITS | document


@dataclass
class SourceSample:
    """The sample of one source, as it is taken in waves.

    Args:
        source: with what is wanted of it.
        bytes_per_token: by domain; where a domain is not there, its default.
    """

    source: Source
    bytes_per_token: Mapping[str, float]
    default_bytes_per_token: float
    waves: int = 0
    _next: tuple[int, int] = (0, 0)
    _seen: dict[tuple[int, int], dict[str, DomainStats]] = field(default_factory=dict)
    _extent: dict[tuple[int, int], float] = field(default_factory=dict)
    _wholes: dict[int, float | None] = field(default_factory=dict)
    _exhausted: set[int] = field(default_factory=set)
    _other_bytes: int = 0

    def __post_init__(self) -> None:
        self.files = sorted(self.source.files, key=lambda file: (hashlib.blake2b(file.name.encode(), digest_size=8).digest(), file.address))

    @property
    def names(self) -> tuple[str, ...]:
        """The domains that text is wanted of: known before, or found by now."""
        origin = self.source.origin
        if origin.domain is not None:
            return (origin.domain,)
        return origin.only or tuple(sorted({name for found in self._seen.values() for name in found}))

    def wanted(self) -> dict[str, int]:
        """Bytes of text by domain."""
        wanted, names = self.source.wanted, self.names
        assert wanted is not None
        k = wanted.num_domains or max(1, len(names))
        return {name: wanted.text_bytes(self.bytes_per_token.get(name, self.default_bytes_per_token), k) for name in names}

    def next_wave(self) -> list[Stretches]:
        """What to read next; nothing when every domain has what is wanted, the source has no more, or a rare domain was looked for long enough."""
        missing = 0.0 if len(self._exhausted) == len(self.files) else self._missing_bytes()
        if not missing:
            return []
        self.waves += 1
        mean = (sum(self._text().values()) + self._other_bytes) / len(self._seen) if self._seen else None
        wanted: dict[int, list[int]] = {}
        stretch, rank = self._next
        skipped = 0
        while missing > 0 and skipped < len(self.files):
            if rank in self._exhausted:
                skipped += 1
            else:
                wanted.setdefault(rank, []).append(stretch)
                skipped, missing = 0, missing - (self._likely(rank) if mean is None else max(mean, _LEAST_YIELD * self._likely(rank)))
            stretch, rank = (stretch + 1, 0) if rank + 1 == len(self.files) else (stretch, rank + 1)
        self._next = stretch, rank
        origin = self.source.origin
        return [Stretches(self.source.index, rank, origin, self.files[rank], turns[0], turns[-1] + 1) for rank, turns in sorted(wanted.items())]

    def note(self, found: Found) -> None:
        """Take in what a task found."""
        for stretch, extent in found.extent.items():
            self._extent[stretch, found.rank] = extent
            self._seen[stretch, found.rank] = found.stats.get(stretch, {})
        self._wholes[found.rank] = found.whole
        self._other_bytes += found.other_bytes
        if found.exhausted:
            self._exhausted.add(found.rank)

    def limits(self) -> dict[str, int]:
        """By domain the order (`order_of`) from which on its documents are left out; domains that nothing is left out of are not there."""
        return {name: order_of(stretch, rank + 1) for name, (stretch, rank) in self._ends().items()}

    def stats(self) -> dict[str, DomainStats]:
        """What the sample has of every domain."""
        ends = self._ends()
        found: dict[str, DomainStats] = {}
        for place in self._places():
            for name, stats in self._seen[place].items():
                if name not in ends or place <= ends[name]:
                    found[name] = found.get(name, DomainStats()).merge(stats)
        return found

    def files_read(self) -> list[File]:
        """The files that something was read of."""
        return [self.files[rank] for rank in sorted(self._wholes)]

    def estimates(self) -> dict[str, Estimate]:
        """How much text of every domain the whole source has, by everything that was read of it; `read_bytes` are of the sample. Cost: one pass over what
        each domain was seen in."""
        places, kept = self._places(), self.stats()
        ranks = np.array([rank for _, rank in places], np.int64)
        extent = np.array([self._extent[place] for place in places], np.float64)
        opened, index = np.unique(ranks, return_inverse=True)
        seen: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in self.names}
        for number, place in enumerate(places):
            for name, stats in self._seen[place].items():
                if name in seen:
                    seen[name][0].append(number)
                    seen[name][1].append(stats.text_bytes)
        is_all = len(self._exhausted) == len(self.files)
        ends, found = self._ends(), {}
        for name, (numbers, sizes) in seen.items():
            read = kept.get(name, DomainStats()).text_bytes
            total: float | None = float(read)
            stderr = 0.0
            if not is_all or name in ends:
                total, stderr = self._total(np.array(numbers, np.int64), np.array(sizes, np.float64), extent, index, opened)
            found[name] = Estimate(total, stderr, read, len(np.unique(index[numbers])), len(self.files))
        return found

    def _total(self, numbers: NDArray[np.int64], text: Array, extent: Array, index: NDArray[np.int64], opened: NDArray[np.int64]) -> tuple[float | None, float]:
        """All text of a domain and its standard error, in two stages: some of the files, and some stretches of each.

        T = Z / z sum_f W_f t_f / w_f for text t_f in the extent w_f that was read of a file's W_f; z is the size of these files, Z that of all. Its variance
        has a part between files, (Z / z)^2 (1 - n / N) n / (n - 1) sum_f (W_f t_f / w_f - z_f T / Z)^2, and one within, (Z / z)^2 n / N sum_f
        (1 - w_f / W_f) m_f v (W_f / w_f)^2, with the variance v of one stretch about its file's ratio. With a single stretch of every file the first part
        shows all there is, and 1 - n / N is left out.

        Args:
            numbers, text: the stretches that have some of the domain, and how much.
            extent, index: of all stretches, and the place of its file in `opened`.
        """
        held = [self._wholes[rank] for rank in opened]
        if any(each is None for each in held) or not extent.sum():
            return None, math.nan
        whole, n = np.array(held, np.float64), len(opened)
        sizes = np.array([self.files[rank].size_bytes or 1 for rank in opened], np.float64)
        scale = sum(file.size_bytes or 1 for file in self.files) / sizes.sum()
        mine = index[numbers]
        read, stretches = np.maximum(np.bincount(index, extent, n), 1), np.bincount(index, minlength=n)
        ratio = np.bincount(mine, text, n) / read
        of_file = whole * ratio
        freedom = len(index) - n
        products = np.bincount(mine, text**2, n) - 2 * ratio * np.bincount(mine, text * extent[numbers], n) + ratio**2 * np.bincount(index, extent**2, n)
        variance = max(0.0, float(products.sum())) / freedom if freedom else 0.0
        within = (np.maximum(0, 1 - read / np.maximum(whole, 1)) * stretches * variance * (whole / read) ** 2).sum()
        between = n / (n - 1) * ((of_file - sizes * of_file.sum() / sizes.sum()) ** 2).sum() if n > 1 else 0.0
        part = n / len(self.files)
        is_known = (n > 1 or len(self.files) == 1) and len(index) > 1
        stderr = math.sqrt(between * (1 - part if freedom else 1) + within * part) * scale if is_known else math.nan
        return float(of_file.sum()) * scale, stderr

    def _missing_bytes(self) -> float:
        """How much more text should be read, all domains together, by what was found of each; 0 when it is enough."""
        wanted, text = self.wanted(), self._text()
        if not self._seen:
            return _CAUTION * sum(wanted.values()) or float(_FIRST_BYTES)
        read, most = sum(text.values()) + self._other_bytes, SEARCH * sum(wanted.values())
        short = {name: need - text.get(name, 0) for name, need in wanted.items() if text.get(name, 0) < need}
        if not short:
            return 0.0
        if self.source.origin.domain is not None:
            (more,) = short.values()
        elif read >= most:
            return 0.0
        else:
            more = min(most - read, max(math.ceil(left * max(1, read) / max(1, text.get(name, 0))) for name, left in short.items()))
        return float(more) * 2 ** max(0, self.waves - _PATIENT_WAVES)

    def _likely(self, rank: int) -> float:
        """Text of the first stretch of a file, about."""
        file = self.files[rank]
        known = file_format(file.address) or ("", "")
        size = PAGE_BYTES if known[0] == ".parquet" else STRETCH_BYTES
        whole = likely_text_bytes(file.address, file.size_bytes) if file.size_bytes else size
        return float(max(1, whole if known[0] == ".txt" else min(size, whole)))

    def _text(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for found in self._seen.values():
            for name, stats in found.items():
                total[name] = total.get(name, 0) + stats.text_bytes
        return total

    def _ends(self) -> dict[str, tuple[int, int]]:
        """By domain the stretch with which it has what is wanted; domains that fall short are not there."""
        wanted, text, ends = self.wanted(), dict.fromkeys(self.names, 0), {}
        for place in self._places():
            for name, stats in self._seen[place].items():
                if name in wanted and name not in ends:
                    text[name] += stats.text_bytes
                    if text[name] >= wanted[name]:
                        ends[name] = place
        return ends

    def _places(self) -> list[tuple[int, int]]:
        """The (stretch, rank) that were read, in order."""
        return sorted(self._seen)
