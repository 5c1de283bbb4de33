"""Help texts, their examples, lists and the version."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from fsmerge_cli import __version__
from fsmerge_cli.cli import COMMANDS, HELP
from fsmerge_cli.cli.list_command import HELP as LIST_HELP
from fsmerge_cli.cli.merge_command import HELP as MERGE_HELP
from fsmerge_cli.common import presets
from fsmerge_cli.methods.base import Trained
from tests.support.command import PAIR, Command, no_models
from tests.support.paths import REPOSITORY
from tests.test_docs import check_keys


def test_help_names_every_command(fsmerge: Command) -> None:
    for argument in ("--help", "-h", "help"):
        assert fsmerge(argument) == (0, HELP, "")
    assert all(f"\n  {name:<12}{line}\n" in HELP for name, line in COMMANDS.items())


def test_every_command_has_its_own_help(fsmerge: Command) -> None:
    assert fsmerge("merge", "--help") == (0, MERGE_HELP, "")
    assert fsmerge("merge", PAIR, "method.steps=abc", "-h") == (0, MERGE_HELP, "")
    assert fsmerge("list", "--help") == (0, LIST_HELP, "")


def test_merge_help_names_every_option_of_every_group() -> None:
    groups = MERGE_HELP.partition("groups:")[2].partition("keys:")[0].replace(",\n" + 23 * " ", ", ")
    named = {line.split("=")[0].strip(): line for line in groups.splitlines() if "=" in line}
    for group in ("data", "method", "hardware", "launcher", "sweep"):
        shown = re.sub(r" \([^)]*\)", "", named[group].split("NAME")[1]).replace(" ", "").split(",")
        assert sorted(shown) == presets.names(group)


def test_version(fsmerge: Command) -> None:
    assert fsmerge("--version") == (0, f"fsmerge {__version__}\n", "")
    assert fsmerge("-V") == (0, f"fsmerge {__version__}\n", "")


def test_no_arguments_show_the_help_and_fail(fsmerge: Command) -> None:
    assert fsmerge() == (2, HELP, "")


def test_list_shows_every_option_of_every_group_with_its_description(
    fsmerge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    code, out, err = fsmerge("list")
    assert (code, err) == (0, "")
    expected = []
    for group in ("models", "data", "method", "hardware", "launcher", "sweep"):
        plus = "+" if group == "models" else ""
        files = sorted((REPOSITORY / "configs" / group).glob("*.yaml"))
        assert files
        expected += [group]
        name = max(len(file.stem) for file in files) + 2
        expected += [f"  {plus}{group}={file.stem:<{name}}{presets.summary(group, file.stem)}" for file in files]
        expected += [""]
    assert out.splitlines() == expected[:-1]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_list_wraps_at_words_in_a_terminal(fsmerge: Command, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = fsmerge("list", "method", "models").out.splitlines()
    assert max(map(len, lines)) <= width
    words = [word for line in lines for word in line.split()]
    monkeypatch.delenv("COLUMNS")
    assert words == fsmerge("list", "method", "models").out.split()


def test_list_of_one_group_shows_only_that_group(fsmerge: Command) -> None:
    code, out, err = fsmerge("list", "method")
    assert (code, err) == (0, "")
    assert out.startswith("method\n  method=")
    assert {line.split()[0] for line in out.splitlines()[1:]} == {
        f"method={name}" for name in presets.names("method")
    }


def test_main_can_be_called_repeatedly_in_one_process(fsmerge: Command) -> None:
    assert [fsmerge("list", "data").code for _ in range(3)] == [0, 0, 0]


def test_help_list_and_version_import_neither_torch_nor_hydra(tmp_path: Path) -> None:
    code = """
import sys
from fsmerge_cli.cli import main
for arguments in (["--help"], ["list"], ["--version"], ["merge", "--help"], ["merge"]):
    assert main(arguments) == (2 if arguments == ["merge"] else 0), arguments
sys.exit(str(sorted({"torch", "hydra", "omegaconf", "rich"} & set(sys.modules))))
"""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert ran.stderr == f"fsmerge: error: {no_models()}\n[]\n"


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
def test_the_python_api_imports_neither_hydra_nor_the_compiler_of_torch(tmp_path: Path) -> None:
    code = """
import sys
from fsmerge_cli import merge
result = merge("digits_mlp_pair", method="average")
assert result.scores["merged"].tasks.keys() == {"low", "high"}
sys.exit(str(sorted({"hydra", "omegaconf", "torch._dynamo"} & set(sys.modules))))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stderr == "[]\n"


def examples(text: str) -> list[str]:
    """The commands of a help, lines that are continued joined."""
    lines = re.split(r"examples?:\n", text)[-1].replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("  fsmerge ")]


EXAMPLES = [line for text in (HELP, MERGE_HELP, LIST_HELP) for line in examples(text)]
HELPS = {name: import_module(f"fsmerge_cli.cli.{name}_command").HELP for name in COMMANDS}


