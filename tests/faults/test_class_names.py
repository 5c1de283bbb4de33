"""Class names and targets of a config.json that cannot be used are a note or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli import load_source
from fsmerge_cli.common.errors import SourceError
from tests.support.heads import C, D, mlp_file


def test_a_weight_beside_its_length_and_direction_is_refused(tmp_path: Path) -> None:
    parts = {"weight": torch.ones(C, D), "weight_g": torch.ones(C, 1), "weight_v": torch.ones(C, D)}
    entry = mlp_file(tmp_path, **{f"head.{name}": tensor for name, tensor in parts.items()})
    with pytest.raises(SourceError) as error:
        load_source(entry)
    assert "it has tensors of another kind of layer (head.weight, head.weight_g, head.weight_v). " in str(
        error.value
    )


def with_config(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(config))
    return mlp_file(folder, **{"head.weight": torch.ones(C, D)})


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {str(row + 1): f"c{row}" for row in range(C)}},
        {"id2label": {str(row): f"c{row}" for row in (0, 1, 2, 3, 5)}},
        {"label_names": {str(row): f"c{row}" for row in range(C)}},
    ],
)
def test_class_names_that_cannot_be_used_are_a_note(config: dict[str, Any], tmp_path: Path) -> None:
    found = load_source(with_config(tmp_path, config))
    note = "'a': the class names in its config.json are not numbered from 0 on, so they are not used"
    assert found.notes == (note,)


def test_placeholders_of_hugging_face_are_no_names(tmp_path: Path) -> None:
    config = {"id2label": {str(row): f"LABEL_{row}" for row in range(C)}}
    assert load_source(with_config(tmp_path, config)).notes == ()


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("MULTI_LABEL_CLASSIFICATION", "several labels per image (multi-label)"),
        ("regression", "a number per image (regression)"),
    ],
)
def test_another_problem_type_is_refused(kind: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        load_source(with_config(tmp_path, {"problem_type": kind}))
    assert f"predicts {what}: problem_type in config.json is '{kind}'. " in str(error.value)


@pytest.mark.parametrize("kind", [None, "", "single_label_classification", "SINGLE_LABEL_CLASSIFICATION"])
def test_one_label_per_image_needs_no_note(kind: str | None, tmp_path: Path) -> None:
    assert load_source(with_config(tmp_path, {"problem_type": kind})).notes == ()


def test_an_unknown_problem_type_is_a_note(tmp_path: Path) -> None:
    note = "'a': problem_type in its config.json is 'ranking'; it is read as one label per image"
    assert load_source(with_config(tmp_path, {"problem_type": "ranking"})).notes == (note,)


@pytest.mark.parametrize("config", [{"label_names": 5}, {"id2label": 5}, {"label_names": "abc"}])
def test_class_names_of_another_kind_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    (key, value), what = next(iter(config.items())), "an object" if "id2label" in config else "a list of texts"
    with pytest.raises(SourceError, match=rf"{key} in config.json should be {what}, it is {value!r}\."):
        load_source(with_config(tmp_path, config))


def test_a_name_of_two_rows_has_one_of_them_in_label2id(tmp_path: Path) -> None:
    names = {str(row): f"c{row}" for row in range(C)} | {"2": "c0"}  # as `crane` of ImageNet
    rows = {name: int(row) for row, name in names.items()}
    found = load_source(with_config(tmp_path, {"id2label": names, "label2id": rows}))
    assert found.head is not None
    assert found.head.labels[:3] == ("c0", "c1", "c0")


def test_two_tables_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    names = {str(row): f"c{row}" for row in range(C)}
    rows = {name: int(row) for row, name in names.items()}
    assert load_source(with_config(tmp_path, {"id2label": names, "label2id": rows})).notes == ()
    with pytest.raises(SourceError) as error:
        load_source(with_config(tmp_path, {"id2label": names, "label2id": rows | {"c0": 1, "c1": 0}}))
    assert str(error.value).endswith(
        ": in config.json id2label has 'c0' in row 0, label2id in row 1. Correct one of them."
    )
