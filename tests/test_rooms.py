"""Fourteen rooms, imports only downward and never in a circle; every file lies in one, at a readable size."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

PACKAGE = REPOSITORY / "fsmerge_cli"
# From the top. `__init__` are the public names, imported on first use; a room imports only from rooms below it.
ROOMS = (
    "cli",
    "__init__",
    "runs",
    "reporting",
    "evaluation",
    "methods",
    "alignment",
    "training",
    "supernet",
    "checkpoints",
    "data",
    "models",
    "architectures",
    "common",
)
TOP = {"__init__.py", "__main__.py"}
ONLY_IN = {"hydra": {"cli"}, "omegaconf": {"cli"}, "rich": {"cli", "reporting"}}
LONGEST = 300
PARTS = ("fsmerge_cli", "scripts", "tests")


def files(*parts: str) -> list[Path]:
    found = (path for part in parts for path in (REPOSITORY / part).rglob("*.py"))
    return sorted(path for path in found if "configs" not in path.parts)


FILES = files("fsmerge_cli")


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def needed(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    found = {name for name in imports(path) if name.startswith("fsmerge_cli.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in found}


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_there_are_fourteen_rooms_and_the_public_names() -> None:
    assert len(ROOMS) == len(set(ROOMS)) == 14
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))} - {"configs"}
    assert folders | {"__init__"} == set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} == TOP


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_keeps_the_rules(path: Path) -> None:
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree(path)))
    assert not [call for call in calls(path) if call in ("print", "torch.save") or call.endswith(".cuda")]
    found = list(imports(path))
    assert "torch.save" not in found
    if path.parent == PACKAGE:
        return
    own = room(path)
    for library, rooms in ONLY_IN.items():
        assert own in rooms or not [name for name in found if name.partition(".")[0] == library]
    above = {name for name in needed(path) if name != "fsmerge_cli" and above_of(own, name.split(".")[1])}
    assert above == set(), f"{name_of(path)} imports from a room above {own}"


def above_of(own: str, other: str) -> bool:
    return ROOMS.index(other) < ROOMS.index(own)


@pytest.mark.parametrize("path", files(*PARTS), ids=name_of)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def test_no_import_comes_back_to_where_it_began() -> None:
    graph = {name: needed(path) - {name, "fsmerge_cli"} for name, path in MODULES.items()}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    try:  # a package's own list of names (METHODS, DATASETS) stands above what it lists
        TopologicalSorter({name: own for name, own in graph.items() if name not in packages}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_test_is_found_by_the_path_of_its_file() -> None:
    """Every folder of tests is a room, or is listed here with what it is for."""
    apart = {
        "support": "what tests share",
        "scripts": "tests of scripts/",
        "faults": "one module per kind of fault that must not be silent, across rooms",
    }
    folders = {path.name for path in (REPOSITORY / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders - set(apart) == set(ROOMS) - {"__init__"}


def test_every_package_is_installed() -> None:
    """pyproject.toml lists the packages: one that is missing works here and in no installation."""
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {path.parent.relative_to(REPOSITORY) for path in (REPOSITORY / "fsmerge_cli").rglob("*.py")}
    assert {*listed} - {"fsmerge_cli.configs"} == {".".join(folder.parts) for folder in found}
    assert [folder for folder in found if not (REPOSITORY / folder / "__init__.py").exists()] == []


def test_the_rules_would_notice(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from torch import save\ndef f(x):\n    import hydra.core\n    print(x.cuda())\n    torch.save(x)\n"
        "    from fsmerge_cli.runs.merge import merge\n"
    )
    bad = tmp_path / "bad.py"
    assert list(imports(bad)) == ["torch.save", "hydra.core", "fsmerge_cli.runs.merge.merge"]
    assert set(calls(bad)) == {"print", "x.cuda", "torch.save"}
    assert needed(bad) == {"fsmerge_cli.runs.merge"}
    assert above_of("methods", "runs")
    assert not above_of("runs", "methods")
