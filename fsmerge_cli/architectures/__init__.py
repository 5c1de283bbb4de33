"""Architectures as data. To add one, write a `Family` in a file here and add one line below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsmerge_cli.architectures.family import Arch, Compiled, Family, compile_table
from fsmerge_cli.architectures.mlp import MLP
from fsmerge_cli.architectures.vit import VIT

SPECS: dict[str, Family] = {
    "mlp": MLP,
    "vit": VIT,
}


def resolve(
    architecture: str, options: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[Family, Any]:
    """Family and options of an `architecture`: a key of SPECS, or else a timm name.

    options: given by the user. config: the checkpoint's config.json, which supplies the other options.
    """
    family = SPECS.get(architecture, VIT)
    return family, family.parse(architecture, options, config, where)


__all__ = ["SPECS", "Arch", "Compiled", "Family", "compile_table", "resolve"]
