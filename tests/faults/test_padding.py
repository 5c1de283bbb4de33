"""Mean and std are folded into the first layer only where that is exact: not across padding, for example."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fsmerge_cli.architectures import SPECS, Family
from fsmerge_cli.architectures.mlp import MLPArch
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.preprocessing import fold_normalisation
from fsmerge_cli.common.errors import MismatchError, SourceError
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
ARGS: dict[str, Any] = {"patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
PADDED: dict[str, Any] = {"img_size": [10, 8], "dynamic_img_pad": True, "dynamic_img_size": True}
REFUSED = (
    "cannot be folded into {}: what happens to the pixels before it (such as padding of images that the patches "
    "do not divide) gives another result then. Train it for a size without padding; if it was trained without "
    "normalisation, pass models.sources.N.mean=[0.0] and std=[1.0]."
)


def vit(folder: Path, args: dict[str, Any]) -> tuple[nn.Module, SourceSpec]:
    """A timm module with random weights, and an entry for its file."""
    from timm.models import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = create_model("vit_tiny_patch16_224", num_classes=0, **ARGS, **args).eval()
    save_file(module.state_dict(), folder / "a.safetensors")
    arch = {"family": "vit", "name": "vit_tiny_patch16_224", "args": {**ARGS, **args}}
    return module, SourceSpec("a", arch=arch, checkpoint=str(folder / "a.safetensors"), mean=MEAN, std=STD)


def normalised(pixels: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    return (pixels - torch.tensor(mean).reshape(-1, 1, 1)) / torch.tensor(std).reshape(-1, 1, 1)


@pytest.mark.parametrize("headers", [False, True])
def test_a_mean_is_not_folded_across_padding(headers: bool, tmp_path: Path) -> None:
    _, spec = vit(tmp_path, PADDED)
    with pytest.raises(SourceError) as error:
        load(spec, headers)
    assert str(error.value) == (
        f"source 'a': {tmp_path / 'a.safetensors'}: mean [0.5, 0.4, 0.3] and std [0.2, 0.3, 0.4] "
        + REFUSED.format("patch_embed.proj")
    )


@pytest.mark.parametrize(
    ("args", "mean"),
    [
        (PADDED, (0.0,) * 3),  # zeros stay zeros
        ({**PADDED, "img_size": [8, 12]}, MEAN),  # which the patches divide: nothing is padded
        ({"img_size": [10, 8]}, MEAN),  # the rest of the image is not read
        ({"img_size": [10, 8], "no_embed_class": True}, MEAN),
    ],
)
def test_what_can_be_folded_gives_the_same_features(
    args: dict[str, Any], mean: tuple[float, ...], tmp_path: Path
) -> None:
    module, spec = vit(tmp_path, args)
    pixels = torch.rand(3, 3, *args["img_size"])
    found = network(load(replace(spec, mean=mean)))(pixels)
    torch.testing.assert_close(found, module(normalised(pixels, mean)), rtol=1e-4, atol=1e-5)


def test_a_padding_module_from_python_is_not_taken_for_one_that_crops(tmp_path: Path) -> None:
    module, _ = vit(tmp_path, PADDED)
    plain = SourceSpec("a", module=module, mean=(0.0,), std=(1.0,))
    pixels = torch.rand(3, 3, 10, 8)
    torch.testing.assert_close(network(load(plain))(pixels), module(pixels), rtol=1e-4, atol=1e-5)
    with pytest.raises(SourceError, match=r"cannot be folded into patch_embed\.proj"):
        load(replace(plain, mean=MEAN, std=STD))
    cropping, _ = vit(tmp_path, {"img_size": [10, 8]})
    with pytest.raises(MismatchError, match="padded images: 'a' has True, 'b' has False"):
        compile_plan([load(plain), load(replace(plain, name="b", module=cropping))])


class _Stem(nn.Module):
    """Something before, in or after a first layer of 3 channels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        padding = 1 if kind in ("zero padding", "reflected padding") else 0
        mode = "reflect" if kind == "reflected padding" else "zeros"
        groups = 3 if kind == "groups" else 1
        self.fc0 = nn.Conv2d(3, 6, 2, 2, padding, groups=groups, padding_mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "a square":
            x = x**2
        if self.kind == "channels by brightness":
            x = x - x.mean(1, keepdim=True)
        if self.kind == "mirrored":
            x = x.flip(-1)
        if self.kind == "blue, green, red":
            x = x.flip(1)
        if self.kind == "a border":
            x = nn.functional.pad(x, (1, 1, 1, 1))
        if self.kind == "called as a function":
            return nn.functional.conv2d(x, self.fc0.weight).flatten(1)
        found: Tensor = self.fc0(x).flatten(1)
        return found


@pytest.mark.parametrize(
    ("kind", "exact"),
    [
        ("plain", True),
        ("mirrored", True),
        ("reflected padding", True),
        ("zero padding", False),
        ("a border", False),
        ("a square", False),
        ("channels by brightness", False),
        ("blue, green, red", False),
        ("groups", False),
        ("called as a function", False),
    ],
)
def test_an_architecture_of_ones_own_is_folded_only_where_that_is_exact(kind: str, exact: bool) -> None:
    family: Family = replace(SPECS["mlp"], name=f"stem, {kind}", build=lambda arch: _Stem(kind))
    arch, module = MLPArch((3, 4, 4), (6,), "relu", "none", True), _Stem(kind)
    weights = dict(module.state_dict())
    if exact:
        folded = fold_normalisation(family, arch, weights, MEAN, STD, "here")
        pixels = torch.rand(2, 3, 4, 4)
        expected = module(normalised(pixels))
        module.load_state_dict(folded)
        torch.testing.assert_close(module(pixels), expected, rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(SourceError) as error:
        fold_normalisation(family, arch, weights, MEAN, STD, "here")
    assert str(error.value) == ("here: mean [0.5, 0.4, 0.3] and std [0.2, 0.3, 0.4] " + REFUSED.format("fc0"))
