"""What the labels of texts are, without a word of the user."""

from __future__ import annotations

from typing import Any

import pytest

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data.text.files import Row
from fsmerge_cli.data.text.labels import kind_of, numbers_of


def rows(labels: list[Any]) -> list[Row]:
    return [Row("a text", label, f"a.csv: row {i}") for i, label in enumerate(labels, 1)]


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["0", "1", "1"], "whole numbers"),
        (["0.0", "1.0", "1.0"], "whole numbers"),  # how tables with gaps keep 0 and 1
        ([-2, 0, 2], "whole numbers"),
        (["0.5", "1.0"], "numbers"),
        ([0.5, float("nan"), 2.5], "numbers"),
        (["good", "1"], "names"),
        ([None, "", -1], None),
    ],
)
def test_whole_numbers_are_classes_however_they_are_written(labels: list[Any], kind: str | None) -> None:
    assert kind_of(rows(labels)) == kind


@pytest.mark.parametrize("label", [float("nan"), "1" + 400 * "0", True, "a"])
def test_a_label_that_is_no_finite_number_is_refused_with_its_place(label: Any) -> None:
    given = 10**400 if isinstance(label, str) and len(label) > 9 else label
    with pytest.raises(DataError, match=r"a.csv: row 2: this task predicts a number, and the label is "):
        numbers_of(rows([0.5, given]))
