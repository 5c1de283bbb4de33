"""Identities that hold for every variant of timm's ResNet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import timm
import torch
from _pytest.mark import ParameterSet

from fsmerge_cli.architectures import SPECS, resolve
from fsmerge_cli.architectures.convolutional.options import ConvArch
from fsmerge_cli.architectures.resnet.options import TIMM
from fsmerge_cli.common.errors import ConfigError, MismatchError, SourceError
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import PreparedFold, fold
from fsmerge_cli.supernet.map_set import MergeMaps, start_maps
from fsmerge_cli.supernet.maps import MAPS, Structure
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.supernet.reference import UnfoldedSuperNet
from fsmerge_cli.training.teachers import network
from tests.supernet.test_fold import double
from tests.support.identities import check_fold, check_permutation, check_table
from tests.support.resnets import DEEP, QUICK, TINY, VARIANTS, random_tensors, resnet_arch, resnet_source

FAMILY = SPECS["resnet"]


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 2, 16, 16, generator=torch.Generator().manual_seed(0))


def mark_full(names: Iterable[str]) -> list[ParameterSet]:
    return [pytest.param(n, marks=[pytest.mark.full] if n not in QUICK else []) for n in names]


def as_timm(arch: ConvArch, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    module = FAMILY.build(arch).double().eval()
    module.load_state_dict({n: t.double() if t.is_floating_point() else t for n, t in tensors.items()})
    return module


def random_maps(plan: Plan, sources: Sequence[Source], structure: Structure) -> MergeMaps:
    """Maps near the mean of the sources, which leave some unit of every ReLU alive."""
    maps = start_maps(plan, [s.weights for s in sources], structure, "average", rank=2)
    random = torch.Generator().manual_seed(5)
    for parameter in maps.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=random)
    return maps.double()


@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_the_network_without_batchnorm_computes_what_timms_does(variant: str) -> None:
    arch = resnet_arch(variant)
    tensors = {n: t.double() if t.is_floating_point() else t for n, t in random_tensors(arch, 1).items()}
    folded = FAMILY.from_file(arch, tensors)
    assert not [name for name in folded if "running" in name or "bn" in name or "num_batches" in name]
    plain = replace(resnet_source(variant, 1), weights=folded)
    mean, std = (0.4, 0.3), (0.2, 0.25)
    normalised = replace(plain, arch=replace(arch, mean=mean, std=std))
    with torch.no_grad():
        expected = as_timm(arch, tensors)
        pixels = images().double()
        torch.testing.assert_close(network(plain)(pixels), expected(pixels), rtol=1e-9, atol=1e-11)
        centred = (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]
        torch.testing.assert_close(network(normalised)(pixels), expected(centred), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_the_written_tensors_have_the_given_statistics_and_the_same_function(variant: str) -> None:
    source = resnet_source(variant, 1)
    arch, random = source.arch, torch.Generator().manual_seed(2)
    assert FAMILY.folding is not None
    statistics = {
        name: (torch.randn(n, generator=random), torch.rand(n, generator=random) * (torch.arange(n) > 0))
        for name in FAMILY.folding.norms(arch)
        for n in [len(source.weights[f"{name}.bias"])]
    }
    for known in (statistics, {}):
        written = FAMILY.to_file(arch, source.weights, known)
        assert [*written] == [*FAMILY.build(arch).state_dict()]
        with torch.no_grad():
            expected = network(replace(source, weights=double(source)))(images().double())
            torch.testing.assert_close(as_timm(arch, written)(images().double()), expected, rtol=1e-5, atol=1e-6)
        again = FAMILY.from_file(arch, written)
        torch.testing.assert_close(again, dict(source.weights), rtol=1e-5, atol=1e-6)
    mean, variance = statistics[FAMILY.folding.norms(arch)[-1]]
    last = [name for name in written if name.endswith("running_mean")][-1]
    written = FAMILY.to_file(arch, source.weights, statistics)
    assert torch.equal(written[last], mean)
    assert torch.equal(written[last.replace("mean", "var")], variance)


@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_the_specification_covers_every_tensor_and_identity_maps_fold_to_the_model(variant: str) -> None:
    check_table(resnet_source(variant, 1))


@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_a_random_permutation_leaves_the_function_unchanged(variant: str) -> None:
    check_permutation(resnet_source(variant, 1), images().double())


@pytest.mark.full
@pytest.mark.parametrize("structure", MAPS)
@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_folded_equals_unfolded_outputs_and_gradients(variant: str, structure: str) -> None:
    sources = [resnet_source(variant, seed) for seed in (1, 2)]
    check_fold(sources, random_maps(compile_plan(sources), sources, structure), images().double())


@pytest.mark.parametrize("structure", MAPS)
def test_the_fold_of_stacked_kernels_is_the_fold_of_each(structure: str) -> None:
    sources = [resnet_source("stage 1 in the stem's space", seed) for seed in (1, 2)]
    plan = compile_plan(sources)
    maps, weights = random_maps(plan, sources, structure), [double(s) for s in sources]
    for structured in (None, maps.stacked()):
        stacked = PreparedFold(plan, weights, "cpu", batched=True, maps=structured)(maps.stacked(), maps.units())
        torch.testing.assert_close(stacked, fold(plan, maps, weights), rtol=1e-10, atol=1e-12)


@pytest.mark.full
def test_sources_and_merged_model_may_differ_in_channels() -> None:
    variant = "bottleneck"
    sources = [resnet_source(variant, i, channels=c) for i, c in enumerate(([3, 2, 4, 2], [4, 4, 2, 3]), 1)]
    for width, channels in ((None, [3, 2, 4, 2]), (12, [4, 3, 6, 3]), ((1, 2, 3, 4), [1, 2, 3, 4])):
        plan = compile_plan(sources, width)
        assert plan.arch.args["channels"] == channels
        assert plan.arch.features == 4 * channels[-1]
        maps, weights = random_maps(plan, sources, "low_rank"), [double(s) for s in sources]
        folded, reference = SuperNet(plan, maps, weights), UnfoldedSuperNet(plan, maps, weights)
        pixels = images().double()
        torch.testing.assert_close(folded(pixels), reference(pixels), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("width", "heads", "message"),
    [
        (None, 2, "method.heads: a ResNet has no attention heads. Leave method.heads at null."),
        (10, None, "method.width=10 is not a multiple of 4, as resnet50d needs."),
        (
            (4, 8),
            None,
            "method.width: [4, 8] gives 2 stages, but the sources have 4. Give one width of the features, or a "
            "list of 4 numbers of channels.",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_refused(
    width: int | tuple[int, ...] | None, heads: int | None, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        compile_plan([resnet_source("bottleneck", i) for i in (1, 2)], width, heads)
    assert str(error.value) == message


def test_the_merged_model_keeps_the_channels_of_a_shared_stem() -> None:
    sources = [resnet_source("stage 1 in the stem's space", i) for i in (1, 2)]
    assert compile_plan(sources, 16).arch.args["channels"] == [8, 16, 24, 16]


UNKNOWN = ", which the specification of a ResNet does not know"


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "resnext50_32x4d",
            "grouped convolutions (layer1.0.conv2 has 32 groups): a unit of one group cannot take the place of a "
            "unit of another",
        ),
        ("resnetblur18", f"anti-aliasing (BlurPool2d in maxpool.1){UNKNOWN}"),
        ("resnetaa50", f"anti-aliasing (AvgPool2d in layer2.0.aa){UNKNOWN}"),
        ("resnet50_gn", f"GroupNorm (bn1){UNKNOWN}"),
        ("ecaresnet26t", f"EcaModule (layer1.0.se){UNKNOWN}"),
        ("resnet18", "the pooling 'catavgmax': its features are not one unit per channel"),
    ],
)
def test_a_variant_that_cannot_be_merged_is_refused_by_name(name: str, reason: str) -> None:
    family, arch = resolve(name, {}, {"model_args": {"global_pool": "catavgmax"}}, "source 'a'")
    assert family is FAMILY
    sources = [Source(n, family, arch, {}, None, "", "") for n in "ab"]
    with pytest.raises(MismatchError) as error:
        compile_plan(sources)
    assert f"'a' has {reason}" in error.value.reasons


@pytest.mark.full
def test_every_plain_resnet_of_timm_can_be_merged() -> None:
    refused = ("resnext", "resnetaa", "resnetblur", "ecaresnet", "senet", "_gn")
    names = [n for n in timm.list_models("*resnet*", module="resnet") if not any(part in n for part in refused)]
    assert len(names) > 20
    small = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    for name in names:
        arch = TIMM.parse(name, {}, {"model_args": small}, name)
        assert FAMILY.refuse(arch) == [], name


def test_every_difference_between_sources_is_reported() -> None:
    a = resnet_source("deep stem, average pooling on the shortcut", 1)
    b = resnet_source("bottleneck", 2, layers=[1, 2, 1, 1], act_layer="silu", size=24)
    b = replace(b, arch=replace(b.arch, mean=(0.5,)))
    with pytest.raises(MismatchError) as error:
        compile_plan([a, b])
    reasons = [reason for reason in error.value.reasons if not reason.startswith("kernels and strides: ")]
    advice = "; models.sources.N.input_size=[16, 16] changes the size of the other, which is not exact"
    assert reasons == [
        f"input_size: 's1' has [2, 16, 16], 's2' has [2, 24, 24]{advice}",
        "block: 's1' has BasicBlock, 's2' has Bottleneck",
        "blocks per stage: 's1' has [1, 1, 1, 1], 's2' has [1, 2, 1, 1]",
        "activation: 's1' has ReLU, 's2' has SiLU",
        "mean of pixels: 's1' has [0.0, 0.0], 's2' has [0.5, 0.5]; it cannot be folded into a convolution that "
        "pads with zeros: train both with the same value",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "resnet18", "layers": [1, 1]},
            "layers is an argument of timm and belongs in args: args: {layers: [1, 1]}.",
        ),
        (
            {"name": "resnet18", "mean": [0.5]},
            "mean belongs in the entry of the source: models.sources.N.mean=...",
        ),
    ],
)
def test_misplaced_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        TIMM.parse("resnet", options, {}, "source 'a': arch")
    assert str(error.value) == f"source 'a': arch: {message}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"layers": [1, 1]},
            "layers should be the numbers of blocks of the 4 stages, at most 256 together, it is [1, 1]. Change "
            "arch.args, or model_args in config.json.",
        ),
        (
            {"channels": [1, 1, 1, 10**9]},
            "channels should be the numbers of channels of the 4 stages, at most 65536 together, it is "
            "[1, 1, 1, 1000000000]. Change arch.args, or model_args in config.json.",
        ),
        (
            {"checkpoint_path": "/etc/passwd"},
            "checkpoint_path is not an architecture option. Weights are only read from models.sources.N."
            "checkpoint; remove the key from the arguments.",
        ),
        (
            {"depth": 3},
            "timm cannot build resnet18 with {'depth': 3} for images of 3 x 224 x 224: ResNet.__init__() got an "
            "unexpected keyword argument 'depth'. Change arch.args and arch.size, or model_args in config.json.",
        ),
    ],
)
def test_arguments_that_give_no_network_are_refused(args: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError) as error:
        TIMM.parse("resnet", {"name": "resnet18", "args": args}, {}, "a")
    assert str(error.value) == f"a: {message}"


def test_options_are_read_from_config_json_as_in_timm() -> None:
    config = {"model_args": {**TINY, **DEEP}, "global_pool": "max", "pretrained_cfg": {"input_size": [2, 16, 24]}}
    arch = TIMM.parse("resnet18d", {}, config, "test")
    assert (arch.input_size, arch.args["global_pool"], arch.depth, arch.features) == ((2, 16, 24), "max", 4, 12)
