"""`fsmerge completion`: the script of bash is sourced and run; those of zsh and fish are checked if installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fsmerge_cli.cli import COMMANDS, main
from fsmerge_cli.cli.completion_command import bash, candidates, fish, zsh
from fsmerge_cli.common import presets

ASK = """
set -u  # as some users' shells
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
read -ra COMP_WORDS <<< "$2"
if [[ $2 == *" " ]]; then COMP_WORDS+=(""); fi
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_fsmerge
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "fsmerge.bash"
    path.write_text(bash(candidates()))
    return path


def replies(script: Path, line: str, folder: Path) -> list[str]:
    command = ["bash", "--norc", "-c", ASK, "bash", str(script), line]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, "unbound" in ran.stderr) == (0, False), ran.stderr
    return ran.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fsmerge ", list(COMMANDS)),
        ("fsmerge me", ["merge"]),
        (
            "fsmerge merge method=fs_merge",
            ["fs_merge", "fs_merge_paper"],
        ),  # bash has kept `method=`
        ("fsmerge merge seed=1 +models=digits", ["digits_mlp_pair", "digits_mlp_trio"]),
        ("fsmerge merge method.logit", ["method.logit_weight="]),
        ("fsmerge merge --mul", ["--multirun"]),
        ("fsmerge compare --group", ["--group-by"]),
        ("fsmerge list hard", ["hardware"]),
        ("fsmerge completion ", ["bash", "zsh", "fish"]),
        ("fsmerge merge output.dir=out", ["outputs"]),
        ("fsmerge compare out", ["outputs"]),
        ("fsmerge nope out", ["outputs"]),
    ],
)
def test_bash_completes(line: str, expected: list[str], script: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    assert replies(script, line, tmp_path) == expected


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fsmerge me", ["merge"]),
        ("fsmerge merge method=fs_m", ["method=fs_merge", "method=fs_merge_paper"]),
        ("fsmerge merge --mul", ["--multirun"]),
        ("fsmerge list hard", ["hardware"]),
    ],
)
def test_fish_completes(line: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "fsmerge.fish").write_text(fish(candidates()))
    command = ["fish", "--no-config", "-c", f"source fsmerge.fish; complete -C '{line}'"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert [own.split("\t")[0] for own in ran.stdout.splitlines()] == expected


def test_the_keys_of_a_command_are_those_of_its_file() -> None:
    found = candidates()["finetune"]
    assert {"training.ema=", "model.std=", "output.mlflow=", "seed="} <= {*found}
    assert "ema=" not in found  # it stands alone at the beginning of a line of the help


def test_every_command_and_every_name_of_a_group_is_a_candidate() -> None:
    found = candidates()
    assert list(found) == list(COMMANDS)
    for group in presets.GROUPS:
        plus = "+" if group == "models" else ""
        assert {f"{plus}{group}={name}" for name in presets.names(group)} <= {*found["merge"]}
    assert "output.dir=" in found["merge"]


@pytest.mark.parametrize(("shell", "write"), [("zsh", zsh), ("fish", fish)])
def test_other_shells_accept_their_script(shell: str, write: object, tmp_path: Path) -> None:
    text = write(candidates())  # type: ignore[operator]
    assert all(name in text for name in ("method=kd", *COMMANDS))
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "fsmerge completion takes one shell: bash, zsh or fish. See fsmerge completion --help."),
        (["bsh"], "unknown shell 'bsh'. Did you mean 'bash'? Available: bash, fish, zsh."),
    ],
)
def test_another_shell_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *arguments]) == 2
    assert capsys.readouterr() == ("", f"fsmerge: error: {message}\n")
