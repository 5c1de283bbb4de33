from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic.dataclasses import dataclass

from fsmerge_cli.architectures.mlp import MLPArch
from fsmerge_cli.common.errors import ConfigError, unknown
from fsmerge_cli.common.options import (
    FORBID,
    Count,
    FiniteFloat,
    Flag,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    Text,
    build,
    choose,
)
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.models.source_spec import Recipe, SourceSpec


@dataclass(frozen=True, config=FORBID)
class Small:
    size: Positive
    name: Text = "small"
    rate: PositiveFloat = 0.5
    decay: NonNegativeFloat = 0.0
    share: Share = 0.1
    loud: Flag = False
    seed: Count = 0
    kind: Literal["round", "square"] = "round"
    many: Count | Literal["all"] = "all"
    width: Positive | tuple[Positive, ...] | None = None
    names: tuple[Text, ...] = ()
    shift: FiniteFloat = 0.0


KEYS = "decay, kind, loud, many, name, names, rate, seed, share, shift, size, width"


def refused(cls: type[Any], values: Any, where: str = "small") -> str:
    with pytest.raises(ConfigError) as error:
        build(cls, values, where)
    return str(error.value)


def test_values_become_a_frozen_instance() -> None:
    built = build(Small, {"size": 3, "many": 7, "width": [4, 5], "rate": 1}, "small")
    assert built == Small(size=3, many=7, width=(4, 5), rate=1.0)
    assert build(Small, {"size": 3, "width": 4}, "small").width == 4
    with pytest.raises(AttributeError):
        built.size = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "small.size is missing."),
        ({"size": 0}, "small.size: should be greater than or equal to 1, got 0."),
        ({"size": "3"}, "small.size: should be a valid integer, got '3'."),
        ({"size": 2.0}, "small.size: should be a valid integer, got 2.0."),
        ({"size": True}, "small.size: should be a valid integer, got True."),
        ({"size": None}, "small.size: should be a valid integer, got None."),
        ({"size": 1, "name": 3}, "small.name: should be a valid string, got 3."),
        ({"size": 1, "rate": 0}, "small.rate: should be greater than 0, got 0."),
        ({"size": 1, "rate": float("nan")}, "small.rate: should be a finite number, got nan."),
        ({"size": 1, "rate": "fast"}, "small.rate: should be a valid number, got 'fast'."),
        ({"size": 1, "decay": -0.1}, "small.decay: should be greater than or equal to 0, got -0.1."),
        ({"size": 1, "shift": True}, "small.shift: should be a valid number, got True."),
        ({"size": 1, "shift": "1"}, "small.shift: should be a valid number, got '1'."),
        ({"size": 1, "share": 1}, "small.share: should be less than 1, got 1."),
        ({"size": 1, "loud": 1}, "small.loud: should be a valid boolean, got 1."),
        ({"size": 1, "loud": "yes"}, "small.loud: should be a valid boolean, got 'yes'."),
        ({"size": 1, "seed": -1}, "small.seed: should be greater than or equal to 0, got -1."),
        ({"size": 1, "kind": "oval"}, "small.kind: should be 'round' or 'square', got 'oval'."),
        ({"size": 1, "many": -1}, "small.many: should be greater than or equal to 0 or 'all', got -1."),
        ({"size": 1, "many": "al"}, "small.many: should be a valid integer or 'all', got 'al'."),
        ({"size": 1, "width": "x"}, "small.width: should be a valid integer or a valid tuple, got 'x'."),
        ({"size": 1, "szie": 2}, f"unknown key in small 'szie'. Did you mean 'size'? Available: {KEYS}."),
        ({"size": 1, "xyz": 2}, f"unknown key in small 'xyz'. Available: {KEYS}."),
        (3, "small: should be keys and values, got 3."),
        (None, "small: should be keys and values, got None."),
        ("kd", "small: should be keys and values, got 'kd'."),
    ],
)
def test_a_mistake_is_reported_with_its_key_and_value(values: Any, message: str) -> None:
    assert refused(Small, values) == message


