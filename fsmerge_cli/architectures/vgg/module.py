"""Inspection of VGG instances of timm and torchvision: properties, names of tensors, reasons against a merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fsmerge_cli.architectures.convolutional.layers import ACTIVATIONS, POOLINGS
from fsmerge_cli.common.errors import SourceError

LAYERS: dict[tuple[int, ...], str] = {
    (1, 1, 2, 2, 2): "vgg11",
    (2, 2, 2, 2, 2): "vgg13",
    (2, 2, 3, 3, 3): "vgg16",
    (2, 2, 4, 4, 4): "vgg19",
}
"""Convolutions between the poolings -> timm's name."""

TORCHVISION = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
"""Linear layers of torchvision -> timm's layers, the first two of which are convolutions."""


def convolutions(model: nn.Module) -> list[str]:
    """Names of the convolutions before the first fully connected layer, in order."""
    features = model.get_submodule("features").named_children()
    return [f"features.{name}" for name, part in features if isinstance(part, nn.Conv2d)]


def counts(model: Any) -> tuple[int, ...]:
    """Convolutions between the poolings."""
    found = [0]
    for part in model.features:
        if isinstance(part, nn.MaxPool2d):
            found.append(0)
        elif isinstance(part, nn.Conv2d):
            found[-1] += 1
    return tuple(found[:-1] if found[-1] == 0 else found)


def normalises(model: nn.Module) -> bool:
    """Whether its convolutions have BatchNorms."""
    return any(isinstance(part, nn.BatchNorm2d) for part in model.modules())


def properties(model: Any) -> dict[str, Any]:
    """Properties that all sources have to share; widths may differ."""
    return {
        "convolutions between poolings": counts(model),
        "BatchNorm": normalises(model),
        "activation": type(model.pre_logits.act1).__name__,
        "pooling": model.head.global_pool.pool_type,
    }


def outputs(model: nn.Module) -> list[str]:
    """Names of the activations, in order."""
    return [name for name, part in model.named_modules() if isinstance(part, ACTIVATIONS)]


def reasons(model: Any) -> list[str]:
    """Reasons why a variant cannot be merged."""
    pooling = model.head.global_pool.pool_type
    if pooling in POOLINGS:
        return []
    return [f"the pooling '{pooling}': its features are not one unit per channel"]


def arguments(model: Any) -> tuple[str, dict[str, Any]]:
    """A timm name, and keyword arguments for timm that give this model's sizes, of timm or of torchvision."""
    usual = LAYERS.get(counts(model), "vgg11") + ("_bn" if normalises(model) else "")
    args: dict[str, Any] = {"in_chans": model.features[0].in_channels}
    if hasattr(model, "pre_logits"):
        hidden, width = (getattr(model.pre_logits, name).out_channels for name in ("fc1", "fc2"))
        args |= {"mlp_ratio": hidden / width, "global_pool": model.head.global_pool.pool_type}
    return usual, args


def differences(built: nn.Module, own: Any) -> list[str]:
    """Parts, or tensors without the classifier, in which a module differs from the one built for it."""
    if hasattr(own, "pre_logits"):
        stated, found = properties(built), properties(own)
        if different := [key for key, value in found.items() if stated[key] != value]:
            return different
    elif getattr(own.avgpool, "output_size", None) not in (7, (7, 7)):
        return ["avgpool"]
    kinds, expected = (
        {name: type(part) for name, part in m.get_submodule("features").named_children()} for m in (own, built)
    )
    if different := sorted(f"features.{n}" for n in {*kinds, *expected} if kinds.get(n) != expected.get(n)):
        return different[:3]
    shapes, wanted = (
        {n: t.shape for n, t in timm_names(m.state_dict()).items() if not n.startswith("head.")}
        for m in (own, built)
    )
    return sorted(name for name in {*shapes, *wanted} if shapes.get(name) != wanted.get(name))[:3]


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of torchvision under timm's names; others unchanged.

    Its linear layer behind the flattened feature map [C, 7, 7] is timm's convolution of 7 x 7.
    """
    found = {}
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        place = next((own for own in TORCHVISION if f"{owner}.".startswith(f"{own}.")), None)
        target = owner if place is None else TORCHVISION[place] + owner.removeprefix(place)
        if leaf == "weight" and tensor.ndim == 2:
            if target == "pre_logits.fc1" and tensor.shape[1] % 49 == 0:
                tensor = tensor.reshape(len(tensor), -1, 7, 7)
            elif target == "pre_logits.fc2":
                tensor = tensor[:, :, None, None]
        found[f"{target}.{leaf}" if owner else leaf] = tensor
    return found


def require_small(tensors: Mapping[str, Tensor], size: tuple[int, int]) -> None:
    """Raise SourceError where torchvision's network is not timm's: for images of more than 255 pixels.

    It averages the last feature map to 7 x 7; timm's does so only where that is smaller.
    """
    if max(size) // 32 > 7 and any(name.startswith("classifier.0.") for name in tensors):
        raise SourceError(
            f"images of {size[0]} x {size[1]} pixels: torchvision's VGG averages its last feature map to 7 x 7, "
            "which timm's does not do above 255 pixels. Pass a size up to 255 in arch.size, as torchvision's "
            "weights have (224)."
        )
