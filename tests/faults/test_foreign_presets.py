"""A preset of somebody else, in a folder given with --config-dir, runs no code and writes nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.cli.preset_rules import check_preset
from fsmerge_cli.common.errors import ConfigError

SOURCES = "sources: [{name: a, checkpoint: a.safetensors}, {name: b, checkpoint: b.safetensors}]\n"
LOGGING = "{version: 1, handlers: {x: {(): os.system, command: touch ran}}, root: {handlers: [x]}}"

REFUSED = {
    "a folder to write to": ("# @package _global_\nhydra: {run: {dir: elsewhere}}\n", "hydra"),
    "logging that calls a function": (f"# @package _global_\nhydra:\n  job_logging: {LOGGING}\n", "hydra"),
    "a key with dots": ("# @package _global_\nhydra.run.dir: elsewhere\n", "hydra.run.dir"),
    "the package of the file": ("# @package hydra\nrun: {dir: elsewhere}\n", "@package hydra"),
    "a part of that package": ("#@package hydra.job_logging\nversion: 1\n", "@package hydra.job_logging"),
    "a package below another": ("# @package _global_.hydra\nrun: {dir: x}\n", "@package _global_.hydra"),
    "defaults": ("defaults: [{override /hydra/job_logging: mine}]\n", "override /hydra/job_logging"),
    "optional defaults": ("defaults: [{optional /hydra/launcher: mine}]\n", "optional /hydra/launcher"),
    "defaults in that package": ("defaults: [{/data@hydra.run: mine}]\n", "/data@hydra.run"),
    "defaults as text": ("defaults: [/hydra/callbacks/mine]\n", "/hydra/callbacks/mine"),
}

ACCEPTED = {
    "sources": SOURCES,
    "the data of the set": "defaults:\n  - override /data@_global_.data: digits\n" + SOURCES,
    "a comment": "# for hydra users\n" + SOURCES,
    "a name": "sources: [{name: hydra, checkpoint: hydra.safetensors}]\n",
    "a preset of a name like it": "defaults: [hydra_small]\n" + SOURCES,
    "itself": "defaults: [_self_]\n" + SOURCES,
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("group", ["models", "data", "method", "hardware"])
def test_a_preset_that_reaches_hydra_is_refused(case: str, group: str, tmp_path: Path) -> None:
    text, what = REFUSED[case]
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        check_preset(file, group)
    assert str(error.value) == (
        f"{file}: a preset of '{group}' must not reach Hydra's own options ({what}): they can run code and write "
        "elsewhere. Remove that from the file. Launchers and sweeps of your own go into launcher/ and sweep/."
    )
    check_preset(file, "launcher")


def test_files_that_are_not_checked_are_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [/common/base]\n")
    with pytest.raises(ConfigError) as error:
        check_preset(file, "models")
    assert str(error.value) == (
        f"{file}: its defaults take '/common/base'. Only files of models, data, method, hardware are checked, so "
        "a preset takes no others. Copy what it needs."
    )


@pytest.mark.parametrize("case", ACCEPTED)
def test_other_presets_are_read(case: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(ACCEPTED[case])
    check_preset(file, "models")


@pytest.mark.parametrize(
    "case", ["a folder to write to", "logging that calls a function", "the package of the file"]
)
def test_the_command_refuses_it_before_anything_runs(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "conf" / "models"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(REFUSED[case][0] + SOURCES)
    assert main(["merge", "+models=mine", "--config-dir", "conf"]) == 2
    assert (
        f"{folder / 'mine.yaml'}: a preset of 'models' must not reach Hydra's own options"
        in capsys.readouterr().err
    )
    assert {path.name for path in tmp_path.iterdir()} == {"conf"}
