"""--fail-under where tasks predict a number, which has no accuracy."""

from __future__ import annotations

from typing import Any

import pytest

from fsmerge_cli.cli.gate import Gate, measured_in
from fsmerge_cli.common.errors import ConfigError, DataError, FsmergeError

GATE = Gate(fail_under=50.0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (["likeness"], "'likeness' predicts a number, which has no accuracy"),
        (["likeness", "other"], "'likeness', 'other' predict a number, which has no accuracy"),
    ],
)
def test_tasks_of_numbers_only_are_not_called_unlabelled(numbers: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        GATE.require("the model", [], {}, numbers)
    assert str(error.value) == (f"--fail-under=50 compares the top-1 accuracy: {message}; leave out --fail-under.")
    assert GATE.unchecked({}, numbers) == []  # the error says so


def test_without_labels_there_is_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="on labelled test images, and there are none"):
        GATE.require("the model", [], {})


@pytest.mark.parametrize(
    ("numbers", "end"),
    [
        (["likeness"], "'likeness' predicts a number, which has no accuracy; it was not checked"),
        (
            ["likeness", "other"],
            "'likeness', 'other' predict a number, which has no accuracy; they were not checked",
        ),
        ([], None),
    ],
)
def test_tasks_of_numbers_beside_others_are_a_note(numbers: list[str], end: str | None) -> None:
    assert GATE.unchecked({"topic": 0.6}, numbers) == ([] if end is None else [f"--fail-under=50: {end}"])
    assert Gate(strict=True).unchecked({"topic": 0.6}, numbers) == []
    GATE.require("the model", [], {"topic": 0.6}, numbers)
    with pytest.raises(FsmergeError) as error:
        GATE.require("the model", [], {"topic": 0.4}, numbers)
    assert str(error.value) == "--fail-under=50: the model for 'topic' has a top-1 accuracy of 40.0 %"


def test_the_measures_of_a_row_also_of_an_earlier_file() -> None:
    row: dict[str, Any] = {"tasks": {"topic": {"top1": 0.25}}}
    assert measured_in(row) == ({"topic": 0.25}, [])
    assert measured_in({**row, "numbers": {"likeness": {"pearson": 0.5}}}) == ({"topic": 0.25}, ["likeness"])
    assert measured_in({}) == ({}, [])
