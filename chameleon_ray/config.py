"""The experiment file as typed, frozen models: what changes the result, apart from where it runs.

Unknown keys and wrong values raise `UserError` with the dotted path of the field, the value found and the remedy. Overrides are dotted
keys (`base.steps=100`), applied before validation, so that they obey the same rules as the file.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import quote

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from chameleon_ray.errors import UserError

T = TypeVar("T", bound=BaseModel)
DomainName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(lambda name: _not_reserved(name))]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of every configuration model: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


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
                raise ValueError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}{_nearest(self.preset, PRESETS)}")
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
    checkpoint_every_steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} exceeds learning_rate {self.learning_rate}")
        if self.micro_batch_rows is not None and self.batch_rows % self.micro_batch_rows:
            raise ValueError(f"batch_rows {self.batch_rows} is not a multiple of micro_batch_rows {self.micro_batch_rows}")
        if self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be under steps {self.steps}")
        return self


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
    wait_seconds: Annotated[float, Field(ge=0)] = 0
    max_failures: Annotated[int, Field(ge=0)] = 3


class Experiment(Settings):
    """One experiment file."""

    name: Label
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    storage: str = "runs"
    corpus: CorpusConfig
    proxy: TrainingConfig
    embedding: EmbeddingConfig = EmbeddingConfig()
    base: TrainingConfig
    methods: dict[Label, dict[str, Any]] = {"uniform": {}, "chameleon": {}}
    resources: Resources = Resources()

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must differ from each other, found {list(seeds)}")
        return seeds

    @field_validator("methods", mode="before")
    @classmethod
    def _empty_settings(cls, methods: Any) -> Any:
        return {name: settings or {} for name, settings in methods.items()} if isinstance(methods, Mapping) else methods

    @model_validator(mode="after")
    def _known_methods(self) -> Experiment:
        if not self.methods:
            raise ValueError("methods: list at least one method")
        for label in self.methods:
            self.mixer(label)
        return self

    def mixer(self, label: str) -> Any:
        """The method object behind `methods.<label>`; its `method:` key names the method when the label does not.

        Raises:
            UserError: unknown method, or settings it does not have.
        """
        from chameleon_ray.mixing import METHODS

        if label not in self.methods and label not in METHODS:
            raise UserError(f"methods.{label}: unknown method; known: {', '.join(METHODS)}{_nearest(label, METHODS)}")
        settings = dict(self.methods.get(label, {}))
        method = settings.pop("method", label)
        if method not in METHODS:
            raise UserError(f"methods.{label}: unknown method {method!r}; known: {', '.join(METHODS)}{_nearest(str(method), METHODS)}")
        try:
            return METHODS[method](**settings)
        except ValidationError as error:
            raise UserError(_first_line(error, f"methods.{label}")) from None


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
        _apply_override(document, override)
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


def validate(model: type[T], document: Mapping[str, Any], source: str) -> T:
    """Validate a mapping, `${VARIABLE}` expanded, as `model`; the first mistake becomes a one-line `UserError`."""
    try:
        return model.model_validate(_expand(document, ""))
    except ValidationError as error:
        raise UserError(f"{source}: {_first_line(error)}") from None
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); give the path of a YAML file") from None
    try:
        document = _UniqueKeyLoader(text).get_single_data()
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" line {place.line + 1}" if place is not None else ""
        raise UserError(f"{path}:{where} not valid YAML ({getattr(error, 'problem', None) or 'syntax error'})") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {type(document).__name__}")
    return document


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice; remove one", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _not_reserved(name: str) -> str:
    if name == "all":
        raise ValueError("'all' names the average over domains in every table; choose another name")
    if name in (".", "..") or len(quote(name, safe="")) > 200:
        raise ValueError("the name cannot be a folder's; choose a shorter or plainer one")
    return name


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r}: expected key.sub=value")
    *parents, last = key.split(".")
    if not all((*parents, last)):
        raise UserError(f"override {override!r}: expected key.sub=value, found an empty part in {key!r}")
    node = document
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"override {override!r}: {parent} holds {child!r}, not a section")
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not valid YAML") from None


def _expand(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _expand(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UserError(f"{path}: environment variable {match[1]} is not set (value {value!r}); export {match[1]}=… first")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def _first_line(error: ValidationError, prefix: str = "") -> str:
    mistake = error.errors(include_url=False)[0]
    path = ".".join([prefix, *map(str, mistake["loc"])] if prefix else [str(part) for part in mistake["loc"]])
    found = mistake.get("input")
    if mistake["type"] == "extra_forbidden":
        return f"{path}: unknown key (value {found!r}); remove it or correct its spelling{_sibling(error.title, mistake['loc'])}"
    if mistake["type"] == "missing":
        return f"{path}: missing; add it"
    message = mistake["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(found, (Mapping, BaseModel)) else f" (found {found!r})"
    return f"{path}: {message}{shown}" if path else message


def _sibling(title: str, location: tuple[int | str, ...]) -> str:
    """A known key close to the last part of the location, in the model that the parts before it lead to."""
    model: type[BaseModel] | None = next((found for found in Settings.__subclasses__() if found.__name__ == title), None)
    parts = iter(location[:-1])
    for part in parts:
        if model is None or part not in model.model_fields:
            return ""
        annotation = model.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            next(parts, None)
        model = _model_in(annotation)
    return _nearest(str(location[-1]), model.model_fields) if model else ""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


def _nearest(word: str, known: Any) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
