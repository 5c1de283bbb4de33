"""Identities that hold for every variant of timm's vision transformer."""

from __future__ import annotations

import pytest
import torch

from fsmerge_cli.architectures.vit.family import parse
from fsmerge_cli.common.errors import ConfigError, MismatchError, SourceError
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.maps import MAPS
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.supernet.reference import UnfoldedSuperNet
from fsmerge_cli.training.teachers import network
from tests.supernet.test_fold import double, random_maps
from tests.support.identities import check_fold, check_permutation, check_table
from tests.support.vits import TINY, VARIANTS, mark_full, vit_source

STRUCTURES = [*MAPS, "heads"]


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_the_specification_covers_every_tensor_and_identity_maps_fold_to_the_model(variant: str) -> None:
    check_table(vit_source(variant, 1))


@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_with_start_first_the_merged_model_is_source_1(variant: str) -> None:
    sources = [vit_source(variant, 1), vit_source(variant, 2)]
    plan = compile_plan(sources)
    weights = [s.weights for s in sources]
    for structure in STRUCTURES:
        supernet = SuperNet(plan, start_maps(plan, weights, structure, "first", rank=2), weights)
        assert torch.equal(supernet(images()), network(sources[0])(images())), structure


@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_a_random_head_safe_permutation_leaves_the_function_unchanged(variant: str) -> None:
    check_permutation(vit_source(variant, 1), images().double())


@pytest.mark.full
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_folded_equals_unfolded_outputs_and_gradients(variant: str, structure: str) -> None:
    sources = [vit_source(variant, seed) for seed in (1, 2)]
    check_fold(sources, random_maps(compile_plan(sources), sources, structure), images().double())


@pytest.mark.full
@pytest.mark.parametrize(
    ("widths", "heads", "merged"),
    [((12, 16), (3, 4), (None, None)), ((12, 12), (3, 2), (None, None)), ((12, 16, 8), (3, 2, 4), (20, 5))],
)
def test_sources_and_merged_model_may_differ_in_width_and_heads(
    widths: tuple[int, ...], heads: tuple[int, ...], merged: tuple[int | None, int | None]
) -> None:
    sources = [
        vit_source("class token", i, embed_dim=w, num_heads=h) for i, (w, h) in enumerate(zip(widths, heads), 1)
    ]
    plan = compile_plan(sources, *merged)
    maps = random_maps(plan, sources, "low_rank")
    weights = [double(s) for s in sources]
    folded, reference = SuperNet(plan, maps, weights), UnfoldedSuperNet(plan, maps, weights)
    torch.testing.assert_close(folded(images().double()), reference(images().double()), rtol=1e-8, atol=1e-10)
    assert plan.arch.features == (merged[0] or widths[0])


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    sources = [vit_source("class token", i) for i in (1, 2)]
    with pytest.raises(ConfigError) as error:
        compile_plan(sources, 14)
    assert str(error.value) == (
        "method.width=14 cannot be divided into 3 heads. Pass method.heads=... that divides it."
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "vit_small_patch16_18x2_224",
            "ParallelThingsBlock: only blocks of attention, then MLP, each after its norm, can be merged",
        ),
        (
            "vit_tiny_r_s16_p8_224",
            "HybridEmbed: only a plain patch projection can be merged",
        ),
        (
            "vit_tiny_patch16_224 prr",
            "AttentionPoolPrr (global_pool=prr): only attention pooling with a latent query (map) can be merged",
        ),
    ],
)
def test_a_variant_that_cannot_be_merged_is_refused_by_name(name: str, reason: str) -> None:
    from fsmerge_cli.architectures import SPECS
    from fsmerge_cli.models.source import Source

    name, _, pooling = name.partition(" ")
    small = {"depth": 2, "embed_dim": 12, "num_heads": 3} | ({"global_pool": pooling} if pooling else {})
    arch = parse(name, {}, {"model_args": small}, "source 'a'")
    sources = [Source(n, SPECS["vit"], arch, {}, None, "", "") for n in "ab"]
    with pytest.raises(MismatchError) as error:
        compile_plan(sources)
    assert f"'a' has {reason}" in error.value.reasons


