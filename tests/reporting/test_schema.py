"""evaluation.json has one published form, whatever the method."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fsmerge_cli import merge
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import FsmergeError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.reporting import schema
from fsmerge_cli.runs.request import source_entries
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.full


def evaluation(tmp_path: Path, name: str) -> dict[str, Any]:
    method = {"name": name, **({"steps": 3} if issubclass(METHODS[name], Trained) else {})}
    base = source_entries("digits_mlp_pair")[0] if METHODS[name].uses_base else None
    merge("digits_mlp_pair", method=method, base=base, output=tmp_path / "out")
    found: dict[str, Any] = json.loads((tmp_path / "out/evaluation.json").read_text())
    return found


@pytest.mark.parametrize("name", [n for n in METHODS if n == "ties" or not METHODS[n].uses_base])
def test_every_method_writes_the_published_form(tmp_path: Path, name: str) -> None:
    found = evaluation(tmp_path, name)
    jsonschema.Draft202012Validator(json.loads(schema.text())).validate(found)
    assert found["schema_version"] == schema.VERSION
    assert found["similarity"].keys() == set(found["tasks"])
    assert list(found["similarity"]["low"]) == ["act0", "act1"]
    merged = found["rows"]["merged"]
    assert merged["feature_cka"]["low"] == pytest.approx(found["similarity"]["low"]["act1"]["cka"], abs=0.2)
    assert found["rows"]["low"]["tasks"]["low"]["relative"] == 1.0


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every object of fixed keys in a JSON schema."""
    if isinstance(node, dict):
        if "properties" in node:
            yield node
        for child in node.values():
            yield from objects(child)
    elif isinstance(node, list):
        for child in node:
            yield from objects(child)


def test_the_schema_is_a_schema_and_leaves_nothing_open() -> None:
    content = json.loads(schema.text())
    jsonschema.Draft202012Validator.check_schema(content)
    assert content["properties"]["schema_version"]["const"] == schema.VERSION
    protocols = {"Joint", "ChosenTasks"}  # a model with one head has none
    later = {
        "agreement",
        "neighbours",
        "probes",
        "tokens",
        "joint_decision",
        "measured_on",
        "classes",
        "joint_confusion",
        "serving",
        "validation_parts",
        "inputs",
        "counted",
        "base",
        "numbers",
    }  # not in earlier files
    found = list(objects(content))
    assert len(found) > 12
    for own in found:
        assert own["additionalProperties"] is False
        if own["title"] not in protocols:
            left_out = set() if own["title"] in ("JointConfusion", "LinearProbe") else later  # their `classes`
            assert set(own["required"]) == set(own["properties"]) - left_out


def test_the_documents_hold_the_same_schema() -> None:
    assert (REPOSITORY / "docs" / schema.NAME).read_text() == schema.text()


def test_what_is_not_of_that_form_is_not_written(tmp_path: Path) -> None:
    found = evaluation(tmp_path, "average")
    broken = copy.deepcopy(found)
    broken["rows"]["merged"]["mean_top1"] = 1.5
    broken["surprise"] = 1
    with pytest.raises(FsmergeError) as error:
        schema.typed(broken)
    assert str(error.value).splitlines() == [
        "evaluation.json would not have its published form, please report it:",
        "  - rows.merged.mean_top1: Input should be less than or equal to 1",
        "  - surprise: Extra inputs are not permitted",
    ]
    with pytest.raises(FsmergeError, match="finite"):
        schema.typed({**found, "facts": {"condition": math.nan}})


def test_a_file_is_read_back_as_a_typed_value(tmp_path: Path) -> None:
    found = evaluation(tmp_path, "average")
    value = schema.EvaluationFile.model_validate_json((tmp_path / "out/evaluation.json").read_text())
    assert value.rows["merged"].tasks["low"].top1 == found["rows"]["merged"]["tasks"]["low"]["top1"]
    assert json.loads(value.model_dump_json(exclude_unset=True)) == found


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == schema.text()
    assert main(["schema", "now"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: fsmerge schema takes no arguments, got 'now'. See fsmerge schema --help.\n"
    )
