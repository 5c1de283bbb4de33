"""A ~ that the shell leaves, as in output.dir=~/run, is the home folder in every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.cli.overrides import checked_override
from fsmerge_cli.common.errors import ConfigError
from tests.support.losses import MERGE


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(place / "home"))
    (place / "home").mkdir()
    return place / "home"


@pytest.mark.full
def test_a_run_in_the_home_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*MERGE, "output.dir=~/run"]
    assert main(command) == 0
    assert sorted(path.name for path in home.iterdir()) == ["run"]
    assert main([*command, "resume=true"]) == 0
    assert "already finished: nothing was run" in capsys.readouterr().out
    assert main(["compare", "~/run", "~/ru*", "--csv", "~/runs.csv"]) == 0
    assert main(["push", "~/run", "jane/x", "--dry-run"]) == 0
    assert sorted(path.name for path in home.iterdir()) == ["run", "runs.csv"]
    assert not Path("~").exists()


def test_init_replaces_no_file_in_the_home_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "mine.yaml").write_text("mine")
    assert main(["init", "+models=digits_mlp_pair", "-o", "~/mine.yaml"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: -o ~/mine.yaml exists, and fsmerge init replaces no file. Choose another one.\n"
    )
    assert (home / "mine.yaml").read_text() == "mine"


@pytest.mark.parametrize("typed", ["~/sweeps", "'~/a b/${now:%Y}'", '"~/a b/${now:%Y}"'])
def test_a_sweep_in_the_home_folder(typed: str, home: Path) -> None:
    own = typed.strip("'\"").removeprefix("~")
    assert checked_override(f"hydra.sweep.dir={typed}") == f'hydra.sweep.dir="{home}{own}"'


def test_a_sweep_in_the_home_folder_of_nobody() -> None:
    with pytest.raises(ConfigError) as error:
        checked_override("hydra.sweep.dir=~nobody-of-that-name/x")
    assert str(error.value) == (
        "hydra.sweep.dir=~nobody-of-that-name/x: Could not determine home directory. Pass another folder."
    )
