"""The built wheel contains the package and its configuration, and works outside the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fsmerge_cli.data import DATASETS
from fsmerge_cli.methods import METHODS
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.full


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    ran = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files that git lists, so that the working tree stays clean."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], REPOSITORY)
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, copy / name)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy], copy)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, "--no-deps", "--no-index", "--target", target, wheel], target)
    return target


def test_the_wheel_contains_every_yaml_and_no_tests(installed: Path) -> None:
    expected = {path.relative_to(REPOSITORY / "configs") for path in (REPOSITORY / "configs").rglob("*.yaml")}
    configs = installed / "fsmerge_cli/configs"
    assert {path.relative_to(configs) for path in configs.rglob("*.yaml")} == expected
    assert (installed / "fsmerge_cli/py.typed").is_file()
    top = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert top == {"fsmerge_cli", "bin"}


def test_the_installed_command_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    script, environment = installed / "bin/fsmerge", {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    code = "import fsmerge_cli, fsmerge_cli.configs as c; print(fsmerge_cli.__file__, *c.__path__, sep='\\n')"
    for place in run([sys.executable, "-c", code], tmp_path, **environment).splitlines():
        assert Path(place).is_relative_to(installed)
    listing = run([script, "list"], tmp_path, **environment)
    assert all(f"\n  method={name} " in listing for name in METHODS)
    assert all(f"\n  data={name} " in listing for name in DATASETS)
    arguments = ["+models=digits_mlp_pair", "method.steps=5", "output.dir=out"]
    run([script, "merge", *arguments], tmp_path, **environment)
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["cost"]["steps"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
