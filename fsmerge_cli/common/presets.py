"""The shipped YAML files, read without Hydra for `fsmerge list`, error messages and the Python API."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from inspect import getdoc
from typing import Any

import yaml

from fsmerge_cli.common import plugins
from fsmerge_cli.common.errors import ConfigError, unknown

GROUPS = ("models", "data", "method", "hardware")
SWEEPS = ("launcher", "sweep")
"""Groups that only set keys of Hydra: how and where the jobs of --multirun run."""

PACKAGE = "fsmerge_cli.configs"
DATA_KEY = "override /data@_global_.data"
"""The key by which a models file sets its data set; +models=NAME is composed last, so it may override data."""


PLUGINS = {"method": plugins.METHODS, "data": plugins.DATA}
"""Groups whose options may come from other packages."""


def names(group: str) -> list[str]:
    """The options of a config group, sorted: its files, and the names of other packages and of scripts."""
    return sorted({*_files(group), *more_names(group)})


def shipped(group: str) -> list[str]:
    """The options of a config group that come with fsmerge, sorted."""
    return sorted(_files(group))


def more_names(group: str) -> list[str]:
    """The options of a config group that have no file; their keys and values are those of a dataclass."""
    found = PLUGINS[group].names() if group in PLUGINS else []
    return [name for name in found if name not in _files(group)]


def summary(group: str, name: str) -> str:
    """The description of an option: the first line of its file (after Hydra's `@package` line), or docstring."""
    if name in more_names(group):
        try:
            return (getdoc(PLUGINS[group].load(name)) or "").partition("\n")[0]
        except ConfigError as error:
            return f"({error})"
    lines = _files(group)[name].read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if not line.startswith("# @")).removeprefix("# ").strip()


def comments(group: str, name: str) -> dict[str, str]:
    """The comment behind each key of an option (of the YAML in the top folder for group "")."""
    files_of = {name: files(PACKAGE) / f"{name}.yaml"} if not group else _files(group)
    text = files_of[name].read_text(encoding="utf-8") if name in files_of else ""
    found = (re.match(r"\s*(\w+):.*?\s# (.*)", line) for line in text.splitlines())
    return {line[1]: line[2] for line in found if line}


def load(group: str, name: str) -> dict[str, Any]:
    """The keys and values of an option without its defaults list. Raises ConfigError for an unknown name.

    An option that also sets keys of Hydra (`@package _global_`) has its own keys under the name of its group.
    """
    if name in more_names(group):
        return plugins.defaults(PLUGINS[group].load(name))
    values = _read(group, name)
    values.pop("defaults", None)
    return dict(values.get(group, values))


def command_keys(command: str) -> list[str]:
    """The keys of the YAML of a command, as `group.key`; none for a command without a file."""
    path = files(PACKAGE) / f"{command}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: list[str] = []
    for key, own in values.items():
        if key not in ("defaults", "hydra"):
            found += [f"{key}.{name}" for name in own] if isinstance(own, dict) and own else [key]
    return found


def default_data(models: str) -> str | None:
    """The data set that a models file sets in its defaults list, if any."""
    for entry in _read("models", models).get("defaults", []):
        if isinstance(entry, dict) and DATA_KEY in entry:
            return str(entry[DATA_KEY])
    return None


def _read(group: str, name: str) -> dict[str, Any]:
    found = _files(group)
    if name not in found:
        raise ConfigError(unknown(group, name, names(group)))
    return dict(yaml.safe_load(found[name].read_text(encoding="utf-8")) or {})


@cache
def _files(group: str) -> dict[str, Traversable]:
    folder = files(PACKAGE) / group
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
