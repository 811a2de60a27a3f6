"""The section of an experiment file about its text: where it comes from, how it becomes tokens, what is held out.

Unknown keys and wrong values raise `UserError` with the dotted path of the field, the value found and the remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote

from pydantic import AfterValidator, Field, model_validator

from chameleon_ray.errors import UserError
from chameleon_ray.settings import Fraction, PositiveFloat, PositiveInt, Settings, read_yaml, validate

CLUSTERS = "corpus.domains_from.clusters"

DomainName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(lambda name: check_domain_name(name))]


class HuggingFaceSource(Settings):
    """One Hugging Face data set: a hub name or a local folder in the same layout; `data_dir` is a folder within it."""

    path: str
    name: str | None = None
    data_dir: str | None = None
    split: str = "train"
    revision: str | None = None


class TextConfig(Settings):
    """Where text comes from: files, or a data set."""

    files: tuple[str, ...] = ()
    huggingface: HuggingFaceSource | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.files) == (self.huggingface is not None):
            raise ValueError("give either files or huggingface")
        return self


class DomainConfig(TextConfig):
    """Where one domain's documents come from; what is read of `heldout` (files), or of the split `heldout_split` of the data set, never reaches training."""

    heldout: tuple[str, ...] = ()
    heldout_split: str | None = None

    @model_validator(mode="after")
    def _split_of_a_data_set(self) -> Self:
        if self.heldout_split is not None and (self.huggingface is None or self.heldout):
            raise ValueError("heldout_split is a split of the huggingface data set; give files that are held out as heldout")
        return self


class TargetConfig(TextConfig):
    """Where the text of a target comes from: all of it is held out."""


class ClustersConfig(Settings):
    """Domains of text that nobody labelled: `k` clusters of the documents that a model finds alike; with `within` k of every value of that column.

    `embed`: proxy (one is trained on all of the text as a single domain), or a model that others trained, by folder, GGUF file or hub name.
    """

    k: Annotated[int, Field(ge=2, le=1_000_000)]
    of: tuple[str, ...] = ()
    huggingface: HuggingFaceSource | None = None
    embed: str = "proxy"
    within: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ClustersConfig:
        if bool(self.of) == (self.huggingface is not None):
            raise ValueError("give either of (files) or huggingface")
        return self

    @property
    def source(self) -> DomainConfig:
        """The documents as those of one domain."""
        return DomainConfig(files=self.of, huggingface=self.huggingface)


def check_documents(documents: int, k: int) -> None:
    """Raise `UserError` for fewer documents than clusters."""
    if documents < k:
        raise UserError(f"{CLUSTERS}.k: {k:,} clusters of {documents:,} documents; a cluster needs several, lower k or add documents")


class DomainsFrom(Settings):
    """Domains that are discovered instead of listed: a column of files or of one Hugging Face data set, clusters of documents, or the text of this Python
    environment."""

    files: tuple[str, ...] = ()
    huggingface: str | None = None
    clusters: ClustersConfig | None = None
    name: str | None = None
    data_dir: str | None = None
    split: str = "train"
    revision: str | None = None
    domain_column: str | None = None
    only: tuple[DomainName, ...] = ()
    python_environment: bool = False
    bytes_per_domain: PositiveInt = 2_000_000

    @model_validator(mode="after")
    def _one_source(self) -> DomainsFrom:
        if bool(self.files) + bool(self.huggingface) + (self.clusters is not None) + self.python_environment != 1:
            raise ValueError("give either files or huggingface (with domain_column), or clusters, or python_environment: true")
        if (self.files or self.huggingface) and not self.domain_column:
            raise ValueError("files and huggingface need domain_column, the column that names the domain (dots reach into nested fields), or use clusters")
        if self.clusters is not None and (self.only or self.domain_column):
            raise ValueError("clusters have names of their own: remove only and domain_column (within is the column that clusters are found within)")
        return self


class TokenizerTraining(Settings):
    """Byte-level BPE trained on an equal share of every domain."""

    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 8192
    bytes_per_domain: PositiveInt = 4_000_000


class TokenizerConfig(Settings):
    """A pretrained tokenizer (hub name or folder) or one trained on the corpus."""

    train: TokenizerTraining | None = None
    pretrained: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TokenizerConfig:
        if (self.train is None) == (self.pretrained is None):
            raise ValueError("give either train: {vocab_size: …} or pretrained: NAME")
        return self


