"""Labels are matched to the classes of a data set; labels without a class are reported."""

from __future__ import annotations

from typing import Any

import pytest

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import Task
from fsmerge_cli.data.matching import of_task


def matched(labels: tuple[str, ...], classes: list[Any], names: list[str] | None = None) -> Any:
    return of_task(Task("a", labels), classes, names, "here")


def left_out(count: int, of: int) -> str:
    return f"task 'a': {count} of {of} images have none of its labels: not used"


def test_names_that_differ_only_in_case_are_different_classes() -> None:
    names = ["A", "B", "a", "b"]
    assert matched(("A", "B"), [0, 1, 2, 3], names) == ([0, 1], [0, 1], (left_out(2, 4),))
    assert matched(("b", "A"), [0, 1, 2, 3], names) == ([0, 3], [1, 0], (left_out(2, 4),))
    assert matched(("A", "a"), ["a", "b", "A"]) == ([0, 2], [1, 0], (left_out(1, 3),))


def test_case_and_underscores_are_ignored_if_unambiguous() -> None:
    names = ["snow leopard", "Cat", "cat"]
    note = (
        "task 'a': 1 of its labels are matched to class names that are spelled differently: 'Snow_Leopard' is "
        "'snow leopard'"
    )
    assert matched(("Snow_Leopard", "cat"), [0, 1, 2], names) == ([0, 2], [0, 1], (note, left_out(1, 3)))


@pytest.mark.parametrize(
    ("labels", "names", "reported"),
    [
        (("CAT", "dog"), ["Cat", "cat", "dog"], "label CAT"),
        (("cat", "Cat", "dog"), ["cat", "dog", "eel"], "labels cat, Cat"),
        (("crane", "dog"), ["crane", "dog", "crane"], "label crane"),
    ],
)
def test_ambiguous_labels_are_refused(labels: tuple[str, ...], names: list[str], reported: str) -> None:
    with pytest.raises(DataError) as error:
        matched(labels, [0, 1, 2], names)
    assert str(error.value) == (
        f"here: the {reported} of task 'a' cannot be matched to exactly one class each. Pass "
        "models.sources.N.labels=[...] spelled as in the data set."
    )


def test_labels_equal_to_the_class_names_are_matched_in_order_even_with_duplicates() -> None:
    names = ["crane", "dog", "crane"]
    assert matched(("crane", "dog", "crane"), [2, 0, 1], names) == ([0, 1, 2], [2, 0, 1], ())


def test_an_image_without_a_label_does_not_belong_to_the_task() -> None:
    names = ["owl", "wren"]
    assert matched(("wren", "owl"), [0, None, 1], names) == ([0, 2], [1, 0], (left_out(1, 3),))
    assert matched(("wren", "owl"), ["wren", None, "owl"]) == ([0, 2], [0, 1], (left_out(1, 3),))
    assert matched(("wren", "owl"), [None, None], names) == ([0, 1], [-1, -1], ())
    assert matched(("wren", "owl"), [1.0, 0.0], names) == ([0, 1], [0, 1], ())


@pytest.mark.parametrize("label", [0.7, [1, 0], {"id": 1}, float("nan")])
def test_labels_that_are_not_class_indices_are_refused(label: object) -> None:
    with pytest.raises(DataError) as error:
        matched(("owl", "wren"), [0, label])
    many = "Several labels per image (multi-label) are not supported: one class index or name per image. "
    assert str(error.value) == (
        f"here: a label should be a class index or a class name, and one is {str(label)!r}. "
        f"{many if isinstance(label, list | dict) else ''}Pass another column or file of labels."
    )


@pytest.mark.parametrize("labels", [("cat", "dog"), ("0", "1"), ("x", "y")])
def test_a_class_index_behind_the_stated_names_is_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as error:
        matched(labels, [0, 7, 1], ["cat", "dog"])
    assert str(error.value) == (
        "here: a class index is 7, and there are names of 2 classes (cat, dog), the last of index 1. Correct the "
        "labels or the names."
    )
