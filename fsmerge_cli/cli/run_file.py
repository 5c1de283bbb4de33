"""A YAML file of a whole run as overrides: the config.yaml of a run, or what `fsmerge init` wrote."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from fsmerge_cli.cli.quoting import quoted
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, UserError, unknown
from fsmerge_cli.common.foreign_files import read_yaml
from fsmerge_cli.common.options import refuse_code
from fsmerge_cli.common.private_paths import restored
from fsmerge_cli.common.shown import shown

ADVICE = "Give the config.yaml of a run, or a file of fsmerge init."
GROUPS = ("data", "method", "hardware")
TOP = ("models", *GROUPS, "seed", "resume", "checkpoint", "evaluation", "output")


def is_run_file(argument: str) -> bool:
    """Whether an argument is the path of a YAML file."""
    return argument.lower().endswith((".yaml", ".yml")) and not re.match(r"[+~]*[\w.]+=", argument)


def overrides_of(text: str, given: Collection[str], images: str | None, notes: list[str]) -> Iterator[str]:
    """The keys of the file as overrides, without those of a group that is `given` anew. Raises UserError.

    images: a folder that replaces that of the file (None: none is given); what else this changes is added to
    `notes`.
    """
    path = Path(text).expanduser()
    if not path.exists():
        raise ConfigError(f"{shown(text)}: no such file. {ADVICE}")
    values = restored(path.parent / "evaluation.json", read_yaml(path, ADVICE))
    refuse_code(values, "")
    if wrong := [key for key in values if key not in TOP]:
        raise ConfigError(f"{shown(path)}: {unknown('key', str(wrong[0]), TOP)}")
    sources = values.get("models")
    if not isinstance(sources, Mapping) or not isinstance(sources.get("sources"), list):
        raise ConfigError(f"{shown(path)}: models.sources is missing, a list of the models to merge.")
    if "models" not in given and "models.sources" not in given:
        yield f"+models.sources={_literal(sources['sources'])}"
        if sources.get("base") is not None and "models.base" not in given:
            yield f"+models.base={_literal(sources['base'])}"
    if images is not None:
        values = {**values, "data": _with_images(values.get("data"), images, path, notes)}
    for group in GROUPS:
        if group in values and group not in given:
            yield from _group(group, values[group], path)
    for key, value in values.items():
        if isinstance(value, Mapping) and key in ("checkpoint", "evaluation", "output"):
            yield from (f"++{key}.{name}={_literal(own)}" for name, own in value.items())
        elif key in ("seed", "resume"):
            yield f"{key}={_literal(value)}"


def _with_images(data: Any, images: str, path: Path, notes: list[str]) -> dict[str, Any]:
    """The keys of data with another root; those of another kind of data set are left out, with a note."""
    if isinstance(data, Mapping) and data.get("name") == "folder":
        return {**data, "root": images}
    if data is not None:
        notes.append(f"--images replaces the data set of {shown(path)}, {_described(data)}")
    return {"name": "folder", "root": images}


def _described(data: Any) -> str:
    """A data set as arguments, without the keys that have their defaults."""
    from fsmerge_cli.runs.from_run import described  # imports torch
    from fsmerge_cli.runs.request import chosen_data

    try:
        found = chosen_data(data)
    except UserError:  # nothing of it is used
        found = None
    name = data.get("name") if isinstance(data, Mapping) else data
    return f"data={shown(name)}" if found is None else described(found)


def _group(group: str, values: Any, path: Path) -> Iterator[str]:
    """A group: the preset of its name, and every key on top."""
    if values is None:
        yield f"{group}=null"
        return
    own = {"name": "auto", **values} if isinstance(values, Mapping) and group == "hardware" else values
    if not isinstance(own, Mapping) or not isinstance(own.get("name"), str):
        raise ConfigError(f"{shown(path)}: {group}.name is missing. Available: {', '.join(presets.names(group))}.")
    yield f"{group}={own['name']}"
    yield from (f"++{group}.{key}={_literal(value)}" for key, value in own.items() if key != "name")


def _literal(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_literal(own)}" for key, own in value.items()) + "}"
    return quoted(str(value)) if not isinstance(value, int) else str(value)
