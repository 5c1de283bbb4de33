"""`projectors.safetensors`: from the features of a merged model to those of each source without a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
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


TOKENS, ENDS = "tokens/", (".weight", ".bias")
"""Start and ends of the names of the tensors of a token projector; no task has a name with a slash."""

GRID = ".grid"
"""End of the name of the rows and columns of the source's patches [2], where those of the model are others."""

TokenProjector = tuple[Tensor, Tensor, tuple[int, int] | None]
"""Weight [d_i, d'], bias [d_i] and the source's grid of patches (None: that of the model)."""


def stored(projectors: Mapping[str, Tensor], tokens: Mapping[str, TokenProjector]) -> dict[str, Tensor]:
    """The tensors of the file. tokens: the token projectors by task."""
    found = {f"{name}{PART}": U for name, U in projectors.items()}
    for name, (*own, grid) in tokens.items():
        found |= {f"{TOKENS}{name}{end}": part.cpu().float().contiguous() for end, part in zip(ENDS, own)}
        if grid is not None:
            found[f"{TOKENS}{name}{GRID}"] = torch.tensor(grid, dtype=torch.float32)
    return found


def read_token_projectors(folder: Path) -> dict[str, TokenProjector]:
    """The token projectors by task; empty where there are none. Raises SourceError for another content."""
    found = _read(folder)
    own = {name.removeprefix(TOKENS): tensor for name, tensor in found.items() if name.startswith(TOKENS)}
    names = [name.removesuffix(ENDS[0]) for name in own if name.endswith(ENDS[0])]
    grids = {name: _grid(own.get(name + GRID)) for name in names}
    return {
        name: (own[name + ENDS[0]], own[name + ENDS[1]], grids[name]) for name in names if name + ENDS[1] in own
    }


def _grid(found: Tensor | None) -> tuple[int, int] | None:
    if found is None or found.shape != (2,):
        return None
    rows, columns = (int(value) for value in found)
    return rows, columns


def read_projectors(folder: Path) -> dict[str, Tensor]:
    """U_out by task; empty where there is no such file. Raises SourceError for another content."""
    own = {name: U for name, U in _read(folder).items() if name.endswith(PART) and not name.startswith(TOKENS)}
    return {name.removesuffix(PART): U for name, U in own.items() if U.ndim == 2}


def _read(folder: Path) -> dict[str, Tensor]:
    if not (folder / FILE).is_file():
        return {}
    where = f"{folder}/{FILE}"
    return as_float32(read_tensors(folder / FILE, where)[0], where)
