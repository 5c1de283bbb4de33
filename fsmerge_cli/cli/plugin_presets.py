"""Methods and data sets of other packages as options of Hydra's groups, with the defaults of their dataclasses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.plugins import defaults

MANDATORY = "???"
"""Hydra's value of a key that the user has to set."""


def help_lines(text: str) -> str:
    """What a help text adds about other packages: the names of the groups that it explains."""
    found = [(group, presets.more_names(group)) for group in presets.PLUGINS if f"  {group}=NAME" in text]
    lines = [f"  {group + '=NAME':<20} {', '.join(names)}\n" for group, names in found if names]
    return "".join(["\nfrom other packages:\n", *lines]) if lines else ""


def import_kinds() -> None:
    """Import the rooms that know what a method and a data set are; imports torch."""
    import fsmerge_cli.data
    import fsmerge_cli.methods  # noqa: F401


def store_plugins(arguments: Sequence[str]) -> None:
    """Make `method=NAME` and `data=NAME` known to Hydra. Raises ConfigError where a chosen one is broken."""
    for group in presets.PLUGINS:
        names = presets.more_names(group)
        if not names:
            continue
        import_kinds()
        for name in names:
            try:
                _store(group, name)
            except ConfigError:
                if any(_chooses(argument, group, name) for argument in arguments):
                    raise


def _store(group: str, name: str) -> None:
    from hydra.core.config_store import ConfigStore

    cls = presets.PLUGINS[group].load(name)
    node: dict[str, Any] = dict.fromkeys((field.name for field in fields(cls)), MANDATORY) | defaults(cls)
    ConfigStore.instance().store(group=group, name=name, node=node)


def _chooses(argument: str, group: str, name: str) -> bool:
    """Whether an override takes this option, also as one of several of a sweep."""
    key, _, value = argument.partition("=")
    return key.lstrip("+") == group and name in re.split(r"[\s,()\[\]'\"]+", value)
