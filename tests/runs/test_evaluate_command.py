"""`fsmerge evaluate`, the command: tables, files, JSON, mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import jsonschema
import pytest
import yaml

from fsmerge_cli.cli import evaluate_command, main
from fsmerge_cli.data import DATASETS
from fsmerge_cli.reporting import schema
from fsmerge_cli.runs.merged import Reading
from tests.support.evaluations import UNKNOWN_LABLES, file_bytes, rows_of
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.full


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def ran(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["evaluate", *arguments])
        return (code, *capsys.readouterr())

    return ran


def test_the_command_shows_the_tables_and_writes_the_requested_files(
    digits_run: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    before = file_bytes(digits_run)
    files = ["output.file=e.json", "output.logits=l.safetensors", "output.report=r.html"]
    code, out, err = command(str(digits_run), "data=from_run", "--sources", *files)
    assert code == 0
    assert err.splitlines()[-1].startswith("evaluate merged: 540/540 ")
    low = rows_of(digits_run)["merged"]["tasks"]["low"]
    assert f"{100 * low['top1']:.1f}" in out
    assert "high (source)" in out
    assert "calibrated softmax per head" in out
    assert (
        out.splitlines()[-1]
        == f"model: {digits_run}/merged   evaluation: e.json   report: r.html   logits: l.safetensors"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.json", "l.safetensors", "r.html"]
    shown = (tmp_path / "r.html").read_text()
    assert shown.count("<img ") == 12
    assert f"{100 * low['top1']:.1f}" in shown
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["rows"]["merged"]["tasks"]["low"] == low
    assert content["provenance"]["command"] == (
        f"fsmerge evaluate {digits_run} data=from_run --sources {' '.join(files)}"
    )
    assert file_bytes(digits_run) == before


def test_json_on_standard_output_follows_the_schema(
    digits_run: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, _ = command(
        str(digits_run), "data=digits", "data.images_per_task=20", "seed=3", "tasks=[low]", "--json"
    )
    assert code == 0
    found = json.loads(out)
    jsonschema.Draft202012Validator(json.loads(schema.text())).validate(found)
    assert (found["config"]["data"]["images_per_task"], found["config"]["seed"]) == (20, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_of_the_users_own(
    digits_run: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "own/data").mkdir(parents=True)
    (tmp_path / "own/data/few.yaml").write_text("name: digits\nimages_per_task: 3\n")
    code, out, _ = command(str(digits_run), "--config-dir", "own", "data=few", "--json")
    assert code == 0
    assert json.loads(out)["config"]["data"]["images_per_task"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "fsmerge evaluate takes one model, but none is given. See fsmerge evaluate --help."),
        (["a", "b"], "fsmerge evaluate takes one model, but 2 are given (a, b). See fsmerge evaluate --help."),
        (
            ["a", "--source"],
            "fsmerge evaluate: unknown option '--source'. Did you mean '--sources'? Available: --config-dir, "
            "--json, --quiet, --sources, -q.",
        ),
        (["a", "dat=digits"], "unknown key 'dat'. Available: hardware, model, output, seed, tasks."),
        (
            ["a", "data=digit"],
            f"unknown data 'digit'. Did you mean 'digits'? Available: {', '.join(sorted(DATASETS))}.",
        ),
        (
            ["a", "model.lables=[x]"],
            UNKNOWN_LABLES,
        ),
        (["a", "seed=x"], "seed: should be a valid integer, got 'x'."),
        (["a", "output.file=[3]"], "output.file: should be a valid string, got [3]."),
        (
            ["a", "--config-dir", "b"],
            "--config-dir: 'b' is not a folder. Pass a folder with models/*.yaml, data/*.yaml, ...",
        ),
        (["a", "model.arch._target_=os.system"], None),
        (["a"], "a does not exist. Give the folder of a run, its merged/, or a checkpoint."),
    ],
)
def test_a_mistake_gets_one_message(
    arguments: list[str], message: str | None, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fsmerge: error: ")
    assert message is None or err == f"fsmerge: error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_yaml_lists_every_key_with_its_default() -> None:
    keys = yaml.safe_load((REPOSITORY / "configs/evaluate.yaml").read_text())
    groups = {next(iter(entry)) for entry in keys.pop("defaults") if isinstance(entry, dict)}
    assert groups | keys.keys() == {field.name for field in fields(evaluate_command.EvaluateKeys)}
    assert keys["model"] == {field.name: field.default for field in fields(Reading)}
    assert keys["output"] == {field.name: field.default for field in fields(evaluate_command.Output)}
    assert keys["seed"] is None
    assert keys["tasks"] is None
    for key in (*(f"model.{name}=" for name in keys["model"]), *(f"output.{name}=" for name in keys["output"])):
        assert key in evaluate_command.HELP
