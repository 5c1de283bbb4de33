"""Pickled checkpoints (.pt, .pth, .bin, .ckpt), read by torch with `weights_only=True`."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.foreign_files import require_regular
from fsmerge_cli.common.shown import shown

SAFE = (2, 10)
"""First torch version without a known way to run code despite `weights_only` (CVE-2025-32434, CVE-2026-24747)."""

REMEDY = "if you trust it, convert it once with safetensors.torch.save_file(state_dict, 'model.safetensors')."

KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "weights",
    "params",
    "state_dict_ema",
    "model_ema",
)
"""Usual keys of the weights in a trainer's dict, the most usual first."""

COMMANDS = re.compile(
    r"(?:(?:__builtin__|builtins)\.)?(?:eval|exec|compile|open|getattr|__import__)$|"
    r"(?:posix|nt|os|sys|subprocess|shutil|socket|importlib|runpy|code|pty|ctypes|pickle|webbrowser)\."
)
"""Functions by which a pickle runs commands; no weights need them."""

LISTED = 6
"""How many classes or keys a message lists."""


def read_pickled(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a pickled state dict; SourceError where the file contains other objects."""
    if _version() < SAFE:
        raise SourceError(
            f"{where} is a pickle, which torch {torch.__version__} cannot open safely. Install torch "
            f"{'.'.join(map(str, SAFE))} or later, or {REMEDY}"
        )
    try:
        found = plain_values(path)
        listed = list(_flat(found))
    except OSError as error:
        raise SourceError(f"{where} cannot be read: {shown(error)}. Copy or download the file again.") from None
    except RecursionError:
        raise SourceError(f"{where} contains a dict that contains itself. Save the state dict alone.") from None
    except Exception as error:  # a file may raise anything in the unpickler; its code is not run
        raise SourceError(_refused(path, where, error)) from None
    content = dict(listed)
    if not content:
        raise SourceError(_without_tensors(found, where))
    if len(content) < len(listed):
        names = [name for name, _ in listed]
        twice = next(name for name in names if names.count(name) > 1)
        raise SourceError(f"{where} has two tensors called {shown(twice)}. Save the weights of one model.")
    for name, tensor in content.items():
        if problem := _problem(tensor):
            raise SourceError(f"{where}: {shown(name)} is {problem}. Save ordinary tensors with values.")
    return {name: tensor.detach() for name, tensor in content.items()}


def plain_values(path: Path) -> Any:
    """The content of a pickle of tensors and plain values; raises torch's exception for any other object.

    The only place where the package opens a pickle. Raises RuntimeError where this torch cannot do so safely.
    """
    if _version() < SAFE:
        raise RuntimeError(f"torch {torch.__version__} cannot open a pickle safely")
    require_regular(path)
    # torch warns about its own old formats, which the user cannot change; with a path it would go by the suffix.
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _flat(found: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors by name; those of nested dicts (a trainer's `state_dict`, `model_ema`, ...) under dotted names.

    Entries whose key is not a string, such as optimizer state, are skipped.
    """
    if isinstance(found, Mapping):
        for name, value in found.items():
            if isinstance(name, str):
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value
                else:
                    yield from _flat(value, f"{prefix}{name}.")


def _refused(path: Path, where: str, error: Exception) -> str:
    """The message for a pickle that torch does not open: the classes it needs, and how to save its weights."""
    classes = _classes(path, error)
    if not classes:
        return (
            f"{where} is damaged, or a pickle of another program, which may run code. Download or copy it "
            "again, or save its weights with torch.save(state_dict, 'weights.pt')."
        )
    if commands := [name for name in classes if COMMANDS.match(name)]:
        return (
            f"{where} is not opened: its pickle calls {', '.join(commands[:LISTED])}, by which it may run "
            "commands and which no weights need. Do not load it with weights_only=False; take the weights from "
            "another source."
        )
    more = f" and {len(classes) - LISTED} more" if len(classes) > LISTED else ""
    return (
        f"{where} contains more than weights: its pickle needs {', '.join(classes[:LISTED])}{more}, which may run "
        "code, so it is not opened. If you trust the file, save its weights once, in Python, where these can be "
        "imported:\n"
        f"    found = torch.load({str(path)!r}, map_location='cpu', weights_only=False)\n"
        f"    torch.save({_weights(path, classes)}, 'weights.pt')"
    )


def _classes(path: Path, error: Exception) -> list[str]:
    """Classes and functions that a pickle needs and torch does not allow; nothing is run."""
    named = re.findall(r"GLOBAL ([\w.]+)", str(error)) if "nsupported" in str(error) else []
    try:
        return sorted(map(shown, {*torch.serialization.get_unsafe_globals_in_checkpoint(path), *named}))
    except Exception:  # a bare pickle, whose first class is in torch's message; or a damaged file
        return sorted({*named})


def _weights(path: Path, classes: list[str]) -> str:
    """Python for the weights in `found`, as far as the pickle shows where they are."""
    content = _pickle_bytes(path)
    if content[2:3] == b"c" and not content.startswith(b"collections", 3):  # an object, not a dict
        return "found.state_dict()"
    state = ".state_dict()" if any(name.startswith("torch.nn.modules.") for name in classes) else ""
    keys = [key for key in KEYS if not (state and key == "module")]  # a word of torch's own in an old module
    key = next((key for key in keys if _contains(content, key)), None)
    if key is not None:
        return f"found[{key!r}]{'' if 'dict' in key else state}"
    if state:
        return f"found{state}"
    if b"_rebuild_tensor" not in content and any("numpy" in name for name in classes):
        return "{name: torch.as_tensor(array) for name, array in found.items()}"
    return "{name: t for name, t in found.items() if isinstance(t, torch.Tensor)}"


def _pickle_bytes(path: Path) -> bytes:
    """The beginning of the pickle in a file, without the values of its tensors."""
    limit = 4_000_000
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl")
            with archive.open(name) as file:
                return file.read(limit)
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile, NotImplementedError):
        with path.open("rb") as file:
            return file.read(limit)


def _contains(content: bytes, text: str) -> bool:
    """Whether a pickle contains this string as a whole: it is stored with its length in front."""
    length = len(text)
    return any(
        mark + text.encode() in content for mark in (b"X" + length.to_bytes(4, "little"), bytes([0x8C, length]))
    )


def _without_tensors(found: object, where: str) -> str:
    """The message for a file in which there are no tensors by name."""
    if not isinstance(found, Mapping):
        kind = "one tensor" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        return (
            f"{where} contains {kind}, no state dict (tensors by name). Save the weights with "
            "torch.save(model.state_dict(), 'weights.pt')."
        )
    keys = [shown(key) for key in found]
    training = [key for key in keys if re.search("optim|sched|scaler|param_groups|rng|^state$", key)]
    listed = ", ".join(keys[:LISTED]) + (", ..." if len(keys) > LISTED else "") or "none"
    if training:
        return (
            f"{where} contains the state of a training ({listed}), but no weights of a model. Pass the file of "
            "the weights."
        )
    return (
        f"{where} contains no state dict (tensors by name), its keys are: {listed}. Pass the file of the weights."
    )


def _problem(tensor: Tensor) -> str | None:
    """Why a tensor is not an ordinary one on the CPU."""
    if tensor.is_meta:
        return "without values (on the meta device)"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "sparse or nested"
    return None if tensor.device.type == "cpu" else f"on {tensor.device}"


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
