"""Folding the normalisation of input images (mean and std) into the weights of the first layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures import Family
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.source import Pixels

MIN_STD, MAX_STD = 1e-6, 2.0
"""Range of a std; that of pixels in 0..1 is at most 0.5, and 1 means no scaling."""

EXACT = 1e-9
"""Largest relative difference between a first layer and its folded one, in fp64."""


def fold_normalisation(
    family: Family,
    arch: Any,
    weights: Mapping[str, Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    where: str,
) -> dict[str, Tensor]:
    """Weights for pixels in 0..1 instead of (pixels - mean) / std; exact up to rounding.

    W' = W / std and b' = b - sum W' mean, in fp64, along the channels of the entry weight. Without a bias the
    shift is folded into the patch rows of the position embeddings (not class or register rows), before any
    resampling.
    """
    channels = arch.input_size[0]
    _check(mean, std, channels, where)
    name = f"{family.entry}.weight"
    if name not in weights or (set(mean) == {0.0} and set(std) == {1.0}):
        return dict(weights)
    weight = weights[name]
    expected = family.skeleton(arch).state_dict().get(name)
    if expected is None or expected.shape != weight.shape:
        return dict(weights)  # of another architecture; compile_plan reports the shape
    _require_exact(family, arch, mean, std, where)
    folded = _fold(family, arch, weights, mean, std, where)
    if not all(tensor.is_meta or bool(tensor.isfinite().all()) for tensor in folded.values()):
        raise SourceError(f"{where}: folding mean {list(mean)} and std {list(std)} exceeds fp32. Check both.")
    return {**weights, **folded}


def refolded(family: Family, arch: Any, weights: Mapping[str, Tensor], pixels: Pixels) -> dict[str, Tensor]:
    """Weights of a first layer for normalised pixels -> those for pixels in 0..1, as `fold_normalisation`."""
    return {**weights, **_fold(family, arch, weights, *pixels, "the merged model")}


def unfolded(family: Family, arch: Any, weights: Mapping[str, Tensor], pixels: Pixels) -> dict[str, Tensor]:
    """The inverse of `refolded`: folding mean -m / s and std 1 / s. The tensors that change are in fp64."""
    mean, std = pixels
    count = max(map(len, pixels))
    shares = [-m / s for m, s in zip(mean * (count // len(mean)), std * (count // len(std)))]
    inverse = shares, [1 / s for s in std]
    exact = {name: tensor.double() for name, tensor in weights.items() if tensor.is_floating_point()}
    return {**weights, **_fold(family, arch, exact, *inverse, "a source")}


def _fold(
    family: Family,
    arch: Any,
    weights: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    where: str,
) -> dict[str, Tensor]:
    """The tensors that folding changes."""
    name = f"{family.entry}.weight"
    scaled, shift = _affine(weights[name], arch.input_size[0], mean, std)
    folded = {name: scaled.to(weights[name].dtype)}
    if set(mean) != {0.0}:
        folded |= _fold_shift(family, arch, weights, shift, f"{where}: mean {list(mean)}")
    return folded


def normalised(
    family: Family,
    arch: Any,
    weights: Mapping[str, Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    where: str,
) -> tuple[Any, dict[str, Tensor]]:
    """Options and weights for pixels in 0..1: mean and std in one of both, as the family has it."""
    if family.normalise is None:
        return arch, fold_normalisation(family, arch, weights, mean, std, where)
    _check(mean, std, arch.input_size[0], where)
    return family.normalise(arch, mean, std), dict(weights)


def _check(mean: tuple[float, ...], std: tuple[float, ...], channels: int, where: str) -> None:
    if not all(len(values) in (1, channels) for values in (mean, std)) or not min(std) > 0:
        count = "1 value" if channels == 1 else f"1 or {channels} values"
        raise SourceError(f"{where}: mean {list(mean)} and std {list(std)} need {count} each, every std above 0.")
    if max(map(abs, mean)) > 1 or max(std) > MAX_STD:
        divided = [[round(value / 255, 6) for value in values] for values in (mean, std)]
        raise SourceError(
            f"{where}: mean {list(mean)} and std {list(std)} are not for pixels in 0..1. If they are for 0..255, "
            f"divide both by 255: mean={divided[0]} and std={divided[1]}."
        )
    if min(std) < MIN_STD:
        raise SourceError(f"{where}: std {list(std)} should be at least {MIN_STD:g}, for pixels in 0..1.")


def _affine(weight: Tensor, channels: int, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The weight for pixels that are not divided by std, and the shift of its outputs by the mean, in fp64."""
    grouped = weight.double().reshape(weight.shape[0], channels, -1)
    scaled = grouped / torch.tensor(std, dtype=torch.float64, device=weight.device).reshape(1, -1, 1)
    shift = (scaled * torch.tensor(mean, dtype=torch.float64, device=weight.device).reshape(1, -1, 1)).sum((1, 2))
    return scaled.reshape(weight.shape), shift


