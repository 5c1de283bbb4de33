"""The architecture of a timm vision transformer, from the names and shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures.vit.distilled import TOKEN
from fsmerge_cli.checkpoints.vit_names import SIZES, head_count, matching_names, nearest_name
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import few

ANCHOR = "patch_embed.proj.weight"
"""The tensor by which a vision transformer of timm is recognised."""


@dataclass(frozen=True)
class Inferred:
    """Options of a `ViTArch` (name and args), and what was taken from where, for a note."""

    options: dict[str, Any]
    note: str


def inferred(
    tensors: Mapping[str, Tensor], given: Mapping[str, Any], where: str, options: Mapping[str, Any] | None = None
) -> Inferred | None:
    """The architecture of tensors under timm's names; None if they are no vision transformer.

    given: arguments that the user states, which are kept (num_heads, img_size, ...). options: other options of a
    `ViTArch` that the user states (eps, projection). Raises SourceError for what the shapes leave open, with the
    possible values and an entry to paste.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    patches, qkv = shapes.get(ANCHOR, ()), shapes.get("blocks.0.attn.qkv.weight", ())
    if len(patches) != 4 or len(qkv) != 2 or not all(patches) or "blocks.0.mlp.fc2.weight" not in shapes:
        return None
    args = {**_arguments(shapes, given, where), **given}
    names = matching_names(args, tuple(sorted(shapes.items())))
    if args["pre_norm"]:
        _refuse_activation(names, where)
    heads = {head_count(name) for name in names} if "num_heads" not in given else set()
    width, depth = args["embed_dim"], args["depth"]
    facts = f"{depth} blocks of width {width}, {_by(args['patch_size'])} patches, {_by(args['img_size'])} pixels"
    distilled = TOKEN in shapes
    pooling, own = DISTILLED if distilled else _pooling(args, given), dict(options or {})
    if names and len(heads) < 2:
        count = f", {heads.pop()} attention heads as in that model" if heads else ""
        keep = {key: args[key] for key in ("img_size", "patch_size", "in_chans")} | dict(given)
        found = {"name": names[0], "args": keep, **own}
        return Inferred(found, f"timm's {names[0]} ({facts}{count}, {pooling})")
    if any(name.startswith("blocks.0.mlp.fc1_g.") for name in shapes) or _packed(shapes):
        raise SourceError(
            f"{where} is a vision transformer with a gated MLP, whose activation is not in its tensors, and none "
            "of timm's models has its shapes. Pass models.sources.N.arch=..., the timm name of the model that was "
            "trained."
        )
    if args["scale_attn_norm"] and args["scale_mlp_norm"] and "eps" not in own:
        raise SourceError(
            f"{where} is a vision transformer with norms inside attention and MLP, as BEiT-3 has them, but none "
            "of timm's BEiT-3 models has its shapes, and the eps of its norms is not in its tensors. Pass it "
            "(BEiT-3: 1e-5, timm's usual one: 1e-6), for example: 'models.sources.N.arch={family: vit, eps: 1e-5}'"
        )
    how = ""
    if "num_heads" not in args:
        args["num_heads"], how = _head_count(shapes, args, heads, where)
    kept = {key: value for key, value in args.items() if value != DEFAULTS.get(key, ())}
    found = {"name": nearest_name(width, depth, distilled), "args": kept, **own}
    return Inferred(found, f"a vision transformer of timm ({facts}{how}, {pooling})")


DISTILLED = "the class and the distillation token as features"
"""What the features of a DeiT with a distillation token are."""


