"""timm's VisionTransformer, in all its variants that can be merged.

Shape legend: D embedding, H heads, d = D / H, N positions, p patch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from fsmerge_cli.errors import ConfigError, SourceError, reason, unknown
from fsmerge_cli.options import FORBID, Flag, Text
from fsmerge_cli.options import build as build_options
from fsmerge_cli.specs.family import Family
from fsmerge_cli.specs.vit_table import table

FOREIGN = frozenset(
    {
        "checkpoint_path",
        "cache_dir",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_custom_load",
    }
    | {"scriptable", "exportable", "no_jit", "features_only", "feature_cfg", "pruned", "model_name"}
)
"""Arguments of timm's loader that say nothing of the architecture; some would read files."""


@dataclass(frozen=True, config=FORBID)
class ViTArch:
    """Options of a timm vision transformer.

    name: timm's architecture name, without the tag of its weights. args: keyword arguments over timm's own
    (img_size, embed_dim, depth, ...). projection: whether the model's `head` is a projection that belongs to
    the backbone (CLIP; `num_classes` among the args is its width) instead of a task's classifier.
    """

    name: Text
    args: dict[str, Any]
    projection: Flag = False

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height, width of the image (pixels)."""
        model = _meta(self)
        height, width = model.patch_embed.img_size
        return model.patch_embed.proj.in_channels, height, width

    @property
    def features(self) -> int:
        """Width of the features (units): D, or that of the projection."""
        model = _meta(self)
        return int(model.head.out_features if self.projection else model.embed_dim)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(_meta(self).blocks)


def build(arch: ViTArch) -> nn.Module:
    """The timm model without a task head."""
    from timm.models import create_model  # timm takes seconds to import, and MLPs do without it

    args = dict(arch.args)
    classes = args.pop("num_classes", 0) if arch.projection else 0
    args.pop("num_classes", None)
    module: nn.Module = create_model(arch.name, pretrained=False, num_classes=classes, **args)
    return module


@lru_cache(maxsize=64)
def _instance(name: str, args: str, projection: bool) -> Any:
    with torch.device("meta"):
        return build(ViTArch(name, json.loads(args), projection)).eval()


def _meta(arch: ViTArch) -> Any:
    """An instance on the meta device, to read facts from; never to load weights into."""
    return _instance(arch.name, json.dumps(arch.args, sort_keys=True), arch.projection)


def parse(architecture: str, options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> ViTArch:
    """Options from `{family: vit, name: ..., args: ...}`, or from a timm name and a checkpoint's config.json."""
    if architecture == "vit":
        arch: ViTArch = build_options(ViTArch, {"args": {}, **options}, where)
    else:
        arch = ViTArch(architecture, _args(config), bool(config.get("projection")))
    from timm.models import is_model, list_models, model_entrypoint
    from timm.models.vision_transformer import VisionTransformer

    name = arch.name.split(".")[0]
    if foreign := sorted(FOREIGN & set(arch.args)):
        raise SourceError(
            f"{where}: {foreign[0]} is no option of an architecture. Weights come from "
            "models.sources.N.checkpoint alone; take the key out of the arguments."
        )
    if not is_model(name):
        raise SourceError(f"{where}: {unknown('timm architecture', name, list_models('vit_*'))}")
    try:
        model = _meta(replace(arch, name=name))
    except Exception as error:  # timm passes every argument on, and whatever gets it raises its own
        module = model_entrypoint(name).__module__
        if "vision_transformer" not in module:
            raise _other(where, name, f"a model of {module}") from None
        raise SourceError(
            f"{where}: timm cannot build {name} with {arch.args}: {reason(error)}. "
            "Change arch.args, or model_args in config.json."
        ) from None
    if type(model) is not VisionTransformer:
        raise _other(where, name, f"a {type(model).__name__}")
    return replace(arch, name=name)


def _other(where: str, name: str, kind: str) -> SourceError:
    return SourceError(
        f"{where}: {name} is {kind}, not a plain VisionTransformer of timm, and cannot be "
        "merged. Take a vit_* model, or write a specification for it."
    )


def _args(config: Mapping[str, Any]) -> dict[str, Any]:
    """What timm would build from a config.json: model_args, and what stands beside them."""
    args = dict(config.get("model_args") or {})
    stated = config.get("pretrained_cfg") or {}
    if config.get("global_pool"):
        args.setdefault("global_pool", config["global_pool"])
    if stated.get("input_size"):
        channels, height, width = stated["input_size"]
        args.setdefault("in_chans", channels)
        if stated.get("fixed_input_size"):
            args.setdefault("img_size", height if height == width else [height, width])
    if config.get("projection"):
        args["num_classes"] = config.get("num_classes")
    return args


