"""Typed options: builds a frozen dataclass from keys and values, and reports every mistake at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeGuard, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fsmerge_cli.common.errors import ConfigError, unknown, unknown_key
from fsmerge_cli.common.shown import brief

FORBID = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
BatchSize = Annotated[Positive, Field(le=1_000_000)]
NonNegativeFloat = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
Magnitude = Annotated[int, Field(strict=True, ge=0, le=30)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]

TARGET = "_target_"
"""Hydra's key for a class to instantiate; only allowed in the `hydra:` node."""

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of the pydantic dataclass `cls` from `values`; `where` is the key of `values` ("": none).

    Raises ConfigError listing every unknown key (with the closest match), wrong type and value out of range.
    """
    _mapping(values, where)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_sentences(error, where, cls))) from None


def choose(registry: Mapping[str, type[T]], values: Mapping[str, Any], kind: str) -> T:
    """An instance of the entry of `registry` named `values["name"]`."""
    _mapping(values, kind)
    name = values.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{kind}.name is missing. Available: {', '.join(sorted(registry))}.")
    if name not in registry:
        raise ConfigError(unknown(kind, name, registry))
    return build(registry[name], values, kind)


def refuse_code(values: object, where: str) -> None:
    """Raise ConfigError where a key at any depth is not a string, or is Hydra's key for calling Python code."""
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values if _listed(values) else ())
    for key, value in pairs:
        place = f"{where}.{key}".lstrip(".")
        if isinstance(values, Mapping) and not isinstance(key, str):
            raise ConfigError(f"{place}: the key {brief(key)} is not a string. Quote it or remove it.")
        if key == TARGET:
            raise ConfigError(
                f"{place}={brief(value)}: a configuration cannot call Python code. Remove the key and choose by "
                "name (`fsmerge list` shows the names)."
            )
        refuse_code(value, place)


def _listed(values: object) -> TypeGuard[Sequence[object]]:
    return isinstance(values, list | tuple)


def _mapping(values: object, where: str) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: should be keys and values, got {brief(values)}.")
    refuse_code(values, where)


def _sentences(error: ValidationError, where: str, cls: type[Any]) -> list[str]:
    """One sentence per key; for a value of a union type, the expectations of all its types."""
    sentences: list[str] = []
    expected: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        path, owner = _path(item["loc"], where, cls)
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            name = str(item["loc"][-1])
            place = path.removesuffix(f".{name}")
            sentences.append(unknown_key(place, name, [f.name for f in fields(owner)]))
        elif item["type"].startswith("missing"):
            sentences.append(f"{path} is missing.")
        elif item["type"] == "value_error":  # from a check over several fields, already a full message
            sentences.append(item["msg"].removeprefix("Value error, "))
        else:
            expected.setdefault((path, f"got {brief(item['input'])}"), []).append(_expectation(item["msg"]))
    for (path, got), messages in expected.items():
        expectation = " or ".join(dict.fromkeys(messages)).replace(" or be ", " or ")
        sentences.append(f"{path}: should {expectation}, {got}.")
    return sentences


def _path(loc: Sequence[int | str], where: str, cls: type[Any]) -> tuple[str, type[Any]]:
    """The dotted key of a mistake and the dataclass it belongs to; parts that name a union type are left out."""
    parts, owner = [where] if where else [], cls
    inner: Any = cls
    for number, part in enumerate(loc):
        hints = get_type_hints(inner, include_extras=True) if is_dataclass(inner) else {}
        if isinstance(part, int) or part in hints or (hints and number == len(loc) - 1):
            parts.append(str(part))
            owner = inner if hints else owner
            inner = next((t for t in _types(hints.get(str(part))) if is_dataclass(t)), None)
    return ".".join(parts), owner


def _types(hint: Any) -> list[Any]:
    return [hint, *(inner for argument in get_args(hint) for inner in _types(argument))]


def _expectation(message: str) -> str:
    """Pydantic's "Input should be a valid integer" -> "be a valid integer"."""
    expectation = re.sub(r"^\w+ should ", "", message)
    return re.sub(r" after validation, not \d+$", "", expectation)
