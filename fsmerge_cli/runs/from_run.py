"""What the folder of a run states about its data and sources; read only where the user asks for it.

A run's folder may come from somebody else. Its config.yaml could make a command download files or read other
folders, so nothing in it is followed unless the user passes `data=from_run` or `--sources`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fsmerge_cli.checkpoints.kind import reads_text
from fsmerge_cli.common.atomic import FINISHED
from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json_object, read_yaml
from fsmerge_cli.common.private_paths import restored
from fsmerge_cli.data import DataConfig
from fsmerge_cli.data.content import NAME as IN_MEMORY
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.request import chosen_data, stated_data

FROM_RUN = "from_run"
"""Value of `data` by which the user accepts the data set that the run's config.yaml names."""

CONFIG = "config.yaml"

Data = str | Mapping[str, Any] | DataConfig


def run_folder(path: Path) -> Path | None:
    """The folder of the run that wrote the model; None for a third-party model."""
    if path.name == "merged" and os.path.lexists(path.parent / CONFIG):
        return path.parent
    return path if all(os.path.lexists(path / name) for name in (CONFIG, FINISHED)) else None


def run_options(path: Path) -> dict[str, Any]:
    """The options of the run that wrote the model; empty for a third-party model. Raises ConfigError."""
    folder = run_folder(path)
    if folder is None:
        return {}
    try:
        return restored(folder / FINISHED, read_yaml(folder / CONFIG))
    except UnreadableError as error:
        remedy = error.remedy or f"Move {folder / 'merged'} into another folder, and pass data=..."
        raise ConfigError(f"{folder / CONFIG} cannot be read: {error.why}. {remedy}") from None


def recorded_hashes(run: Path) -> dict[str, str]:
    """SHA-256 of every source, by name, as the evaluation.json of a run states them; empty where it does not."""
    try:
        sources = read_json_object(run / FINISHED)["provenance"]["sources"]
        return {str(source["name"]): str(source["sha256"]) for source in sources}
    except (UnreadableError, OSError, KeyError, TypeError):
        return {}


def group(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The keys of one group of options; empty where it is missing or is no mapping."""
    found = options.get(name)
    return found if isinstance(found, Mapping) else {}


def given_data(path: Path, data: Data | None) -> DataConfig | None:
    """The data set that the user chose; for `from_run` that of the run that wrote the model at `path`.

    Raises ConfigError where a key is wrong, DataError where the run has no data set.
    """
    if data != FROM_RUN:
        return chosen_data(data, texts=reads_text(SourceSpec("model", checkpoint=str(path))))
    found = _data_of_run(path)
    if found is None:
        raise DataError(
            f"data={FROM_RUN}: {path} is in no run's folder with a data set. Pass data=NAME (data.root=PATH for "
            "your own folder)."
        )
    return found


def required_data(path: Path, data: Data | None) -> DataConfig:
    """As :func:`given_data`. Raises DataError where the user chose none, with what the run's folder names."""
    found = given_data(path, data)
    if found is not None:
        return found
    stated = _data_of_run(path)
    if stated is None:
        raise DataError(
            f"no data: {path} is in no run's folder with a data set. Pass data=NAME (data.root=PATH for your own "
            "folder)."
        )
    raise DataError(
        f"no data: pass data={FROM_RUN} to use what {run_folder(path)}/{CONFIG} names: {described(stated)}. It is "
        "not followed unasked, because a run's folder may come from somebody else. Or pass data=NAME "
        "(data.root=PATH for your own folder)."
    )


def _data_of_run(path: Path) -> DataConfig | None:
    stated = run_options(path).get("data")
    if isinstance(stated, Mapping) and stated.get("name") == IN_MEMORY:
        raise ConfigError(
            f"{run_folder(path)}/{CONFIG}: the images came from Python ({_text(stated.get('content'))}) and are "
            "not in the folder of the run. Pass data=NAME with your own data."
        )
    try:
        return stated_data(stated)
    except ConfigError as error:
        why = str(error).rstrip(".")
        raise ConfigError(f"{run_folder(path)}/{CONFIG}: {why}. Pass data=NAME with your own data.") from None


def described(data: DataConfig) -> str:
    """A data set as arguments: its name, and every key that differs from its default."""
    defaults = {field.name: field.default for field in fields(data)}
    values = {name: getattr(data, name) for name in defaults if name != "name"}
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    return " ".join([f"data={data.name}", *(f"data.{name}={_text(value)}" for name, value in changed.items())])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def described_sources(specs: Sequence[SourceSpec]) -> str:
    """Every source with the checkpoint that is read for it."""
    return ", ".join(f"{spec.name} from {_origin(spec)}" for spec in specs)


def _origin(spec: SourceSpec) -> str:
    if spec.checkpoint is not None:
        return spec.checkpoint
    if spec.loaded is not None or spec.module is not None:
        return spec.loaded.origin if spec.loaded is not None else "a module"
    return "its recipe" if spec.recipe is not None else f"the weights {spec.arch} of the hub"
