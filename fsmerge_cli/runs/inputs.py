"""Every path that a command reads, known before it writes anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fsmerge_cli.checkpoints.tasks import FILES as LABEL_FILES
from fsmerge_cli.common.cache import cache_folder
from fsmerge_cli.common.presets import GROUPS, SWEEPS
from fsmerge_cli.common.separation import Input
from fsmerge_cli.data import DataConfig, auxiliary

BESIDE = (
    "config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "heads.safetensors",
    "*.index.json",
    "*-of-*",
)
"""Files that are read with a file of weights in the same folder."""


def checkpoint_inputs(what: str, checkpoint: str | Path | None) -> list[Input]:
    """A checkpoint, and for a file what is read beside it."""
    if checkpoint is None:
        return []
    found = [Input(what, checkpoint)]
    try:
        path = Path(checkpoint).expanduser()
        if path.is_file():
            found += [Input(what, file) for name in BESIDE for file in sorted(path.parent.glob(name))]
    except (OSError, ValueError, RuntimeError):  # an invalid path, which its reader reports
        pass
    return found


def label_inputs(what: str, labels: object) -> list[Input]:
    """The file of labels, where `labels` is one."""
    is_file = isinstance(labels, str) and Path(labels).suffix.lower() in LABEL_FILES
    return [Input(what, labels)] if isinstance(labels, str) and is_file else []


def data_inputs(data: DataConfig | None, tasks: Sequence[str]) -> list[Input]:
    """Everything of a data set that is read for these tasks, its auxiliary data included."""
    if data is None:
        return []
    found = data.inputs(["", *tasks] if data.auxiliary_only else tasks)
    more = auxiliary(data)
    if more is not None:
        found += [i._replace(what=i.what.replace("data.", "data.auxiliary.", 1)) for i in more[0].inputs([""])]
    return found


def config_inputs(folders: Iterable[str | Path]) -> list[Input]:
    """The folders of --config-dir: their files and the folders of the groups."""
    found = []
    for folder in folders:
        path = Path(folder).expanduser().absolute()
        groups = [path / group for group in (*GROUPS, *SWEEPS, "training", "hydra")]
        files = sorted(path.glob("*.y*ml")) if path.is_dir() else []
        found += [Input("--config-dir", own) for own in (*groups, *files) if own.exists()]
        found.append(Input("--config-dir", path, container=True))
    return found


def cache_inputs() -> list[Input]:
    """The cache, whose folders may lie anywhere."""
    return [Input("FSMERGE_CACHE", cache_folder() / name) for name in ("sources", "features")]
