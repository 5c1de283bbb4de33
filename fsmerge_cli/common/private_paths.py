"""The folder of a run names no path of this machine: it is passed on to others.

An absolute path inside the working folder is written relative to it; of any other one only the name is written,
after `.../`, so that it is never opened as a file of the working folder. Relative paths stay as they were typed.
What stands for what is kept in the user's cache, under the hash of the run's evaluation.json, so that `fsmerge
merge RUN/config.yaml`, `data=from_run`, `--sources` and `resume=true` still find the files on this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsmerge_cli.common.cache import cache_folder
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json, require_regular
from fsmerge_cli.common.shown import shown

MAX_NAME = 4096
"""Longer texts are no paths."""

IN_COMMAND = re.compile(r"(?:^|[\s=,:\[{'\"])(~?/[^\s,\]}'\"]+)")
"""An absolute path in a command."""

HIDDEN = ".../"
"""What is written in place of the folders of a path outside the working folder."""

Key = tuple[str | int, ...]
"""Where a value stands in nested mappings and lists."""


@dataclass(frozen=True)
class PrivatePaths:
    """Absolute paths, and what is written in their place."""

    names: Mapping[str, str]

    @classmethod
    def of(cls, options: Any, output: Path | None = None, command: str = "") -> PrivatePaths:
        """All absolute paths of `options` and `command`, the output folder, and the folders of this machine."""
        given = [text for _, text in _texts(options) if _is_private(text)]
        given += IN_COMMAND.findall(command)
        names: dict[str, str] = {}
        for text in [*given, *([str(output.absolute())] if output else [])]:
            public = _public(text)
            expanded = os.path.expanduser(text)
            names |= {own.rstrip("/"): public for own in (text, expanded, os.path.realpath(expanded))}
        home, here = os.path.expanduser("~"), os.getcwd()
        for folder, public in {sys.prefix: "python", str(cache_folder()): "cache", here: ".", home: "~"}.items():
            for own in (folder, os.path.realpath(folder)):
                names.setdefault(own.rstrip("/"), public)
        return cls({path: public for path, public in names.items() if path})

    def text(self, text: str) -> str:
        """The text without these paths."""
        if "/" not in text:
            return text
        return self._pattern.sub(lambda match: self._shown(match[0]), text)

    def values(self, values: Any) -> Any:
        """The same nested values without these paths."""
        if isinstance(values, str):
            return self.text(values)
        if isinstance(values, Mapping):
            return {self.values(key): self.values(value) for key, value in values.items()}
        return [self.values(value) for value in values] if isinstance(values, list | tuple) else values

    @property
    def _pattern(self) -> re.Pattern[str]:
        paths = "|".join(re.escape(path) for path in sorted(self.names, key=len, reverse=True))
        return re.compile(rf"(?<![\w.~-])(?:{paths})(?![\w-]|\.\w)/?")

    def _shown(self, found: str) -> str:
        """The public name; of a folder that is the working folder only what follows."""
        public = self.names[found.rstrip("/")]
        if not found.endswith("/"):
            return public
        return "" if public == "." else f"{public}/"


def _is_private(text: str) -> bool:
    plain = 1 < len(text) < MAX_NAME and "\0" not in text and "\n" not in text
    return plain and text[0] in "/~"


def _public(path: str) -> str:
    """Relative to the working folder if it lies inside, else the name after HIDDEN."""
    absolute = os.path.normpath(os.path.expanduser(path))
    relative = os.path.relpath(absolute)
    return HIDDEN + os.path.basename(absolute) if relative.split(os.sep)[0] == os.pardir else relative


def refuse_hidden(values: Any, where: str) -> None:
    """Raise ConfigError where a value is a path whose folders were not written (`.../a.safetensors`)."""
    found = {".".join([where, *map(str, key)]): text for key, text in _texts(values) if text.startswith(HIDDEN)}
    if found:
        given = ", ".join(f"{key} is {shown(text)}" for key, text in found.items())
        raise ConfigError(
            f"{given}: the configuration of a run is written without the folders of the machine that it ran on. "
            f"Pass where the files are here: {' '.join(f'{key}=PATH' for key in found)}"
        )


def _texts(values: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    if isinstance(values, str):
        yield key, values
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _texts(value, (*key, name))
    if isinstance(values, list | tuple):
        for place, value in enumerate(values):
            yield from _texts(value, (*key, place))


def remember(evaluation: Path, options: Any, written: Any) -> None:
    """Keep in the cache which paths stand for what in the options of a run. evaluation: its evaluation.json."""
    public = dict(_texts(written))
    pairs = [[*key, public[key], text] for key, text in _texts(options) if key in public and public[key] != text]
    if pairs:
        with suppress(OSError):  # the run is complete without it
            file = _kept(evaluation)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(pairs), encoding="utf-8")


def restored(evaluation: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run with the paths that they had on this machine, where they are known.

    Only values that are still as they were written are replaced.
    """
    try:
        pairs = read_json(_kept(evaluation))
    except (OSError, UnreadableError):
        return options
    found = json.loads(json.dumps(options, default=str))
    for pair in pairs if isinstance(pairs, list) else ():
        with suppress(KeyError, IndexError, TypeError, ValueError):
            *key, public, text = pair
            place = found
            for name in key[:-1]:
                place = place[name]
            if place[key[-1]] == public:
                place[key[-1]] = text
    return found if isinstance(found, dict) else options


def _kept(evaluation: Path) -> Path:
    require_regular(evaluation)
    return cache_folder() / "paths" / f"{hashlib.sha256(evaluation.read_bytes()).hexdigest()[:32]}.json"
