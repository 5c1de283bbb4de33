"""What an architecture family states, and how its table is read for one model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from fsmerge_cli.spaces import FIXED, Norm, Port, Role, Spec, Stack, compile_role


class Arch(Protocol):
    """The options of one architecture: a frozen dataclass that says what it reads and how wide it ends."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height, width of the image it reads."""

    @property
    def features(self) -> int:
        """Width of the features it returns."""


@dataclass(frozen=True)
class Family:
    """An architecture family.

    name: key in SPECS and `architecture` in config.json.
    arch: the dataclass of its options.
    build: options -> an ordinary module, image batch [n, C, H, W] -> features [n, d].
    resize: options, width, heads -> options of the merged model.
    tensors: tensor name -> axes. `{i}` stands for a layer, `{i-1}` for the one before, `{last}` for the last.
    features: the port that the heads read.
    entry: name of the weight (and bias) that reads pixels.
    must_agree: options in which all sources have to be equal.
    """

    name: str
    arch: type[Any]
    build: Callable[[Any], nn.Module]
    resize: Callable[[Any, Any, Any], Any]
    tensors: Mapping[str, Spec]
    features: str
    entry: str
    must_agree: tuple[str, ...]

    def roles(self, names: list[str]) -> tuple[dict[str, Role], list[str]]:
        """Role of every tensor in `names`, and the names that the table does not know."""
        last = max((int(m.group()) for name in names for m in [re.search(r"\d+", name)] if m), default=0)
        roles, unknown = {}, []
        for name in names:
            found = self._find(name)
            if found is None:
                unknown.append(name)
            else:
                spec, index = found
                roles[name] = compile_role(_fill(spec, index, last))
        return roles, unknown

    def features_port(self, names: list[str]) -> Port:
        """The port that heads read, for a model with these tensors."""
        last = max((int(m.group()) for name in names for m in [re.search(r"\d+", name)] if m), default=0)
        return Port.parse(_format(self.features, None, last))

    def _find(self, name: str) -> tuple[Spec, int | None] | None:
        if name in self.tensors:
            return self.tensors[name], None
        for template, spec in self.tensors.items():
            match = re.fullmatch(re.escape(template).replace(r"\{i\}", r"(\d+)"), name)
            if match and match.groups():
                return spec, int(match.group(1))
        return None


def _fill(spec: Spec, index: int | None, last: int) -> Spec:
    if isinstance(spec, Norm):
        return Norm(_format(spec.port, index, last), spec.fill, spec.trainable)
    if isinstance(spec, tuple):
        return tuple(_fill_axis(axis, index, last) for axis in spec)
    return spec


def _fill_axis(axis: str | Stack, index: int | None, last: int) -> str | Stack:
    if isinstance(axis, Stack):
        return Stack(tuple(_format(port, index, last) for port in axis.ports))
    return axis if axis == FIXED else _format(axis, index, last)


def _format(text: str, index: int | None, last: int) -> str:
    values = {"last": str(last)}
    if index is not None:
        values |= {"i": str(index), "i-1": str(index - 1)}
    return text.format_map(values)
