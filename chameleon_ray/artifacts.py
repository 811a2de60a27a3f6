"""What the stages hand to each other: typed, named, and complete exactly when `record.json` exists.

An artifact lies at `{storage}/{kind}/{name}-{digest}/`. The digest covers what changes the result and never where it ran (`identity.py`). The record is
written last, so that an interrupted stage is never taken for a finished one.
"""

from __future__ import annotations

import io
import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from chameleon_ray import storage
from chameleon_ray.errors import UserError

SPLITS = ("train", "valid", "test")
NUM_GROUPS = 32


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
class SplitCounts:
    """One domain in one split. `shard_rows` gives the rows of each shard file; their sum is `rows`."""

    documents: int
    tokens: int
    shard_rows: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.shard_rows)


@dataclass(frozen=True)
class DomainCounts:
    """One domain of a corpus. `skipped` counts unreadable documents by reason, `duplicates` exact copies left out."""

    train: SplitCounts
    valid: SplitCounts
    test: SplitCounts
    text_bytes: int
    duplicates: int
    skipped: Mapping[str, int]
    unigram_entropy_nats: float

    def split(self, name: str) -> SplitCounts:
        counts = getattr(self, name)
        assert isinstance(counts, SplitCounts)
        return counts


@dataclass(frozen=True)
class TokenCorpus:
    """Tokenised, packed and shuffled text: for every split and domain, Arrow files of fixed-length rows.

    Columns of a shard: `domain` (string), `tokens` (row_tokens unsigned integers), `length` (tokens that are not padding), `document` (an integer
    that is unique to the document of the row's first token within domain and split; held-out documents are numbered in the order they are packed).
    """

    address: str
    digest: str
    names: tuple[str, ...]
    domains: Mapping[str, DomainCounts]
    row_tokens: int
    vocab_size: int
    end_of_document: int
    tokenizer_sha256: str

    def shard_address(self, split: str, domain: str, shard: int) -> str:
        return storage.join(self.address, split, quote(domain, safe=""), f"shard-{shard:05d}.arrow")

    @property
    def tokenizer_address(self) -> str:
        return storage.join(self.address, "tokenizer")

    def rows(self, split: str = "train") -> dict[str, int]:
        """Rows of every domain in a split."""
        return {name: self.domains[name].split(split).rows for name in self.names}

    def tokens(self, split: str = "train") -> dict[str, int]:
        """Tokens of every domain in a split."""
        return {name: self.domains[name].split(split).tokens for name in self.names}

    @classmethod
    def load(cls, address: str) -> TokenCorpus:
        """Read a finished corpus."""
        record = read_record(address)
        content = record["content"]
        domains = {
            name: DomainCounts(**{**counts, **{split: SplitCounts(**_tuples(counts[split])) for split in SPLITS}})
            for name, counts in content["domains"].items()
        }
        fields = {key: content[key] for key in ("row_tokens", "vocab_size", "end_of_document", "tokenizer_sha256")}
        return cls(address=address, digest=record["digest"], names=tuple(content["names"]), domains=domains, **fields)

    def content(self) -> dict[str, Any]:
        """What the record holds."""
        return {**asdict(self), "names": list(self.names)}


@dataclass(frozen=True)
class TrainedModel:
    """A model in Hugging Face layout with its tokenizer and `metrics.parquet`; `weights` are the fractions of training tokens it was drawn with."""

    address: str
    digest: str
    weights: Mapping[str, float]
    vocab_size: int
    tokenizer_sha256: str
    cost: Cost
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, address: str) -> TrainedModel:
        """Read a finished model's record; the weights of the network stay where they are."""
        record = read_record(address)
        content = record["content"]
        return cls(
            address, record["digest"], content["weights"], content["vocab_size"], content["tokenizer_sha256"], Cost(**content["cost"]), content["details"]
        )

    def metrics(self) -> pa.Table:
        """Loss curve: step, domain, loss (nats per token), tokens, learning_rate."""
        return read_table(storage.join(self.address, "metrics.parquet"))

    def weight_history(self) -> pa.Table:
        """Of a proxy that learned weights: step, domain, weight, mean (of the weights of all steps so far)."""
        return read_table(storage.join(self.address, "weights.parquet"))


