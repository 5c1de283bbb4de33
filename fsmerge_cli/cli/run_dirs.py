"""The output folder of a run, and whether it holds a finished run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fsmerge_cli.common.errors import ConfigError

NOT_HASHED = ("output", "resume", "checkpoint")
"""Keys that do not change the result, and therefore not the folder name."""


def default_folder(keys: Mapping[str, Any], choices: Mapping[str, Any]) -> str:
    """outputs/MODELS-METHOD-HASH, with a hash of every key that can change the result."""
    content = {key: value for key, value in keys.items() if key not in NOT_HASHED}
    if (dtype := keys["output"].get("dtype", "float32")) != "float32":
        content["dtype"] = dtype
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    name = "-".join(str(choices.get(group) or group) for group in ("models", "method"))
    return f"outputs/{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}-{digest}"


def finished(keys: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """The evaluation of the finished run in `folder`; ConfigError where its options differ."""
    if not (folder / "evaluation.json").is_file():
        return None
    from fsmerge_cli.runs.request import request
    from fsmerge_cli.training.snapshots import check_same

    groups = keys["models"]["sources"], keys["method"], keys.get("data"), keys["hardware"], keys["seed"]
    more = {"kd": keys["evaluation"]["kd"], "dtype": keys["output"].get("dtype", "float32")}
    merge_request = request(*groups, overwrite=False, **more)
    check_same(
        f"the finished run in {folder}",
        yaml.safe_load((folder / "config.yaml").read_text()),
        merge_request.options(),
    )
    evaluation: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    _check_sources(folder, merge_request.sources, evaluation)
    return evaluation


def _check_sources(folder: Path, specs: Sequence[Any], evaluation: Mapping[str, Any]) -> None:
    """Raise ConfigError where a checkpoint has changed since the finished run."""
    from fsmerge_cli.checkpoints.weights import locate, model_in  # imports torch

    hashes = {source["name"]: source["sha256"] for source in evaluation["provenance"]["sources"]}
    for spec in specs:
        if spec.checkpoint is None:
            continue
        path = model_in(Path(spec.checkpoint).expanduser())
        if path.exists() and locate(path, f"source '{spec.name}': {path}").sha256() != hashes.get(spec.name):
            raise ConfigError(
                f"resume=true: source '{spec.name}' has changed since the finished run in {folder}: {path}. "
                "Choose another output.dir=..., or start over with resume=false output.overwrite=true."
            )
