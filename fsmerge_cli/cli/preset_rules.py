"""What a preset of --config-dir may set: the options of its group, never Hydra's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.foreign_files import read_text, read_yaml
from fsmerge_cli.common.shown import shown

PACKAGE = re.compile(r"^\s*#\s*@package\s+(\S+)", re.MULTILINE)
"""Hydra's comment that says to which node of the configuration the keys of a file belong."""


def check_preset(file: Path, group: str) -> None:
    """Raise ConfigError where a preset sets Hydra's own node, UnreadableError where it cannot be read.

    That node calls Python code and names folders to write to. Only the presets of launchers and sweeps, which say
    how jobs are started, may set it.
    """
    found = read_yaml(file)
    if group in presets.SWEEPS:
        return
    text = read_text(file)
    if other := next(_other_groups(found), None):
        raise ConfigError(
            f"{shown(str(file))}: its defaults take '{shown(other)}'. Only files of {', '.join(presets.GROUPS)} "
            "are checked, so a preset takes no others. Copy what it needs."
        )
    for what in (*_packages(text), *_keys(found)):
        raise ConfigError(
            f"{shown(str(file))}: a preset of '{group}' must not reach Hydra's own options "
            f"({shown(what)}): they can run code and write elsewhere. Remove that from the file. Launchers and "
            "sweeps of your own go into launcher/ and sweep/."
        )


def _packages(text: str) -> Iterator[str]:
    for package in PACKAGE.findall(text):
        if _names_hydra(package):
            yield f"@package {package}"


def _keys(found: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a preset, and the entries of its defaults, that reach Hydra's node."""
    return filter(_names_hydra, (*map(str, found), *_defaults(found)))


def _other_groups(found: Mapping[str, Any]) -> Iterator[str]:
    """Entries of the defaults that take a file of a group that is neither ours nor Hydra's."""
    for name in _defaults(found):
        path = re.sub(r"^(override|optional)\s+", "", name.strip())
        if path.startswith("/") and re.split(r"[/@]", path)[1] not in (*presets.GROUPS, "hydra"):
            yield name


def _defaults(found: Mapping[str, Any]) -> Iterator[str]:
    entries = found.get("defaults")
    for entry in entries if isinstance(entries, list) else ():
        yield from map(str, entry) if isinstance(entry, Mapping) else [str(entry)]


def _names_hydra(name: str) -> bool:
    """Whether a part of a key, a package or a group is Hydra's node."""
    return "hydra" in re.split(r"[\s./@:]+", name.lower())