@pytest.mark.full
def test_a_projection_without_a_width_is_refused() -> None:
    options = {"name": "vit_base_patch16_clip_224", "args": {"num_classes": 0}, "projection": True}
    with pytest.raises(SourceError) as error:
        parse("vit", options, {}, "v")
    assert str(error.value) == "v: a projection needs its width: num_classes of 1 or more, in config.json."


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        (
            "beit_base_patch16_224",
            "a Beit",
            "its table of relative positions adds to the logits of each head, so that heads cannot be mixed",
        ),
        (
            "naflexvit_base_patch16_gap",
            "a NaFlexVit",
            "it interpolates its positions for every image, and a merged model has one size of images",
        ),
    ],
)
def test_transformers_of_other_classes_are_refused_with_the_reason(name: str, kind: str, why: str) -> None:
    with pytest.raises(SourceError) as error:
        parse(name, {}, {}, "source 'a': arch")
    assert str(error.value) == (
        f"source 'a': arch: {name} is {kind}, not a plain VisionTransformer, ResNet, VGG or ConvNeXt of timm, and "
        f"cannot be merged: {why}. Use a vit_*, resnet*, vgg* or convnext* model, or write a specification for it."
    )


def test_other_timm_models_are_refused() -> None:
    with pytest.raises(SourceError) as error:
        parse("vovnet39a", {}, {}, "source 'a': arch")
    assert str(error.value) == (
        "source 'a': arch: vovnet39a is a VovNet, not a plain VisionTransformer, ResNet, VGG or ConvNeXt of timm, "
        "and cannot be merged. Use a vit_*, resnet*, vgg* or convnext* model, or write a specification for it."
    )


def test_every_difference_between_sources_is_reported() -> None:
    a = vit_source("class token", 1)
    b = vit_source("LayerScale", 2, reg_tokens=1, depth=1, act_layer="relu", patch_size=8)
    with pytest.raises(MismatchError) as error:
        compile_plan([a, b])
    assert error.value.reasons == (
        "patch size: 's1' has [4, 4], 's2' has [8, 8]",
        "depth: 's1' has 2, 's2' has 1; models.sources.N.depth=2 adds blocks to the other, which change nothing",
        "register tokens: 's1' has 0, 's2' has 1",
        "positions: 's1' has 5, 's2' has 3",
        "activation: 's1' has GELU(approximate='none'), 's2' has ReLU()",
        "LayerScale: 's1' has False, 's2' has True",
    )


def test_the_options_of_the_merged_model_are_arguments_of_timm() -> None:
    plan = compile_plan([vit_source("class token", i) for i in (1, 2)], 24, 6)
    assert plan.arch.args == {**TINY, "embed_dim": 24, "num_heads": 6}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_norm_that_only_one_source_has_is_refused(order: tuple[int, int]) -> None:
    pair = {1: vit_source("class token", 1), 2: vit_source("embedding norm", 2)}
    with pytest.raises(MismatchError) as error:
        compile_plan([pair[i] for i in order])
    assert error.value.reasons[0].startswith("patch norm: ")


def test_a_model_without_pooling_is_refused() -> None:
    pair = [vit_source("class token", i, global_pool="") for i in (1, 2)]
    with pytest.raises(MismatchError) as error:
        compile_plan(pair)
    assert error.value.reasons[0] == (
        "'s1' has no pooling (global_pool=''): its features are one vector per token, not per image"
    )


def test_options_are_read_from_config_json_as_in_timm() -> None:
    stated = {"input_size": [1, 16, 16], "fixed_input_size": True, "crop_pct": 0.9}
    config = {"model_args": {"patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}, "global_pool": "avg"}
    arch = parse("vit_tiny_patch16_224", {}, {**config, "pretrained_cfg": stated}, "test")
    assert arch.input_size == (1, 16, 16)
    assert arch.args["global_pool"] == "avg"
