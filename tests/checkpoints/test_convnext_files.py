"""ConvNeXts of timm and torchvision are read with the function that these libraries give them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torchvision.models.convnext import CNBlockConfig, ConvNeXt, LayerNorm2d

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.convnets import write_conv
from tests.support.convnexts import FAMILY, TINY, convnext_arch

PIXELS = {"mean": [0.4, 0.5], "std": [0.2, 0.3]}


def pixels(channels: int, size: int) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def randomised(module: torch.nn.Module) -> Any:
    """The module with random values in every tensor."""
    random = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        scale = 0.5 if tensor.ndim == 1 or tensor.shape[1:] == (1, 1) else tensor[0].numel() ** -0.5
        tensor.copy_(scale * torch.randn(tensor.shape, generator=random) + 0.5 * (scale == 0.5))
    return module.eval()


@pytest.mark.parametrize("variant", ["plain", pytest.param("hidden layer in the head", marks=pytest.mark.full)])
def test_a_folder_of_timm_is_read_with_its_normalisation_and_its_classifier(variant: str, tmp_path: Path) -> None:
    entry = write_conv(tmp_path / "a", FAMILY, convnext_arch(variant), 1, PIXELS)
    source = load(SourceSpec(**entry))
    assert (source.arch.mean, source.arch.std, source.arch.size) == ((0.4, 0.5), (0.2, 0.3), 32)
    assert source.notes == ()
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    mean, std = (torch.tensor(PIXELS[key])[:, None, None] for key in ("mean", "std"))
    assert source.head is not None
    with torch.no_grad():
        found = source.head(network(source)(pixels(2, 32)))
        torch.testing.assert_close(found, model((pixels(2, 32) - mean) / std), rtol=1e-4, atol=1e-5)


def torchvision_convnext(eps: float = 1e-6) -> Any:
    """A small ConvNeXt of torchvision."""
    widths, depths = [4, 6, 8, 10, None], [1, 2, 1, 1]
    setting = [CNBlockConfig(widths[i], widths[i + 1], depths[i]) for i in range(4)]  # type: ignore[arg-type]
    with torch.random.fork_rng():
        return randomised(ConvNeXt(setting, num_classes=3, norm_layer=partial(LayerNorm2d, eps=eps)))


@pytest.mark.full
def test_torchvisions_convnexts_are_read_from_a_file_and_as_a_module(tmp_path: Path) -> None:
    model = torchvision_convnext()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    args = {"depths": [1, 2, 1, 1], "dims": [4, 6, 8, 10]}
    arch = {"family": "convnext", "name": "convnext_tiny", "size": 64, "args": args}
    labels = ("a", "b", "c")
    file = SourceSpec(
        "t", checkpoint=str(tmp_path / "weights.pth"), arch=arch, labels=labels, mean=(0.0,), std=(1.0,)
    )
    for spec in (file, SourceSpec("t", module=model, labels=labels, mean=(0.0,), std=(1.0,))):
        source = load(spec)
        assert source.head is not None
        with torch.no_grad():
            found, expected = source.head(network(source)(pixels(3, 64))), model(pixels(3, 64))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", ["convnext_atto_ols", "convnext_tiny_hnf", "convnextv2_atto"])
def test_a_module_of_timm_with_sizes_of_its_own_is_described_by_options(name: str) -> None:
    model = randomised(timm.create_model(name, num_classes=0, **{**TINY, "kernel_sizes": [3, 5, 3, 7]}))
    source = load(SourceSpec("t", module=model, mean=(0.5,), std=(0.5,), input_size=64))
    with torch.no_grad():
        found, expected = network(source)(pixels(2, 64)), model((pixels(2, 64) - 0.5) / 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_module_that_options_do_not_describe_is_refused() -> None:
    with pytest.raises(SourceError) as error:
        load(SourceSpec("t", module=torchvision_convnext(1e-3)))
    assert str(error.value) == (
        "source 't': module ConvNeXt: this module differs from timm's convnext_tiny in: eps. Also pass its arch: "
        "{family: convnext, name: ..., args: {...}}."
    )
