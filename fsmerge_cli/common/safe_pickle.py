"""Legacy checkpoints (.pt, .pth, .bin, .ckpt), read by torch's unpickler for weights alone."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.common.errors import SourceError

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SAFE = (2, 10)
"""From here on no file is known to run code in spite of `weights_only` (CVE-2025-32434, CVE-2026-24747)."""

REMEDY = "convert it once, where you trust it, with safetensors.torch.save_file(state_dict, 'model.safetensors')."


def read_pickled(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a pickled state dict; SourceError where it holds anything else than plain values."""
    if path.suffix not in SUFFIXES:
        raise SourceError(
            f"{where} is not a .safetensors file. Pass one, a folder with model.safetensors, or a state dict as "
            f"{', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise SourceError(f"{where}: there is no file {path.name}. Check the path of the checkpoint.")
    if _version() < SAFE:
        raise SourceError(
            f"{where} is a pickle, which torch {torch.__version__} cannot open safely. Take torch "
            f"{'.'.join(map(str, SAFE))} or later, or {REMEDY}"
        )
    try:
        content = dict(_flat(plain_values(path)))  # which never ends where a dict holds itself
    except OSError as error:
        raise SourceError(f"{where} cannot be read: {error}. Copy or download the file again.") from None
    except Exception:  # a file may break the unpickler in any way; its code is not run
        if _scripted(path):
            raise SourceError(
                f"{where} is a TorchScript program, as OpenAI publishes CLIP, and is not opened: it may run code. "
                f"Take the same weights from timm or open_clip, or {REMEDY}"
            ) from None
        raise SourceError(
            f"{where} is damaged, or not a pickle of plain weights, which may run code and is not opened. "
            f"Download it again, or {REMEDY}"
        ) from None
    if not content or not all(map(_dense, content.values())):
        raise SourceError(f"{where} holds no state dict (tensors by name); {REMEDY}")
    return {name: tensor.detach() for name, tensor in content.items()}


def plain_values(path: Path) -> Any:
    """What a pickle holds, where it is tensors and plain values; whatever torch raises where it is more.

    The one place where the package opens a pickle. Raises RuntimeError where this torch cannot do it safely.
    """
    if _version() < SAFE:
        raise RuntimeError(f"torch {torch.__version__} cannot open a pickle safely")
    with warnings.catch_warnings():  # torch speaks of its own old formats; the user has chosen nothing there
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _flat(found: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, those of dicts inside (a trainer's `state_dict`, `model_ema`, ...) under dotted names.

    What is not kept by name, such as an optimiser's state, is no model's.
    """
    if isinstance(found, Mapping):
        for name, value in found.items():
            if isinstance(name, str):
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value
                else:
                    yield from _flat(value, f"{prefix}{name}.")


def _scripted(path: Path) -> bool:
    """Whether a file is an archive of code; nothing of it is run."""
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
