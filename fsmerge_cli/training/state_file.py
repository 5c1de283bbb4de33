"""The file of one training state: tensors, metadata and the random generators, with a digest of every part.

A training that continues from damaged bytes would end with other weights without any sign. So the header has the
SHA-256 of every tensor and one of its own texts; `read_state` compares them before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fsmerge_cli.common.atomic import usual_permissions
from fsmerge_cli.common.errors import OutputError

RANDOM = "random."
"""Prefix of the names of the tensors of random generators."""


def write_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Replace the file atomically. tensors: contiguous, on the CPU. Raises OSError, SafetensorError."""
    text = json.dumps(metadata)
    digests = json.dumps({name: _digest(tensor) for name, tensor in tensors.items()})
    header = {"fsmerge": text, "digests": digests, "sha256": _sha256(text, digests)}

    def write(temporary: Path) -> None:
        with usual_permissions(temporary):
            save_file(dict(tensors), temporary, metadata=header)

    write_atomically(path, write)


def read_state(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors whose names are `wanted`, and the metadata. Raises OutputError for a file that was changed."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            text, digests = header["fsmerge"], header["digests"]
            if header["sha256"] != _sha256(text, digests):
                raise damaged(path, "the checksum of its header does not match")
            expected: dict[str, str] = json.loads(digests)
            if set(file.keys()) != set(expected):
                raise damaged(path, "it does not have the tensors that were saved")
            tensors = {name: file.get_tensor(name).clone() for name in expected if wanted(name)}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    for name, tensor in tensors.items():
        if _digest(tensor) != expected[name]:
            raise damaged(path, f"the checksum of {name} does not match")
    metadata: dict[str, Any] = json.loads(text)
    return tensors, metadata


def damaged(path: Path, why: str) -> OutputError:
    """The error for a state that cannot be continued from."""
    return OutputError(
        f"the saved state of the interrupted run is damaged ({path}: {why}), so it cannot be resumed. Start again "
        "with resume=false output.overwrite=true."
    )


def _digest(tensor: Tensor) -> str:
    """SHA-256 of type, shape and bytes."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def random_tensors() -> dict[str, Tensor]:
    """The states of the random generators of torch and NumPy, as tensors."""
    states = {"random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"random.cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return {**states, "random.numpy": torch.from_numpy(_numpy_state()[1].astype(np.int64))}


def random_values() -> dict[str, Any]:
    """The rest of the states of the random generators, as JSON."""
    numpy = _numpy_state()
    return {"python": random.getstate(), "numpy": [numpy[0], *map(float, numpy[2:])]}


def _numpy_state() -> tuple[Any, ...]:
    return tuple(np.random.get_state(legacy=True))


def restore_random(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Set the random generators to the results of `random_tensors` and `random_values`."""
    torch.set_rng_state(tensors["random.torch"])
    if torch.cuda.is_available():
        found = [tensors[name] for name in sorted(tensors) if name.startswith("random.cuda")]
        if len(found) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(found)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, position, has_gauss, cached = state["numpy"]
    keys = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, int(position), int(has_gauss), cached))


def write_atomically(path: Path, write: Any) -> None:
    """Write atomically: under a temporary name, synced to disk, then renamed."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)  # of a killed run
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
