from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "fsmerge_cli"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "configs" not in path.parts)
# Each room imports only from rooms before it; `specs`, `data`, `methods` and `cli` are folders.
ROOMS = tuple(
    "errors schema progress clock options seeding spaces distributed hardware specs output presets "  # noqa: SIM905
    "pickled checkpoints prefixes layouts translation preprocessing cache resuming stopping feeding entries heads "
    "opening rounding sources plan groups permute structures maps thin fold reference data drawing features "
    "activations regression zipping objective questions optimising running training classifier supernet problem "
    "align methods metrics similarity answers scoring summary charts page zoo tasks loading card certificates "
    "evaluating result request estimate inspection merged pipeline reevaluate starting finetuned finetuning plots "
    "compare report terminal logs folders explain sweeping config cli".split()
)
HYDRA = {"explain", "sweeping", "config", "cli"}
ONLY_IN = {"hydra": HYDRA, "omegaconf": HYDRA, "rich": {"report", "terminal", "sweeping", "config", "cli"}}
DOORS = {"__init__", "__main__"}  # the package's own names are imported on first use; see test_cli


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_keeps_the_rules(path: Path) -> None:
    own = room(path)
    assert len(path.read_text().splitlines()) <= 300
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))
    assert not [call for call in calls(path) if call in ("print", "torch.save") or call.endswith(".cuda")]
    found = list(imports(path))
    assert "torch.save" not in found
    for library, rooms in ONLY_IN.items():
        assert own in rooms or not [name for name in found if name.partition(".")[0] == library]
    if own in DOORS:
        return
    inside = [name.split(".")[1] for name in found if name.startswith("fsmerge_cli.")]
    modules = [name for name in inside if name not in ("__version__", own)]
    assert set(modules) <= set(ROOMS[: ROOMS.index(own)]), f"{own} imports from its right"


def test_every_module_has_its_room() -> None:
    assert {room(path) for path in FILES} - DOORS <= set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))


def test_the_rules_would_notice(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from torch import save\ndef f(x):\n    import hydra.core\n    print(x.cuda())\n    torch.save(x)\n"
    )
    assert list(imports(tmp_path / "bad.py")) == ["torch.save", "hydra.core"]
    assert set(calls(tmp_path / "bad.py")) == {"print", "x.cuda", "torch.save"}
