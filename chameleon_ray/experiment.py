"""The experiment file: what is compared, on which text, with which models, and where.

Unknown keys and wrong values raise `UserError` with the dotted path of the field, the value found and the remedy. Overrides are dotted
keys (`base.steps=100`), applied before validation, so that they obey the same rules as the file.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from chameleon_ray.backend import Reads
from chameleon_ray.config import BudgetConfig, ConstraintsConfig, EmbeddingConfig, QuestionConfig, Resources, TrainingConfig, refuse_lora
from chameleon_ray.corpus_config import CorpusConfig, TransferConfig
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.formula import Stage
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.methods import METHODS
from chameleon_ray.settings import Label, NonNegativeInt, Settings, apply_override, first_line, nearest, read_yaml, set_key, validate

# What is compared where a file names no methods. When finetuning also what pretraining would weigh, as the paper's control (tables 18 and 19).
COMPARED: dict[Stage, dict[str, dict[str, Any]]] = {
    "pretrain": {"uniform": {}, "chameleon": {}},
    "finetune": {"uniform": {}, "alpha_ft": {"method": "chameleon"}, "alpha_pt": {"method": "chameleon", "stage": "pretrain"}},
}
SMALL_TEXT_BYTES = 256 << 20  # a corpus of so much text is read in less time than its proxy trains


class Sweep(Settings):
    """Other values for dotted keys: every combination (`grid`), or one key at a time (`each`). Every method is fitted at every point, so far as the point
    changes it; base models only with `train_base`, and where the text and its tokens are the same."""

    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    each: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    train_base: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Sweep:
        if bool(self.grid) == bool(self.each):
            raise ValueError("give either grid (every combination) or each (one key at a time)")
        if "corpus.measured_tokens" in {**self.grid, **self.each}:
            raise ValueError("corpus.measured_tokens is how all base models are measured, or they could not be compared; set it under corpus")
        return self

    def points(self) -> list[dict[str, Any]]:
        """Every combination, the last key fastest; or every value of one key after the other."""
        if self.each:
            return [{key: value} for key, values in self.each.items() for value in values]
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


class Experiment(Settings):
    """One experiment file.

    `stage`: pretrain, or finetune: base models then go on from a pretrained one, which also embeds the domains unless another proxy is given, and scores
    make weights as they do for finetuning (section 4.3 of the paper).

    `seeds` are those of the base models, and the first decides everything else. With `fit_every_seed` every method is fitted anew with each of them, its
    proxies and swarms included, and a seed's base model trains on that seed's mixture: what is said of seeds then holds for fits too.
    """

    name: Label
    stage: Stage = "pretrain"
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    fit_every_seed: bool = False
    storage: str = "runs"
    corpus: CorpusConfig
    proxy: TrainingConfig
    embedding: EmbeddingConfig = EmbeddingConfig()
    base: TrainingConfig
    budget: BudgetConfig | None = None
    constraints: ConstraintsConfig = ConstraintsConfig()
    methods: dict[Label, dict[str, Any]] = Field(default_factory=lambda found: COMPARED[found.get("stage", "pretrain")])
    transfer: TransferConfig | None = None
    sweep: Sweep | None = None
    resources: Resources = Resources()

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must differ from each other, found {list(seeds)}")
        return seeds

    @field_validator("proxy")
    @classmethod
    def _whole_proxy(cls, proxy: TrainingConfig) -> TrainingConfig:
        refuse_lora(proxy.model)
        return proxy

    @field_validator("base")
    @classmethod
    def _whole_run(cls, base: TrainingConfig) -> TrainingConfig:
        if base.stop is not None:
            raise ValueError("stop is for the proxy; every base model trains its whole run, or they could not be compared: remove base.stop")
        if base.steps == 0:
            raise ValueError("steps 0 trains nothing, so that no mixture would show; give at least 1")
        return base

    @model_validator(mode="before")
    @classmethod
    def _follow_the_pretrained(cls, document: Any) -> Any:
        """A model that is finetuned embeds the domains itself, as it is, unless there is a proxy; and a pretrained model reads its own tokens: unless the
        corpus names a tokenizer, it gets that one."""
        if not isinstance(document, Mapping):
            return document
        name = _pretrained(document, "base")
        if document.get("stage") == "finetune" and name is None:
            told = "goes on from a model that is trained already; give base.model: {pretrained: NAME}, or stage: pretrain"
            raise ValueError(f"base.model: stage finetune {told}")
        if document.get("proxy") is None and name is not None:
            if document.get("stage") != "finetune":
                raise ValueError(f"proxy: missing; add one to be trained, or take a model as it is: proxy: {{model: {{pretrained: {name}}}, steps: 0}}")
            document = {**document, "proxy": _as_it_is(document["base"]["model"])}
        match document:
            case {"corpus": Mapping() as corpus} if corpus.get("tokenizer") is None and (name := _pretrained(document, "proxy", "base")):
                return {**document, "corpus": {**corpus, "tokenizer": {"pretrained": name}}}
        return document

    @field_validator("methods", mode="before")
    @classmethod
    def _empty_settings(cls, methods: Any) -> Any:
        return {name: settings or {} for name, settings in methods.items()} if isinstance(methods, Mapping) else methods

    @model_validator(mode="after")
    def _points_exist(self) -> Experiment:
        sweep = self.sweep
        if sweep is None:
            return self
        for key in {**sweep.grid, **sweep.each}:
            section, _, rest = key.partition(".")
            if key == "seeds" and (sweep.train_base or self.fit_every_seed):
                raise ValueError(
                    "sweep: seeds shows how fits differ; set sweep.train_base and fit_every_seed to false, or give several seeds without a sweep of them"
                )
            if section == "methods" and (label := rest.partition(".")[0]) not in self.methods:
                raise ValueError(f"sweep: {key} is of a method that is not here; methods has {', '.join(self.methods)}{nearest(label, self.methods)}")
        self.points()
        return self

    @model_validator(mode="after")
    def _known_methods(self) -> Experiment:
        if not self.methods:
            raise ValueError("methods: list at least one method")
        for label in self.methods:
            self.mixer(label)
        return self

    @model_validator(mode="after")
    def _repetition_in_a_budget(self) -> Experiment:
        if self.corpus.max_repetition is not None and self.budget is None:
            drawn = self.base.rows * self.corpus.row_tokens
            raise ValueError(
                f"corpus.max_repetition: says how often a domain may be repeated in budget.tokens, and there is no budget; add budget: {{tokens: N}} "
                f"(a base model of this experiment draws {drawn})"
            )
        return self

    @model_validator(mode="after")
    def _a_proxy_to_transfer(self) -> Experiment:
        if self.transfer is not None and self.proxy.steps == 0:
            raise ValueError("transfer: a proxy that is taken as it is (proxy.steps: 0) is trained on no domains; remove transfer, or train the proxy")
        found = self.corpus.domains_from and self.corpus.domains_from.clusters
        if self.transfer is not None and found and found.embed == "proxy":
            raise ValueError("transfer: corpus.domains_from.clusters would train the proxy on the text that it divides; name a pretrained model as embed there")
        return self

    @property
    def chameleons(self) -> list[str]:
        """Labels of Chameleon, the one that is meant where none is named first: that which is called so, then those that weigh for the experiment's stage."""
        labels = [label for label, settings in self.methods.items() if settings.get("method", label) == "chameleon"]
        return sorted(labels, key=lambda label: (label != "chameleon", self.methods[label].get("stage", self.stage) != self.stage))

    @property
    def question(self) -> QuestionConfig:
        """What the methods' weights must keep to."""
        return QuestionConfig(budget=self.budget, max_repetition=self.corpus.max_repetition, constraints=self.constraints)

    @property
    def fit_seeds(self) -> tuple[int, ...]:
        """The seeds that methods are fitted with."""
        return self.seeds if self.fit_every_seed else self.seeds[:1]

    def fit_seed(self, seed: int) -> int:
        """The seed of the fit that the base model of a seed trains on."""
        return seed if self.fit_every_seed else self.seeds[0]

    @property
    def reads(self) -> Reads | None:
        """How much train text the experiment reads; None where `corpus.tokens_per_domain` asks for all of it.

        auto: what every domain's embedding takes, and so much that no run on uniform weights reads anything twice: a domain of x times the uniform share is
        read x times over. The same for every command, and at every point of a sweep, so that they share one corpus.
        """
        wanted = self.corpus.tokens_per_domain
        if wanted is None:
            return None
        if wanted != "auto":
            return Reads(wanted)
        points = [self, *self.points()]
        runs = [run for each in points for run in (each.base, *(run for label in each.methods for run in each.mixer(label).trainings(each.proxy)))]
        rows = max(each.embedding.samples_per_domain for each in points)
        longest = max(run.rows for run in runs)
        row_tokens = max(each.corpus.row_tokens for each in points)
        return Reads(rows * row_tokens, longest * row_tokens, SMALL_TEXT_BYTES)

    def points(self) -> list[Experiment]:
        """The experiment at every point of its sweep; none without one. Raises what `at` raises."""
        return [self.at(point) for point in self.sweep.points()] if self.sweep else []

    def at(self, point: Mapping[str, Any]) -> Experiment:
        """The experiment with a sweep's values in place, as if the file had them: what follows from them unless it is given, follows.

        Raises:
            UserError: a key that does not exist, or a value that it does not take.
        """
        document = {**self.model_dump(mode="json", exclude={"sweep"}, exclude_unset=True), "methods": copy.deepcopy(self.methods)}
        if (name := _pretrained(document, "proxy", "base")) and (document["corpus"].get("tokenizer") or {}).get("pretrained") == name:
            del document["corpus"]["tokenizer"]  # it follows the model
        if self.stage == "finetune" and self.proxy == TrainingConfig.model_validate(_as_it_is(document["base"]["model"])):
            del document["proxy"]  # and so does this
        for key, value in point.items():
            apply_override(document, f"{key}={json.dumps(value)}")
        return parse_experiment(document, f"sweep at {describe(point)}")

    def mixer(self, label: str) -> Method:
        """The method object behind `methods.<label>`; its `method:` key names the method when the label does not.

        Raises:
            UserError: unknown method, or settings it does not have.
        """
        if label not in self.methods and label not in METHODS:
            raise UserError(f"methods.{label}: unknown method; known: {', '.join(METHODS)}{nearest(label, METHODS)}")
        settings = dict(self.methods.get(label, {}))
        method = settings.pop("method", label)
        if method not in METHODS:
            raise UserError(f"methods.{label}: unknown method {method!r}; known: {', '.join(METHODS)}{nearest(str(method), METHODS)}")
        if "stage" in METHODS[method].model_fields:
            settings.setdefault("stage", self.stage)
        try:
            return METHODS[method](**settings)
        except ValidationError as error:
            raise UserError(first_line(error, f"methods.{label}")) from None


