"""The options of a convolutional network of timm, and how they are read."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import fields, replace
from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from fsmerge_cli.architectures.vit.module import LOADER_ARGUMENTS
from fsmerge_cli.common.errors import ConfigError, SourceError, first_line, unknown
from fsmerge_cli.common.options import FORBID, FiniteFloat, Positive, PositiveFloat, Text
from fsmerge_cli.common.options import build as build_options
from fsmerge_cli.common.shown import brief, shortened

NORMALISATION = ("mean", "std")

STAGES = 4
"""Number of stages of residual blocks that timm's ResNet and ConvNeXt run."""

MAX_BLOCKS = 256
"""Most residual blocks: building a network takes seconds for every hundred, even without weights."""

MAX_CHANNELS = 2**16
"""Most channels of all stages together."""


@dataclass(frozen=True, config=FORBID)
class ConvArch:
    """Options of a convolutional network of timm.

    name: timm's architecture name, without the tag of its weights. args: keyword arguments that override timm's
    defaults (layers, channels, in_chans, stem_width, ...). size: height and width of the image (pixels). mean,
    std: of the pixels, per channel; they are read from the files, or from the entry's own keys mean and std.
    """

    name: Text
    args: dict[str, Any]
    size: Positive | tuple[Positive, Positive] = 224
    mean: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)] = (0.0,)
    std: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0,)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height, width of the image (pixels)."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return int(self.args.get("in_chans", 3)), height, width


def build(arch: ConvArch) -> nn.Module:
    """The timm model, as it is written and without a task head."""
    from timm.models import create_model

    args = {name: value for name, value in arch.args.items() if name != "num_classes"}
    module: nn.Module = create_model(arch.name, pretrained=False, num_classes=0, **args)
    return module


@lru_cache(maxsize=64)
def _cached(name: str, args: str) -> Any:
    with torch.device("meta"):
        return build(ConvArch(name, json.loads(args))).eval()


def instance(arch: ConvArch) -> Any:
    """A cached instance on the meta device, only for reading properties."""
    return _cached(arch.name, json.dumps(arch.args, sort_keys=True))


@plain_dataclass(frozen=True)
class TimmClass:
    """A class of timm whose instances a family merges.

    family: its key. arch: the dataclass of its options. name: of the class, in the file `timm.models.MODULE`.
    require: arguments and location -> SourceError for those of which no network can be built in a few seconds.
    """

    family: str
    arch: type[ConvArch]
    name: str
    module: str
    require: Callable[[Mapping[str, Any], str], None] = lambda args, where: None

    def defines(self, name: str) -> bool:
        """Whether timm defines the architecture `name` (without a tag) in this file."""
        from timm.models import is_model, model_entrypoint

        return is_model(name) and model_entrypoint(name).__module__ == f"timm.models.{self.module}"

    def parse(
        self, architecture: str, options: Mapping[str, Any], config: Mapping[str, Any], where: str
    ) -> ConvArch:
        """Options from `{family: ..., name: ..., args: ...}`, or from a timm name and its config.json."""
        from timm.models import list_models

        given = architecture == self.family
        arch = self._given(options, where) if given else self._stated(architecture, config, where)
        arch = replace(arch, name=arch.name.split(".")[0])
        if forbidden := sorted(LOADER_ARGUMENTS & set(arch.args)):
            raise SourceError(
                f"{where}: {forbidden[0]} is not an architecture option. Weights are only read from "
                "models.sources.N.checkpoint; remove the key from the arguments."
            )
        if not self.defines(arch.name):
            names = list_models(f"*{self.family}*", module=self.module)
            raise SourceError(f"{where}: {unknown(f'timm {self.name}', arch.name, names)}")
        self.require(arch.args, where)
        try:
            model = instance(arch)
            features = model(torch.empty(1, *arch.input_size, device="meta"))
        except Exception as error:  # timm passes all arguments on, so that errors of any type are raised
            raise SourceError(
                f"{where}: timm cannot build {arch.name} with {shortened(str(arch.args))} for images of "
                f"{' x '.join(map(str, arch.input_size))}: {first_line(error)}. Change arch.args and arch.size, "
                "or model_args in config.json."
            ) from None
        if type(model).__name__ != self.name:
            raise SourceError(f"{where}: {arch.name} is a {type(model).__name__}, not a {self.name} of timm.")
        if features.ndim != 2:
            raise SourceError(
                f"{where}: {arch.name} with {shortened(str(arch.args))} has no vector of features per image, "
                f"but {list(features.shape)[1:]}. Pass a global_pool, such as avg, in arch.args, or in "
                "model_args of config.json."
            )
        return arch

    def _given(self, options: Mapping[str, Any], where: str) -> ConvArch:
        """Options from an entry."""
        from importlib import import_module

        own = [field.name for field in fields(self.arch)]
        known = inspect.signature(getattr(import_module(f"timm.models.{self.module}"), self.name)).parameters
        if found := [key for key in options if key not in own and key in known]:
            raise ConfigError(
                f"{where}: {found[0]} is an argument of timm and belongs in args: "
                f"args: {{{found[0]}: {brief(options[found[0]])}}}."
            )
        if found := [key for key in NORMALISATION if key in options]:
            raise ConfigError(
                f"{where}: {found[0]} belongs in the entry of the source: models.sources.N.{found[0]}=..."
            )
        return build_options(self.arch, {"args": {}, **options}, where)

    def _stated(self, name: str, config: Mapping[str, Any], where: str) -> ConvArch:
        """Options from a timm name and a checkpoint's config.json."""
        args = dict(config.get("model_args") or {})
        stated = config.get("pretrained_cfg") or {}
        if config.get("global_pool"):
            args.setdefault("global_pool", config["global_pool"])
        args.pop("num_classes", None)
        size: Any = {}
        if stated.get("input_size"):
            channels, height, width = stated["input_size"]
            args.setdefault("in_chans", channels)
            size = {"size": height if height == width else (height, width)}
        return build_options(self.arch, {"name": name, "args": args, **size}, where)


def require_stages(blocks: str, channels: str, args: Mapping[str, Any], where: str) -> None:
    """Raise SourceError for numbers of which no network can be built in a few seconds.

    blocks, channels: the arguments of timm that give the number of each stage.
    """
    for key, what, most in ((blocks, "blocks", MAX_BLOCKS), (channels, "channels", MAX_CHANNELS)):
        given = args.get(key, [1] * STAGES)
        whole = isinstance(given, list | tuple) and all(type(n) is int and n > 0 for n in given)
        if not whole or len(given) != STAGES or sum(given) > most:
            raise SourceError(
                f"{where}: {key} should be the numbers of {what} of the {STAGES} stages, at most {most} together, "
                f"it is {brief(given)}. Change arch.args, or model_args in config.json."
            )
