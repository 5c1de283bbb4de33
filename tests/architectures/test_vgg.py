"""Identities that hold for timm's VGG, with and without BatchNorm."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fsmerge_cli.alignment import least_squares
from fsmerge_cli.alignment.statistics import grams
from fsmerge_cli.architectures import SPECS, resolve
from fsmerge_cli.common.errors import ConfigError, MismatchError, SourceError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.maps import MAPS
from fsmerge_cli.training.teachers import network
from tests.support.convnets import random_tensors
from tests.support.identities import check_fold, check_permutation, check_permuted_copy, check_table
from tests.support.vggs import FAMILY, VARIANTS, vgg_arch, vgg_source

EVERY = [v if v == "BatchNorm" else pytest.param(v, marks=pytest.mark.full) for v in VARIANTS]


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 2, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", EVERY)
def test_the_network_in_memory_and_the_written_one_compute_what_timms_does(variant: str) -> None:
    arch = vgg_arch(variant)
    tensors = random_tensors(FAMILY, arch, 1)
    expected = FAMILY.build(arch).eval()
    expected.load_state_dict(tensors)
    weights = FAMILY.from_file(arch, tensors)
    assert not [name for name in weights if "running" in name]
    norms = FAMILY.folding.norms(arch) if FAMILY.folding else ()
    assert len(norms) == (0 if variant == "plain" else 5)
    written = FAMILY.build(arch).eval()
    sizes = [len(weights[f"{name}.bias"]) for name in norms]
    statistics = {name: (torch.rand(n), torch.rand(n) + 0.1) for name, n in zip(norms, sizes)}
    written.load_state_dict(FAMILY.to_file(arch, weights, statistics))
    mean, std = (0.4, 0.3), (0.2, 0.25)
    source = replace(vgg_source(variant, 1), arch=replace(arch, mean=mean, std=std), weights=weights)
    with torch.no_grad():
        centred = (images() - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(network(source)(images()), expected(centred), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(written(centred), expected(centred), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", EVERY)
def test_identity_maps_fold_to_the_model_and_permutations_leave_its_function(variant: str) -> None:
    check_table(vgg_source(variant, 1))
    check_permutation(vgg_source(variant, 1), images().double())


@pytest.mark.parametrize(
    "structure", [s if s == "full" else pytest.param(s, marks=pytest.mark.full) for s in MAPS]
)
def test_folded_equals_unfolded_outputs_and_gradients(structure: str) -> None:
    sources = [vgg_source("BatchNorm", seed) for seed in (1, 2)]
    maps = start_maps(compile_plan(sources), [s.weights for s in sources], structure, "average", rank=2)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(5)
    for parameter in maps.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=random)
    check_fold(sources, maps.double(), images().double())


@pytest.mark.parametrize(
    "method",
    [
        "zipit",
        *(
            pytest.param(m, marks=pytest.mark.full)
            for m in ("activation_matching", "weight_matching", "regmean", "regmean_pp", "pleas")
        ),
    ],
)
@pytest.mark.parametrize("variant", EVERY)
def test_a_network_merged_with_its_permuted_copy_is_the_network(variant: str, method: str) -> None:
    check_permuted_copy(METHODS[method](), vgg_source(variant, 1), images(12))


@pytest.mark.full
@pytest.mark.parametrize("variant", EVERY)
def test_the_closed_form_of_permuted_copies_is_the_network(variant: str) -> None:
    check_permuted_copy(METHODS["fs_closed_form"](views=0, ridge=1e-9), vgg_source(variant, 1), images(120))


def test_the_first_fully_connected_layers_may_differ_in_width() -> None:
    sources = [vgg_source("BatchNorm", 1), vgg_source("BatchNorm", 2, mlp_ratio=1.5)]
    plan = compile_plan(sources)
    assert plan.spaces["h"].merged == 7
    assert plan.spaces["h"].sources == (7, 9)


@pytest.mark.parametrize(
    ("width", "heads", "message"),
    [
        (None, 2, "method.heads: a VGG has no attention heads. Leave method.heads at null."),
        (
            12,
            None,
            "method.width=12: timm builds vgg5_tiny_bn with 6 features only. Leave method.width at null.",
        ),
    ],
)
def test_another_size_is_refused(width: int | None, heads: int | None, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        compile_plan([vgg_source("BatchNorm", i) for i in (1, 2)], width, heads)
    assert str(error.value) == message


def test_a_budget_above_1_is_refused() -> None:
    sources = [vgg_source("BatchNorm", i) for i in (1, 2)]
    with pytest.raises(ConfigError) as error:
        METHODS["pleas"](budget_flops=1.5).plan(sources)
    assert str(error.value) == (
        "method.budget_flops=1.5: no space of these networks can be widened (c0, c1, c2 and 4 more). Pass "
        "method.budget_flops=1."
    )


def test_every_difference_between_sources_is_reported() -> None:
    a, b = vgg_source("plain", 1), vgg_source("BatchNorm", 2, size=40, global_pool="max")
    with pytest.raises(MismatchError) as error:
        compile_plan([a, b])
    advice = "; models.sources.N.input_size=[32, 32] changes the size of the other, which is not exact"
    assert error.value.reasons == (
        f"input_size: 's1' has [2, 32, 32], 's2' has [2, 40, 40]{advice}",
        "BatchNorm: 's1' has False, 's2' has True",
        "pooling: 's1' has avg, 's2' has max",
    )


def test_a_pooling_of_more_than_one_unit_per_channel_is_refused() -> None:
    family, arch = resolve("vgg11", {}, {"model_args": {"global_pool": "catavgmax"}}, "source 'a'")
    assert family is FAMILY
    with pytest.raises(MismatchError) as error:
        compile_plan([Source(n, family, arch, {}, None, "", "") for n in "ab"])
    assert "'a' has the pooling 'catavgmax': its features are not one unit per channel" in error.value.reasons


@pytest.mark.full
def test_every_vgg_of_timm_can_be_merged() -> None:
    for name in [f"vgg{n}{norm}" for n in (11, 13, 16, 19) for norm in ("", "_bn")]:
        arch = FAMILY.parse(name, {}, {}, name)
        assert FAMILY.refuse(arch) == []
        assert (arch.features, arch.depth) == (4096, int(name.removesuffix("_bn")[3:]) - 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"cfg": [8]},
            "timm cannot build vgg11 with {'cfg': [8]} for images of 3 x 224 x 224: timm.models.vgg.VGG() got "
            "multiple values for keyword argument 'cfg'. Change arch.args and arch.size, or model_args in "
            "config.json.",
        ),
        (
            {"pretrained": True},
            "pretrained is not an architecture option. Weights are only read from models.sources.N.checkpoint; "
            "remove the key from the arguments.",
        ),
    ],
)
def test_arguments_that_give_no_network_are_refused(args: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError) as error:
        FAMILY.parse("vgg", {"name": "vgg11", "args": args}, {}, "a")
    assert str(error.value) == f"a: {message}"
    assert SPECS["vgg"] is FAMILY


@pytest.mark.parametrize("method", ["regmean", "regmean_pp", "pleas"])
def test_of_a_kernel_with_too_many_inputs_copies_stay_exact(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "MAX_INPUTS", 100)  # the first fully connected layer has 294
    check_permuted_copy(METHODS[method](), vgg_source("BatchNorm", 1), images(12))


def test_of_a_kernel_with_too_many_inputs_every_position_is_solved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, name = [vgg_source("BatchNorm", seed) for seed in (1, 2)], "pre_logits.fc1"
    weights = [source.weights[f"{name}.weight"] for source in sources]

    def found() -> list[torch.Tensor]:
        given = torch.device("cpu")
        return [grams(network(s), [name], images(20), 7, given)[name] for s in sources]

    whole = found()
    monkeypatch.setattr(least_squares, "MAX_INPUTS", 100)
    parts = found()
    assert parts[0].shape == (49, 6, 6)
    solved, _ = least_squares.solve(parts, weights, 1.0, (1.0, 1.0))
    for place in (0, 20, 48):
        own = [G.reshape(6, 49, 6, 49)[:, place, :, place] for G in whole]
        torch.testing.assert_close(parts[0][place], own[0])
        kernels = [W.flatten(2)[..., place] for W in weights]
        expected, _ = least_squares.solve(own, kernels, 1.0, (1.0, 1.0))
        torch.testing.assert_close(solved.flatten(2)[..., place], expected)
