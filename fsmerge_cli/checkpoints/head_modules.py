"""The module of a head: all its tensors together are one linear classifier, exactly, or it is refused by name.

Shapes: d features, c classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import shown

EPS = 1e-5
"""eps of torch's BatchNorm and LayerNorm, which is not among the tensors of a file."""

COUNTER = "num_batches_tracked"
WEIGHT_NORM = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
"""Length and direction of a weight-normalised layer, under torch's old and new names."""

NO_EFFECT = (nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity, nn.Flatten)
"""Modules without tensors that change nothing in evaluation mode."""

REMEDY = (
    "A head is read if it is one linear layer, with BatchNorm around it or one LayerNorm before it at most. "
    "`fsmerge finetune model.checkpoint=... training.steps=0` trains such a head on this backbone; without these "
    "tensors in the file the source is merged without a head."
)


@dataclass(frozen=True)
class HeadModule:
    """A linear classifier: weight [c, d], bias [c] or None.

    layer_norm: eps of a LayerNorm without weight and bias before it (None: there is none). notes: what is assumed.
    """

    weight: Tensor
    bias: Tensor | None
    layer_norm: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Layer:
    """One layer of a head by the names of its tensors: linear, batch or layer. place: its name inside the head."""

    place: str
    kind: str
    tensors: Mapping[str, Tensor]
    eps: float | None = None

    @property
    def width(self) -> int:
        """Number of units of a norm."""
        return len(next(iter(self.tensors.values())))


def read_head(tensors: Mapping[str, Tensor], name: str, where: str, module: nn.Module | None = None) -> HeadModule:
    """The classifier that the tensors of a head are. Raises SourceError, with the names of those that do not fit.

    tensors: by their name inside the head (`weight`, `1.weight`, `norm.bias`). name: of the head, for messages.
    module: the head itself, where it is known (a torch module of the user); it is not run.
    """
    layers = _ordered(_layers(tensors, name, where, module), name, where)
    linear = next(layer for layer in layers if layer.kind == "linear")
    notes = _unseen(layers, name, where, module)
    found = HeadModule(linear.tensors["weight"], linear.tensors.get("bias"))
    before = layers[: layers.index(linear)]
    for layer in reversed(before):
        found = _after_norm(found, layer, name, where)
    for layer in layers[len(before) + 1 :]:
        found = _before_norm(found, layer, name, where)
    assumed = [layer for layer in layers if layer.kind != "linear" and layer.eps is None]
    for layer in assumed:
        title = "BatchNorm" if layer.kind == "batch" else "LayerNorm"
        notes += (f"its head has a layer that is read as {title} with eps {EPS:g}: {_full(name, layer.place)}",)
    values = [found.weight, *([] if found.bias is None else [found.bias])]
    if not all(value.is_meta or bool(value.isfinite().all()) for value in values):
        raise _refused(name, where, "its values are not finite once its layers are folded", [name])
    return replace(found, notes=notes)


def _refused(name: str, where: str, why: str, names: Sequence[str]) -> SourceError:
    few = ", ".join(map(shown, names[:4])) + (", ..." if len(names) > 4 else "")
    return SourceError(f"{where}: the head '{name}' is not a linear classifier: {why} ({few}). {REMEDY}")


def _full(name: str, part: str) -> str:
    return f"{name}.{part}" if part else name


def _layers(tensors: Mapping[str, Tensor], name: str, where: str, module: nn.Module | None) -> list[_Layer]:
    """The tensors grouped by layer."""
    groups: dict[str, dict[str, Tensor]] = {}
    for path, tensor in _without_weight_norm(tensors).items():
        place, _, part = path.rpartition(".")
        groups.setdefault(place, {})[part] = tensor
    found = []
    for place, own in groups.items():
        own.pop(COUNTER, None)
        kind = _kind(own)
        if kind is None and own:
            raise _refused(
                name,
                where,
                "it has tensors of another kind of layer",
                [_full(name, path) for path in sorted(tensors) if path.rpartition(".")[0].startswith(place)],
            )
        if kind is not None:
            found.append(
                _Layer(place, kind, own, _known_eps(kind, _part(module, place), _full(name, place), where))
            )
    linear = [layer for layer in found if layer.kind == "linear"]
    if len(linear) != 1:
        why = "it has no linear layer"
        if linear:
            why = f"it has {len(linear)} linear layers, and what lies between them is not in the file"
        raise _refused(name, where, why, [_full(name, path) for path in sorted(tensors)])
    return found


def _kind(tensors: Mapping[str, Tensor]) -> str | None:
    """The kind of a layer by the names and shapes of its tensors; None: another one."""
    weight, names = tensors.get("weight"), set(tensors)
    if weight is not None and weight.ndim == 2 and names <= {"weight", "bias"}:
        bias = tensors.get("bias")
        return "linear" if bias is None or bias.shape == weight.shape[:1] else None
    if any(tensor.ndim != 1 for tensor in tensors.values()) or len({len(t) for t in tensors.values()}) != 1:
        return None
    if names in ({"running_mean", "running_var"}, {"running_mean", "running_var", "weight", "bias"}):
        return "batch"
    return "layer" if names == {"weight", "bias"} else None


def _known_eps(kind: str, part: nn.Module | None, title: str, where: str) -> float | None:
    """The eps of a norm whose module is known; None where it is not. Raises SourceError for another module."""
    if part is None:
        return None
    types: dict[str, Any] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "linear": nn.Linear}
    if type(part).forward is not types[kind].forward:  # subclasses may inherit it
        raise _refused(title, where, f"it is a {type(part).__name__}, not a {types[kind].__name__}", [title])
    eps: Any = getattr(part, "eps", None)
    return None if eps is None else float(eps)


