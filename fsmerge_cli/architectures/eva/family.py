"""timm's Eva: EVA-02, DINOv3, Perception Encoder, and other rotary vision transformers.

Options, input and files are those of the plain vision transformer (`vit`). Queries, keys and values that are one
weight with separate biases are three layers here: such a model is built with `qkv_fused=False`, as timm can too.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.eva.module import (
    arguments,
    head_size,
    properties,
    reasons,
    rope_table,
    with_fixed_rope,
)
from fsmerge_cli.architectures.eva.table import table
from fsmerge_cli.architectures.family import Family, Folding
from fsmerge_cli.architectures.vit import family as vit
from fsmerge_cli.architectures.vit.arch import ViTArch, build, meta
from fsmerge_cli.architectures.vit.classifier import classifier, snippet
from fsmerge_cli.architectures.vit.module import other_eps, set_eps
from fsmerge_cli.architectures.vit.pooling import grid, is_latent, of_query, pooling, tokens, with_projection
from fsmerge_cli.architectures.vit.table import POOLING_HEADS
from fsmerge_cli.common.errors import ConfigError, SourceError

PARTS = ("q", "k", "v")


def is_eva(name: str) -> bool:
    """Whether a timm name is one of the Eva class."""
    from timm.models import is_model, model_entrypoint

    name = name.split(".")[0]
    return is_model(name) and model_entrypoint(name).__module__ == "timm.models.eva"


def parse(architecture: str, options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> ViTArch:
    """Options from `{family: eva, name: ..., args: ...}`, or from a timm name and a checkpoint's config.json."""
    from timm.models.eva import Eva

    arch = vit.parse_class(architecture, "eva", (Eva,), options, config, where)
    if arch.projection:
        raise SourceError(f"{where}: projection is an option of CLIP's vision transformers. Remove it.")
    attention = meta(arch).blocks[0].attn
    if getattr(attention, "q_bias", None) is not None:  # such a layer is not called as a module
        arch = replace(arch, args={**arch.args, "qkv_fused": False})
    return arch


def translate(arch: ViTArch, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under timm's names -> under those of `build`: a fused qkv with separate biases is split."""
    found = of_query(tensors)
    if arch.args.get("qkv_fused") is not False:
        return found
    for name in [name for name in tensors if name.endswith(".attn.qkv.weight")]:
        owner = name.removesuffix("qkv.weight")
        for part, own in zip(PARTS, found.pop(name).chunk(3)):
            found[f"{owner}{part}_proj.weight"] = own
        for part in PARTS:
            if (bias := found.pop(f"{owner}{part}_bias", None)) is not None and part != "k":
                found[f"{owner}{part}_proj.bias"] = bias
    return found


def resize(arch: ViTArch, width: int | tuple[int, ...] | None, heads: int | None) -> ViTArch:
    """Options of the merged model. With rotary positions a head keeps its size, so that their number follows."""
    model = meta(arch)
    if model.rope is None or (width is None and heads is None):
        return vit.resize(arch, width, heads)
    size = head_size(model)
    if isinstance(width, int) and width % size == 0 and heads in (None, width // size):
        return vit.resize(arch, width, width // size)
    if width is None and heads == model.blocks[0].attn.num_heads:
        return vit.resize(arch, None, None)
    raise ConfigError(
        f"method.width={width}, method.heads={heads}: with rotary positions every head keeps its {size} units. "
        f"Pass a width that is a multiple of {size}, and heads=null."
    )


def signature(arch: ViTArch) -> dict[str, Any]:
    """Properties that all sources have to share; widths, numbers of heads and a source's own eps may differ."""
    model = meta(arch)
    own = _rope(arch)
    kind = None
    if own is not None:
        digest = sha256(own.numpy().tobytes()).hexdigest()[:8]
        kind = f"{type(model.rope).__name__}, heads of {head_size(model)} units, table {digest}"
    half = bool(getattr(model.blocks[0].attn, "rotate_half", False))
    return {**properties(model), "rotary positions": kind, "rotated halves": half}


def pooling_heads(arch: ViTArch) -> dict[str, int]:
    """The number of heads of attention pooling, which is one of its own."""
    model = meta(arch)
    return dict.fromkeys(POOLING_HEADS, model.attn_pool.num_heads) if is_latent(model) else {}


def adapt(module: nn.Module, arch: ViTArch) -> nn.Module:
    """A skeleton with the eps of the source's library, and rotary positions that have values."""
    own = _rope(arch)
    module = module if own is None else with_fixed_rope(module, own)
    return module if arch.eps is None else set_eps(module, arch.eps)


def _rope(arch: ViTArch) -> Tensor | None:
    """The rotary positions [N, 2 d]; None without."""
    model = meta(arch)
    if model.rope is None or reasons(model):
        return None
    return rope_table(arch.name, arch.args, model.blocks[0].attn.num_heads, model.embed_dim)


def describe(instance: nn.Module) -> ViTArch | None:
    """Options from which timm builds the same kind of module; None if it is not timm's Eva.

    Raises SourceError if it differs from timm's model of that name.
    """
    from timm.models.eva import Eva

    module: Any = instance
    if type(module) is not Eva:
        return None
    name = str((getattr(module, "pretrained_cfg", None) or {}).get("architecture") or "")
    if is_eva(name):
        arch = parse("eva", {"name": name, "args": arguments(module)}, {}, name)
        own = {n: t for n, t in translate(arch, module.state_dict()).items() if not n.startswith("head.")}
        same = _shapes(own) == _shapes(EVA.skeleton(arch).state_dict())
        if same and not other_eps(meta(arch), module) and _same_rope(arch, module):
            return arch
    raise SourceError(
        f"this Eva module differs from timm's {name or 'models'}. Also pass its arch: "
        "{family: eva, name: ..., args: {...}}."
    )


def _same_rope(arch: ViTArch, module: Any) -> bool:
    """Whether the rotary positions of `module` are those of its options: a temperature, say, is none of them."""
    expected = _rope(arch)
    if expected is None or module.rope is None:
        return expected is None and module.rope is None
    rope = deepcopy(module.rope).eval()  # its own in training is drawn anew
    own: Tensor = rope.get_embed(shape=module.patch_embed.grid_size).detach().cpu()
    return own.shape == expected.shape and torch.allclose(own.float(), expected.float(), atol=1e-5)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


EVA = Family(
    name="eva",
    arch=ViTArch,
    build=build,
    resize=resize,
    table=table,
    entry="patch_embed.proj",
    signature=signature,
    config=vit.config,
    parse=parse,
    snippet=snippet,
    refuse=lambda arch: reasons(meta(arch)),
    heads=lambda arch: int(meta(arch).blocks[0].attn.num_heads),
    own_heads=pooling_heads,
    positions=vit.positions,
    blocks=vit.blocks,
    pooling=pooling,
    tokens=tokens,
    grid=grid,
    layers=vit.blocks,
    adapt=adapt,
    describe=describe,
    resample=vit.resample,
    deepen=vit.VIT.deepen,
    classifier=lambda arch, weights, weight, bias: classifier(vit.config(arch), False, weights, weight, bias),
    folding=Folding(translate, lambda arch, weights, statistics: with_projection(weights)),
    library="timm",
)
