"""Pickled checkpoints (.pt, .pth, .bin, .ckpt), read by torch with `weights_only=True`."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import shown

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SAFE = (2, 10)
"""First torch version without a known way to run code despite `weights_only` (CVE-2025-32434, CVE-2026-24747)."""

REMEDY = "if you trust it, convert it once with safetensors.torch.save_file(state_dict, 'model.safetensors')."


def read_pickled(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a pickled state dict; SourceError where the file contains other objects."""
    if path.suffix not in SUFFIXES:
        raise SourceError(
            f"{where} is not a .safetensors file. Pass one, a folder with model.safetensors, or a state dict as "
            f"{', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise SourceError(f"{where}: there is no file {path.name}. Check the path of the checkpoint.")
    if _version() < SAFE:
        raise SourceError(
            f"{where} is a pickle, which torch {torch.__version__} cannot open safely. Install torch "
            f"{'.'.join(map(str, SAFE))} or later, or {REMEDY}"
        )
    try:
        content = dict(_flat(plain_values(path)))  # RecursionError where a dict contains itself
    except OSError as error:
        raise SourceError(f"{where} cannot be read: {shown(error)}. Copy or download the file again.") from None
    except Exception:  # a file may raise anything in the unpickler; its code is not run
        if _is_torchscript(path):
            raise SourceError(
                f"{where} is a TorchScript archive (OpenAI publishes CLIP in this format). It may run code, so it "
                f"is not opened. Use the same weights from timm or open_clip, or {REMEDY}"
            ) from None
        raise SourceError(
            f"{where} is damaged, or contains more than plain weights and may run code, so it is not opened. "
            f"Download it again, or {REMEDY}"
        ) from None
    if not content or not all(map(_dense, content.values())):
        raise SourceError(f"{where} contains no state dict (tensors by name); {REMEDY}")
    return {name: tensor.detach() for name, tensor in content.items()}


def plain_values(path: Path) -> Any:
    """The content of a pickle of tensors and plain values; raises torch's exception for any other object.

    The only place where the package opens a pickle. Raises RuntimeError where this torch cannot do so safely.
    """
    if _version() < SAFE:
        raise RuntimeError(f"torch {torch.__version__} cannot open a pickle safely")
    with warnings.catch_warnings():  # torch warns about its own old formats, which the user cannot change
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


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


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; nothing in it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def _dense(value: object) -> bool:
    plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized
    return plain and isinstance(value, Tensor) and value.device.type == "cpu"


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