def _part(module: nn.Module | None, place: str) -> nn.Module | None:
    return None if module is None else module.get_submodule(place)


def _without_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with the weight in place of its length and direction: W = g v / |v|."""
    found = dict(tensors)
    for length, direction in WEIGHT_NORM:
        for path in [p for p in tensors if p == direction or p.endswith(f".{direction}")]:
            start = path.removesuffix(direction)
            g, v = found.get(f"{start}{length}"), found[path]
            whole = g is not None and g.numel() == 1
            if (
                f"{start}weight" in tensors
                or g is None
                or v.ndim != 2
                or not (whole or g.shape in ((len(v), 1), (1, v.shape[1])))
            ):
                continue
            axes = [0, 1] if whole else [1 if g.shape[1] == 1 else 0]
            exact = v.double()
            norm = exact.square().sum(axes, keepdim=True).sqrt()
            found[f"{start}weight"] = (g.double().reshape(1, 1) if whole else g.double()) * exact / norm
            found[f"{start}weight"] = found[f"{start}weight"].to(v.dtype)
            del found[path], found[f"{start}{length}"]
    return found


def _ordered(layers: list[_Layer], name: str, where: str) -> list[_Layer]:
    """The layers in the order in which they are applied: by number in a Sequential, else by their widths."""
    if len(layers) == 1:
        return layers
    if all(re.fullmatch(r"\d+(\.\d+)*", layer.place) for layer in layers):
        return sorted(layers, key=lambda layer: [int(part) for part in layer.place.split(".")])
    linear = next(layer for layer in layers if layer.kind == "linear")
    out, width = linear.tensors["weight"].shape
    before = [layer for layer in layers if layer.kind != "linear" and layer.width == width != out]
    after = [layer for layer in layers if layer.kind != "linear" and layer.width == out != width]
    if len(before) > 1 or len(after) > 1 or len(before) + len(after) + 1 < len(layers):
        raise _refused(
            name, where, "the order of its layers is not in the file", [_full(name, own.place) for own in layers]
        )
    return [*before, linear, *after]


def _unseen(layers: Sequence[_Layer], name: str, where: str, module: nn.Module | None) -> tuple[str, ...]:
    """Notes on places of a Sequential without tensors: before the linear layer probably Dropout.

    Raises SourceError for an activation, or where there may be one: between two layers.
    """
    if module is not None:
        for place, part in module.named_modules():
            if "parametrizations" in place.split("."):
                continue  # its tensors are read as those of a weight norm, or refused
            if not any(part.children()) and not part.state_dict() and not isinstance(part, NO_EFFECT):
                raise _refused(name, where, f"it contains {type(part).__name__}", [_full(name, place)])
        return ()
    parents = {layer.place.rpartition(".")[0] for layer in layers}
    numbers = [layer.place.rpartition(".")[2] for layer in layers]
    if not all(number.isdecimal() for number in numbers):
        return ()
    if len(parents) > 1:
        raise _refused(
            name,
            where,
            "what lies between its layers is not in the file",
            [_full(name, own.place) for own in layers],
        )
    parent, used = _full(name, *parents), [int(number) for number in numbers]
    empty = [n for n in range(used[-1]) if n not in used]
    if between := [f"{parent}.{n}" for n in empty if n > used[0]]:
        raise _refused(name, where, "inside it are layers without tensors, perhaps activations", between)
    titles = ", ".join(f"{parent}.{n}" for n in empty)
    return (f"its head starts with layers without tensors, which are taken as Dropout: {titles}",) if empty else ()


def _after_norm(head: HeadModule, norm: _Layer, name: str, where: str) -> HeadModule:
    """The classifier of features before `norm`, of scale a and shift s: W' = W diag(a), b' = b + W s."""
    if norm.width != head.weight.shape[1] or head.layer_norm is not None:
        raise _refused(name, where, "its layers do not fit together", [_full(name, norm.place)])
    scale, shift = _affine(norm)
    weight = head.weight.double()
    bias = weight @ shift + (0 if head.bias is None else head.bias.double())
    eps = (EPS if norm.eps is None else norm.eps) if norm.kind == "layer" else None
    dtype = head.weight.dtype
    return HeadModule((weight * scale).to(dtype), bias.to(dtype), eps)


def _before_norm(head: HeadModule, norm: _Layer, name: str, where: str) -> HeadModule:
    """The classifier with logits after `norm`, which has to be a BatchNorm: W' = diag(a) W, b' = a b + s."""
    if norm.kind != "batch" or norm.width != len(head.weight):
        raise _refused(name, where, "its layers do not fit together", [_full(name, norm.place)])
    scale, shift = _affine(norm)
    bias = shift if head.bias is None else scale * head.bias.double() + shift
    dtype = head.weight.dtype
    return replace(head, weight=(scale[:, None] * head.weight.double()).to(dtype), bias=bias.to(dtype))


def _affine(norm: _Layer) -> tuple[Tensor, Tensor]:
    """Scale and shift [d] in fp64: of a BatchNorm in evaluation mode, or the weight and bias of a LayerNorm."""
    own = {part: tensor.double() for part, tensor in norm.tensors.items()}
    if norm.kind == "layer":
        return own["weight"], own["bias"]
    scale = (own["running_var"] + (EPS if norm.eps is None else norm.eps)).rsqrt()
    shift = -own["running_mean"] * scale
    if "weight" not in own:
        return scale, shift
    return own["weight"] * scale, own["weight"] * shift + own["bias"]
