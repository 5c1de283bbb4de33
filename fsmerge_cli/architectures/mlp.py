"""Multilayer perceptrons: any number of layers of linear, optional BatchNorm and activation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from fsmerge_cli.architectures.family import Family, Table
from fsmerge_cli.architectures.ports import FIXED, Constant, norm, statistic
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.common.options import FORBID, Flag, Positive
from fsmerge_cli.common.options import build as build_options

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}


@dataclass(frozen=True, config=FORBID)
class MLPArch:
    """Options of an MLP.

    input_size: channels, height and width of the image (pixels), flattened before the first layer.
    widths: units of each hidden layer; the last one is the width of the features.
    activation: relu, gelu, tanh or silu, after every layer.
    norm: none, or batch for a BatchNorm between each linear layer and its activation.
    bias: whether the linear layers have a bias.
    """

    input_size: tuple[Positive, Positive, Positive]
    widths: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=1000)]
    activation: Literal["relu", "gelu", "tanh", "silu"] = "relu"
    norm: Literal["none", "batch"] = "none"
    bias: Flag = True

    @property
    def features(self) -> int:
        """Width of the features (units)."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.widths)


def build(arch: MLPArch) -> nn.Sequential:
    """A plain `nn.Sequential`: whoever loads the weights needs nothing from this package."""
    channels, height, width = arch.input_size
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    previous = channels * height * width
    for i, units in enumerate(arch.widths):
        layers[f"fc{i}"] = nn.Linear(previous, units, bias=arch.bias)
        if arch.norm == "batch":
            layers[f"norm{i}"] = nn.BatchNorm1d(units)
        layers[f"act{i}"] = ACTIVATIONS[arch.activation]()
        previous = units
    return nn.Sequential(layers)


def parse(name: str, options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> MLPArch:
    """Options from `{family: mlp, ...}` or from model_args. Raises SourceError if sizes exceed torch's limits."""
    arch = build_options(MLPArch, options, where)
    try:
        with torch.device("meta"):
            build(arch)
    except (RuntimeError, TypeError, OverflowError):  # raised by torch for sizes that are too large
        raise SourceError(
            f"{where}: input_size {list(arch.input_size)} and widths {list(arch.widths)} are too large for a "
            "tensor. Pass the sizes of the weights."
        ) from None
    return arch


def resize(arch: MLPArch, width: int | tuple[int, ...] | None, heads: int | None) -> MLPArch:
    """Options of the merged model. width: of the last layer (the others in proportion), or one per layer."""
    if heads is not None:
        raise ConfigError("method.heads: an MLP has no attention heads. Leave method.heads at null.")
    if width is None:
        return arch
    if isinstance(width, int):
        return replace(arch, widths=tuple(max(1, round(w * width / arch.features)) for w in arch.widths))
    if len(width) != len(arch.widths):
        raise ConfigError(
            f"method.width: {list(width)} gives {len(width)} layers, but the sources have {len(arch.widths)}. "
            f"Give one width for all layers or a list of {len(arch.widths)}."
        )
    return replace(arch, widths=tuple(width))


SAME = ("input_size", "depth", "activation", "norm", "bias")
"""Options that have to be equal in all sources."""

SNIPPET = """from collections import OrderedDict
import torch
from safetensors.torch import load_file

backbone = torch.nn.Sequential(OrderedDict([
{layers}
]))
backbone.load_state_dict(load_file("model.safetensors"))
backbone.eval()
heads = load_file("heads.safetensors")

{head}
images = torch.rand(1, {shape})  # pixels in 0..1
logits = head(backbone(images))"""


def snippet(arch: MLPArch, head: str) -> str:
    """Python that loads a merged MLP with only torch and safetensors."""
    layers = ['    ("flatten", torch.nn.Flatten()),']
    bias = "" if arch.bias else ", bias=False"
    previous = arch.input_size[0] * arch.input_size[1] * arch.input_size[2]
    for i, units in enumerate(arch.widths):
        layers.append(f'    ("fc{i}", torch.nn.Linear({previous}, {units}{bias})),')
        if arch.norm == "batch":
            layers.append(f'    ("norm{i}", torch.nn.BatchNorm1d({units})),')
        layers.append(f'    ("act{i}", torch.nn.{ACTIVATIONS[arch.activation].__name__}()),')
        previous = units
    shape = ", ".join(str(size) for size in arch.input_size)
    return SNIPPET.format(layers="\n".join(layers), shape=shape, head=head)


TABLE = Table(
    tensors={
        "fc0.weight": ("h0@fc0", FIXED),
        "fc{i}.weight": ("h{i}@fc{i}", "h{i-1}@fc{i}"),
        "fc{i}.bias": ("h{i}@fc{i}",),
        "norm{i}.weight": norm("h{i}@norm{i}", fill=1.0),
        "norm{i}.bias": norm("h{i}@norm{i}", fill=0.0),
        "norm{i}.running_mean": statistic("h{i}@norm{i}", fill=0.0),
        "norm{i}.running_var": statistic("h{i}@norm{i}", fill=1.0),
        "norm{i}.num_batches_tracked": Constant(),
    },
    features="h{last}@head",
)

MLP = Family(
    name="mlp",
    arch=MLPArch,
    build=build,
    resize=resize,
    table=lambda module: TABLE,
    entry="fc0",
    signature=lambda arch: {name: getattr(arch, name) for name in SAME},
    config=lambda arch: {"architecture": "mlp", "model_args": asdict(arch)},
    parse=parse,
    snippet=snippet,
    widths=lambda arch: arch.widths,
    layers=lambda module: [name for name, _ in module.named_children() if name.startswith("act")],
)
