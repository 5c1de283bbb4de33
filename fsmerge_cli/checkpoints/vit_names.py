"""Timm's names of vision transformers that have given tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from fsmerge_cli.architectures.vit.arch import BASE, DISTILLED_BASE, ViTArch
from fsmerge_cli.architectures.vit.distilled import TOKEN
from fsmerge_cli.architectures.vit.family import VIT

SIZES = {
    (192, 12): ("tiny", 3),
    (384, 12): ("small", 6),
    (512, 12): ("medium", 8),
    (640, 12): ("betwixt", 10),
    (768, 12): ("base", 12),
    (1024, 24): ("large", 16),
    (1152, 27): ("so400m", 16),
    (1280, 32): ("huge", 16),
    (1408, 40): ("giant", 16),
    (1536, 40): ("giant", 24),
    (1664, 48): ("gigantic", 16),
}
"""(width, depth) of the published models -> their size in timm's names, and their usual number of heads."""

ELSEWHERE = r"head\.|head_dist\.|blocks\.(?!0\.)|attn_pool\.q\."
"""Tensors of a file that are not compared: of the classifier, of later blocks, of the pooling's projection."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@lru_cache(maxsize=16)
def _matching(names: tuple[str, ...], args: tuple[tuple[str, Any], ...], shapes: Shapes) -> tuple[str, ...]:
    """Those of timm's models that have these tensors, apart from the classifier and all blocks but one."""
    found = []
    wanted = {name: shape for name, shape in shapes if not re.match(ELSEWHERE, name)}
    for name in names:
        own = {key: list(value) if isinstance(value, tuple) else value for key, value in args}
        arch = ViTArch(name, {**own, "depth": 1})
        try:
            model = VIT.skeleton(arch)
        except Exception:  # timm passes all arguments on, so that errors of any type are raised
            continue
        built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if built == wanted:
            found.append(name)
            if name == names[0]:  # the plain model of this size
                break
    return tuple(found)


def matching_names(args: Mapping[str, Any], shapes: Shapes) -> tuple[str, ...]:
    """Timm's models of this size and with these tensors, the closest name first."""
    size = SIZES.get((args["embed_dim"], args["depth"]))
    if size is None:
        return ()
    own = {key: args[key] for key in ("img_size", "patch_size", "in_chans")}
    frozen = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in own.items())
    if any(name == TOKEN for name, _ in shapes):
        names = _distilled(size[0], args["patch_size"])
    else:
        names = tuple(_candidates(size[0], args))
    return _matching(names, frozen, shapes)


def _distilled(size: str, patch: Any) -> tuple[str, ...]:
    """Names of models with a distillation token, one for all sizes of images."""
    from timm.models import list_models

    return tuple(list_models(f"deit_{size}_distilled_patch{patch}_*")[:1])


def _candidates(size: str, args: Mapping[str, Any]) -> Iterator[str]:
    """Names of the same size and kind, one for all sizes of images, those of the same patch first."""
    from timm.models import is_model, list_models

    patch, image = args["patch_size"], args["img_size"]
    if args["scale_attn_norm"] and args["scale_mlp_norm"]:  # their norms have another eps than those of vit_*
        yield from list_models(f"beit3_{size}_patch{patch}_*", module="vision_transformer")
        return
    plain = f"vit_{size}_patch{patch}_{image}"
    if is_model(plain):
        yield plain
    sizes = [size, "giantopt"] if size == "giant" else [size]
    found = [name for own in sizes for name in list_models(f"vit_{own}_patch*", module="vision_transformer")]
    names = [name for name in found if not re.search(r"_\d+x\d+_", name)]  # of another depth
    alike = [name for name in sorted(names, key=lambda n: (len(n), n)) if name != plain and _is_kind(name, args)]
    same_patch = [name for name in alike if f"_patch{patch}_" in name]
    seen = {re.sub(r"_\d+$", "", plain)} if is_model(plain) else set()
    best = sorted(same_patch or alike, key=lambda name: not name.endswith(f"_{image}"))
    for name in best:
        kind = re.sub(r"_\d+$", "", name)
        if kind not in seen:
            seen.add(kind)
            yield name


def _is_kind(name: str, args: Mapping[str, Any]) -> bool:
    """Whether the parts of a name agree with what the tensors show."""
    registers = re.search(r"_reg(\d+)", name)
    pooled = any(part in name for part in ("_gap", "siglip", "aimv2"))
    clip = "clip" in name
    return (
        (int(registers[1]) if registers else 0) == args["reg_tokens"]
        and clip == args["pre_norm"]
        and not (pooled and args["class_token"])
    )


def nearest_name(width: int, depth: int, distilled: bool) -> str:
    """A name of timm for options of this width and depth. distilled: with a distillation token."""
    from timm.models import is_model

    if distilled:
        return DISTILLED_BASE
    size = SIZES.get((width, depth))
    name = f"vit_{size[0]}_patch16_224" if size else BASE
    return name if is_model(name) else BASE


def head_count(name: str) -> int:
    """Number of attention heads of timm's model of this name."""
    return int(VIT.heads(ViTArch(name, {})) or 0)
