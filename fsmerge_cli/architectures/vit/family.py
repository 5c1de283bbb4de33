"""timm's VisionTransformer, in all variants that can be merged.

Shapes: D embedding width, H heads, d = D / H, N positions, p patch size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor, nn

from fsmerge_cli.architectures.family import Family
from fsmerge_cli.architectures.vit.arch import BASE, DISTILLED_BASE, ViTArch, build, meta
from fsmerge_cli.architectures.vit.classifier import classifier, snippet
from fsmerge_cli.architectures.vit.distilled import has_two_tokens
from fsmerge_cli.architectures.vit.module import (
    LOADER_ARGUMENTS,
    arguments,
    differences,
    eps_of,
    other_class,
    properties,
    reasons,
    refuse_arguments,
    require_depth,
    resampled,
    set_eps,
    stated_arguments,
)
from fsmerge_cli.architectures.vit.pooling import FOLDING, grid, pooling, tokens
from fsmerge_cli.architectures.vit.table import table
from fsmerge_cli.common.errors import ConfigError, SourceError, first_line, unknown
from fsmerge_cli.common.options import build as build_options
from fsmerge_cli.common.shown import shortened


def stated_options(options: Mapping[str, Any], where: str) -> ViTArch:
    """Options from an entry, not yet tried with timm. Raises ConfigError for unknown keys and wrong values."""
    refuse_arguments(options, [field.name for field in fields(ViTArch)], where)
    return build_options(ViTArch, {"args": {}, **options}, where)


def parse(architecture: str, options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> ViTArch:
    """Options from `{family: vit, name: ..., args: ...}`, or from a timm name and a checkpoint's config.json."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    classes = VisionTransformer, VisionTransformerDistilled
    return parse_class(architecture, "vit", classes, options, config, where)


def parse_class(
    architecture: str,
    family: str,
    classes: tuple[type[nn.Module], ...],
    options: Mapping[str, Any],
    config: Mapping[str, Any],
    where: str,
) -> ViTArch:
    """Options of a model of these `classes` of timm; `architecture` is `family`, or a timm name. SourceError."""
    if architecture == family:
        arch = stated_options(options, where)
    else:
        eps = config.get("eps")
        own = eps if isinstance(eps, float) and 0 <= eps < 1 else None
        arch = ViTArch(architecture, stated_arguments(config), bool(config.get("projection")), own)
    from timm.models import is_model, list_models, model_entrypoint

    name = arch.name.split(".")[0]
    if forbidden := sorted(LOADER_ARGUMENTS & set(arch.args)):
        raise SourceError(
            f"{where}: {forbidden[0]} is not an architecture option. Weights are only read from "
            "models.sources.N.checkpoint; remove the key from the arguments."
        )
    if not is_model(name):
        raise SourceError(f"{where}: {unknown('timm architecture', name, list_models(MERGED))}")
    require_depth(arch.args, where)
    try:
        model = meta(replace(arch, name=name))
    except Exception as error:  # timm passes all arguments on, so that errors of any type are raised
        module = model_entrypoint(name).__module__
        if "vision_transformer" not in module and not module.endswith((f".{family}", ".deit")):
            raise other_class(where, name, f"a model of {module}") from None
        raise SourceError(
            f"{where}: timm cannot build {name} with {shortened(str(arch.args))}: {first_line(error)}. "
            "Change arch.args, or model_args in config.json."
        ) from None
    if type(model) not in classes:
        raise other_class(where, name, f"a {type(model).__name__}")
    if arch.projection and has_two_tokens(model):
        raise SourceError(f"{where}: projection is an option of CLIP's vision transformers. Remove it.")
    if arch.projection and not hasattr(model.head, "out_features"):
        raise SourceError(f"{where}: a projection needs its width: num_classes of 1 or more, in config.json.")
    return replace(arch, name=name)


MERGED = ["vit_*", "resnet*", "vgg*", "convnext*"]
"""Names of timm that are merged, beside those of the class Eva."""


def resize(arch: ViTArch, width: int | tuple[int, ...] | None, heads: int | None) -> ViTArch:
    """Options of the merged model: given embedding width and number of heads, timm's eps."""
    arch = replace(arch, eps=None)
    if isinstance(width, tuple):
        raise ConfigError(f"method.width: a vision transformer has one width, got {list(width)}. Give one number.")
    if arch.projection and width is not None:
        raise ConfigError("method.width: a model with a final projection keeps its width. Leave it at null.")
    count = meta(arch).blocks[0].attn.num_heads if heads is None else heads
    embed = int(meta(arch).embed_dim) if width is None else width
    if embed % count:
        raise ConfigError(
            f"method.width={embed} cannot be divided into {count} heads. Pass method.heads=... that divides it."
        )
    if embed == meta(arch).embed_dim and count == meta(arch).blocks[0].attn.num_heads:
        return arch
    return replace(arch, args={**arch.args, "embed_dim": embed, "num_heads": count})