def resize(arch: ViTArch, width: int | tuple[int, ...] | None, heads: int | None) -> ViTArch:
    """The merged model's options: another embedding width, another number of heads."""
    if isinstance(width, tuple):
        raise ConfigError(f"method.width: a vision transformer has one width, got {list(width)}. Give one number.")
    if arch.projection and width is not None:
        raise ConfigError("method.width: a model with a final projection keeps its width. Leave it at null.")
    width = arch.features if width is None else width
    count = _meta(arch).blocks[0].attn.num_heads if heads is None else heads
    embed = _meta(arch).embed_dim if arch.projection else width
    if embed % count:
        raise ConfigError(
            f"method.width={embed} cannot be divided into {count} heads. Pass method.heads=... that divides it."
        )
    if embed == _meta(arch).embed_dim and count == _meta(arch).blocks[0].attn.num_heads:
        return arch
    return replace(arch, args={**arch.args, "embed_dim": embed, "num_heads": count})


def refuse(arch: ViTArch) -> list[str]:
    """Reasons why a variant cannot be merged, by name."""
    from timm.layers.attention import Attention
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import Block

    model = _meta(arch)
    block = model.blocks[0]
    reasons = []
    if type(block) is not Block:
        return [f"{type(block).__name__}: only blocks of attention, then MLP, each after its norm, can be merged"]
    if model.attn_pool is not None:
        reasons.append(
            f"attention pooling (global_pool={model.global_pool}): its query attends inside the pooled space"
        )
    if model.global_pool == "":
        reasons.append("no pooling (global_pool=''): its features are one vector per token, not per image")
    if type(block.attn) is not Attention:
        reasons.append(f"{type(block.attn).__name__}: only timm's plain multi-head Attention can be merged")
    elif block.attn.gate is not None:
        reasons.append("gated attention: its gate mixes the values' space with the residual stream")
    elif not any(hasattr(block.mlp, name) for name in ("fc1", "fc1_g")):
        reasons.append(f"{type(block.mlp).__name__}: only Mlp, GluMlp and SwiGLU can be merged")
    if type(model.patch_embed) is not PatchEmbed:
        reasons.append(f"{type(model.patch_embed).__name__}: only a plain patch projection can be merged")
    return reasons


def signature(arch: ViTArch) -> dict[str, Any]:
    """What all sources have in common; widths and numbers of heads may differ."""
    model = _meta(arch)
    block = model.blocks[0]
    parts = {
        "attention output norm": getattr(block.attn, "norm", None),
        "MLP norm": getattr(block.mlp, "norm", None),
    }
    parts |= {"q/k norm": getattr(block.attn, "q_norm", None), "LayerScale": block.ls1}
    parts |= {
        "patch norm": model.patch_embed.norm,
        "pre-norm": model.norm_pre,
        "final norm": model.norm,
        "norm after pooling": model.fc_norm,
    }
    names = {name for name, _ in model.named_parameters()}
    return {
        "input_size": arch.input_size,
        "patch size": tuple(model.patch_embed.patch_size),
        "depth": arch.depth,
        "class token": model.has_class_token,
        "register tokens": model.num_reg_tokens,
        "positions": None if model.pos_embed is None else model.pos_embed.shape[1],
        "pooling": f"{model.global_pool}{' with prefix' if model.pool_include_prefix else ''}",
        "norm": f"{type(block.norm1).__name__}(eps={block.norm1.eps})",
        "MLP": f"{type(block.mlp).__name__}{getattr(block.mlp, 'gate_last', '')}",
        "activation": repr(block.mlp.act),
        **{name: part is not None and not isinstance(part, nn.Identity) for name, part in parts.items()},
        "biases": ", ".join(n for n in ("qkv", "proj") if f"blocks.0.attn.{n}.bias" in names)
        + (", patch" if "patch_embed.proj.bias" in names else ""),
        "final projection": arch.projection,
    }


def positions(arch: ViTArch) -> tuple[str, int] | None:
    """pos_embed and its first patch row; class and register rows come before it."""
    model = _meta(arch)
    if model.pos_embed is None or not isinstance(model.patch_embed.norm, nn.Identity):
        return None
    return "pos_embed", 0 if model.no_embed_class else model.num_prefix_tokens


def config(arch: ViTArch) -> dict[str, Any]:
    """`architecture` and `model_args` as timm's local-dir reads them; the image size is stated."""
    channels, height, width = arch.input_size
    size = height if height == width else [height, width]
    args = {**arch.args, "img_size": size, "in_chans": channels}
    if not arch.projection:
        args.pop("num_classes", None)
    marker = {"projection": True} if arch.projection else {}  # ours: timm reads the width from num_classes
    return {"architecture": arch.name, "model_args": args, **marker}


SNIPPET = """import timm, torch
from safetensors.torch import load_file

backbone = timm.create_model("local-dir:.", pretrained=True).eval()  # the path of this folder
heads = load_file("heads.safetensors")

{head}
images = torch.rand(1, {shape})  # pixels in 0..1
logits = head(backbone(images))"""


def snippet(arch: ViTArch, head: str) -> str:
    """Python that loads a merged vision transformer with timm alone."""
    return SNIPPET.format(shape=", ".join(str(size) for size in arch.input_size), head=head)


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
    heads=lambda arch: int(_meta(arch).blocks[0].attn.num_heads),
    positions=positions,
    blocks=blocks,
    layers=blocks,
)
