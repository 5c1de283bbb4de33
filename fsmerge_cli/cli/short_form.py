"""The short form of a merge: paths of checkpoints, --images and -o become the overrides that they stand for.

    fsmerge merge pets.safetensors runs/cars --images photos/ -o out method=kd
    fsmerge merge out/config.yaml seed=1

Whatever has the form KEY=VALUE of a known key stays an override, and options that follow change what is inferred.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsmerge_cli.cli.quoting import quoted
from fsmerge_cli.cli.run_file import is_run_file, overrides_of
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.shown import shortened
from fsmerge_cli.models.source_spec import LONGEST_NAME

KEYS = frozenset(
    {"models", "data", "method", "hardware", "seed", "resume", "checkpoint", "evaluation", "output", "hydra"}
    | {"launcher", "sweep", "curve"}
)
"""What comes first in an override; anything else before `=` is the name of a task."""

OPTIONS = {"--images": "--images", "-o": "-o", "--output": "-o"}
"""Options of the short form that take a value."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".index.json")
"""Suffixes of weights, also of files that do not exist."""

COMMON = re.compile(
    r"(pytorch_|open_clip_)*(model|weights|checkpoint|ckpt|state_dict|adapter_model|merged|best|last|final|latest)"
    r"([-_.](model|best|last|final|ema|state))*([-_.=]?\d+)*|(epoch|step|iter)[-_=]?\d.*",
    re.IGNORECASE,
)
"""Names of files that say nothing of the task; the folder's name is taken instead."""

TAGGED = re.compile(r"(?:hf[-_]hub:)?(?:timm/)?([A-Za-z0-9]+_\w+\.\w+)")
"""A model of timm on the hub: an architecture and the tag of its weights."""


@dataclass
class ShortForm:
    """What was typed without KEY=VALUE: (name or None, path) of every source, and the values of the options."""

    sources: list[tuple[str | None, str]] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def expanded(arguments: Sequence[str], command: str, notes: list[str] | None = None) -> list[str]:
    """The arguments with the short form as overrides. Raises ConfigError.

    notes: gets what the user should know about it.
    """
    found, rest = _split(arguments, command)
    if not (found.sources or found.options or found.files):
        return rest
    return [*_overrides(found, rest, command, [] if notes is None else notes), *rest]


def source_names(paths: Sequence[tuple[str | None, str]]) -> list[str]:
    """A different name for every source: as given, else after its file or folder."""
    plain = [name or _stem(path) for name, path in paths]
    names: list[str] = []
    for (given, path), name in zip(paths, plain):
        if given is None and plain.count(name) > 1:
            above = _clean(Path(os.path.abspath(path)).parent.name)
            name = f"{above}-{name}"[:LONGEST_NAME] if above else name
        number, unique = 2, name
        while given is None and unique in names:
            unique, number = f"{name[: LONGEST_NAME - 4]}-{number}", number + 1
        names.append(unique)
    return names


def _split(arguments: Sequence[str], command: str) -> tuple[ShortForm, list[str]]:
    """The short form among the arguments, and the other arguments."""
    found, rest = ShortForm(), list[str]()
    given = iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name in OPTIONS:
            value = value if equals else next(given, "")
            if not value or (not equals and value in OPTIONS):
                raise ConfigError(f"fsmerge {command}: {name} needs a path: {name} PATH.")
            found.options[OPTIONS[name]] = value
        elif argument in ("--config-dir", "-cd", "--cfg", "-c"):
            rest += [argument, *([value] if (value := next(given, "")) else [])]
        elif argument.startswith("-"):
            rest.append(argument)
        elif is_run_file(argument):
            found.files.append(argument)
        elif (source := _source(argument)) is not None:
            found.sources.append(source)
        elif not equals and argument in presets.names("models"):
            rest.append(f"+models={argument}")
        else:
            rest.append(argument)
    if gone := [path for _, path in found.sources if not _exists(path) and not _tagged(path)]:
        raise ConfigError(
            f"fsmerge {command}: there is no file or folder {shortened(gone[0])}. Pass checkpoints (files of "
            "weights, folders, or timm names with a tag), or KEY=VALUE."
        )
    return found, rest


