"""Architectures as data. To add one, write a `Family` in a file here and add one line below.

Those of other packages come from the entry points `fsmerge.architectures`, those of scripts from
`fsmerge_cli.register`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsmerge_cli.architectures.bert import BERT
from fsmerge_cli.architectures.eva.family import EVA, is_eva
from fsmerge_cli.architectures.family import Arch, Compiled, Family, compile_table
from fsmerge_cli.architectures.mlp import MLP
from fsmerge_cli.architectures.resnet.family import RESNET
from fsmerge_cli.architectures.resnet.options import is_resnet
from fsmerge_cli.architectures.vit.family import VIT
from fsmerge_cli.common import plugins
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.plugins import Registry
from fsmerge_cli.common.shown import brief


def _check(name: str, found: Any) -> None:
    if not isinstance(found, Family):
        raise ConfigError(f"should be a Family, got {brief(found)}.")
    if found.name != name:
        raise ConfigError(f"the `name` of the Family should be {name!r}, it is {brief(found.name)}.")


SHIPPED: dict[str, Family] = {"bert": BERT, "eva": EVA, "mlp": MLP, "resnet": RESNET, "vit": VIT}

SPECS: Registry[Family] = Registry(plugins.ARCHITECTURES, SHIPPED, _check)


def resolve(
    architecture: str, options: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[Family, Any]:
    """Family and options of an `architecture`: a key of SPECS, or else a timm name (of Eva, or of a plain ViT).

    options: given by the user. config: the checkpoint's config.json, which supplies the other options.
    """
    family = SPECS.get(architecture)
    if family is None:
        name = architecture.split(".")[0]
        family = RESNET if is_resnet(name) else EVA if is_eva(name) else VIT
    return family, family.parse(architecture, options, config, where)


__all__ = ["SPECS", "Arch", "Compiled", "Family", "compile_table", "resolve"]