@pytest.mark.parametrize("text", [HELP, *HELPS.values()], ids=["fsmerge", *HELPS])
def test_every_help_fits_100_columns(text: str) -> None:
    assert max(len(line) for line in text.splitlines()) <= 100


def test_every_help_has_examples() -> None:
    for text in (HELP, MERGE_HELP, LIST_HELP):
        assert len(examples(text)) == len(set(examples(text)))
    assert sum("merge " in line for line in EXAMPLES) >= 4
    assert any("--multirun" in line for line in EXAMPLES)
    for name, text in HELPS.items():
        assert any(line.startswith(f"fsmerge {name}") for line in examples(text))


@pytest.mark.full
@pytest.mark.parametrize("name", HELPS)
def test_the_keys_of_an_example_are_known(name: str) -> None:
    text = HELPS[name].replace("\\\n", "")
    assert "\\" not in text  # else a line is continued that does not end there
    for line in examples(HELPS[name]):
        check_keys([word for word in shlex.split(line) if word.partition("=")[0] not in presets.SWEEPS])


@pytest.mark.parametrize("name", [name for name, text in HELPS.items() if "\nkeys:\n" in text])
def test_every_line_of_keys_starts_a_key_or_continues_a_description(name: str) -> None:
    lines = HELPS[name].partition("\nkeys:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) > 5
    for line in lines:
        assert re.match(r"  ([a-z][\w.]*=\S| {20}|--)", line), line


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsmerge: Command) -> None:
    """What the examples of the short form read: two small checkpoints twice, photographs, and the run `out`."""
    monkeypatch.chdir(tmp_path)
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    for seed, (name, other) in enumerate({"pets": "a/model.pt", "cars": "b/model.pt"}.items()):
        torch.manual_seed(seed)
        # With q/k norm, the number of heads is in the tensors.
        model = timm.create_model("vit_tiny_patch16_224", num_classes=3, qk_norm=True, **sizes)
        save_file(model.state_dict(), f"{name}.safetensors")
        Path(other).parent.mkdir()
        torch.save(model.state_dict(), other)
    Path("photos").mkdir()
    for number in range(24):
        Image.new("RGB", (16, 16), (10 * number, 90, 255 - 9 * number)).save(f"photos/{number}.jpg")


@pytest.mark.full
@pytest.mark.usefixtures("_trained", "_files")
@pytest.mark.parametrize("line", dict.fromkeys(EXAMPLES))
def test_an_example_of_the_help_runs_as_printed(
    line: str, fsmerge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trained.total_steps  # what is run is the same, only shorter
    few = property(lambda method: min(40, whole.fget(method)))  # type: ignore[attr-defined]
    monkeypatch.setattr(Trained, "total_steps", few)
    if "sweep=optuna" in line:
        pytest.importorskip("optuna", reason="the extra `sweep` is not installed")
    if "out/config.yaml" in line:
        words = "merge pets.safetensors cars.safetensors --images photos/ -o out method=average"
        assert fsmerge(*words.split()).code == 0
    before = {*tmp_path.rglob("merged/model.safetensors")}
    ran = fsmerge(*shlex.split(line)[1:])
    assert ran.code == 0, ran.err
    assert ran.out
    runs = {*tmp_path.rglob("merged/model.safetensors")} - before
    several = 20 if "sweep=optuna" in line else math.prod(word.count(",") + 1 for word in line.split())
    assert len(runs) == (several if "--multirun" in line else int(" merge " in line))


@pytest.mark.full
def test_the_demo_command_trains_merges_and_shows_the_table(tmp_path: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    (command,) = re.findall(r"^demo:.*\n\t\$\(BIN\)/fsmerge (.*)$", makefile, re.MULTILINE)
    script = shutil.which("fsmerge", path=str(Path(sys.executable).parent))
    assert script is not None
    environment = {
        **os.environ,
        "FSMERGE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    work = tmp_path / "work"
    work.mkdir()
    ran = subprocess.run(
        [script, *shlex.split(command)], cwd=work, env=environment, capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stderr
    assert "train source low: 800/800" in ran.stderr
    assert "solve: 2/2" in ran.stderr  # the closed form, layer by layer
    assert "train: 25/25" in ran.stderr
    assert "train: 475/475" in ran.stderr  # after the release
    rows = [line.split("│")[1].strip() for line in ran.stdout.splitlines() if line.startswith("│")]
    assert rows == ["low (source)", "high (source)", "ensemble", "average", "merged"]
    assert "merged model: outputs/demo/merged   scores: outputs/demo/evaluation.json" in ran.stdout
    found = json.loads((work / "outputs/demo/evaluation.json").read_text())["rows"]
    assert found["merged"]["mean_top1"] > found["average"]["mean_top1"] + 0.1
    assert sorted(path.name for path in (work / "outputs").iterdir()) == ["demo"]
