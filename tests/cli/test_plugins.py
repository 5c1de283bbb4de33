"""Methods, data sets and architectures of another package and of a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
from hydra.core.config_store import ConfigStore
from pydantic.dataclasses import dataclass

from fsmerge_cli import merge, register
from fsmerge_cli.architectures import SPECS
from fsmerge_cli.cli import main
from fsmerge_cli.common import plugins
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.data import DATASETS
from fsmerge_cli.data.images.generated import Generated
from fsmerge_cli.methods import METHODS, Method
from fsmerge_cli.methods.average import Average
from tests.support.paths import REPOSITORY

MODULE = '''
from typing import ClassVar, Literal
import torch
from pydantic.dataclasses import dataclass
from fsmerge_cli.common.options import FORBID, Share
from fsmerge_cli.data.images.generated import Generated
from fsmerge_cli.methods import Method, Problem, Solution

number = 3

@dataclass(frozen=True, config=FORBID)
class Lean(Method):
    """The weights of two sources, with a given share of the second one.

    More about it.
    """
    one_width: ClassVar[bool] = True
    name: Literal["lean"] = "lean"
    share: Share = 0.5
    pair: tuple[int, int] = (1, 2)

    def fit(self, problem: Problem) -> Solution:
        first, second = problem.weights("cpu")
        identity = torch.eye(problem.plan.arch.features)
        return Solution({n: first[n].lerp(second[n], self.share) for n in first}, (identity, identity))

@dataclass(frozen=True, config=FORBID)
class White(Generated):
    """Generated images under another name."""
    name: Literal["white"] = "white"
'''
POINTS = """
[fsmerge.methods]
lean = lean_merging:Lean
average = lean_merging:Lean
broken = lean_merging_absent:Broken
other = lean_merging:Lean
wrong = lean_merging:number

[fsmerge.data]
white = lean_merging:White

