"""Running `fsmerge` inside the test process, and the texts that its messages list."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, NamedTuple

from fsmerge_cli.common import presets

PAIR = "+models=digits_mlp_pair"


class Ran(NamedTuple):
    """Exit code, standard output and standard error."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def keys_of(cls: Any) -> str:
    return listed(field.name for field in fields(cls))


def no_models() -> str:
    width = max(map(len, presets.names("models"))) + 2
    lines = [f"  +models={name:<{width}}{presets.summary('models', name)}" for name in presets.names("models")]
    return "\n".join(["no models given. Choose them with +models=NAME. Available:", "models", *lines])
