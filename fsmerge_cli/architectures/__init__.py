"""Architectures as data. To add one, write a `Family` in a file here and add one line below.

Those of other packages come from the entry points `fsmerge.architectures`, those of scripts from
`fsmerge_cli.register`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsmerge_cli.architectures.bert import BERT
from fsmerge_cli.architectures.convnext.family import CONVNEXT
from fsmerge_cli.architectures.eva.family import EVA
from fsmerge_cli.architectures.family import Arch, Compiled, Family, compile_table
from fsmerge_cli.architectures.mlp import MLP
from fsmerge_cli.architectures.modernbert import MODERNBERT
from fsmerge_cli.architectures.resnet.family import RESNET
from fsmerge_cli.architectures.vgg.family import VGG
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


SHIPPED: dict[str, Family] = {own.name: own for own in (BERT, CONVNEXT, EVA, MLP, MODERNBERT, RESNET, VGG, VIT)}

BY_MODULE = {f"timm.models.{own.name}": own for own in (CONVNEXT, EVA, RESNET, VGG)}
"""The file in which timm defines an architecture -> its family; all others are vision transformers, or refused."""

SPECS: Registry[Family] = Registry(plugins.ARCHITECTURES, SHIPPED, _check)


def resolve(
    architecture: str, options: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[Family, Any]:
    """Family and options of an `architecture`: a key of SPECS, or else a timm name.

    options: given by the user. config: the checkpoint's config.json, which supplies the other options.
    """
    family = SPECS.get(architecture)
    if family is None:
        from timm.models import is_model, model_entrypoint  # timm takes seconds to import

        name = architecture.split(".")[0]
        family = BY_MODULE.get(model_entrypoint(name).__module__, VIT) if is_model(name) else VIT
    return family, family.parse(architecture, options, config, where)


__all__ = ["SPECS", "Arch", "Compiled", "Family", "compile_table", "resolve"]