def _as_it_is(model: Mapping[str, Any]) -> dict[str, Any]:
    """A proxy that is the pretrained base model before it is trained."""
    return {"model": {key: model[key] for key in ("pretrained", "allow_remote_code") if key in model}, "steps": 0}


def _pretrained(document: Mapping[str, Any], *sections: str) -> str | None:
    """The pretrained model of the first section that has one. An experiment follows the tokenizer of its proxy, or where that is fresh of its base model."""
    for section in sections:
        match document.get(section):
            case {"model": {"pretrained": str(name)}}:
                return name
    return None


def describe(point: Mapping[str, Any]) -> str:
    """A point of a sweep as it is written in the file: `key=value, …`."""
    written = {key: yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip() for key, value in point.items()}
    return ", ".join(f"{key}={value}" for key, value in written.items())


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply dotted overrides.

    Args:
        path: a YAML file.
        overrides: `key.sub=value` strings, the value being read as YAML; or `@FILE`, a YAML file of such keys with their values.
    Raises:
        UserError: unreadable file, unknown key, wrong value, or an environment variable that is not set.
    """
    document = read_yaml(path)
    files = [str(path), *(override[1:] for override in overrides if override.startswith("@"))]
    for override in overrides:
        keys = read_yaml(override[1:]) if override.startswith("@") else {override.partition("=")[0]: None}
        if "methods" not in document and any(str(key).startswith("methods.") for key in keys):
            document["methods"] = copy.deepcopy(COMPARED.get(document.get("stage", "pretrain"), {}))  # what stands there where nothing is written
        if override.startswith("@"):
            for key, value in keys.items():
                set_key(document, str(key), value, override)
        else:
            apply_override(document, override)
    return parse_experiment(document, source=" with ".join(files))


def parse_experiment(document: Mapping[str, Any], source: str = "experiment") -> Experiment:
    """Validate a mapping as an `Experiment`; `source` names it in error messages."""
    return validate(Experiment, document, source)
