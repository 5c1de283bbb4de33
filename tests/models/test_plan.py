from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.architectures.family import Table
from fsmerge_cli.architectures.ports import norm
from fsmerge_cli.common.errors import ConfigError, MismatchError
from fsmerge_cli.models.plan import Space, compile_plan
from tests.support.sources import mlp_source


def reasons(*sources: object, **options: object) -> tuple[str, ...]:
    with pytest.raises(MismatchError) as error:
        compile_plan(list(sources), **options)  # type: ignore[arg-type]
    return error.value.reasons


def test_a_plan_has_spaces_ports_and_tasks() -> None:
    plan = compile_plan([mlp_source("a", [8, 6], 1), mlp_source("b", [5, 7], 2)], (4, 3))
    assert plan.spaces == {"h0": Space("h0", 4, (8, 5)), "h1": Space("h1", 3, (6, 7))}
    assert [str(p) for p in plan.writes] == ["h0@fc0", "h1@fc1"]
    assert [str(p) for p in plan.reads] == ["h0@fc1", "h1@head"]
    assert str(plan.features) == "h1@head"
    assert plan.tasks == ("a", "b")
    assert plan.arch.widths == (4, 3)
    assert not plan.same_shape


def test_one_width_scales_all_layers() -> None:
    sources = [mlp_source("a", [8, 4], 1), mlp_source("b", [8, 4], 2)]
    assert compile_plan(sources, 6).arch.widths == (12, 6)
    assert compile_plan(sources).arch.widths == (8, 4)


def test_all_mismatches_are_reported_at_once() -> None:
    first = mlp_source("a", [8, 6], 1)
    broken = dict(mlp_source("b", [8, 6], 2, activation="gelu", norm="batch").weights)
    broken["fc0.weight"] = broken["fc0.weight"].T
    broken["fc1.bias"] = broken["fc1.bias"][:2]
    broken["extra"] = torch.zeros(1)
    del broken["fc1.weight"]
    second = replace(mlp_source("a", [8, 6], 2, activation="gelu", norm="batch"), weights=broken)
    second = replace(second, head=replace(second.head, weight=torch.zeros(3, 9)))
    third = mlp_source("c", [8, 6, 4], 3)
    third = replace(third, head=replace(third.head, labels=("x",)))
    assert reasons(first, second, third) == (
        "the task name 'a' is used 2 times; give each source a unique name",
        "activation: 'a' has relu, 'a' has gelu",
        "norm: 'a' has none, 'a' has batch",
        "depth: 'a' has 2, 'c' has 3",
        "'a' lacks the tensors fc1.weight",
        "'a' has unknown tensors extra",
        "'a' has shapes that do not match its arch: fc0.weight is [16, 8], should be [8, 16] "
        "(it is transposed), "
        "fc1.bias is [2], should be [6]",
        "the head of 'a' is [3, 9], should be [classes, 6]",
        "the head of 'c' has 3 classes, but 1 labels are given",
    )


def test_the_message_lists_the_reasons() -> None:
    with pytest.raises(MismatchError) as error:
        compile_plan([mlp_source("a", [8], 1), mlp_source("b", [8], 1, input_size=(3, 4, 4))])
    assert str(error.value) == (
        "these sources cannot be merged, for 1 reason:\n  - input_size: 'a' has [1, 4, 4], 'b' has [3, 4, 4]\n"
        "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other sources."
    )


def test_many_differing_tensors_are_counted() -> None:
    broken = mlp_source("b", [8, 8, 8], 1)
    broken = replace(broken, weights={})
    assert reasons(mlp_source("a", [8, 8, 8], 2), broken) == (
        "'b' lacks the tensors fc0.weight, fc0.bias, fc1.weight and 3 more",
    )


def test_a_single_source_is_refused() -> None:
    assert reasons(mlp_source("a", [8], 1)) == (
        "a merge needs at least two sources, got 1. Add one to models.sources",
    )


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"fc0.bias": ("h0@fc0",)}, ["the specification of 'mlp' does not know the tensor fc0.weight"]),
        (
            {"fc0.weight": ("h0@fc0", "fixed"), "fc0.bias": ("g@fc0",)},
            ["space 'g' is never read"],
        ),
        (
            {"fc0.weight": ("h0@fc0", "h0@in"), "fc0.bias": ("h0@fc0",)},
            ["space 'h0' has the sizes [8, 16] inside"],
        ),
        (
            {"fc0.weight": ("g@fc0", "fixed"), "fc0.bias": ("g@fc0",)},
            ["'g' is never read", "'h0' is never written"],
        ),
        (
            {"fc0.weight": ("h0@fc0", "fixed"), "fc0.bias": norm("lost@x", 0.0)},
            ["space 'lost' is never written", "space 'lost' is never read"],
        ),
    ],
)
def test_a_specification_that_does_not_fit_is_refused(tensors: dict[str, object], expected: list[str]) -> None:
    family = replace(SPECS["mlp"], table=lambda module: Table(tensors, "h{last}@head"))
    sources = [replace(mlp_source(n, [8], 1), family=family) for n in "ab"]
    found = reasons(*sources)
    assert all(any(text in reason for reason in found) for text in expected)


def test_a_list_of_widths_must_have_the_sources_depth() -> None:
    with pytest.raises(ConfigError) as error:
        compile_plan([mlp_source("a", [8, 6], 1), mlp_source("b", [8, 6], 2)], (4,))
    assert str(error.value) == (
        "method.width: [4] gives 1 layers, but the sources have 2. Give one width for all layers or a list of 2."
    )


def test_an_mlp_has_no_heads() -> None:
    with pytest.raises(ConfigError) as error:
        compile_plan([mlp_source("a", [8], 1), mlp_source("b", [8], 2)], heads=2)
    assert str(error.value) == "method.heads: an MLP has no attention heads. Leave method.heads at null."
