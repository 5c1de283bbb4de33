"""Every script in scripts/examples runs, with small options where possible."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

from fsmerge_cli.architectures import SPECS
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.full

EXAMPLES = REPOSITORY / "scripts/examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working folder of all scripts; later ones read the output of the first."""
    return tmp_path_factory.mktemp("examples")


def run(name: str, folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def merged(folder: Path) -> Path:
    """The output folder of the first example's merge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["finetune_then_merge.py", "60"])
        runpy.run_path(str(EXAMPLES / "finetune_then_merge.py"), run_name="__main__")
    return folder / "outputs/both"


RUN = {
    "evaluate_model.py",
    "finetune_then_merge.py",
    "merge_checkpoints.py",
    "merge_modules.py",
    "own_architecture.py",
    "own_method.py",
    "predict.py",
}


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} == RUN


def test_finetune_then_merge(merged: Path) -> None:
    rows = json.loads((merged / "evaluation.json").read_text())["rows"]
    assert rows["ensemble"]["mean_top1"] > 0.8
    assert rows["merged"]["mean_top1"] > 0.3


def test_evaluate_a_written_model(merged: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("evaluate_model.py", folder, capsys, "outputs/both")
    assert " merged on low: " in out
    assert json.loads((folder / "measured.json").read_text())["tasks"] == ["low", "high"]
    assert (folder / "measured.html").is_file()


def test_predict(merged: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("predict.py", folder, capsys, "outputs/both").splitlines()
    assert lines[0].startswith("among the labels of all tasks: Prediction(")
    assert [line.partition(":")[0] for line in lines[1:]] == ["low", "high"]


def test_merge_checkpoints(merged: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, task in enumerate(("low", "high")):
        (folder / "images" / task).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 60 * i + number).save(folder / f"images/{task}/{i}.png")
    out = run("merge_checkpoints.py", folder, capsys, "outputs/low", "outputs/high", "images", "regmean")
    assert out.startswith("mlp ('low', 'high')\n")
    assert (folder / "outputs/merged-checkpoints/merged/model.safetensors").is_file()


def test_merge_modules(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("merge_modules.py", folder, capsys)
    assert "{'a': torch.Size([2, 3]), 'b': torch.Size([2, 5])}" in out
    assert (folder / "outputs/merged-modules/merged/model.safetensors").is_file()


def test_own_method(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("own_method.py", folder, capsys).splitlines()
    assert [line.split()[0] for line in lines] == ["1.0", "1.5"]


def test_own_architecture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(SPECS)
    try:
        out = run("own_architecture.py", folder, capsys, "40")
    finally:
        SPECS.clear()
        SPECS.update(before)
    assert out.startswith("('low', 'high')\n{'low': ")