def _pooling(args: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """What the features are, and what else the same tensors allow."""
    if args["global_pool"] != "token" or "global_pool" in given:
        kind = {"token": "the class token", "avg": "the mean of the patches", "map": "attention pooling"}
        return f"{kind.get(args['global_pool'], args['global_pool'])} as features"
    return (
        "the class token as features; the mean of the patches has the same tensors, with "
        "arch={family: vit, args: {global_pool: avg, fc_norm: false}}"
    )


DEFAULTS = {
    "class_token": True,
    "no_embed_class": False,
    "reg_tokens": 0,
    "qkv_bias": True,
    "proj_bias": True,
    "qk_norm": False,
    "scale_attn_norm": False,
    "scale_mlp_norm": False,
    "init_values": None,
    "pre_norm": False,
    "global_pool": "token",
    "fc_norm": None,
    "final_norm": True,
    "mlp_ratio": 4,
}
"""What timm builds without these arguments."""


def _arguments(shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Timm's arguments, without the number of heads."""
    width, channels, *patch = shapes[ANCHOR]
    depth = len({found[1] for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))})
    class_token = "cls_token" in shapes
    registers = shapes["reg_token"][1] if len(shapes.get("reg_token", ())) == 3 else 0
    normed = "fc_norm.weight" in shapes
    args: dict[str, Any] = {"patch_size": patch[0] if patch[0] == patch[1] else patch, "in_chans": channels}
    args |= {"embed_dim": width, "depth": depth, "class_token": class_token, "reg_tokens": registers}
    args |= {
        "mlp_ratio": _ratio(shapes, width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "proj_bias": "blocks.0.attn.proj.bias" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "scale_attn_norm": "blocks.0.attn.norm.weight" in shapes,
        "scale_mlp_norm": "blocks.0.mlp.norm.weight" in shapes,
        "init_values": 1.0 if "blocks.0.ls1.gamma" in shapes else None,
        "pre_norm": "norm_pre.weight" in shapes,
        "final_norm": normed or "norm.weight" in shapes,
    }
    pooled = "token" if class_token and not normed else "avg"
    args["global_pool"] = "map" if any(name.startswith("attn_pool.") for name in shapes) else pooled
    args["fc_norm"] = None if normed or class_token else False
    prefix, own = int(class_token) + registers + (TOKEN in shapes), given.get("img_size")
    if own is None:
        own = _image_size(shapes, prefix, patch, registers > 0 or "blocks.0.ls1.gamma" in shapes, where)
    grid = [side // step for side, step in zip([own, own] if isinstance(own, int) else own, patch)]
    args["img_size"], args["no_embed_class"] = own, prefix > 0 and _rows(shapes) == math.prod(grid)
    return args


def _rows(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of position embeddings."""
    return shapes.get("pos_embed", (1, 0, 0))[1]


def _image_size(
    shapes: Mapping[str, tuple[int, ...]], prefix: int, patch: Sequence[int], usual: bool, where: str
) -> int | list[int]:
    """Height and width in pixels (one number for a square), from the number of position embeddings.

    prefix: number of class and register tokens, which have embeddings or not. usual: whether timm's models of this
    kind have none for them. Raises SourceError where several sizes are possible.
    """
    rows = _rows(shapes)
    count = rows - prefix
    grids = [(h, count // h) for h in range(1, count + 1) if count % h == 0]
    sides = [math.isqrt(own) for own in (count, rows) if own > 0 and math.isqrt(own) ** 2 == own]
    if sides and (sides[0] ** 2 == count or usual or not any(1 / 2 <= h / w <= 2 for h, w in grids)):
        size = [sides[0] * patch[0], sides[0] * patch[1]]
        return size[0] if size[0] == size[1] else size
    if not rows:
        raise SourceError(
            f"{where} is a vision transformer without position embeddings, so that the size of its images is not "
            "in its tensors. Pass it, for example: 'models.sources.N.arch={family: vit, args: {img_size: 224}}'"
        )
    grids += [(side, side) for side in sides]
    sizes = [f"[{h * patch[0]}, {w * patch[1]}]" for h, w in grids]
    near = min(grids, key=lambda grid: abs(math.log(grid[0] / grid[1])), default=(1, 1))
    raise SourceError(
        f"{where} is a vision transformer whose {rows} position embeddings allow images of several sizes: height "
        f"and width {', '.join(sizes)}. Pass the right one, for example: 'models.sources.N.arch={{family: vit, "
        f"args: {{img_size: [{near[0] * patch[0]}, {near[1] * patch[1]}]}}}}'"
    )


def _ratio(shapes: Mapping[str, tuple[int, ...]], width: int) -> float:
    """Timm's mlp_ratio, from which it computes the hidden width as int(width * ratio)."""
    first = shapes.get("blocks.0.mlp.fc1.weight") or shapes.get("blocks.0.mlp.fc1_g.weight") or (0,)
    return mlp_ratio(first[0], width)


def mlp_ratio(hidden: int, width: int) -> float:
    """Timm's mlp_ratio for this number of hidden units, computed there as int(width * ratio)."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def _packed(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether gate and value of the MLP are in one weight."""
    first, second = shapes.get("blocks.0.mlp.fc1.weight", (0,)), shapes["blocks.0.mlp.fc2.weight"]
    return len(second) == 2 and first[0] == 2 * second[1]


def _head_count(
    shapes: Mapping[str, tuple[int, ...]], args: Mapping[str, Any], named: set[int], where: str
) -> tuple[int, str]:
    """The number of heads, and a part of a note where it is assumed. Raises SourceError where it is unknown."""
    width, norm = args["embed_dim"], shapes.get("blocks.0.attn.q_norm.weight", (0,))[0]
    if norm and width % norm == 0:
        return width // norm, f", {width // norm} attention heads"
    size = SIZES.get((width, args["depth"]))
    if size is not None and not named:
        return size[1], f", {size[1]} attention heads as in timm's models of this width and depth"
    raise SourceError(ask_heads(where, width, sorted(named)))


def ask_heads(where: str, width: int, known: Sequence[int] = ()) -> str:
    """The message where the number of heads is open. known: those of timm's models with these shapes."""
    possible = list(known) or [n for n in range(1, width + 1) if width % n == 0]
    example = min(possible, key=lambda n: (abs(math.log(width / n / 64)), n))
    return (
        f"{where} is a vision transformer of width {width}, whose number of attention heads is not in its "
        f"tensors: {', '.join(map(str, possible))} are possible. Pass the one that it was trained with, for "
        f"example 'models.sources.N.arch={{family: vit, args: {{num_heads: {example}}}}}'"
    )


def _refuse_activation(names: Sequence[str], where: str) -> None:
    """Raise SourceError for a CLIP tower: its activation is not in its tensors."""
    advice = f"models.sources.N.arch=..., one of {few(names)}" if names else "models.sources.N.arch=..."
    raise SourceError(
        f"{where} is a CLIP vision tower, whose activation (GELU or quick-GELU) is not in its tensors. Pass "
        f"{advice}, the timm name of the model that was trained."
    )


def _by(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value} x {value}"
