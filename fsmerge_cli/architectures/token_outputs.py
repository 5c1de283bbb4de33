"""Networks whose outputs are their features and, behind them, the tokens of all patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.architectures.family import Family

Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclass(frozen=True)
class TokenLayout:
    """What the outputs [n, size] of `with_tokens` consist of: features [n, width], tokens [n, rows * columns, d].

    grid: rows and columns of the patches. token_width: d.
    """

    width: int
    grid: Grid
    token_width: int

    @property
    def positions(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def size(self) -> int:
        """Width of the outputs."""
        return self.width + self.positions * self.token_width

    def features(self, outputs: Tensor) -> Tensor:
        """The features, [n, width]."""
        return outputs[:, : self.width]

    def tokens(self, outputs: Tensor) -> Tensor:
        """The tokens, [n, positions, token_width]."""
        return outputs[:, self.width :].reshape(len(outputs), self.positions, self.token_width)


def token_layout(family: Family, arch: Any) -> TokenLayout | None:
    """The layout for a network of `arch`; None for a family without tokens."""
    module = family.skeleton(arch)
    place, grid = family.tokens(module), family.grid(module)
    if place is None or grid is None:
        return None
    outputs = with_tokens(module, family)(family.sample(arch, 1, None))
    width = int(arch.features)
    return TokenLayout(width, grid, (outputs.shape[1] - width) // (grid[0] * grid[1]))


def with_tokens(module: nn.Module, family: Family) -> nn.Module:
    """The module, changed in place: images -> [n, size] of its `TokenLayout`. Its tensors keep their names.

    Raises ValueError for a family without tokens.
    """
    place = family.tokens(module)
    if place is None:
        raise ValueError(f"networks of family '{family.name}' have no patch tokens")
    name, prefix = place
    seen: list[Tensor] = []
    module.get_submodule(name).register_forward_hook(lambda own, values, output: seen.append(output))
    inner = module.forward

    def forward(inputs: Any) -> Tensor:
        seen.clear()
        features = inner(inputs)
        tokens = seen.pop()
        return torch.cat([features, tokens[:, prefix:].flatten(1).to(features.dtype)], 1)

    module.forward = forward
    return module


def on_grid(tokens: Tensor, old: Grid, new: Grid) -> Tensor:
    """Tokens [n, T, d] of a grid of patches at the places of another one, by bilinear interpolation.

    The grids cover the same image. On a finer one, and on one of the same size, nothing is averaged; on a coarser
    one each token is a mean over its area (antialiased).
    """
    if old == new:
        return tokens
    maps = tokens.reshape(len(tokens), *old, -1).movedim(-1, 1)
    found = F.interpolate(maps, size=new, mode="bilinear", align_corners=False, antialias=True)
    return found.movedim(1, -1).flatten(1, 2)
