"""The experiment file as typed, frozen models: what changes the result, apart from where it runs.

Unknown keys and wrong values raise `UserError` with the dotted path of the field, the value found and the remedy. Overrides are dotted
keys (`base.steps=100`), applied before validation, so that they obey the same rules as the file.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from chameleon_ray.errors import UserError
from chameleon_ray.settings import Settings, apply_override, first_line, nearest, read_yaml, validate

DomainName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(lambda name: check_domain_name(name))]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Precision = Literal["auto", "fp32", "bf16"]


class HuggingFaceSource(Settings):
    """One Hugging Face data set, streamed: a hub name or a local folder in the same layout."""

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None


class DomainConfig(Settings):
    """Where one domain's documents come from; `heldout` documents never reach training."""

    files: tuple[str, ...] = ()
    huggingface: HuggingFaceSource | None = None
    heldout: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> DomainConfig:
        if bool(self.files) == (self.huggingface is not None):
            raise ValueError("give either files or huggingface")
        return self


class DomainsFrom(Settings):
    """Domains that are discovered instead of listed: a column of one Hugging Face data set, or the text of this Python environment."""

    huggingface: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    domain_column: str | None = None
    only: tuple[DomainName, ...] = ()
    python_environment: bool = False
    bytes_per_domain: PositiveInt = 2_000_000

    @model_validator(mode="after")
    def _one_source(self) -> DomainsFrom:
        if bool(self.huggingface) == self.python_environment:
            raise ValueError("give either huggingface (with domain_column) or python_environment: true")
        if self.huggingface and not self.domain_column:
            raise ValueError("huggingface needs domain_column, the column that names the domain (dots reach into nested fields)")
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
    """The text, how it becomes tokens, and what is held out."""

    domains: dict[DomainName, DomainConfig] = Field(default_factory=dict)
    domains_from: DomainsFrom | None = None
    text_column: str = "text"
    tokenizer: TokenizerConfig = TokenizerConfig(train=TokenizerTraining())
    row_tokens: Annotated[int, Field(ge=8, le=1_048_576)] = 512
    heldout_fraction: Fraction = 0.05
    max_repetition: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_source(self) -> CorpusConfig:
        if bool(self.domains) == (self.domains_from is not None):
            raise ValueError("give either domains or domains_from")
        return self


class CorpusChanges(Settings):
    """What `extend` adds to an experiment's domains, or leaves out of them (null)."""

    domains: Annotated[dict[DomainName, DomainConfig | None], Field(min_length=1)]


class ModelConfig(Settings):
    """A GPT-2 layout decoder: a preset's name, or layers, heads and width."""

    preset: str | None = None
    layers: PositiveInt | None = None
    heads: PositiveInt | None = None
    width: PositiveInt | None = None

    @model_validator(mode="after")
    def _preset_or_shape(self) -> ModelConfig:
        from chameleon_ray.training.presets import PRESETS

        shape = (self.layers, self.heads, self.width)
        if self.preset is not None:
            if any(value is not None for value in shape):
                raise ValueError("give either preset or layers, heads and width")
            if self.preset not in PRESETS:
                raise ValueError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}{nearest(self.preset, PRESETS)}")
        elif any(value is None for value in shape):
            raise ValueError("give preset, or all of layers, heads and width")
        elif self.width is not None and self.heads is not None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, heads, width)."""
        from chameleon_ray.training.presets import PRESETS

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
    """How one model is trained. Defaults: section B.2 of the paper, where it says; DECISIONS.md, where it does not."""

    model: ModelConfig
    steps: PositiveInt
    batch_rows: PositiveInt = 128
    micro_batch_rows: PositiveInt | None = None
    learning_rate: PositiveFloat = 5.0e-4
    min_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0e-4
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
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
    min_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
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
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    proxies_per_gpu: PositiveInt = 4
    wait_seconds: Annotated[float, Field(ge=0)] = 0
    max_failures: Annotated[int, Field(ge=0)] = 3


class Sweep(Settings):
    """Grids over dotted keys: every method is fitted at every point, so far as the point changes it; base models only with `train_base`."""

    grid: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], Field(min_length=1)]
    train_base: bool = False

    def points(self) -> list[dict[str, Any]]:
        """Every combination, the last key fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


