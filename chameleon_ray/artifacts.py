"""What the phases hand to each other: typed, named, and complete exactly when `record.json` exists.

An artifact lies at `{storage}/{kind}/{name}-{digest}/`. The digest covers what changes the result and never where it ran (`identity.py`). The record is
written last, so that an interrupted phase is never taken for a finished one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ConfigDict

from chameleon_ray import storage
from chameleon_ray.counts import DomainCounts, DomainSize, Excerpt, Quality, SplitCounts
from chameleon_ray.errors import UserError
from chameleon_ray.records import read_record, read_table
from chameleon_ray.tensors import read_tensors, write_tensors

Counts = NDArray[np.integer | np.floating]

SPLITS = ("train", "valid", "test")
NUM_GROUPS = 32
MAX_GROUP_BYTES = 3_200_000  # of one dimension of all group sums: 2.5 GB at width 768
CHUNK_DOMAINS = 256


@dataclass(frozen=True)
class Cost:
    """What a result took: tokens processed, floating-point operations, wall seconds.

    `flops` counts all matrix products that were run. `paper_flops` follows the convention of the Chameleon paper's tables: embeddings at full
    depth; without DoReMi's reference passes, DoGE's work on gradients, and the output head of RegMix's proxies.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    paper_flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.flops + other.flops, self.seconds + other.seconds, self.paper_flops + other.paper_flops)


@dataclass(frozen=True)
class Clusters:
    """Domains that were found among documents which nobody labelled: the documents in Parquet files, each with the name of its domain, and what these are.

    Attributes:
        files: address and bytes of every file.
        domain_column: of the files; their other column is the text's.
        sources: value of the column that clusters were found within ("text" where there is none) -> what was read of its text; not there where that is all.
        cost: of embedding the documents.
    """

    address: str
    digest: str
    files: Mapping[str, int]
    domain_column: str
    sources: Mapping[str, Excerpt]
    cost: Cost

    def table(self) -> pa.Table:
        """One row for every domain: name, source, words (the most telling first), documents, text_bytes, lines (how documents at its centre begin)."""
        return read_table(storage.join(self.address, "clusters.parquet"))

    @classmethod
    def load(cls, address: str) -> Clusters:
        """Read a finished artifact."""
        record = read_record(address)
        content = record["content"]
        sources = {name: Excerpt.of(found) for name, found in content["sources"].items()}
        files = {storage.join(address, "documents", name): size for name, size in content["files"].items()}
        return cls(address, record["digest"], files, content["domain_column"], sources, Cost(**content["cost"]))

    def estimated(self, domains: Mapping[str, DomainCounts]) -> dict[str, DomainCounts]:
        """Counts of the domains, with an estimate of all their text: of a source that was read in part each domain has the same share of what was not read."""
        if not self.sources:
            return dict(domains)
        table = self.table()
        places = {name: i for i, name in enumerate(table["name"].to_pylist())}
        source, documents = table["source"].to_pylist(), table["documents"].to_numpy()
        total: dict[str, int] = {}
        for name, count in zip(source, documents.tolist(), strict=True):
            total[name] = total.get(name, 0) + count
        found = dict(domains)
        for name, counts in domains.items():
            place = places.get(name)
            if place is not None and (read := self.sources.get(source[place])) is not None:
                found[name] = replace(counts, excerpt=_part_of(read, counts, documents[place] / total[source[place]], total[source[place]]))
        return found


def _part_of(read: Excerpt, counts: DomainCounts, share: float, documents: int) -> Excerpt:
    """What stands for a domain that has a share of the documents of a source."""
    if read.text_bytes is None:
        return replace(read, read_bytes=counts.text_bytes, tokens=None, stderr_tokens=None)
    scale = read.text_bytes / max(1, read.read_bytes)
    tokens = counts.train.tokens * scale
    stderr = None
    if read.stderr_tokens is not None and read.tokens:
        stderr = tokens * math.hypot(read.stderr_tokens / read.tokens, math.sqrt((1 - share) / max(1e-12, share * documents)))
    return replace(read, read_bytes=counts.text_bytes, text_bytes=counts.text_bytes * scale, tokens=tokens, stderr_tokens=stderr)


