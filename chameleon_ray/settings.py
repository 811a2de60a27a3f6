"""How settings are read: types of numbers, YAML with unique keys, dotted overrides, environment variables, and mistakes in one line.

What the settings are is in `config.py`, `experiment.py` and beside each method.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from chameleon_ray.errors import UserError

T = TypeVar("T", bound=BaseModel)

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of every configuration model: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        """A key that is null is a key that is not there, unless it may be null: so an override takes away what a file says."""
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if value is not None or key not in cls.model_fields or _takes_null(cls.model_fields[key])}


def _takes_null(field: FieldInfo) -> bool:
    return field.annotation is Any or type(None) in get_args(field.annotation)


def validate(model: type[T], document: Mapping[str, Any], source: str) -> T:
    """Validate a mapping, `${VARIABLE}` expanded, as `model`; the first mistake becomes a one-line `UserError`."""
    try:
        return model.model_validate(_expand(document, ""))
    except ValidationError as error:
        raise UserError(f"{source}: {first_line(error)}") from None
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


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set `key.sub=value` in a mapping; the value is read as YAML. Raises UserError when it is not of that form."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r}: expected key.sub=value, or @FILE")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not valid YAML") from None
    set_key(document, key, value, override)


def set_key(document: dict[str, Any], key: str, value: Any, override: str) -> None:
    """Set a dotted key of a mapping, making the sections that it leads through; `override` is what errors call it. Raises UserError for what is none."""
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
    node[last] = value


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


def first_line(error: ValidationError, prefix: str = "") -> str:
    """The first mistake as `path: what is wrong (found …)`; `prefix` is put before the path."""
    mistake = error.errors(include_url=False)[0]
    path = ".".join([prefix, *map(str, mistake["loc"])] if prefix else [str(part) for part in mistake["loc"]])
    found = mistake.get("input")
    if mistake["type"] == "extra_forbidden":
        return f"{path}: unknown key (value {found!r}); remove it or correct its spelling{_sibling(error.title, mistake['loc'])}"
    if mistake["type"] == "missing":
        return f"{path}: missing; add it"
    message = _in_yaml(mistake) or mistake["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(found, (Mapping, BaseModel)) else f" (found {found!r})"
    return f"{path}: {message}{shown}" if path else message


def _in_yaml(mistake: ErrorDetails) -> str | None:
    """What was expected, where pydantic says it in Python's words."""
    match mistake["type"]:
        case "model_type":
            model = _called(mistake["ctx"]["class_name"])
            return f"expected a section with keys such as {', '.join(list(model.model_fields)[:3])}" if model else "expected a section"
        case "dict_type":
            return "expected a section of names and their values"
        case "tuple_type":
            found = mistake["input"]
            return "expected a list" if isinstance(found, (Mapping, BaseModel)) else f"expected a list, as [{found}]"
        case "too_short":
            return "expected at least one"
    return None


def _called(title: str) -> type[BaseModel] | None:
    return next((found for found in _below(Settings) if found.__name__ == title), None)


def _sibling(title: str, location: tuple[int | str, ...]) -> str:
    """A known key close to the last part of the location, in the model that the parts before it lead to."""
    model = _called(title)
    parts = iter(location[:-1])
    for part in parts:
        if model is None or part not in model.model_fields:
            return ""
        annotation = model.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            next(parts, None)
        model = _model_in(annotation)
    return nearest(str(location[-1]), model.model_fields) if model else ""


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in model.__subclasses__():
        yield child
        yield from _below(child)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    return ", ".join([*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])])


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that is closest, or nothing."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
