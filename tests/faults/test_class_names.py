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
        ("ranking", "something else than one label per image"),
    ],
)
def test_another_problem_type_is_refused(kind: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        load_source(with_config(tmp_path, {"problem_type": kind}))
    assert f"predicts {what}: problem_type in config.json is '{kind}'. " in str(error.value)


def test_two_tables_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    names = {str(row): f"c{row}" for row in range(C)}
    rows = {name: int(row) for row, name in names.items()}
    assert load_source(with_config(tmp_path, {"id2label": names, "label2id": rows})).notes is not None
    with pytest.raises(SourceError) as error:
        load_source(with_config(tmp_path, {"id2label": names, "label2id": rows | {"c0": 1, "c1": 0}}))
    assert str(error.value).endswith(
        ": in config.json id2label has 'c0' in row 0, label2id in row 1. Correct one of them."
    )
