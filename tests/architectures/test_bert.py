"""Text encoders: transformers' own function, and the identities that every family has to keep."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.common.errors import MismatchError
from fsmerge_cli.common.inputs import IDS, TYPES, NamedTensors, join
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.supernet.reference import UnfoldedSuperNet
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import network
from scripts.scrambled import locked
from tests.support.encoders import (
    CLASSIFIERS,
    MORE_VARIANTS,
    VARIANTS,
    arch_of,
    encoder_source,
    text_problem,
    texts,
    transformers_model,
)
from tests.support.identities import check_fold, check_permutation, check_permuted_copy, check_table

COPIED = ("weight_matching", "zipit", "regmean_pp", "ot_fusion", "cca", "pleas")
"""Methods that match units, beside activation_matching."""


UNPOOLED = ("BERT, mean of the tokens", "DistilBERT, tokens", "ModernBERT without pooler")
"""Their features are the stream, which a scrambled network keeps."""


def double(weights: Any) -> dict[str, torch.Tensor]:
    return {n: t.double() for n, t in weights.items()}


@pytest.mark.parametrize("variant", [*CLASSIFIERS, *MORE_VARIANTS])
def test_the_logits_are_those_of_transformers(variant: str) -> None:
    source = encoder_source(variant, 1)
    module, own = transformers_model(source), texts(source.arch, 5)
    ids = torch.where(own.mask != 0, own.tensors[IDS].clamp(min=2), source.arch.padding)
    given, inputs = {"input_ids": ids, "attention_mask": own.mask}, own.replaced({IDS: ids})
    if source.arch.types == 2:
        given["token_type_ids"] = torch.randint(2, ids.shape, generator=torch.Generator().manual_seed(0))
        inputs = inputs.replaced({TYPES: given["token_type_ids"]})
    with torch.no_grad():
        found = source.head(network(source)(inputs))
        expected = module(**given).logits
    expected = expected[own.mask != 0] if expected.ndim == 3 else expected
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant: str) -> None:
    source = encoder_source(variant, 1)
    short, longer = texts(source.arch, 3, seed=1)[:, :4], texts(source.arch, 1, seed=2)
    short = short.replaced({"attention_mask": torch.ones_like(short.mask)})
    alone = network(source)(short)
    both = join([short, longer])
    assert isinstance(both, NamedTensors)
    torch.testing.assert_close(network(source)(both)[: len(alone)], alone)


@pytest.mark.parametrize("variant", [*VARIANTS, *MORE_VARIANTS])
def test_the_specification_covers_every_tensor_and_identity_maps_fold_to_the_model(variant: str) -> None:
    check_table(encoder_source(variant, 1))


@pytest.mark.parametrize("variant", [*VARIANTS, *MORE_VARIANTS])
def test_a_random_head_safe_permutation_leaves_the_function_unchanged(variant: str) -> None:
    source = encoder_source(variant, 1)
    check_permutation(source, texts(source.arch, 6))


@pytest.mark.full
@pytest.mark.parametrize(
    ("variant", "structure"),
    [*product(VARIANTS, ("diagonal", "full", "heads")), ("BERT", "low_rank"), ("ModernBERT", "low_rank")],
)
def test_folded_equals_unfolded_outputs_and_gradients(variant: str, structure: Any) -> None:
    heads = {"heads": 5} if variant.startswith("ModernBERT") else {}  # rotary heads keep their size
    other = {} if structure == "heads" else {"hidden_size": 20, **heads}
    sources = [encoder_source(variant, 1), encoder_source(variant, 2, **other)]
    maps = start_maps(compile_plan(sources), [s.weights for s in sources], structure, "first", rank=3)
    random = torch.Generator().manual_seed(5)
    for parameter in maps.parameters():
        parameter.data = torch.rand(parameter.shape, generator=random) - 0.3
    check_fold(sources, maps.double(), texts(sources[0].arch, 4))


@pytest.mark.full
@pytest.mark.parametrize("method", ["average", "slerp", "regmean", "regmean_pp", "activation_matching", "zipit"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_a_source_with_its_copy_is_the_source(variant: str, method: str) -> None:
    source, inputs = encoder_source(variant, 1), texts(encoder_source(variant, 1).arch, 6, seed=4)
    problem = text_problem([source, replace(source, name="copy")], per_task=40)
    solution = METHODS[method]().fit(problem)
    merged = problem.plan.skeleton()
    merged.load_state_dict(dict(solution.weights), assign=True)
    expected = network(source)(inputs)
    for U in solution.projectors:
        torch.testing.assert_close(merged(inputs) @ U.T, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("variant", VARIANTS)
def test_matching_finds_the_permutation_of_a_permuted_copy(variant: str) -> None:
    source = encoder_source(variant, 1)
    plan = compile_plan([source, encoder_source(variant, 2)])
    orders = random_permutations(plan, 0, torch.Generator().manual_seed(3))
    head = replace(source.head, weight=source.head.weight[:, orders[plan.features.space]])
    copy = replace(source, name="copy", weights=permute(plan, source.weights, orders), head=head)
    problem = text_problem([source, copy], per_task=60)
    solution = METHODS["activation_matching"]().fit(problem)
    inputs, merged = texts(source.arch, 6, seed=4), plan.skeleton()
    merged.load_state_dict(dict(solution.weights), assign=True)
    for own, U in zip((source, copy), solution.projectors):
        torch.testing.assert_close(merged(inputs) @ U.T, network(own)(inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_start_first_the_merged_model_is_source_1(variant: str) -> None:
    sources = [encoder_source(variant, 1), encoder_source(variant, 2)]
    plan, weights, inputs = compile_plan(sources), [s.weights for s in sources], texts(arch_of(variant), 4)
    for structure in ("diagonal", "low_rank", "full", "heads"):
        supernet = SuperNet(plan, start_maps(plan, weights, structure, "first", rank=2), weights)
        assert torch.equal(supernet(inputs), network(sources[0])(inputs)), structure


@pytest.mark.full
def test_sources_and_merged_model_may_differ_in_width_and_heads() -> None:
    sizes = ((12, 3), (16, 4), (20, 2))
    sources = [encoder_source("BERT", i, hidden_size=w, heads=h) for i, (w, h) in enumerate(sizes, 1)]
    plan, weights = compile_plan(sources, 24, 6), [double(s.weights) for s in sources]
    maps = start_maps(plan, [s.weights for s in sources], "low_rank", "first", rank=2)
    random = torch.Generator().manual_seed(5)
    for parameter in maps.parameters():
        parameter.data = torch.rand(parameter.shape, generator=random) - 0.3
    maps, inputs = maps.double(), texts(sources[0].arch, 4)
    found, reference = SuperNet(plan, maps, weights)(inputs), UnfoldedSuperNet(plan, maps, weights)(inputs)
    torch.testing.assert_close(found, reference, rtol=1e-8, atol=1e-10)
    assert plan.arch.features == 24


def options_of(method: str) -> dict[str, Any]:
    """Of few units the coordinate descent of weight matching ends in other optima."""
    return {"restarts": 8} if method == "weight_matching" else {}


@pytest.mark.full
@pytest.mark.parametrize(
    ("variant", "method"),
    [*product(["BERT"], COPIED), ("ModernBERT", "weight_matching"), ("ELECTRA", "zipit")],
)
def test_a_network_merged_with_its_permuted_copy_is_the_network(variant: str, method: str) -> None:
    source = encoder_source(variant, 1)
    check_permuted_copy(METHODS[method](**options_of(method)), source, texts(source.arch, 40))


@pytest.mark.full
@pytest.mark.parametrize("variant", UNPOOLED)
def test_a_network_merged_with_itself_scrambled_is_the_network(variant: str) -> None:
    """Units and heads in another order, heads turned: as MergeLock does, which only turns give back."""
    source, inputs = encoder_source(variant, 1), texts(arch_of(variant), 40)
    copy = replace(locked(source, 3), name="copy")
    torch.testing.assert_close(network(copy)(inputs), network(source)(inputs), rtol=1e-3, atol=1e-3)
    problem = Problem(compile_plan([source, copy]), [source, copy], text_problem([source, copy], 20).images)
    found = METHODS["orthogonal_matching"]().fit(problem)
    features = network(replace(source, weights=found.weights))(inputs)
    for U in found.projectors:
        torch.testing.assert_close(features @ U.T, network(source)(inputs), rtol=1e-4, atol=1e-4)


def test_every_difference_between_sources_is_reported() -> None:
    other = encoder_source("DistilBERT", 2, vocab_size=41, layers=1)
    with pytest.raises(MismatchError) as error:
        compile_plan([encoder_source("BERT", 1), other])
    assert error.value.reasons == (
        "model type: 's1' has BERT, 's2' has DistilBERT",
        "layers: 's1' has 2, 's2' has 1",
        "size of the vocabulary: 's1' has 40, 's2' has 41",
        "token types: 's1' has 2, 's2' has 0",
    )
