"""evaluation.json has one published form, whatever the method."""

from __future__ import annotations

import copy
import json
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
from fsmerge_cli.runs.result import SCHEMA_VERSION
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.full


def evaluation(tmp_path: Path, name: str) -> dict[str, Any]:
    method = {"name": name, **({"steps": 3} if issubclass(METHODS[name], Trained) else {})}
    merge("digits_mlp_pair", method=method, output=tmp_path / "out")
    found: dict[str, Any] = json.loads((tmp_path / "out/evaluation.json").read_text())
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_writes_the_published_form(tmp_path: Path, name: str) -> None:
    found = evaluation(tmp_path, name)
    jsonschema.Draft202012Validator(json.loads(schema.text())).validate(found)
    assert found["schema_version"] == SCHEMA_VERSION
    assert found["similarity"].keys() == set(found["tasks"])
    assert list(found["similarity"]["low"]) == ["act0", "act1"]
    merged = found["rows"]["merged"]
    assert merged["feature_cka"]["low"] == pytest.approx(found["similarity"]["low"]["act1"]["cka"], abs=0.2)
    assert found["rows"]["low"]["tasks"]["low"]["relative"] == 1.0


def test_the_schema_is_a_schema_and_leaves_nothing_open() -> None:
    content = json.loads(schema.text())
    jsonschema.Draft202012Validator.check_schema(content)
    assert content["properties"]["schema_version"] == {"const": SCHEMA_VERSION}
    assert content["additionalProperties"] is False
    assert set(content["required"]) == set(content["properties"])


def test_the_documents_hold_the_same_schema() -> None:
    assert (REPOSITORY / "docs" / schema.NAME).read_text() == schema.text()


def test_what_is_not_of_that_form_is_not_written(tmp_path: Path) -> None:
    found = evaluation(tmp_path, "average")
    schema.validate(found)
    broken = copy.deepcopy(found)
    broken["rows"]["merged"]["mean_top1"] = 1.5
    broken["surprise"] = 1
    with pytest.raises(FsmergeError) as error:
        schema.validate(broken)
    assert str(error.value).splitlines() == [
        "evaluation.json would not have its published form, please report it:",
        "  - : Additional properties are not allowed ('surprise' was unexpected)",
        "  - rows.merged.mean_top1: 1.5 is greater than the maximum of 1",
    ]


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == schema.text()
    assert main(["schema", "now"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: fsmerge schema takes no arguments, got 'now'. See fsmerge schema --help.\n"
    )
