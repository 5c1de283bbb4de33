"""`projectors.safetensors`: from the features of a merged model to those of each source without a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fsmerge_cli.checkpoints.files import as_float32, read_tensors
from fsmerge_cli.models.source import Source

FILE = "projectors.safetensors"

PART = ".weight"
"""End of the name of a tensor, behind the name of its task."""


def of_headless(sources: Sequence[Source], projectors: Sequence[Tensor]) -> dict[str, Tensor]:
    """U_out [d_i, d'] by task, in fp32, of the sources whose head does not contain it: those without one."""
    pairs = zip(sources, projectors)
    return {source.name: U.detach().cpu().float().contiguous() for source, U in pairs if source.head is None}


def stored(projectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file."""
    return {f"{name}{PART}": U for name, U in projectors.items()}


def read_projectors(folder: Path) -> dict[str, Tensor]:
    """U_out by task; empty where there is no such file. Raises SourceError for another content."""
    if not (folder / FILE).is_file():
        return {}
    where = f"{folder}/{FILE}"
    found = as_float32(read_tensors(folder / FILE, where)[0], where)
    return {name.removesuffix(PART): U for name, U in found.items() if name.endswith(PART) and U.ndim == 2}
