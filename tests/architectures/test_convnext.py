"""Identities that hold for every variant of timm's ConvNeXt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch

from fsmerge_cli.architectures import resolve
from fsmerge_cli.architectures.ports import Unit
from fsmerge_cli.common.errors import ConfigError, MismatchError, SourceError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.maps import MAPS
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.supernet.reference import UnfoldedSuperNet
from tests.alignment.test_closed_form import solve
from tests.supernet.test_fold import double
from tests.support.convnexts import FAMILY, QUICK, VARIANTS, convnext_source
from tests.support.identities import check_fold, check_permutation, check_permuted_copy, check_table

EVERY = [v if v in QUICK else pytest.param(v, marks=pytest.mark.full) for v in VARIANTS]


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 2, 32, 32, generator=torch.Generator().manual_seed(0))


def random_maps(sources: list[Source], structure: Any) -> Any:
    maps = start_maps(compile_plan(sources), [s.weights for s in sources], structure, "average", rank=2)
    random = torch.Generator().manual_seed(5)
    for parameter in maps.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=random)
    return maps.double()


@pytest.mark.parametrize("variant", EVERY)
def test_identity_maps_fold_to_the_model_and_permutations_leave_its_function(variant: str) -> None:
    check_table(convnext_source(variant, 1))
    check_permutation(convnext_source(variant, 1), images().double())


def test_depthwise_kernels_are_units_of_their_stage() -> None:
    roles = compile_plan([convnext_source("plain", seed) for seed in (1, 2)]).roles
    kernel, gamma = roles["stages.1.blocks.1.conv_dw.weight"], roles["stages.1.blocks.1.gamma"]
    assert isinstance(kernel, Unit)
    assert isinstance(gamma, Unit)
    assert kernel.port.space == gamma.port.space == "res1"


@pytest.mark.parametrize(
    "structure", [s if s == "full" else pytest.param(s, marks=pytest.mark.full) for s in MAPS]
)
@pytest.mark.parametrize("variant", EVERY)
def test_folded_equals_unfolded_outputs_and_gradients(variant: str, structure: str) -> None:
    sources = [convnext_source(variant, seed) for seed in (1, 2)]
    check_fold(sources, random_maps(sources, structure), images().double())


CLOSED = ("activation_matching", "ot_fusion", "weight_matching", "zipit", "regmean", "regmean_pp", "pleas")


@pytest.mark.parametrize(
    "method", [m if m == "zipit" else pytest.param(m, marks=pytest.mark.full) for m in CLOSED]
)
@pytest.mark.parametrize("variant", EVERY)
def test_a_network_merged_with_its_permuted_copy_is_the_network(variant: str, method: str) -> None:
    if method == "weight_matching":  # of few units its coordinate descent ends in other optima
        source = convnext_source(variant, 1, dims=[8, 12, 12, 16])
        check_permuted_copy(METHODS[method](restarts=5), source, images(12))
    else:
        check_permuted_copy(METHODS[method](), convnext_source(variant, 1), images(12))


@pytest.mark.parametrize("correct", [True, pytest.param(False, marks=pytest.mark.full)])
@pytest.mark.parametrize("variant", EVERY)
def test_the_closed_form_of_permuted_copies_is_the_network(variant: str, correct: bool) -> None:
    method = METHODS["fs_closed_form"](views=0, ridge=1e-9, correct=correct)
    check_permuted_copy(method, convnext_source(variant, 1), images(60))


@pytest.mark.full
@pytest.mark.parametrize("variant", EVERY)
def test_without_corrections_the_maps_of_the_closed_form_fold_to_its_weights(variant: str) -> None:
    sources = [convnext_source(variant, seed) for seed in (1, 2)]
    method = METHODS["fs_closed_form"](views=0, correct=False)
    solution, _ = solve(method, sources, images(16))  # type: ignore[arg-type]
    assert solution.maps is not None
    with torch.no_grad():
        module = method.plan(sources).skeleton()
        module.load_state_dict(dict(solution.weights), assign=True)
        unfolded = UnfoldedSuperNet(method.plan(sources), solution.maps.double(), [double(s) for s in sources])
        torch.testing.assert_close(module(images()).double(), unfolded(images().double()), rtol=1e-3, atol=1e-4)


@pytest.mark.full
def test_sources_and_merged_model_may_differ_in_channels() -> None:
    sources = [convnext_source("plain", i, dims=d) for i, d in enumerate(([4, 6, 6, 8], [6, 4, 8, 6]), 1)]
    for width, dims in ((None, [4, 6, 6, 8]), (12, [6, 9, 9, 12]), ((3, 4, 5, 6), [3, 4, 5, 6])):
        plan = compile_plan(sources, width)
        assert plan.arch.args["dims"] == dims
        weights = [double(s) for s in sources]
        maps = start_maps(plan, [s.weights for s in sources], "low_rank", "average", rank=2).double()
        pixels = images().double()
        folded, reference = SuperNet(plan, maps, weights), UnfoldedSuperNet(plan, maps, weights)
        torch.testing.assert_close(folded(pixels), reference(pixels), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("width", "heads", "message"),
    [
        (None, 2, "method.heads: a ConvNeXt has no attention heads. Leave method.heads at null."),
        (
            (4, 8),
            None,
            "method.width: [4, 8] gives 2 stages, but the sources have 4. Give one width of the last stage, or a "
            "list of 4 numbers of channels.",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_refused(width: Any, heads: int | None, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        compile_plan([convnext_source("plain", i) for i in (1, 2)], width, heads)
    assert str(error.value) == message


UNKNOWN = ", which the specification of a ConvNeXt does not know"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"output_stride": 8}, f"Conv2dSame (stages.2.downsample.1){UNKNOWN}"),
        ({"norm_layer": "batchnorm2d", "conv_mlp": True}, f"BatchNorm2d (stem.1){UNKNOWN}"),
        ({"act_layer": "prelu"}, f"PReLU (stages.0.blocks.0.mlp.act){UNKNOWN}"),
    ],
)
def test_a_variant_that_cannot_be_merged_is_refused_by_name(args: dict[str, Any], reason: str) -> None:
    small = {"depths": [1, 1, 1, 1], "dims": [4, 4, 4, 4]}
    family, arch = resolve("convnext_tiny", {}, {"model_args": {**small, **args}}, "source 'a'")
    assert family is FAMILY
    with pytest.raises(MismatchError) as error:
        compile_plan([Source(n, family, arch, {}, None, "", "") for n in "ab"])
    assert f"'a' has {reason}" in error.value.reasons


@pytest.mark.full
def test_every_convnext_of_timm_can_be_merged() -> None:
    small = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
    names = timm.list_models("*convnext*", module="convnext")
    assert len(names) > 20
    for name in names:
        arch = FAMILY.parse(name, {}, {"model_args": small}, name)
        assert FAMILY.refuse(arch) == [], name


def test_every_difference_between_sources_is_reported() -> None:
    a = convnext_source("plain", 1)
    b = convnext_source("global response normalisation (V2)", 2, kernel_sizes=5, depths=[1, 1, 1, 1])
    with pytest.raises(MismatchError) as error:
        compile_plan([a, b])
    kernels = [", ".join(f"'{k} dilation 1'" for _ in range(4)) for k in (3, 5)]
    assert error.value.reasons == (
        "blocks per stage: 's1' has [1, 2, 1, 1], 's2' has [1, 1, 1, 1]",
        f"depthwise kernels: 's1' has [{kernels[0]}], 's2' has [{kernels[1]}]",
        "LayerScale: 's1' has True, 's2' has False",
        "global response normalisation: 's1' has False, 's2' has True",
    )


def test_sizes_of_which_no_network_is_built_are_refused() -> None:
    with pytest.raises(SourceError) as error:
        FAMILY.parse("convnext", {"name": "convnext_tiny", "args": {"depths": [1, 1]}}, {}, "a")
    assert str(error.value) == (
        "a: depths should be the numbers of blocks of the 4 stages, at most 256 together, it is [1, 1]. Change "
        "arch.args, or model_args in config.json."
    )


def test_a_narrower_per_unit_tensor_is_filled_along_its_units() -> None:
    a, b = convnext_source("plain", 1, dims=[6, 6, 6, 8]), convnext_source("plain", 2)
    plan = compile_plan([a, b])
    maps = start_maps(plan, [s.weights for s in (a, b)], "full", "average")
    name = "stages.0.blocks.0.conv_dw.weight"
    kernel, own = maps.units()[name], replace(b, name="x").weights[name]
    assert kernel.shape == (6, 1, 3, 3)
    torch.testing.assert_close(kernel[:4], (a.weights[name][:4] + own) / 2)
    torch.testing.assert_close(kernel[4:], a.weights[name][4:] / 2)


def with_stream(source: Source, scale: float) -> Source:
    """The same function with a larger residual stream in every stage."""
    ends, own = ("conv_dw.bias", "gamma", "downsample.1.weight", "downsample.1.bias"), dict(source.weights)
    for name, tensor in own.items():
        if name.startswith("stem.1.") or name.endswith(ends):
            own[name] = scale * tensor
    return replace(source, weights=own)


@pytest.mark.full
@pytest.mark.parametrize("correct", [True, False])
def test_the_closed_form_does_not_depend_on_the_scale_of_a_stream(correct: bool) -> None:
    method = METHODS["fs_closed_form"](views=0, correct=correct, ridge=1e-3)
    first, second = (convnext_source("plain", seed) for seed in (1, 2))
    large = with_stream(second, 8.0)
    expected, found = (solve(method, [first, own], images(40))[1] for own in (second, large))  # type: ignore[arg-type]
    for mine, own in zip(found, expected):
        torch.testing.assert_close(mine, own, rtol=1e-2, atol=1e-2 * float(own.abs().max()))
