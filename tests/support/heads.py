"""Heads with random values, files that hold them in every layout, and sources with further tensors."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source
from tests.support.third_party import PIXELS, hugging_face, torchvision_vit, vit_arch
from tests.support.vits import vit_source

D, C = 12, 5
"""Width of the features and number of classes."""


class Cosine(nn.Module):
    """A head on the cosine of features and class vectors."""

    def __init__(self, scale: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(C, D))
        if scale:
            self.scale = nn.Parameter(torch.empty(()))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


def linear() -> nn.Linear:
    return nn.Linear(D, C)


def named(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def weight_norm(old: bool, dim: int | None = 0) -> nn.Module:
    if old:
        return nn.utils.weight_norm(linear(), dim=dim)
    return nn.utils.parametrizations.weight_norm(linear(), dim=dim)


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    module: nn.Module = prune.l1_unstructured(linear(), "weight", 0.5)
    return module


def randomised(head: nn.Module, seed: int = 0) -> nn.Module:
    """The head with random values in every tensor, in evaluation mode."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point() and not name.endswith(("weight_u", "weight_v", "weight_mask")):
            tensor.copy_(
                torch.rand(tensor.shape, generator=random) + 0.5
                if "running_var" in name
                else torch.randn(tensor.shape, generator=random)
            )
    return head.eval()


LAYOUTS = ["mlp", "timm", "next to it", "torchvision", "hugging face"]


def written(layout: str, head: nn.Module, folder: Path) -> tuple[dict[str, Any], str]:
    """The entry of a source with this head in a file, and the name of its head."""
    state = head.state_dict()
    file = folder / "source.safetensors"
    name, arch, within = "head", vit_arch(), "head"
    if layout == "mlp":
        tensors = dict(mlp_source("a", [6, D], 3).weights)
        arch = {"family": "mlp", "input_size": (1, 4, 4), "widths": (6, D)}
    elif layout in ("timm", "next to it"):
        source = vit_source("class token", 1)
        tensors = dict(source.weights)
        arch = {"family": "vit", "name": source.arch.name, "args": source.arch.args}
        if layout == "next to it":
            tensors = {f"net.backbone.{n}": t for n, t in tensors.items()}
            name, within = "classifier", "net.classifier"
    elif layout == "torchvision":
        tensors = {n: t for n, t in torchvision_vit(1).state_dict().items() if not n.startswith("heads")}
        within = "heads.head"
    else:
        tensors = {
            f"vit.{n}": t for n, t in hugging_face(1, head=False, add_pooling_layer=False).state_dict().items()
        }
        tensors = {n: t for n, t in tensors.items() if ".pooler." not in n}
        name = within = "classifier"
    save_file(
        {
            n: t.clone().contiguous()
            for n, t in {**tensors, **{f"{within}.{n}": t for n, t in state.items()}}.items()
        },
        file,
    )
    return {"checkpoint": str(file), "arch": arch, "name": "a", **PIXELS}, name


def logits_agree(source: Source, head: nn.Module) -> bool:
    """Whether the source gives the logits of the head on its own features."""
    images = torch.rand(6, *source.arch.input_size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        features = network(source)(images)
        assert source.head is not None
        return torch.allclose(source.head(features), head(features), atol=1e-4, rtol=1e-4)


MLP = {"family": "mlp", "input_size": (1, 4, 4), "widths": (6, D)}
HEAD = {"head.weight": torch.ones(C, D), "head.bias": torch.zeros(C)}


def mlp_file(folder: Path, prefix: str = "", **tensors: Tensor) -> dict[str, Any]:
    """The entry of an MLP of two layers with further tensors."""
    weights = {f"{prefix}{n}": t for n, t in mlp_source("a", [6, D], 3).weights.items()}
    return entry_of(folder, {**weights, **tensors}, MLP)


def entry_of(folder: Path, tensors: Any, arch: Any) -> dict[str, Any]:
    file = folder / "source.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)
    return {"checkpoint": str(file), "arch": arch, "name": "a", **PIXELS}


def vit_file(folder: Path, prefix: str = "", **tensors: Tensor) -> dict[str, Any]:
    source = vit_source("class token", 1)
    arch = {"family": "vit", "name": source.arch.name, "args": source.arch.args}
    return entry_of(folder, {**{f"{prefix}{n}": t for n, t in source.weights.items()}, **tensors}, arch)
