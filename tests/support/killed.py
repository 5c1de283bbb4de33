"""A run that kills itself with SIGKILL, without cleaning up, at a given event.

    python -m tests.support.killed OUTPUT METHOD PHASE MOMENT

PHASE: capture, train, saving (a state, half written), fold, evaluate, writing. MOMENT: index of the event
in the phase.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fsmerge_cli import merge
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods import fs_merge
from fsmerge_cli.runs import result
from fsmerge_cli.training import state_file

STEPS = 60
DATA = {"name": "digits", "images_per_task": 40}


def options(method: str) -> dict[str, Any]:
    """The options of the run, shared with the test that resumes it."""
    return {
        "models": "digits_mlp_pair",
        "method": {"name": method, "steps": STEPS, "batch_size": 16},
        "data": DATA,
        "hardware": {"device": "cpu", "threads": 1},
        "checkpoint_every": 7,
    }


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(output: str, method: str, phase: str, moment: int) -> None:
    left = moment

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            die()

    def progress(event: Event) -> None:
        if event.phase.split()[0] == phase:
            count()

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            count()
            return function(*args, **kwargs)

        return run

    def half(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        write(tensors, path, metadata=metadata)
        if left == 0:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
        count()

    write = state_file.save_file
    if phase == "saving":
        state_file.save_file = half  # type: ignore[assignment]
    if phase == "fold":
        fs_merge.fold = dying(fs_merge.fold)
    if phase == "writing":
        result.write_json = dying(result.write_json)
        result.write_model = dying(result.write_model)
    merge(output=output, resume=True, progress=progress, **options(method))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