def test_every_mistake_is_reported_at_once() -> None:
    assert refused(Small, {"szie": 1, "rate": -1, "loud": 1, "x": 1}).splitlines() == [
        "small.size is missing.",
        f"unknown key in small 'szie'. Did you mean 'size'? Available: {KEYS}.",
        f"unknown key in small 'x'. Available: {KEYS}.",
        "small.rate: should be greater than 0, got -1.",
        "small.loud: should be a valid boolean, got 1.",
    ]


def test_a_mistake_inside_a_list_is_reported_with_its_position() -> None:
    assert refused(Small, {"size": 1, "names": ["x", 3, "y", 4]}, "list.1").splitlines() == [
        "list.1.names.1: should be a valid string, got 3.",
        "list.1.names.3: should be a valid string, got 4.",
    ]


RECIPE = "batch_size, data, lr, seed, start, steps, weight_decay"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"data": "digits"}, "source.recipe.seed is missing."),
        (
            {"data": "digits", "seed": 0, "steps": 0},
            "source.recipe.steps: should be greater than or equal to 1, got 0.",
        ),
        (
            {"data": "digits", "seed": 0, "stps": 3},
            f"unknown key in source.recipe 'stps'. Did you mean 'steps'? Available: {RECIPE}.",
        ),
    ],
)
def test_a_mistake_inside_a_nested_group_is_reported_with_its_full_key(
    recipe: dict[str, Any], message: str
) -> None:
    assert refused(SourceSpec, {"name": "a", "recipe": recipe}, "source") == message


def test_a_nested_group_is_built_too() -> None:
    built = build(SourceSpec, {"name": "a", "recipe": {"data": "digits", "seed": 4}}, "source")
    assert built.recipe == Recipe("digits", 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"widths": []}, "arch.widths: should have at least 1 item, got []."),
        ({"input_size": [1, 8]}, "arch.input_size.2 is missing."),
        ({"input_size": [1, 8, 8, 8]}, "arch.input_size: should have at most 3 items, got [1, 8, 8, 8]."),
        ({"widths": 64}, "arch.widths: should be a valid tuple, got 64."),
        ({"widths": [8, 0]}, "arch.widths.1: should be greater than or equal to 1, got 0."),
    ],
)
def test_a_list_of_the_wrong_length_is_reported(changed: dict[str, Any], message: str) -> None:
    assert refused(MLPArch, {"input_size": [1, 8, 8], "widths": [8], **changed}, "arch") == message


@dataclass(frozen=True, config=FORBID)
class Named:
    name: Literal["one"] = "one"
    size: Positive = 1


def test_choose_builds_the_entry_of_the_given_name() -> None:
    assert choose({"one": Named}, {"name": "one", "size": 2}, "method") == Named(size=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "on"}, "unknown method 'on'. Did you mean 'one'? Available: one, two."),
        ({"size": 2}, "method.name is missing. Available: one, two."),
        ({"name": 1}, "method.name is missing. Available: one, two."),
        ({"name": "one", "size": 0}, "method.size: should be greater than or equal to 1, got 0."),
        (3, "method: should be keys and values, got 3."),
    ],
)
def test_choose_lists_the_available_names(values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose({"two": Named, "one": Named}, values, "method")
    assert str(error.value) == message


def test_unknown_gives_the_closest_match_and_all_options() -> None:
    assert unknown("thing", "xyz", []) == "unknown thing 'xyz'. Available: none."
    assert (
        unknown("thing", "abd", ["zzz", "abc"]) == "unknown thing 'abd'. Did you mean 'abc'? Available: abc, zzz."
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("logits", "logit_weight"),
        ("foreign", "cross_task_weight"),
        ("apart", "outlier_exposure"),
        ("mix", "mixup"),
        ("release", "finetune_share"),
        ("release_lr", "finetune_lr"),
    ],
)
def test_an_old_key_is_refused_with_its_new_name(old: str, new: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(FSMerge, {"name": "fs_merge", old: 0.5}, "method")
    assert str(refused.value) == f"method.{old} is now called method.{new}. Write method.{new}=..."


def test_an_old_key_is_only_renamed_where_the_new_one_is_known() -> None:
    """`average` has no mixup, and a user-defined method may have a key of that name."""
    with pytest.raises(ConfigError, match=r"^unknown key in method 'mix'\. Available: "):
        build(Average, {"name": "average", "mix": 0.5}, "method")