def refuse(arch: ViTArch) -> list[str]:
    """Reasons why a variant cannot be merged."""
    return reasons(meta(arch))


def signature(arch: ViTArch) -> dict[str, Any]:
    """Properties that all sources have to share; widths, numbers of heads and a source's own eps may differ."""
    return properties(meta(arch), arch.projection)


def describe(instance: nn.Module) -> ViTArch | None:
    """Options from which timm builds the same kind of module; None if it is not timm's VisionTransformer.

    Raises SourceError if it has parts that options do not describe.
    """
    from timm.models import is_model
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    module: Any = instance
    if type(module) not in (VisionTransformer, VisionTransformerDistilled):
        return None
    stated = getattr(module, "pretrained_cfg", None) or {}
    base = DISTILLED_BASE if has_two_tokens(module) else BASE
    name = str(stated.get("architecture") or base)
    tower = "clip" in name and "ft_" not in str(stated.get("tag"))  # a fine-tuned one has a classifier
    projection = tower and getattr(module.head, "out_features", None) == stated.get("num_classes")
    args = arguments(module) | ({"num_classes": module.head.out_features} if projection else {})
    arch = parse(
        "vit", {"name": name if is_model(name) else base, "args": args, "projection": projection}, {}, name
    )
    arch = arch if eps_of(module) == eps_of(meta(arch)) else replace(arch, eps=eps_of(module))
    if different := differences(VIT.skeleton(arch), module, projection):
        raise SourceError(
            f"this module differs from timm's {name} in: {', '.join(different)}. "
            "Also pass its arch: {family: vit, name: ..., args: {...}}."
        )
    return arch


def adapt(module: nn.Module, arch: ViTArch) -> nn.Module:
    """A skeleton with the eps of the library that the source comes from."""
    return module if arch.eps is None else set_eps(module, arch.eps)


def resample(
    arch: ViTArch, weights: Mapping[str, Tensor], size: tuple[int, int], where: str
) -> tuple[ViTArch, dict[str, Tensor]]:
    """The same model for images of another size (height, width) in pixels; not exact. Raises SourceError."""
    model = meta(arch)
    patch = tuple(model.patch_embed.patch_size)
    if any(side % own for side, own in zip(size, patch)):
        raise SourceError(
            f"{where}: input_size {list(size)} is not a multiple of the patch size {list(patch)}. "
            "Pass a multiple: models.sources.N.input_size=..."
        )
    changed = replace(arch, args={**arch.args, "img_size": size[0] if size[0] == size[1] else list(size)})
    if model.pos_embed is None:
        return changed, dict(weights)
    if "pos_embed" not in weights:
        raise SourceError(f"{where} has no pos_embed to resample. Remove models.sources.N.input_size.")
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    old, new = model.patch_embed.grid_size, meta(changed).patch_embed.grid_size
    return changed, resampled(weights, "pos_embed", prefix, old, new)


def positions(arch: ViTArch) -> tuple[str, int] | None:
    """Name of the position embeddings and their first patch row, after the class and register rows."""
    model = meta(arch)
    if model.pos_embed is None or not isinstance(model.patch_embed.norm, nn.Identity):
        return None
    return "pos_embed", 0 if model.no_embed_class else model.num_prefix_tokens


def config(arch: ViTArch) -> dict[str, Any]:
    """`architecture` and `model_args` for timm's local-dir, with explicit image size."""
    channels, height, width = arch.input_size
    size = height if height == width else [height, width]
    args = {**arch.args, "img_size": size, "in_chans": channels}
    if not arch.projection:
        args.pop("num_classes", None)
    found = {"architecture": arch.name, "model_args": args}  # the width of a projection is its num_classes
    return {**found, "projection": True} if arch.projection else found


def blocks(module: nn.Module) -> list[str]:
    """Names of the transformer blocks of an instance."""
    return [f"blocks.{name}" for name, _ in module.get_submodule("blocks").named_children()]


VIT = Family(
    name="vit",
    arch=ViTArch,
    build=build,
    resize=resize,
    table=table,
    entry="patch_embed.proj",
    signature=signature,
    config=config,
    parse=parse,
    snippet=snippet,
    head=lambda arch: None if arch.projection else "head",
    refuse=refuse,
    heads=lambda arch: int(meta(arch).blocks[0].attn.num_heads),
    positions=positions,
    blocks=blocks,
    pooling=pooling,
    tokens=tokens,
    grid=grid,
    layers=blocks,
    adapt=adapt,
    describe=describe,
    resample=resample,
    deepen=lambda arch, depth: replace(arch, args={**arch.args, "depth": depth}),
    folding=FOLDING,
    library="timm",
    writes_features=lambda arch: has_two_tokens(meta(arch)),
    classifier=lambda arch, weights, *linear: classifier(config(arch), arch.projection, weights, *linear),
)
