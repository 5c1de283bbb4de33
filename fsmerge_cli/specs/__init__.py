"""Architectures as data. To add one: write one `Family` in a file here and one line below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsmerge_cli.specs.family import Arch, Compiled, Family, compile_table
from fsmerge_cli.specs.mlp import MLP
from fsmerge_cli.specs.vit import VIT

SPECS: dict[str, Family] = {
    "mlp": MLP,
    "vit": VIT,
}


def resolve(architecture: str, model_args: Mapping[str, Any], where: str) -> tuple[Family, Any]:
    """Family and options of an `architecture` as config.json has it: a key of SPECS, else one of timm's names."""
    family = SPECS.get(architecture, VIT)
    return family, family.parse(architecture, model_args, where)


__all__ = ["SPECS", "Arch", "Compiled", "Family", "compile_table", "resolve"]
