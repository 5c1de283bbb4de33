"""Typed options: a frozen dataclass is built from plain keys and values, or every mistake is said at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fsmerge_cli.errors import ConfigError, unknown

FORBID = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
NonNegativeFloat = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of the pydantic dataclass `cls` from `values`; `where` is the key it stands under.

    Raises ConfigError naming every unknown key (with the nearest one), wrong type and value out of range.
    """
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        known = [f.name for f in fields(cls)] if is_dataclass(cls) else []
        raise ConfigError("\n".join(_sentences(error, where, known))) from None


def choose(registry: Mapping[str, type[T]], values: Mapping[str, Any], kind: str) -> T:
    """Build the entry of `registry` that `values["name"]` asks for."""
    name = values.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{kind}.name is missing. Available: {', '.join(sorted(registry))}.")
    if name not in registry:
        raise ConfigError(unknown(kind, name, registry))
    return build(registry[name], values, kind)


SHOULD_BE = "Input should be "


def _sentences(error: ValidationError, where: str, known: Iterable[str]) -> list[str]:
    """One sentence per key; a value may fail in each way that its type allows."""
    sentences: list[str] = []
    expected: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            sentences.append(unknown(f"key in {where}", str(item["loc"][-1]), known))
        elif item["type"] == "missing":
            sentences.append(f"{where}.{name} is missing.")
        else:
            # A second part that is a number is a place in a list; other parts name the type that was tried.
            key = ".".join([where, name, *(str(part) for part in item["loc"][1:] if isinstance(part, int))])
            expected.setdefault((key, f"got {item['input']!r}"), []).append(item["msg"])
    for (key, got), messages in expected.items():
        wanted = " or ".join(dict.fromkeys(message.removeprefix(SHOULD_BE) for message in messages))
        sentences.append(f"{key}: should be {wanted}, {got}.")
    return sentences
