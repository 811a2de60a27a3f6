"""The sections of an experiment file as typed, frozen models: what changes the result, apart from where it runs. The whole file: `experiment.py`.

Unknown keys and wrong values raise `UserError` with the dotted path of the field, the value found and the remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field, field_validator, model_validator

from chameleon_ray.presets import PRESETS
from chameleon_ray.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings, nearest, read_yaml, validate

DomainName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(lambda name: check_domain_name(name))]
Precision = Literal["auto", "fp32", "bf16"]


class HuggingFaceSource(Settings):
    """One Hugging Face data set: a hub name or a local folder in the same layout."""

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None


class DomainConfig(Settings):
    """Where one domain's documents come from; what is read of `heldout` never reaches training."""

    files: tuple[str, ...] = ()
    huggingface: HuggingFaceSource | None = None
    heldout: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> DomainConfig:
        if bool(self.files) == (self.huggingface is not None):
            raise ValueError("give either files or huggingface")
        return self


class TargetConfig(Settings):
    """Where the text of a target comes from: all of it is held out."""

    files: tuple[str, ...] = ()
    huggingface: HuggingFaceSource | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TargetConfig:
        if bool(self.files) == (self.huggingface is not None):
            raise ValueError("give either files or huggingface")
        return self


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


class DomainsFrom(Settings):
    """Domains that are discovered instead of listed: a column of files or of one Hugging Face data set, clusters of documents, or the text of this Python
    environment."""

    files: tuple[str, ...] = ()
    huggingface: str | None = None
    clusters: ClustersConfig | None = None
    name: str | None = None
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
    """The text, how it becomes tokens, and what is held out: at most `heldout_tokens` of each domain in each of valid and test.

    `tokens_per_domain` is how much of a domain is read to be trained on, beside what is held out: a number; null, all of it; or auto, what the experiment
    needs of it (`Experiment.reads`).

    A domain with fewer than two distinct held-out documents is trained on and not measured, or with `require_heldout` refused. `targets` are texts that every
    model is measured on and none is trained on.
    """

    domains: dict[DomainName, DomainConfig] = Field(default_factory=dict)
    domains_from: DomainsFrom | None = None
    targets: dict[DomainName, TargetConfig] = Field(default_factory=dict)
    text_column: str = "text"
    tokens_per_domain: Literal["auto"] | PositiveInt | None = "auto"
    tokenizer: TokenizerConfig = TokenizerConfig(train=TokenizerTraining())
    row_tokens: Annotated[int, Field(ge=8, le=1_048_576)] = 512
    heldout_fraction: Fraction = 0.05
    heldout_tokens: Annotated[int, Field(ge=2)] = 1 << 20
    require_heldout: bool = False
    max_repetition: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_source(self) -> CorpusConfig:
        if bool(self.domains) == (self.domains_from is not None):
            raise ValueError("give either domains or domains_from")
        if both := [name for name in self.targets if name in self.domains]:
            raise ValueError(f"targets.{both[0]} is also a domain; a target is never trained on: choose another name, or leave the domain out")
        return self


class BudgetConfig(Settings):
    """How much training the weights are for: `tokens`, and how many there are of every domain: by name, or as the corpus says where nothing is given."""

    tokens: PositiveInt
    domain_tokens: Literal["estimated"] | dict[DomainName, PositiveInt] = "estimated"