@dataclass(frozen=True)
class TokenCorpus:
    """Tokenized, packed and shuffled text: for every split and domain, Arrow files of fixed-length rows.

    Columns of a shard: `domain` (string), `tokens` (row_tokens unsigned integers), `length` (tokens that are not padding), `document` (an integer
    that is unique to the document of the row's first token within domain and split; held-out documents are numbered in the order they are packed).

    `names` are the domains that are trained on, `targets` texts that are only measured; `domains` has the counts of both. `clusters` is the address of the
    clusters that the domains are, where they are that; `measured_tokens` how much of each held-out split base models are measured on, where not on all.
    """

    address: str
    digest: str
    names: tuple[str, ...]
    domains: Mapping[str, DomainCounts]
    row_tokens: int
    vocab_size: int
    end_of_document: int
    tokenizer_sha256: str
    targets: tuple[str, ...] = ()
    clusters: str | None = None
    measured_tokens: int | None = None

    def shard_address(self, split: str, domain: str, shard: int) -> str:
        return storage.join(self.address, split, quote(domain, safe=""), f"shard-{shard:05d}.arrow")

    @property
    def tokenizer_address(self) -> str:
        return storage.join(self.address, "tokenizer")

    def rows(self, split: str = "train") -> dict[str, int]:
        """Rows of every domain in a split; of a target in a held-out one."""
        return {name: self.domains[name].split(split).rows for name in (self.names if split == "train" else (*self.names, *self.targets))}

    def tokens(self) -> dict[str, float]:
        """Tokens that there are to train on, by domain; of one that was not read whole an estimate, and not there where its source tells nothing."""
        return {name: tokens for name in self.names if (tokens := self.domains[name].available_tokens) is not None}

    def sizes(self) -> dict[str, DomainSize]:
        """How much train text every domain has; of one that was not read whole by the estimate, where there is one."""
        found = {}
        for name in self.names:
            counts = self.domains[name]
            mean = counts.train.tokens / max(1, counts.train.documents)
            tokens = counts.available_tokens or counts.train.tokens
            found[name] = DomainSize(round(tokens), round(tokens / mean) if mean else 0, mean)
        return found

    @property
    def measured(self) -> tuple[str, ...]:
        """The domains with held-out text: those that losses are measured on and averaged over."""
        return tuple(name for name in self.names if self.domains[name].is_measured)

    @property
    def heldout(self) -> tuple[str, ...]:
        """Everything that models are measured on: domains, then targets."""
        return (*self.measured, *self.targets)

    def rows_in(self, tokens: int) -> int:
        """Rows of so many tokens, one at least."""
        return max(1, tokens // self.row_tokens)

    @property
    def measured_at_most(self) -> int | None:
        """Rows of each held-out split that base models are measured on; all by default."""
        return self.measured_tokens and self.rows_in(self.measured_tokens)

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """The domains that are only trained on."""
        return tuple(name for name in self.names if not self.domains[name].is_measured)

    def check_measured(self) -> None:
        """Raise `UserError` when no domain can be measured."""
        if not self.measured:
            raise UserError(
                "corpus: no domain has two distinct held-out documents, so that nothing can be measured; add documents or give heldout files "
                "(methods that look at no held-out text need none: chameleon mix)"
            )

    @classmethod
    def load(cls, address: str) -> TokenCorpus:
        """Read a finished corpus."""
        record = read_record(address)
        content = record["content"]
        domains = {
            name: DomainCounts(
                **{
                    **counts,
                    **{split: SplitCounts(**_tuples(counts[split])) for split in SPLITS},
                    "quality": Quality(**counts["quality"]) if counts["quality"] else None,
                    "excerpt": Excerpt.of(counts["excerpt"]) if counts["excerpt"] else None,
                }
            )
            for name, counts in content["domains"].items()
        }
        fields = {key: content[key] for key in ("row_tokens", "vocab_size", "end_of_document", "tokenizer_sha256")}
        names, targets = (tuple(content[key]) for key in ("names", "targets"))
        return cls(address=address, digest=record["digest"], names=names, domains=domains, targets=targets, **fields)

    def content(self) -> dict[str, Any]:
        """What the record holds."""
        fields = asdict(self)
        del fields["clusters"], fields["measured_tokens"]
        return {**fields, "names": list(self.names), "targets": list(self.targets)}


@dataclass(frozen=True)
class TrainedModel:
    """A model in Hugging Face layout with its tokenizer and, where we trained it, `metrics.parquet`.

    `weights` are the fractions of training tokens it was drawn with; empty where others trained it. `allow_remote_code`: whether code that lies beside its
    weights may be run; the user says so, never a file that lies there too.
    """

    address: str
    digest: str
    weights: Mapping[str, float]
    vocab_size: int
    tokenizer_sha256: str
    cost: Cost
    details: Mapping[str, Any] = field(default_factory=dict)
    allow_remote_code: bool = False

    @classmethod
    def load(cls, address: str) -> TrainedModel:
        """Read a finished model's record; the weights of the network stay where they are."""
        record = read_record(address)
        content = record["content"]
        fields = {key: content[key] for key in ("weights", "vocab_size", "tokenizer_sha256", "details")}
        return cls(address=address, digest=record["digest"], cost=Cost(**content["cost"]), **fields)

    @property
    def run(self) -> str:
        """Digest of the run it came out of: its own, or that of the longer run that it is the beginning of."""
        return str(self.details["snapshot_of"]["model"]) if "snapshot_of" in self.details else self.digest

    def metrics(self) -> pa.Table:
        """Loss curve: step, domain, loss (nats per token), tokens, learning_rate."""
        return read_table(storage.join(self.address, "metrics.parquet"))

    def weight_history(self) -> pa.Table:
        """Of a proxy that learned weights: step, domain, weight, mean (of the weights of all steps so far)."""
        return read_table(storage.join(self.address, "weights.parquet"))


def group_layout(num_domains: int) -> tuple[int, type[np.float64] | type[np.float32]]:
    """Hash groups kept of each domain, and the precision of their sums, so that those of many domains fit in memory.

    32 in float64 up to 12,500 domains; beyond, float32 (what models compute in); from 25,000 on half as many groups whenever the domains double, at
    least 4. A standard error from G groups is itself uncertain by 1 / sqrt(2 (G - 1)): 13 % with 32, 27 % with 8.
    """
    if num_domains * NUM_GROUPS * 8 <= MAX_GROUP_BYTES:
        return NUM_GROUPS, np.float64
    num_groups = NUM_GROUPS
    while num_groups > 4 and num_domains * num_groups * 4 > MAX_GROUP_BYTES:
        num_groups //= 2
    return num_groups, np.float32


@dataclass(frozen=True)
class Embeddings:
    """One vector per domain, and the sums of hash groups of its samples that the error bars are taken from.

    Attributes:
        names: k domain names.
        group_sums: [k, groups, p], sums over samples of the mean hidden state of a sample's tokens; float64, or as `group_layout` says.
        group_counts: [k, groups] samples in each group; of a domain that is several in one, in the proportions of their text, no whole numbers then.
        layer: index into `hidden_states` (0 is the token embedding).
        ledger: digest -> tokens and operations of the forward passes.
        precisions: number formats that the model was in; several where machines differed, none where that is not known.
    """

    names: tuple[str, ...]
    group_sums: NDArray[np.floating]
    group_counts: Counts
    layer: int
    ledger: Mapping[str, Cost] = field(default_factory=dict)
    precisions: tuple[str, ...] = ()

    @property
    def means(self) -> NDArray[np.float64]:
        """X: [k, p] float64, mean over samples of the mean over tokens."""
        return self.means_of(range(len(self.names)))

    def means_of(self, index: Sequence[int]) -> NDArray[np.float64]:
        """Rows of X, [n, p], without a copy of the group sums.

        Raises:
            UserError: a domain without samples.
        """
        means = np.empty((len(index), self.group_sums.shape[2]))
        for start in range(0, len(index), CHUNK_DOMAINS):
            some = list(index[start : start + CHUNK_DOMAINS])
            counts = self.group_counts[some].sum(axis=1)
            if (counts == 0).any():
                raise UserError(f"domain {self.names[some[np.argmin(counts)]]!r} has no samples to embed; add documents or remove the domain")
            means[start : start + len(some)] = self.group_sums[some].sum(axis=1, dtype=np.float64) / counts[:, None]
        return means

    def select(self, names: Sequence[str]) -> Embeddings:
        """The embeddings of some of the domains, in the order given."""
        index = [self.names.index(name) for name in names]
        return replace(self, names=tuple(names), group_sums=self.group_sums[index], group_counts=self.group_counts[index])

    @classmethod
    def concat(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Domains of several embeddings made by the same model at the same layer.

        Groups are merged to the fewest that a part has or that so many domains are kept in: g of 32 becomes g % 8 of 8, as `group_of` would have it.
        """
        assert len({part.layer for part in parts}) == 1
        names = tuple(name for part in parts for name in part.names)
        most, dtype = group_layout(len(names))
        shape = len(names), min(most, *(part.group_sums.shape[1] for part in parts)), parts[0].group_sums.shape[2]
        sums, counts = np.empty(shape, dtype), np.empty(shape[:2], np.result_type(*(part.group_counts for part in parts)))
        start = 0
        for part in parts:
            some = slice(start, start := start + len(part.names))
            part.group_sums.reshape(len(part.names), -1, *shape[1:]).sum(axis=1, out=sums[some])
            part.group_counts.reshape(len(part.names), -1, shape[1]).sum(axis=1, out=counts[some])
        ledger = {digest: cost for part in parts for digest, cost in part.ledger.items()}
        return cls(names, sums, counts, parts[0].layer, ledger, tuple(sorted({precision for part in parts for precision in part.precisions})))

    def save(self, address: str) -> dict[str, Any]:
        """Write the arrays; what the record is to hold."""
        write_tensors(storage.join(address, "embeddings.safetensors"), {"group_sums": self.group_sums, "group_counts": self.group_counts})
        ledger = {digest: asdict(cost) for digest, cost in self.ledger.items()}
        return {"names": list(self.names), "layer": self.layer, "ledger": ledger, "precisions": list(self.precisions)}

    @classmethod
    def load(cls, address: str) -> Embeddings:
        """Read finished embeddings."""
        content = read_record(address)["content"]
        ledger = {digest: Cost(**cost) for digest, cost in content["ledger"].items()}
        arrays = read_tensors(storage.join(address, "embeddings.safetensors"))
        return cls(tuple(content["names"]), arrays["group_sums"], arrays["group_counts"], content["layer"], ledger, tuple(content["precisions"]))


@dataclass(frozen=True)
class DocumentLosses:
    """Loss of one model on one domain: for each document the sum of nats and the tokens predicted."""

    document: NDArray[np.int64]
    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def mean_nats(self) -> float:
        """Nats per token over all tokens of the domain."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def stderr_nats(self) -> float:
        """Standard error of `mean_nats`, clustered by document (ratio estimator); NaN for a single document."""
        n = len(self.document)
        if n < 2:
            return math.nan
        residual = self.nats - self.mean_nats * self.tokens
        return float(np.sqrt(n / (n - 1) * (residual**2).sum()) / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """exp of the mean; infinite where that is past what a float64 holds."""
        return math.exp(self.mean_nats) if self.mean_nats < LARGEST_NATS else self.mean_nats * math.inf

    @property
    def stderr_perplexity(self) -> float:
        """Delta method: perplexity times the standard error in nats."""
        return self.perplexity * self.stderr_nats

    @classmethod
    def from_tokens(cls, document: NDArray[np.int64], nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> DocumentLosses:
        """Add up entries of the same document."""
        unique, inverse = np.unique(document, return_inverse=True)
        return cls(unique, np.bincount(inverse, nats, len(unique)).astype(np.float64), np.bincount(inverse, tokens, len(unique)).astype(np.int64))


SplitLosses = dict[str, dict[str, DocumentLosses]]  # split -> domain -> losses
LARGEST_NATS = math.log(sys.float_info.max)  # whose perplexity is a number


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
