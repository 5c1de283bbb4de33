"""The output folder of a run, and whether it holds a finished run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from fsmerge_cli.common.atomic import tidy
from fsmerge_cli.common.changed_files import changed, sentence
from fsmerge_cli.common.errors import ConfigError, Interrupted, OutputError, Stopped, UserError
from fsmerge_cli.common.foreign_files import read_yaml
from fsmerge_cli.common.leftovers import beside, unfinished
from fsmerge_cli.common.own_files import LATER
from fsmerge_cli.common.private_paths import restored
from fsmerge_cli.common.separation import resolved
from fsmerge_cli.reporting.schema import read_evaluation

NOT_HASHED = ("output", "resume", "checkpoint")
"""Keys that do not change the result, and therefore not the folder name."""


AGAIN = "Start again with resume=false output.overwrite=true, or choose another output.dir=..."
"""What to do where the folder of a finished run is damaged."""


def default_folder(keys: Mapping[str, Any], choices: Mapping[str, Any]) -> str:
    """outputs/MODELS-METHOD-HASH, with a hash of every key that can change the result."""
    content = {key: value for key, value in keys.items() if key not in NOT_HASHED}
    if (dtype := keys["output"].get("dtype", "float32")) != "float32":
        content["dtype"] = dtype
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    name = "-".join(str(choices.get(group) or group) for group in ("models", "method"))
    return f"outputs/{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}-{digest}"


def config_inputs() -> list[Any]:
    """What Hydra read of the user's own folders for the configuration of this job."""
    from fsmerge_cli.runs import inputs  # imports torch

    sources = HydraConfig.get().runtime.config_sources
    return inputs.config_inputs(source.path for source in sources if source.schema == "file" and source.path)


def finished(keys: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """The evaluation of the finished run in `folder`; ConfigError where its options differ.

    None where there is none, and where a run that was to replace it was interrupted and is now continued.
    """
    if not (folder / "evaluation.json").is_file() or (keys["output"].get("overwrite") and unfinished(folder)):
        return None
    from fsmerge_cli.runs.request import request
    from fsmerge_cli.training.snapshots import check_same

    groups = keys["models"]["sources"], keys["method"], keys.get("data"), keys["hardware"], keys["seed"]
    output = keys["output"]
    more = {"dtype": output.get("dtype", "float32"), "license": output.get("license")}
    more["kd"], more["base"] = keys["evaluation"]["kd"], keys["models"].get("base")
    merge_request = request(*groups, overwrite=False, **more)
    check_same(
        f"the finished run in {folder}",
        restored(folder / "evaluation.json", read_yaml(folder / "config.yaml", AGAIN)),
        merge_request.options(),
    )
    evaluation = read_evaluation(folder / "evaluation.json", AGAIN)
    require_unchanged(folder)
    check_sources(folder, merge_request.sources, evaluation)
    if merge_request.base is not None and merge_request.method.uses_base:
        check_sources(folder, [merge_request.base], evaluation)
    return evaluation


def require_unchanged(folder: Path) -> None:
    """Raise OutputError where a finished run no longer holds what it wrote.

    The logs may differ, and what only people read: cards and the page (`changed`).
    """
    if found := [name for name in changed(folder) if not LATER.fullmatch(name)]:
        raise OutputError(
            f"resume=true: the finished run in {folder} is {sentence(folder, found)}. Restore it, or move "
            "the folder away and run the command again."
        )


@contextmanager
def report_stop(folder: Path, resume: bool) -> Iterator[None]:
    """Inside, a stop says what there is in the end: a finished run, which is cleaned up, or a training state."""
    state = beside(resolved(folder), "state")
    before = _changed(folder / "evaluation.json"), _changed(state)
    try:
        yield
    except Interrupted:
        raise
    except Stopped as stop:
        from fsmerge_cli.training.snapshots import progress_of  # imports torch

        if _changed(folder / "evaluation.json") != before[0]:
            tidy(folder)
            stop.finished = str(folder)
        elif (resume or _changed(state) != before[1]) and (reached := progress_of(state)):
            raise Interrupted(reached, stop.signal) from None
        raise


def _changed(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return None


def check_sources(folder: Path, specs: Sequence[Any], evaluation: Mapping[str, Any]) -> None:
    """Raise ConfigError where a checkpoint has changed since the finished run."""
    from fsmerge_cli.checkpoints.open import digest  # imports torch

    recorded = [*evaluation["provenance"]["sources"], *filter(None, [evaluation["provenance"].get("base")])]
    hashes = {source["name"]: source["sha256"] for source in recorded}
    for spec in specs:
        found = digest(spec)
        if found is not None and found != hashes.get(spec.name):
            raise ConfigError(
                f"resume=true: source '{spec.name}' has changed since the finished run in {folder}: "
                f"{spec.checkpoint}. Choose another output.dir=..., or start over with resume=false "
                "output.overwrite=true."
            )


def changed_sources(folder: Path, keys: Mapping[str, Any]) -> list[str]:
    """Notes for checkpoints with other weights than the sources of the same name in the run in `folder`."""
    from fsmerge_cli.checkpoints.open import digest  # imports torch
    from fsmerge_cli.runs.from_run import recorded_hashes
    from fsmerge_cli.runs.request import source_entries

    hashes = recorded_hashes(folder)
    entries = source_entries(keys["models"]["sources"]) if hashes else []
    found = []
    for spec in entries:
        with suppress(UserError):  # the merge reports it
            if hashes.get(spec.name, own := digest(spec)) != own and own is not None:
                found.append(
                    f"'{spec.name}': {spec.checkpoint} has other weights than in the run that is repeated"
                )
    return found
