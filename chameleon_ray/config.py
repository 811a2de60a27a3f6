"""The sections of an experiment file about models and weights as typed, frozen models. The text: `corpus_config.py`; the whole file: `experiment.py`.

Unknown keys and wrong values raise `UserError` with the dotted path of the field, the value found and the remedy.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from chameleon_ray.corpus_config import DomainName
from chameleon_ray.presets import PRESETS
from chameleon_ray.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings, nearest, validate

Precision = Literal["auto", "fp32", "bf16"]


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


class LoraConfig(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on linear maps of a pretrained model whose own weights stay as they are: W + alpha / rank * B A.

    `alpha`: null takes twice the rank. `targets`: how the names of the maps end (`q_proj`, `attn.c_proj`); none takes every linear map of the blocks.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None
    targets: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return 2.0 if self.alpha is None else self.alpha / self.rank


class ModelConfig(Settings):
    """A fresh GPT-2 layout decoder, by a preset's name or by layers, heads and width; or a causal LM that others trained, by folder, GGUF file or hub name.

    Code that lies beside the weights of such a model is run only with `allow_remote_code`. With `lora` it is not trained itself, but adapters beside it.
    """

    preset: str | None = None
    layers: PositiveInt | None = None
    heads: PositiveInt | None = None
    width: PositiveInt | None = None
    pretrained: str | None = None
    allow_remote_code: bool = False
    lora: LoraConfig | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> ModelConfig:
        shape = (self.layers, self.heads, self.width)
        if self.lora is not None and self.pretrained is None:
            raise ValueError("lora trains adapters beside a pretrained model; give pretrained: NAME, or remove lora")
        if self.allow_remote_code and self.pretrained is None:
            raise ValueError("allow_remote_code is for a pretrained model; remove it")
        if self.pretrained is not None:
            if others := [key for key in ("preset", "layers", "heads", "width") if getattr(self, key) is not None]:
                told = f"give either pretrained, or preset, or layers, heads and width; found {' and '.join(['pretrained', *others])}"
                raise ValueError(f"{told}: write model: {{pretrained: {self.pretrained}}}, or set the others to null")
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

    A pretrained model may be taken as it is, with 0 steps. `min_learning_rate`: unless given a fifth of the learning rate, and at most 1e-4.
    """

    model: ModelConfig
    steps: NonNegativeInt
    batch_rows: PositiveInt = 128
    micro_batch_rows: PositiveInt | None = None
    learning_rate: PositiveFloat = 5.0e-4
    min_learning_rate: NonNegativeFloat = Field(default_factory=lambda found: min(1.0e-4, found.get("learning_rate", 0.0) / 5))
    warmup_steps: NonNegativeInt | None = None
    weight_decay: NonNegativeFloat = 0.01
    gradient_clipping: PositiveFloat = 1.0
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    precision: Precision = "auto"
    checkpoint_every_steps: PositiveInt | None = None
    schedule_steps: PositiveInt | None = None
    stop: StopConfig | None = None

    @property
    def rows(self) -> int:
        """Rows that the whole run draws."""
        return self.steps * self.batch_rows

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

    @field_validator("model")
    @classmethod
    def _whole_model(cls, model: ModelConfig | None) -> ModelConfig | None:
        return refuse_lora(model)

    def applied_to(self, training: TrainingConfig) -> TrainingConfig:
        """The training with what is given here in its place; raises `UserError` when the two do not fit each other."""
        return validate(TrainingConfig, {**training.model_dump(exclude_unset=True), **self.model_dump(exclude_none=True)}, "proxy")


def refuse_lora(model: ModelConfig | None) -> ModelConfig | None:
    """The model itself; raises `ValueError` where adapters are asked for beside a proxy."""
    if model is not None and model.lora is not None:
        raise ValueError("lora is for base.model; a proxy is trained whole, or taken as it is with steps: 0; remove lora")
    return model


class EmbeddingConfig(Settings):
    """Which hidden state, of how many rows per domain (at most `samples_per_domain`, each one packed train row), and in which number format the model is."""

    samples_per_domain: PositiveInt = 4096
    layer: Literal["middle"] | int = "middle"
    precision: Precision = "auto"

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