class Share(Settings):
    """What a weight may be, or the sum of several."""

    min: Annotated[float, Field(ge=0, le=1)] = 0.0
    max: Annotated[float, Field(ge=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _says_something(self) -> Share:
        if self.min > self.max:
            raise ValueError(f"min {self.min} exceeds max {self.max}")
        if self.min == 0 and self.max == 1:
            raise ValueError("give min, max or both")
        return self


class GroupShare(Share):
    """What the weights of some domains may be together."""

    of: Annotated[tuple[DomainName, ...], Field(min_length=1)]


class ConstraintsConfig(Settings):
    """What the weights of single domains, and of named groups of them, may be."""

    domains: dict[DomainName, Share] = Field(default_factory=dict)
    groups: dict[str, GroupShare] = Field(default_factory=dict)


class QuestionConfig(Settings):
    """What is asked of every method beside the experiment's text and models; mixtures answer to it."""

    budget: BudgetConfig | None
    max_repetition: float | None
    constraints: ConstraintsConfig


class CorpusChanges(Settings):
    """What `extend` adds to an experiment's domains, or leaves out of them (null)."""

    domains: Annotated[dict[DomainName, DomainConfig | None], Field(min_length=1)]


class ModelConfig(Settings):
    """A fresh GPT-2 layout decoder, by a preset's name or by layers, heads and width; or a causal LM that others trained, by folder, GGUF file or hub name.

    Code that lies beside the weights of such a model is run only with `allow_remote_code`.
    """

    preset: str | None = None
    layers: PositiveInt | None = None
    heads: PositiveInt | None = None
    width: PositiveInt | None = None
    pretrained: str | None = None
    allow_remote_code: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> ModelConfig:
        shape = (self.layers, self.heads, self.width)
        if self.allow_remote_code and self.pretrained is None:
            raise ValueError("allow_remote_code is for a pretrained model; remove it")
        if self.pretrained is not None:
            if self.preset is not None or any(value is not None for value in shape):
                raise ValueError("give either pretrained, or preset, or layers, heads and width")
        elif self.preset is not None:
            if any(value is not None for value in shape):
                raise ValueError("give either preset or layers, heads and width")
            if self.preset not in PRESETS:
                raise ValueError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}{nearest(self.preset, PRESETS)}")
        elif any(value is None for value in shape):
            raise ValueError("give preset, or all of layers, heads and width, or pretrained")
        elif self.width is not None and self.heads is not None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, heads, width) of a fresh model."""
        if self.preset is not None:
            return PRESETS[self.preset]
        assert self.layers and self.heads and self.width
        return self.layers, self.heads, self.width


class StopConfig(Settings):
    """When a proxy's training may end early: the weights within `tolerance` (L1) of those at half the steps, twice running.

    `bootstrap` takes the sum of the weights' standard errors as the tolerance. `every_steps`: null takes a twentieth of the run.
    """

    tolerance: PositiveFloat | Literal["bootstrap"] = 0.05
    every_steps: PositiveInt | None = None
    samples_per_domain: PositiveInt = 64


class TrainingConfig(Settings):
    """How one model is trained. Defaults: section B.2 of the paper, where it says; DECISIONS.md, where it does not.

    A pretrained model may be taken as it is, with 0 steps.
    """

    model: ModelConfig
    steps: NonNegativeInt
    batch_rows: PositiveInt = 128
    micro_batch_rows: PositiveInt | None = None
    learning_rate: PositiveFloat = 5.0e-4
    min_learning_rate: NonNegativeFloat = 1.0e-4
    warmup_steps: NonNegativeInt | None = None
    weight_decay: NonNegativeFloat = 0.01
    gradient_clipping: PositiveFloat = 1.0
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    precision: Precision = "auto"
    checkpoint_every_steps: PositiveInt | None = None
    schedule_steps: PositiveInt | None = None
    stop: StopConfig | None = None

    @property
    def horizon(self) -> int:
        """Steps that the learning rate is planned for: a run may end before, and is then the beginning of a longer one."""
        return self.schedule_steps or self.steps

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.steps == 0 and self.model.pretrained is None:
            raise ValueError("steps 0 leaves a fresh model, which has learned nothing; give at least 1, or model: {pretrained: NAME}")
        if self.steps == 0 and self.stop is not None:
            raise ValueError("stop: a model that is taken as it is (steps 0) has no training to end; remove stop")
        if self.horizon < self.steps:
            raise ValueError(f"schedule_steps {self.schedule_steps} is under steps {self.steps}; the learning rate cannot end before the run")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} exceeds learning_rate {self.learning_rate}")
        if self.micro_batch_rows is not None and self.batch_rows % self.micro_batch_rows:
            raise ValueError(f"batch_rows {self.batch_rows} is not a multiple of micro_batch_rows {self.micro_batch_rows}")
        if self.warmup_steps is not None and self.warmup_steps >= self.horizon:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be under steps {self.horizon}")
        return self


class ProxyChanges(Settings):
    """How a method's own proxy differs from the experiment's."""

    model: ModelConfig | None = None
    steps: PositiveInt | None = None
    batch_rows: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    min_learning_rate: NonNegativeFloat | None = None
    warmup_steps: NonNegativeInt | None = None
    schedule_steps: PositiveInt | None = None

    def applied_to(self, training: TrainingConfig) -> TrainingConfig:
        """The training with what is given here in its place; raises `UserError` when the two do not fit each other."""
        return validate(TrainingConfig, {**training.model_dump(), **self.model_dump(exclude_none=True)}, "proxy")


class EmbeddingConfig(Settings):
    """Which hidden state, and of how many rows per domain: at most `samples_per_domain`, each one packed train row."""

    samples_per_domain: PositiveInt = 4096
    layer: Literal["middle"] | int = "middle"

    @field_validator("layer", mode="before")
    @classmethod
    def _middle_or_number(cls, layer: Any) -> Any:
        if layer != "middle" and (not isinstance(layer, int) or isinstance(layer, bool) or layer < 1):
            raise ValueError("give middle, or the number of a layer, from 1")
        return layer


class Resources(Settings):
    """Where it runs. Never part of a digest: same seed, same answer, however many workers."""

    num_workers: PositiveInt = 1
    cpus_per_worker: PositiveInt = 1
    gpus_per_worker: NonNegativeFloat = 0
    proxies_per_gpu: PositiveInt = 4
    wait_seconds: NonNegativeFloat = 0
    max_failures: NonNegativeInt = 3


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
