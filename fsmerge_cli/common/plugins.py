"""Methods, architectures and data sets of other packages (entry points) and of scripts (`register`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.shown import brief

T = TypeVar("T")


class Plugins:
    """The names of one kind that do not come with fsmerge; they are imported when they are used.

    group: of the entry points, `NAME = "package.module:object"`. kind: in messages.
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group, self.kind = group, kind
        self.registered: dict[str, Any] = {}
        self.check: Callable[[str, Any], None] = lambda name, found: None

    def names(self) -> list[str]:
        """All names, sorted; nothing is imported."""
        return sorted({*self.registered, *_found(self.group, tuple(sys.path))})

    def load(self, name: str) -> Any:
        """The object of a name. Raises ConfigError where it cannot be imported or is of another kind."""
        if name in self.registered:
            return self.registered[name]
        points = _found(self.group, tuple(sys.path))[name]
        where = f"{self.kind} '{name}' ({', '.join(map(_origin, points))})"
        if len({point.value for point in points}) > 1:
            raise ConfigError(f"{where}: several packages offer this name. Uninstall all but one of them.")
        try:
            found = points[0].load()
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ConfigError(
                f"{where} cannot be imported: {reason}. Repair or uninstall that package."
            ) from error
        try:
            self.check(name, found)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return found


METHODS = Plugins("fsmerge.methods", "method")
ARCHITECTURES = Plugins("fsmerge.architectures", "architecture")
DATA = Plugins("fsmerge.data", "data set")


class Registry(MutableMapping[str, T]):
    """Objects by name: those that come with fsmerge, then those of `plugins`. A shipped name stays what it is.

    check: raises ConfigError where an object of others does not fit its name.
    """

    def __init__(self, plugins: Plugins, shipped: dict[str, T], check: Callable[[str, Any], None]) -> None:
        self.plugins, self.shipped = plugins, shipped
        self._own = frozenset(shipped)
        plugins.check = check

    def register(self, name: str, found: T) -> None:
        """Add an object for this process, in place of an earlier one of it (a notebook runs cells again).

        Raises ConfigError for a name of fsmerge or of a package, or an object that does not fit its name.
        """
        if name in self and name not in self.plugins.registered:
            raise ConfigError(f"{self.plugins.kind} '{name}' exists already. Take another name.")
        self.plugins.check(name, found)
        self.plugins.registered[name] = found

    def __getitem__(self, name: str) -> T:
        if name in self.shipped:
            return self.shipped[name]
        if name not in self.plugins.names():
            raise KeyError(name)
        found: T = self.plugins.load(name)
        return found

    def __setitem__(self, name: str, found: T) -> None:
        (self.shipped if name in self._own else self.plugins.registered)[name] = found

    def __delitem__(self, name: str) -> None:
        del (self.shipped if name in self._own else self.plugins.registered)[name]

    def __contains__(self, name: object) -> bool:
        return name in self.shipped or name in self.plugins.names()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.shipped, *self.plugins.names())))

    def __len__(self) -> int:
        return len(list(iter(self)))


def check_options(base: type[Any], name: str, found: Any) -> None:
    """Raise ConfigError where `found` is no dataclass of options for `name`, derived from `base`."""
    if not (isinstance(found, type) and issubclass(found, base) and is_dataclass(found)):
        raise ConfigError(f"should be a dataclass derived from {base.__name__}, got {brief(found)}.")
    if (own := defaults(found).get("name")) != name:
        raise ConfigError(f"its default of `name` should be {name!r}, it is {brief(own)}.")


def defaults(cls: type[Any]) -> dict[str, Any]:
    """The options of a dataclass with their defaults, as plain values; options without a default are left out."""
    found: dict[str, Any] = {}
    for field in fields(cls):
        if field.default is not MISSING:
            found[field.name] = _plain(field.default)
        elif field.default_factory is not MISSING:
            found[field.name] = _plain(field.default_factory())
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return {key: _plain(own) for key, own in value.items()} if isinstance(value, dict) else value


def _origin(point: EntryPoint) -> str:
    return f"{point.value} of {point.dist.name}" if point.dist else point.value


@cache
def _found(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """The entry points by name; path: the search path, on which they depend."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found
