"""VGGs of timm and torchvision are read with the function that these libraries give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from fsmerge_cli.architectures.vgg.module import differences, timm_names
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.convnets import write_conv
from tests.support.vggs import FAMILY, vgg_arch

PIXELS = {"mean": [0.4, 0.5], "std": [0.2, 0.3]}


def pixels(channels: int, size: int) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", ["BatchNorm", pytest.param("plain", marks=pytest.mark.full)])
def test_a_folder_of_timm_is_read_with_its_normalisation_and_its_classifier(variant: str, tmp_path: Path) -> None:
    entry = write_conv(tmp_path / "a", FAMILY, vgg_arch(variant), 1, PIXELS)
    source = load(SourceSpec(**entry))
    assert (source.arch.mean, source.arch.std, source.arch.size) == ((0.4, 0.5), (0.2, 0.3), 32)
    assert source.notes == ()
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    mean, std = (torch.tensor(PIXELS[key])[:, None, None] for key in ("mean", "std"))
    assert source.head is not None
    with torch.no_grad():
        found = source.head(network(source)(pixels(2, 32)))
        torch.testing.assert_close(found, model((pixels(2, 32) - mean) / std), rtol=1e-4, atol=1e-5)


def torchvision_vgg(norm: bool, hidden: int = 12) -> Any:
    """A VGG11 of torchvision with narrow layers behind its convolutions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build = torchvision.models.vgg11_bn if norm else torchvision.models.vgg11
        with torch.device("meta"):
            model = build(num_classes=3)
        if hidden < 4096:
            model.classifier[0] = nn.Linear(512 * 49, hidden)
            model.classifier[3] = nn.Linear(hidden, hidden)
            model.classifier[6] = nn.Linear(hidden, 3)
        model.features.to_empty(device="cpu")
        for name, tensor in model.features.state_dict().items():
            if tensor.ndim == 4:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else tensor.uniform_(-0.5, 0.5)
    return model.eval()


@pytest.mark.parametrize("norm", [True, pytest.param(False, marks=pytest.mark.full)])
def test_torchvisions_tensors_have_the_same_function_under_timms_names(norm: bool) -> None:
    """Narrow fully connected layers in both, so that the test is cheap; timm has one width."""
    model = torchvision_vgg(norm)
    with torch.device("meta"):
        own: Any = timm.create_model("vgg11_bn" if norm else "vgg11", num_classes=3, mlp_ratio=12 / 4096)
    own.pre_logits.fc1 = nn.Conv2d(512, 12, 7)
    own.pre_logits.fc2 = nn.Conv2d(12, 12, 1)
    own.head.fc = nn.Linear(12, 3)
    own.load_state_dict(timm_names(model.state_dict()), assign=True)
    assert differences(own, model) == []
    for size in (32, 70):
        with torch.no_grad():
            torch.testing.assert_close(own.eval()(pixels(3, size)), model(pixels(3, size)), rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("norm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_torchvisions_vggs_are_read_from_a_file_and_as_a_module(norm: bool, tmp_path: Path) -> None:
    model = torchvision_vgg(norm, 4096)
    model.classifier[0] = nn.Linear(512 * 49, 4096, bias=True)
    model.classifier[3] = nn.Linear(4096, 4096)
    model.classifier[6] = nn.Linear(4096, 3)
    model.eval()
    name = "vgg11_bn" if norm else "vgg11"
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    labels, plain = ("a", "b", "c"), {"mean": (0.0,), "std": (1.0,)}
    arch = {"family": "vgg", "name": name, "size": 64}
    file = SourceSpec("t", checkpoint=str(tmp_path / "weights.pth"), arch=arch, labels=labels, **plain)
    for spec in (file, SourceSpec("t", module=model, labels=labels, **plain)):
        source = load(spec)
        assert source.head is not None
        with torch.no_grad():
            found, expected = source.head(network(source)(pixels(3, 64))), model(pixels(3, 64))
        scale = float(expected.abs().max())
        torch.testing.assert_close(found / scale, expected / scale, rtol=1e-4, atol=1e-5)


def test_torchvisions_names_are_refused_where_its_network_is_another_one(tmp_path: Path) -> None:
    with torch.device("meta"):
        names = torchvision.models.vgg11().state_dict()
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "weights.pth")
    arch = {"family": "vgg", "name": "vgg11", "size": 256}
    with pytest.raises(SourceError) as error:
        load(SourceSpec("t", checkpoint=str(tmp_path / "weights.pth"), arch=arch, labels=("a", "b")))
    assert str(error.value) == (
        f"source 't': {tmp_path / 'weights.pth'}: images of 256 x 256 pixels: torchvision's VGG averages its last "
        "feature map to 7 x 7, which timm's does not do above 255 pixels. Pass a size up to 255 in arch.size, as "
        "torchvision's weights have (224)."
    )


def test_a_module_that_timm_does_not_build_is_refused() -> None:
    model = torchvision_vgg(True)
    with pytest.raises(SourceError) as error:
        load(SourceSpec("t", module=model))
    assert str(error.value) == (
        "source 't': module VGG: this module differs from timm's vgg11_bn in: pre_logits.fc1.bias, "
        "pre_logits.fc1.weight, pre_logits.fc2.bias. timm has no such VGG, and what is merged has to load there."
    )
