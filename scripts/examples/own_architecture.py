"""A custom architecture: one table assigns a space to every axis of every tensor.

    python scripts/examples/own_architecture.py [STEPS]

The network: x = embed(pixels), then x = x + fc2(gelu(fc1(norm(x)))) per block, then a norm. To use it on the
command line, offer its Family as an entry point `fsmerge.architectures` of a package (docs/write-a-method.md).
"""

import sys
from dataclasses import asdict, replace

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from fsmerge_cli import check, merge
from fsmerge_cli.architectures import SPECS, Family
from fsmerge_cli.architectures.family import Table
from fsmerge_cli.architectures.ports import FIXED, norm
from fsmerge_cli.common.options import build as build_options

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 300


@dataclass(frozen=True)
class Arch:
    """input_size: channels, height, width. width: of the residual stream. hidden: units inside a block."""

    input_size: tuple[int, int, int]
    width: int
    hidden: int
    depth: int

    @property
    def features(self) -> int:
        """Width of the features that the classifier heads take."""
        return self.width


class Block(nn.Module):
    """x + fc2(gelu(fc1(norm(x))))."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(arch.width)
        self.fc1, self.fc2 = nn.Linear(arch.width, arch.hidden), nn.Linear(arch.hidden, arch.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width] -> [n, width]."""
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class ResidualMLP(nn.Module):
    """Pixels [n, C, H, W] -> features [n, width]."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        channels, height, width = arch.input_size
        self.embed = nn.Linear(channels * height * width, arch.width)
        self.blocks = nn.ModuleList(Block(arch) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(arch.width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features."""
        x = self.embed(pixels.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


# A tensor writes to its first port and reads from its second one; `res` is one space with many ports.
TABLE = Table(
    tensors={
        "embed.weight": ("res@embed", FIXED),
        "embed.bias": ("res@embed",),
        "blocks.{i}.norm.weight": norm("res@norm{i}", fill=1.0),
        "blocks.{i}.norm.bias": norm("res@norm{i}", fill=0.0),
        "blocks.{i}.fc1.weight": ("h{i}@fc1_{i}", "res@fc1_{i}"),
        "blocks.{i}.fc1.bias": ("h{i}@fc1_{i}",),
        "blocks.{i}.fc2.weight": ("res@fc2_{i}", "h{i}@fc2_{i}"),
        "blocks.{i}.fc2.bias": ("res@fc2_{i}",),
        "norm.weight": norm("res@norm", fill=1.0),
        "norm.bias": norm("res@norm", fill=0.0),
    },
    features="res@features",
)

SPECS["residual_mlp"] = Family(
    name="residual_mlp",
    arch=Arch,
    build=ResidualMLP,
    resize=lambda arch, width, heads: arch if width is None else replace(arch, width=width),
    table=lambda module: TABLE,
    entry="embed",
    signature=lambda arch: {"input_size": arch.input_size, "depth": arch.depth},
    config=lambda arch: {"architecture": "residual_mlp", "model_args": asdict(arch)},
    parse=lambda name, options, config, where: build_options(Arch, options, where),
    snippet=lambda arch, head: f"from own_architecture import Arch, ResidualMLP\n\n{head}",
    layers=lambda module: [f"blocks.{i}" for i in range(len(module.blocks))],
)

ARCH = {"family": "residual_mlp", "input_size": [1, 8, 8], "width": 32, "hidden": 64, "depth": 2}
RECIPE = {"data": "digits", "steps": STEPS}
models = [
    {"name": "low", "arch": ARCH, "labels": list("01234"), "recipe": {**RECIPE, "seed": 1}},
    {"name": "high", "arch": ARCH, "labels": list("56789"), "recipe": {**RECIPE, "seed": 2}},
]
print(check(models).tasks)  # checks that the table covers every tensor and every space is written and read
result = merge(models, method={"name": "fs_merge", "steps": STEPS, "targets": "all"}, data="digits")
print({name: row.mean for name, row in result.scores.items()})
result.save("outputs/residual-mlp", overwrite=True)  # also certifies the model against an unfolded reference