[fsmerge.architectures]
odd = lean_merging:number
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with entry points, as pip writes it."""
    folder = tmp_path / "site"
    info = folder / "lean_merging-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lean-merging\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (folder / "lean_merging.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    state: Any = ConfigStore.instance().repo
    before = {group: dict(state.get(group, {})) for group in ("method", "data")}
    kinds = (plugins.METHODS, plugins.DATA, plugins.ARCHITECTURES)
    registered = [dict(own.registered) for own in kinds]
    yield folder
    for group, nodes in before.items():
        state[group] = nodes
    for own, names in zip(kinds, registered):
        own.registered.clear()
        own.registered.update(names)


ABSENT = (
    "method 'broken' (lean_merging_absent:Broken of lean-merging) cannot be imported: ModuleNotFoundError: "
    "No module named 'lean_merging_absent'. Repair or uninstall that package."
)
WRONG = "method 'wrong' (lean_merging:number of lean-merging): should be a dataclass derived from Method, got 3."
OTHER = (
    "method 'other' (lean_merging:Lean of lean-merging): its default of `name` should be 'other', it is 'lean'."
)


@pytest.mark.full
@pytest.mark.usefixtures("package")
def test_a_method_of_a_package_runs_by_name_with_its_own_keys(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["merge", "+models=digits_mlp_pair", "hardware=cpu", "method=lean", "data.images_per_task=5"]
    assert main([*arguments, "method.share=0.1", "output.dir=out"]) == 0
    config = json.loads(Path("out/evaluation.json").read_text())["config"]["method"]
    assert config == {"name": "lean", "width": None, "heads": None, "share": 0.1, "pair": [1, 2]}
    mean = json.loads(Path("out/evaluation.json").read_text())["rows"]["merged"]["mean_top1"]
    share = {"name": "lean", "share": 0.1}
    assert merge("digits_mlp_pair", method=share, hardware="cpu").scores["merged"].mean == mean
    assert merge("digits_mlp_pair", method="lean", hardware="cpu").scores["merged"].mean != mean
    assert main([*arguments, "method.shar=0.2"]) == 2
    assert main([*arguments, "method.share=2"]) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "fsmerge: error: unknown key in method 'shar'. Did you mean 'share'? "
        "Available: heads, name, pair, share, width.",
        "fsmerge: error: method.share: should be less than 1, got 2.",
    ]


@pytest.mark.full
@pytest.mark.usefixtures("package")
def test_names_of_packages_are_listed_explained_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "method", "data"]) == 0
    listed = capsys.readouterr().out
    words = " ".join(listed.split())
    for entry in (
        "method=lean The weights of two sources, with a given share of the second one.",
        "data=white Generated images under another name.",
        f"method=broken ({ABSENT})",
    ):
        assert entry in words
    assert listed.count("method=average ") == 1
    assert main(["merge", "--help"]) == 0
    tail = (
        "\nfrom other packages:\n  method=NAME          broken, lean, other, wrong\n  data=NAME            white\n"
    )
    assert capsys.readouterr().out.endswith(tail)
    assert main(["check", "+models=digits_mlp_pair", "method=lean"]) == 0
    text = capsys.readouterr().out
    assert ", kd, lean, neuron_interpolation, orthogonal_matching, ot_fusion, pleas, regmean" in text
    assert "wrong does not apply: method 'wrong'" in text


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("method=broken", ABSENT),
        ("method=wrong", WRONG),
        ("method=other", OTHER),
        ("method=lea", "unknown method 'lea'. Did you mean 'lean'? Available: "),
    ],
)
def test_a_broken_package_is_named_and_harms_nothing_else(
    choice: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", "+models=digits_mlp_pair", choice, "output.dir=out"]) == 2
    assert capsys.readouterr().err.startswith(f"fsmerge: error: {message}")
    assert not Path("out").exists()
    assert METHODS["average"] is Average
    with pytest.raises(ConfigError, match=r"^architecture 'odd' .*: should be a Family, got 3"):
        SPECS["odd"]


@pytest.mark.usefixtures("package")
def test_register_adds_to_this_process_and_refuses_names_that_are_taken() -> None:
    @register
    @dataclass(frozen=True, config=FORBID)
    class Mine(Average):
        """Mine."""

        name: Literal["mine"] = "mine"  # type: ignore[assignment]

    @register
    @dataclass(frozen=True, config=FORBID)
    class Grey(Generated):
        """Grey."""

        name: Literal["grey"] = "grey"  # type: ignore[assignment]

    family = register(replace(SPECS["mlp"], name="my_mlp"))
    assert METHODS["mine"] is Mine
    assert (DATASETS["grey"], SPECS["my_mlp"]) == (Grey, family)
    assert register(Mine) is Mine  # a cell of a notebook that is run again
    assert merge("digits_mlp_pair", method="mine", hardware="cpu").scores["merged"].mean > 0.5
    for taken, why in ((Average, "average"), (SPECS["vit"], "vit")):
        with pytest.raises(ConfigError, match=f"'{why}' exists already. Take another name."):
            register(taken)
    with pytest.raises(ConfigError, match="register takes a Method, a DataConfig or a Family, got 3"):
        register(3)
    with pytest.raises(ConfigError, match="Method: its option `name` has no default"):
        register(Method)


@pytest.mark.slow
def test_sweeps_find_a_method_in_the_processes_of_joblib(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{package}")
    arguments = ["merge", "--multirun", "launcher=joblib", "+models=digits_mlp_pair", "hardware=cpu"]
    assert main([*arguments, "method=lean,average", "method.width=64,null"]) == 0
    (summary,) = Path("outputs/sweeps").glob("*/summary.csv")
    assert summary.read_text().count("method=lean") == 2


def test_registries_are_mappings_that_can_be_patched() -> None:
    shipped, registered = dict(METHODS.shipped), dict(plugins.METHODS.registered)
    with mock.patch.dict(METHODS):  # clears and fills it afterwards
        METHODS["more"] = Average
        assert METHODS["more"] is Average
    assert (METHODS.shipped, plugins.METHODS.registered) == (shipped, registered)
    assert len(METHODS) == len(list(METHODS))
    assert METHODS.get("absent") is None
    assert "absent" not in METHODS
    with pytest.raises(KeyError):
        METHODS["absent"]