def _require_exact(family: Family, arch: Any, mean: tuple[float, ...], std: tuple[float, ...], where: str) -> None:
    """Raise SourceError unless folding is exact whatever the module does between the pixels and its first layer.

    Padding with zeros, for example, adds the mean where it follows the normalisation, and black where it does not.
    The first layer is run with random weights, on normalised pixels and folded on plain ones.
    """
    module, channels = family.skeleton(arch), arch.input_size[0]
    entry: Any = module.get_submodule(family.entry)
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, *arch.input_size, generator=random, dtype=torch.float64)
    centre, scale = (torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1) for values in (mean, std))
    inputs = [_input_of(entry, module, images) for images in ((pixels - centre) / scale, pixels)]
    if all(found is not None for found in inputs) and entry.weight[0].numel() % channels == 0:
        entry = entry.to_empty(device="cpu").double()
        with torch.no_grad():
            weight = torch.randn(entry.weight.shape, generator=random, dtype=torch.float64)
            for name, tensor in entry.named_parameters():
                tensor.copy_(weight if name == "weight" else torch.zeros(()))
            expected = entry(inputs[0])
            scaled, shift = _affine(weight, channels, mean, std)
            entry.weight.copy_(scaled)
            axis = -1 if isinstance(entry, nn.Linear) else 1
            folded = (entry(inputs[1]).movedim(axis, -1) - shift).movedim(-1, axis)
        if (folded - expected).abs().max() <= EXACT * expected.abs().max():
            return
    raise SourceError(
        f"{where}: mean {list(mean)} and std {list(std)} cannot be folded into {family.entry}: what happens to "
        "the pixels before it (such as padding of images that the patches do not divide) gives another result "
        "then. Train it for a size without padding; if it was trained without normalisation, pass "
        "models.sources.N.mean=[0.0] and std=[1.0]."
    )


class _ReachedError(Exception):
    """The first layer is reached, so that the rest of the module need not be run."""


def _input_of(entry: nn.Module, module: nn.Module, pixels: Tensor) -> Tensor | None:
    """What the first layer is given for `pixels`; None if it is not called as a module on them."""
    found: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])
        raise _ReachedError

    handle = entry.register_forward_pre_hook(take)
    try:
        module(pixels)
    except Exception:  # of the hook, or of modules before it, which have no weights here
        return found[0] if found else None
    finally:
        handle.remove()
    return None


def _fold_shift(
    family: Family, arch: Any, weights: Mapping[str, Tensor], shift: Tensor, where: str
) -> dict[str, Tensor]:
    name = f"{family.entry}.bias"
    if name in weights:
        bias = weights[name]
        if bias.shape != shift.shape:
            return {}  # as above
        return {name: (bias.double() - shift).to(bias.dtype)}
    place = family.positions(arch)
    if place is None or place[0] not in weights:
        raise SourceError(
            f"{where} cannot be folded into {family.entry}, which has no bias. "
            "Pass images that are already centred, and models.sources.N.mean=[0.0]."
        )
    table = weights[place[0]].double().clone()  # `double` returns a tensor in fp64 itself
    if table.ndim != 3 or table.shape[2:] != shift.shape:
        return {}
    table[:, place[1] :] -= shift
    return {place[0]: table.to(weights[place[0]].dtype)}


def usual_pixels(family: Family, arch: Any) -> dict[str, list[float]]:
    """Mean and std, per channel, of timm's own weights for a network of this name and size.

    Empty where the options make it another network than the one of that name, or where timm has none.
    """
    from timm.models import get_pretrained_cfg, is_model

    if family.library != "timm" or not is_model(arch.name) or arch.input_size[0] != 3:
        return {}
    plain = type(arch)(arch.name, {})
    own, usual = ((getattr(family.skeleton(a), "embed_dim", a.features), a.depth) for a in (arch, plain))
    if own != usual:
        return {}  # another network under this name
    known = get_pretrained_cfg(arch.name, allow_unregistered=True)
    stated = {key: getattr(known, key, None) for key in ("mean", "std")}
    return {key: list(value) for key, value in stated.items() if value is not None and len(value) == 3}