class CorpusConfig(Settings):
    """The text, how it becomes tokens, and what is held out: at most `heldout_tokens` of each domain in each of valid and test. Base models are measured on
    at most `measured_tokens` of these, in rows at even distances: fewer tokens of as many documents.

    `tokens_per_domain` is how much of a domain is read to be trained on, beside what is held out: a number; null, all of it; or auto, what the experiment
    needs of it (`Experiment.reads`).

    `bytes_literals`: text that is written as Python prints bytes, b'caf\\xc3\\xa9', is read as these bytes. `replace`: pieces of text -> what stands for each
    from reading on, in this order: markers of a data set, for instance.

    A domain with fewer than two distinct held-out documents is trained on and not measured, or with `require_heldout` refused. `targets` are texts that every
    model is measured on and none is trained on.
    """

    domains: dict[DomainName, DomainConfig] = Field(default_factory=dict)
    domains_from: DomainsFrom | None = None
    targets: dict[DomainName, TargetConfig] = Field(default_factory=dict)
    text_column: str = "text"
    bytes_literals: bool = False
    replace: dict[Annotated[str, Field(min_length=1)], str] = Field(default_factory=dict)
    tokens_per_domain: Literal["auto"] | PositiveInt | None = "auto"
    tokenizer: TokenizerConfig = TokenizerConfig(train=TokenizerTraining())
    row_tokens: Annotated[int, Field(ge=8, le=1_048_576)] = 512
    heldout_fraction: Fraction = 0.05
    heldout_tokens: Annotated[int, Field(ge=2)] = 1 << 20
    measured_tokens: PositiveInt | None = None
    require_heldout: bool = False
    max_repetition: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_source(self) -> CorpusConfig:
        if bool(self.domains) == (self.domains_from is not None):
            raise ValueError("give either domains or domains_from")
        if both := [name for name in self.targets if name in self.domains]:
            raise ValueError(f"targets.{both[0]} is also a domain; a target is never trained on: choose another name, or leave the domain out")
        return self


class TransferConfig(Settings):
    """The domains that the proxy is trained on, where they are others than the experiment's: these are embedded by it and nothing is trained for them."""

    domains: dict[DomainName, DomainConfig] = Field(default_factory=dict)
    domains_from: DomainsFrom | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TransferConfig:
        if bool(self.domains) == (self.domains_from is not None):
            raise ValueError("give either domains or domains_from")
        if self.domains_from is not None and self.domains_from.clusters is not None:
            raise ValueError("domains_from.clusters: domains that are yet to be found have no proxy to transfer; list them, or name a column")
        return self


class DomainChange(DomainConfig):
    """What a domain of a changed set is: new text; or what an experiment calls otherwise (`rename`), or has as several domains (`merge`). Of one of the
    experiment's own domains also what it is split into: names of parts, and where the text of each comes from."""

    rename: DomainName | None = None
    merge: tuple[DomainName, ...] = ()
    split: dict[DomainName, DomainConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        kinds = [bool(self.files), self.huggingface is not None, self.rename is not None, bool(self.merge), bool(self.split)]
        if sum(kinds) != 1:
            raise ValueError("give one of files, huggingface, rename, merge and split")
        if not (self.files or self.huggingface) and (self.heldout or self.heldout_split):
            raise ValueError("heldout is for new text; a domain that is renamed, merged or split has its own")
        if self.merge and (len(self.merge) < 2 or len(set(self.merge)) < len(self.merge)):
            raise ValueError("merge needs two domains or more, each once")
        if self.split and len(self.split) < 2:
            raise ValueError("split needs two parts or more")
        return self

    @property
    def source(self) -> DomainConfig:
        """Where new text comes from."""
        return DomainConfig(**{name: getattr(self, name) for name in DomainConfig.model_fields})


class CorpusChanges(Settings):
    """What `extend` makes of an experiment's domains: new ones, those to leave out (null), renamed, merged and split ones."""

    domains: Annotated[dict[DomainName, DomainChange | None], Field(min_length=1)]


def load_changes(path: str | Path) -> CorpusChanges:
    """Read the domains that `extend` adds or leaves out.

    Raises:
        UserError: as for an experiment file.
    """
    return validate(CorpusChanges, read_yaml(path), str(path))


def check_domain_name(name: str) -> str:
    """The name itself; raises `ValueError` for one that tables or folders cannot carry."""
    if name == "all":
        raise ValueError("'all' names the average over domains in every table; choose another name")
    if name in (".", "..") or len(quote(name, safe="")) > 200:
        raise ValueError("the name cannot be a folder's; choose a shorter or plainer one")
    return name