@dataclass(frozen=True)
class Embeddings:
    """One vector per domain, and the sums of hash groups of its samples that the error bars resample.

    Attributes:
        names: k domain names.
        group_sums: [k, 32, p] float64, sums over samples of the mean hidden state of a sample's tokens.
        group_counts: [k, 32] samples in each group.
        layer: index into `hidden_states` (0 is the token embedding).
        cost: tokens and operations of the forward passes.
    """

    names: tuple[str, ...]
    group_sums: NDArray[np.float64]
    group_counts: NDArray[np.int64]
    layer: int
    cost: Cost

    @property
    def means(self) -> NDArray[np.float64]:
        """X: [k, p] float64, mean over samples of the mean over tokens."""
        counts = self.group_counts.sum(axis=1)
        if (counts == 0).any():
            raise UserError(f"domain {self.names[int(np.argmin(counts))]!r} has no samples to embed; add documents or remove the domain")
        return self.group_sums.sum(axis=1) / counts[:, None]

    def select(self, names: Sequence[str]) -> Embeddings:
        """The embeddings of some of the domains, in the order given."""
        index = [self.names.index(name) for name in names]
        return replace(self, names=tuple(names), group_sums=self.group_sums[index], group_counts=self.group_counts[index])

    @classmethod
    def concat(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Domains of several embeddings made by the same model at the same layer."""
        assert len({part.layer for part in parts}) == 1
        names = tuple(name for part in parts for name in part.names)
        sums, counts = np.concatenate([p.group_sums for p in parts]), np.concatenate([p.group_counts for p in parts])
        return cls(names, sums, counts, parts[0].layer, sum((part.cost for part in parts), Cost()))

    def save(self, address: str, digest: str) -> None:
        """Write the arrays, then the record."""
        arrays = {"group_sums": np.ascontiguousarray(self.group_sums), "group_counts": np.ascontiguousarray(self.group_counts)}
        storage.write_bytes(storage.join(address, "embeddings.safetensors"), save_tensors(arrays))
        write_record(address, "embeddings", digest, {"names": list(self.names), "layer": self.layer, "cost": asdict(self.cost)})

    @classmethod
    def load(cls, address: str) -> Embeddings:
        """Read finished embeddings."""
        content = read_record(address)["content"]
        arrays = load_tensors(storage.read_bytes(storage.join(address, "embeddings.safetensors")))
        return cls(tuple(content["names"]), arrays["group_sums"], arrays["group_counts"], content["layer"], Cost(**content["cost"]))


@dataclass(frozen=True)
class Mixture:
    """The answer: for every domain the fraction of training tokens to draw from it.

    Attributes:
        method: the label under `methods` in the experiment file.
        weights: name -> fraction of tokens; non-negative, sums to 1 within 1e-9.
        scores, weights_stderr, scores_stderr: per domain where the method has them.
        cost: everything that was needed to get the weights.
        provenance: settings, inputs and versions. details: method-specific numbers (spectrum, effective dimension, …).
        warnings: sentences a person should read before trusting the weights.
    """

    method: str
    weights: Mapping[str, float]
    scores: Mapping[str, float] | None = None
    weights_stderr: Mapping[str, float] | None = None
    scores_stderr: Mapping[str, float] | None = None
    cost: Cost = Cost()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_weights(self.weights, "weights")

    def to_json(self) -> str:
        """mixture.json: `weights` is an object name -> float; `unit` says of what."""
        return json.dumps({"unit": "fraction of training tokens", **asdict(self)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, address: str) -> None:
        """Write mixture.json."""
        storage.write_bytes(address, self.to_json().encode())

    @classmethod
    def load(cls, address: str) -> Mixture:
        """Read mixture.json.

        Raises:
            UserError: no such file, not such a file, or weights that are not a mixture.
        """
        if not storage.is_file(address):
            raise UserError(f"{address}: no such mixture file; `chameleon mix … --out {address}` writes one")
        try:
            document = json.loads(storage.read_bytes(address), object_pairs_hook=_unique)
        except ValueError as error:
            raise UserError(f"{address}: not valid JSON ({error}); `chameleon mix … --out FILE` writes a mixture file") from None
        if not isinstance(document, dict) or not isinstance(document.get("weights"), dict):
            raise UserError(f"{address}: no object 'weights' of name -> fraction; `chameleon mix … --out FILE` writes a mixture file")
        document.pop("unit", None)
        document.setdefault("method", "fixed")
        unknown = sorted(set(document) - set(cls.__dataclass_fields__))
        if unknown:
            raise UserError(f"{address}: unknown key {unknown[0]!r}; known: {', '.join(cls.__dataclass_fields__)}")
        check_weights(document["weights"], f"{address}: weights")
        try:
            return TypeAdapter(cls).validate_python(document)
        except ValidationError as error:
            mistake = error.errors(include_url=False)[0]
            place = ".".join(map(str, mistake["loc"]))
            raise UserError(f"{address}: {place}: {mistake['msg']} (found {mistake['input']!r}); `chameleon mix … --out FILE` writes a mixture file") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"name {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return dict(pairs)


def check_weights(weights: Mapping[str, float], where: str) -> None:
    """Raise `UserError` unless the weights are finite, non-negative and sum to 1 within 1e-9; `where` names them."""
    if not weights:
        raise UserError(f"{where}: empty; give one weight per domain")
    for name, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise UserError(f"{where}.{name}: {value!r} is not a weight; give a finite number that is at least 0")
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-9:
        raise UserError(f"{where}: sum to {total!r}, not 1; divide each by the sum")


def write_record(address: str, kind: str, digest: str, content: Mapping[str, Any]) -> None:
    """Write `record.json`, the last file of an artifact."""
    record = {"kind": kind, "digest": digest, "written": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions(), "content": content}
    storage.write_bytes(storage.join(address, "record.json"), json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False).encode())


def read_record(address: str) -> dict[str, Any]:
    """The record of a finished artifact.

    Raises:
        UserError: there is no finished artifact at the address.
    """
    path = storage.join(address, "record.json")
    if not storage.exists(path):
        raise UserError(f"{address}: no record.json, so nothing finished lies here; give the folder of a finished artifact")
    record: dict[str, Any] = json.loads(storage.read_bytes(path))
    return record


def is_complete(address: str) -> bool:
    """Whether the artifact at the address is finished."""
    return storage.exists(storage.join(address, "record.json"))


def write_table(address: str, table: pa.Table) -> None:
    """Write a Parquet file atomically."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(address, buffer.getvalue())


def read_table(address: str) -> pa.Table:
    """Read a Parquet file."""
    return pq.read_table(io.BytesIO(storage.read_bytes(address)))


@cache
def versions() -> dict[str, str]:
    """Versions of what computes, and the git commit of a checkout, for records."""
    found = {"python": platform.python_version()}
    for package in ("chameleon_ray", "ray", "torch", "transformers", "deepspeed", "tokenizers", "numpy", "pyarrow", "datasets"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / ".git").exists():
        done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found["commit"] = done.stdout.strip()
    return found


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
