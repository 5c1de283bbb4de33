"""`register`: methods, data sets and architectures of a script, by name like those that come with fsmerge."""

from __future__ import annotations

from typing import TypeVar

from fsmerge_cli.architectures import SPECS, Family
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.plugins import defaults
from fsmerge_cli.common.shown import brief
from fsmerge_cli.data import DATASETS, DataConfig
from fsmerge_cli.methods import METHODS, Method

Found = TypeVar("Found")


def register(found: Found) -> Found:
    """Add a method, a data set (their dataclasses, as a decorator) or a `Family` for this process; returns it.

    The name is the default of the option `name`, or that of the family. Raises ConfigError for a name that is
    taken, and for anything else.
    """
    if isinstance(found, Family):
        SPECS.register(found.name, found)
    elif isinstance(found, type) and issubclass(found, Method | DataConfig):
        name = defaults(found).get("name") if hasattr(found, "__dataclass_fields__") else None
        if not isinstance(name, str):
            raise ConfigError(
                f"{found.__name__}: its option `name` has no default. Write name: Literal['x'] = 'x'."
            )
        if issubclass(found, Method):
            METHODS.register(name, found)
        else:
            DATASETS.register(name, found)
    else:
        raise ConfigError(f"register takes a Method, a DataConfig or a Family, got {brief(found)}.")
    return found