class Experiment(Settings):
    """One experiment file."""

    name: Label
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    storage: str = "runs"
    corpus: CorpusConfig
    proxy: TrainingConfig
    embedding: EmbeddingConfig = EmbeddingConfig()
    base: TrainingConfig
    methods: dict[Label, dict[str, Any]] = Field(default_factory=lambda: dict[str, dict[str, Any]](uniform={}, chameleon={}))
    sweep: Sweep | None = None
    resources: Resources = Resources()

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must differ from each other, found {list(seeds)}")
        return seeds

    @field_validator("base")
    @classmethod
    def _whole_run(cls, base: TrainingConfig) -> TrainingConfig:
        if base.stop is not None:
            raise ValueError("stop is for the proxy; every base model trains its whole run, or they could not be compared: remove base.stop")
        return base

    @field_validator("methods", mode="before")
    @classmethod
    def _empty_settings(cls, methods: Any) -> Any:
        return {name: settings or {} for name, settings in methods.items()} if isinstance(methods, Mapping) else methods

    @model_validator(mode="after")
    def _points_exist(self) -> Experiment:
        for point in self.sweep.points() if self.sweep else ():
            self.at(point)
        return self

    @model_validator(mode="after")
    def _known_methods(self) -> Experiment:
        if not self.methods:
            raise ValueError("methods: list at least one method")
        for label in self.methods:
            self.mixer(label)
        return self

    def at(self, point: Mapping[str, Any]) -> Experiment:
        """The experiment with a sweep's values in place.

        Raises:
            UserError: a key that does not exist, or a value that it does not take.
        """
        document = self.model_dump(mode="json", exclude={"sweep"})
        for key, value in point.items():
            apply_override(document, f"{key}={json.dumps(value)}")
        return parse_experiment(document, f"sweep.grid at {describe(point)}")

    def mixer(self, label: str) -> Any:
        """The method object behind `methods.<label>`; its `method:` key names the method when the label does not.

        Raises:
            UserError: unknown method, or settings it does not have.
        """
        from chameleon_ray.mixing import METHODS

        if label not in self.methods and label not in METHODS:
            raise UserError(f"methods.{label}: unknown method; known: {', '.join(METHODS)}{nearest(label, METHODS)}")
        settings = dict(self.methods.get(label, {}))
        method = settings.pop("method", label)
        if method not in METHODS:
            raise UserError(f"methods.{label}: unknown method {method!r}; known: {', '.join(METHODS)}{nearest(str(method), METHODS)}")
        try:
            return METHODS[method](**settings)
        except ValidationError as error:
            raise UserError(first_line(error, f"methods.{label}")) from None


def describe(point: Mapping[str, Any]) -> str:
    """A point of a sweep as it is written in the file: `key=value, …`."""
    written = {key: yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip() for key, value in point.items()}
    return ", ".join(f"{key}={value}" for key, value in written.items())


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply dotted overrides.

    Args:
        path: a YAML file.
        overrides: `key.sub=value` strings; the value is read as YAML.
    Raises:
        UserError: unreadable file, unknown key, wrong value, or an environment variable that is not set.
    """
    document = read_yaml(path)
    for override in overrides:
        apply_override(document, override)
    return parse_experiment(document, source=str(path))


def load_changes(path: str | Path) -> CorpusChanges:
    """Read the domains that `extend` adds or leaves out.

    Raises:
        UserError: as for an experiment file.
    """
    return validate(CorpusChanges, read_yaml(path), str(path))


def parse_experiment(document: Mapping[str, Any], source: str = "experiment") -> Experiment:
    """Validate a mapping as an `Experiment`; `source` names it in error messages."""
    return validate(Experiment, document, source)


def check_domain_name(name: str) -> str:
    """The name itself; raises `ValueError` for one that tables or folders cannot carry."""
    if name == "all":
        raise ValueError("'all' names the average over domains in every table; choose another name")
    if name in (".", "..") or len(quote(name, safe="")) > 200:
        raise ValueError("the name cannot be a folder's; choose a shorter or plainer one")
    return name
