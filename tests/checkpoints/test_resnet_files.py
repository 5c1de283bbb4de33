"""ResNets of timm and torchvision are read with the function that these libraries give them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import MismatchError, SourceError
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.resnets import resnet_source, write_resnet

DEEP = "deep stem, average pooling on the shortcut"
PIXELS = {"mean": [0.4, 0.5], "std": [0.2, 0.3]}


def pixels(channels: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def random_statistics(module: torch.nn.Module) -> torch.nn.Module:
    random = torch.Generator().manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
    return module.eval()


def test_a_folder_of_timm_is_read_with_its_normalisation_and_its_classifier(tmp_path: Path) -> None:
    entry = write_resnet(tmp_path / "a", DEEP, 1, PIXELS)
    source = load(SourceSpec(**entry))
    assert (source.arch.mean, source.arch.std, source.arch.size) == ((0.4, 0.5), (0.2, 0.3), 16)
    assert source.notes == ()
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    mean, std = (torch.tensor(PIXELS[key])[:, None, None] for key in ("mean", "std"))
    assert source.head is not None
    with torch.no_grad():
        found = source.head(network(source)(pixels()))
        torch.testing.assert_close(found, model((pixels() - mean) / std), rtol=1e-5, atol=1e-5)


def test_of_headers_the_shapes_are_those_of_the_weights(tmp_path: Path) -> None:
    spec = SourceSpec(**write_resnet(tmp_path / "a", DEEP, 1, PIXELS))
    headers, whole = load(spec, headers=True), load(spec)
    assert {n: t.shape for n, t in headers.weights.items()} == {n: t.shape for n, t in whole.weights.items()}
    assert all(t.is_meta for t in headers.weights.values())


def test_weights_in_bf16_are_folded_in_full_precision(tmp_path: Path) -> None:
    entry = write_resnet(tmp_path / "a", DEEP, 1)
    file = tmp_path / "a/model.safetensors"
    stored = {n: t.bfloat16() if t.is_floating_point() else t for n, t in load_file(file).items()}
    save_file(stored, file)
    family, source = resnet_source(DEEP, 1).family, load(SourceSpec(**entry))
    wide = {n: t.float() if t.is_floating_point() else t for n, t in stored.items() if not n.startswith("fc.")}
    assert all(torch.equal(t, source.weights[n]) for n, t in family.from_file(source.arch, wide).items())


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_resnets_are_read_from_a_file_and_as_a_module(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_statistics(getattr(torchvision.models, name)(num_classes=3))
    with torch.no_grad():
        for block in (model.layer1, model.layer2, model.layer3, model.layer4):
            for part in block.modules():
                if isinstance(part, torch.nn.Conv2d):
                    part.weight.mul_(0.3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    labels, plain = ("a", "b", "c"), {"mean": (0.0,), "std": (1.0,)}
    file = SourceSpec("t", checkpoint=str(tmp_path / "weights.pth"), arch=name, labels=labels, **plain)
    for spec in (file, SourceSpec("t", module=model, labels=labels, **plain)):
        source = load(spec)
        assert source.head is not None
        with torch.no_grad():
            found, expected = source.head(network(source)(pixels(3, 64))), model(pixels(3, 64))
        scale = float(expected.abs().max())
        torch.testing.assert_close(found / scale, expected / scale, rtol=1e-4, atol=1e-5)


def test_a_module_of_timm_with_sizes_of_its_own_is_described_by_options() -> None:
    args = {"layers": [1, 2, 1, 1], "channels": [4, 4, 4, 4], "stem_width": 4, "stem_type": "deep", "in_chans": 1}
    model = random_statistics(timm.create_model("seresnet50", num_classes=0, output_stride=16, **args))
    source = load(SourceSpec("t", module=model, mean=(0.5,), std=(0.5,), input_size=32))
    with torch.no_grad():
        found, expected = network(source)(pixels(1, 32)), model((pixels(1, 32) - 0.5) / 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_module_that_options_do_not_describe_is_refused() -> None:
    model = timm.create_model("resnet18", layers=[1, 1, 1, 1], channels=[4, 4, 4, 4])
    model.act1 = torch.nn.SiLU()
    with pytest.raises(SourceError) as error:
        load(SourceSpec("t", module=model))
    assert str(error.value) == (
        "source 't': module ResNet: this module differs from timm's resnet18 in: activation. Also pass its arch: "
        "{family: resnet, name: ..., args: {...}}."
    )


def test_sources_of_different_normalisation_are_refused(tmp_path: Path) -> None:
    entries = [write_resnet(tmp_path / str(i), DEEP, i, {**PIXELS, "std": [0.2, i / 10]}) for i in (1, 2)]
    with pytest.raises(MismatchError) as error:
        compile_plan([load(SourceSpec(**entry)) for entry in entries])
    assert error.value.reasons == (
        "std of pixels: 't1' has [0.2, 0.1], 't2' has [0.2, 0.2]; it cannot be folded into a convolution that "
        "pads with zeros: train both with the same value",
    )


def test_mean_and_std_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    entry = write_resnet(tmp_path / "a", DEEP, 1)
    with pytest.raises(SourceError) as error:
        load(SourceSpec(**entry, mean=(0.1, 0.2, 0.3)))
    assert str(error.value) == (
        f"source 't1': {tmp_path / 'a'}: mean [0.1, 0.2, 0.3] and std [1.0] need 1 or 2 values each, every std "
        "above 0."
    )


def test_a_convolution_whose_batchnorm_is_incomplete_is_reported(tmp_path: Path) -> None:
    entry = write_resnet(tmp_path / "a", DEEP, 1)
    tensors = load_file(tmp_path / "a/model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if n != "layer2.0.bn1.running_var"}, tmp_path / "a/model.safetensors"
    )
    source = load(SourceSpec(**entry))
    with pytest.raises(MismatchError) as error:
        compile_plan([source, replace(source, name="other")])
    assert "'t1' lacks the tensors layer2.0.conv1.bias" in error.value.reasons