def _source(argument: str) -> tuple[str | None, str] | None:
    """Name (None: not given) and path of a source; None for an override."""
    name, equals, value = argument.partition("=")
    if not equals:
        override = re.match(r"[+~](?!/)", argument)
        return (None, argument) if not override and _is_source(argument) else None
    if re.split(r"[.@/]", name.lstrip("+~"))[0] in KEYS and not name.startswith(("~/", "/", ".")):
        return None
    if _exists(argument):
        return None, argument  # epoch=3.ckpt
    if name.startswith(("+", "~")) or not re.fullmatch(r"[^/\\@.]+", name):
        return None
    return (name, value) if _is_source(value) else None


def _is_source(text: str) -> bool:
    form = _tagged(text) or text.lower().endswith(SUFFIXES) or re.search(r"\w/|/\w", text)
    return bool(text) and (_exists(text) or bool(form))


def _tagged(text: str) -> re.Match[str] | None:
    """The parts of a model of timm on the hub; None for a file."""
    return None if text.lower().endswith(SUFFIXES) else TAGGED.fullmatch(text)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # its reader reports it
        return False


def _stem(path: str) -> str:
    """The name of a file without its suffixes, or of a folder; of one of COMMON, that of the folder above."""
    if not _exists(path) and (tagged := _tagged(path)):
        return _clean(tagged[1])
    place = Path(os.path.abspath(os.path.expanduser(path)))
    for own in (place, *list(place.parents)[:2]):
        name = own.name
        while own == place and (suffix := next((s for s in SUFFIXES if name.lower().endswith(s)), "")):
            name = name[: -len(suffix)]
        if name and not COMMON.fullmatch(name):
            return _clean(name)
    return _clean(place.name)


def _clean(name: str) -> str:
    """A text as the name of a task, which is part of file and tensor names."""
    kept = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name)
    return kept.strip().lstrip(".").strip()[:LONGEST_NAME].strip()


def _overrides(found: ShortForm, rest: Sequence[str], command: str, notes: list[str]) -> Iterator[str]:
    keys = {argument.lstrip("+~").partition("=")[0] for argument in rest}
    if len(found.files) > 1 or (found.files and found.sources):
        raise ConfigError(
            f"fsmerge {command}: {shortened(found.files[0])} states the sources, so no further file can be given. "
            "Change them with models.sources.0.KEY=VALUE."
        )
    if found.sources and keys & {"models", "models.sources"}:
        raise ConfigError(
            f"fsmerge {command}: sources are given twice, as {shortened(found.sources[0][1])} and as "
            f"{', '.join(sorted(keys & {'models', 'models.sources'}))}=... Give them once."
        )
    if "--images" in found.options and keys & {"data", "data.root"}:
        raise ConfigError(
            f"fsmerge {command}: --images stands for data=folder data.root=PATH, and "
            f"{', '.join(sorted(keys & {'data', 'data.root'}))}=... is given too. Give one of them."
        )
    if "-o" in found.options and "output.dir" in keys:
        raise ConfigError(f"fsmerge {command}: -o stands for output.dir=FOLDER, which is given too. Give one.")
    for file in found.files:
        yield from overrides_of(file, keys, found.options.get("--images"), notes)
    if found.sources:
        entries = zip(source_names(found.sources), (path for _, path in found.sources))
        yield f"+models.sources=[{','.join(_entry(name, path) for name, path in entries)}]"
    if "--images" in found.options and not found.files:
        yield from ("data=folder", f"data.root={quoted(found.options['--images'])}")
    if "-o" in found.options:
        yield f"output.dir={quoted(found.options['-o'])}"


def _entry(name: str, path: str) -> str:
    if not _exists(path) and (tagged := _tagged(path)):
        return f"{{name:{quoted(name)},arch:{quoted(tagged[1])}}}"
    return f"{{name:{quoted(name)},checkpoint:{quoted(path)}}}"
