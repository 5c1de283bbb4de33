"""Labels are found among the classes of a data set, or it is said which are not."""

from __future__ import annotations

from typing import Any

import pytest

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import Task
from fsmerge_cli.data.matching import of_task


def matched(labels: tuple[str, ...], classes: list[Any], names: list[str] | None = None) -> Any:
    return of_task(Task("a", labels), classes, names, "here")


def test_names_that_differ_by_case_alone_are_different_classes() -> None:
    names = ["A", "B", "a", "b"]
    assert matched(("A", "B"), [0, 1, 2, 3], names) == ([0, 1], [0, 1], ())
    assert matched(("b", "A"), [0, 1, 2, 3], names) == ([0, 3], [1, 0], ())
    assert matched(("A", "a"), ["a", "b", "A"]) == ([0, 2], [1, 0], ())


def test_other_spelling_is_understood_where_it_is_clear() -> None:
    names = ["snow leopard", "Cat", "cat"]
    assert matched(("Snow_Leopard", "cat"), [0, 1, 2], names) == ([0, 2], [0, 1], ())


@pytest.mark.parametrize(
    ("labels", "names", "told"),
    [
        (("CAT", "dog"), ["Cat", "cat", "dog"], "label CAT"),
        (("cat", "Cat", "dog"), ["cat", "dog", "eel"], "labels cat, Cat"),
        (("crane", "dog"), ["crane", "dog", "crane"], "label crane"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(
    labels: tuple[str, ...], names: list[str], told: str
) -> None:
    with pytest.raises(DataError) as error:
        matched(labels, [0, 1, 2], names)
    assert str(error.value) == (
        f"here: of task 'a' the {told} cannot be told apart among the classes. Pass models.sources.N.labels=[...] "
        "that are written as the data set has them."
    )


def test_the_very_names_of_the_data_set_are_taken_in_order_even_where_two_are_the_same() -> None:
    names = ["crane", "dog", "crane"]
    assert matched(("crane", "dog", "crane"), [2, 0, 1], names) == ([0, 1, 2], [2, 0, 1], ())


def test_an_image_without_a_label_is_none_of_the_task() -> None:
    names = ["owl", "wren"]
    assert matched(("wren", "owl"), [0, None, 1], names) == ([0, 2], [1, 0], ())
    assert matched(("wren", "owl"), ["wren", None, "owl"]) == ([0, 2], [0, 1], ())
    assert matched(("wren", "owl"), [None, None], names) == ([0, 1], [-1, -1], ())
    assert matched(("wren", "owl"), [1.0, 0.0], names) == ([0, 1], [0, 1], ())


@pytest.mark.parametrize("label", [0.7, [1, 0], {"id": 1}, float("nan")])
def test_what_is_no_number_of_a_class_is_refused(label: object) -> None:
    with pytest.raises(DataError) as error:
        matched(("owl", "wren"), [0, label])
    assert str(error.value) == (
        f"here: a label should be the number of a class or its name, and one is {str(label)!r}. Pass another "
        "column or file of labels."
    )
