"""The folder of a run names no path of the machine, and the run is repeated from it on the same machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsmerge_cli import evaluate
from fsmerge_cli.cli import main
from fsmerge_cli.common.private_paths import PrivatePaths
from fsmerge_cli.runs.from_run import run_options
from tests.data.test_sampling import picture
from tests.support.checks import write_entries
from tests.support.sources import mlp_source


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A home with sources and images, a working folder elsewhere; the arguments of a merge with absolute paths."""
    home, work = tmp_path / "home/jane", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    write_entries(home, *(mlp_source(name, [8, 8], seed) for seed, name in enumerate("ab")))
    for place, task in enumerate("ab"):
        for n in range(20):
            picture(home / f"My photos/{task}/train/{n}.png", 1000 * place + n)
            picture(home / f"My photos/{task}/test/{task}-{n % 3}/{n}.png", 1000 * place + 500 + n)
        picture(home / f"My photos/{task}/train/copy.png", 1000 * place + 500)  # of a test image, for a note
    sources = f"[{{name: a, checkpoint: {home}/a}}, {{name: b, checkpoint: ~/b}}]"
    data = ["data=folder", f"data.root={home}/My photos"]
    return home, ["merge", f"+models.sources={sources}", *data, "method=regmean", "hardware.threads=1"]


def test_no_file_of_a_run_names_a_path_of_the_machine(
    private: tuple[Path, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home, command = private
    output = tmp_path / "results/first"
    presets = tmp_path / "presets"
    presets.mkdir()
    assert main([*command, f"output.dir={output}"]) == 0, capfd.readouterr().err
    files = contents(output)
    assert {"run.log", "config.yaml", "evaluation.json", "report.html", "merged/README.md"} <= files.keys()
    for name, content in files.items():
        for path in (str(tmp_path), str(home), "jane", os.getcwd(), "My%20"):
            assert path.encode() not in content, (name, path)
    assert b"root: My photos\n" in files["config.yaml"]
    assert b"copy.png is identical to My photos/a/test/" in files["evaluation.json"]

    # On this machine the run is still found: the same paths, the same scores, and nothing to resume.
    options = run_options(output)
    assert options["data"]["root"] == f"{home}/My photos"
    assert [source["checkpoint"] for source in options["models"]["sources"]] == [f"{home}/a", "~/b"]
    again = evaluate(output, data="from_run", sources=True)
    assert again.scores["merged"].tasks["a"].count == 20
    assert main([*command, f"output.dir={output}", "resume=true"]) == 0
    assert "already finished" in capfd.readouterr().out
    assert main(["merge", str(output / "config.yaml"), "--config-dir", str(presets), "-o", "again"]) == 0
    assert (Path("again/merged/model.safetensors")).read_bytes() == files["merged/model.safetensors"]
    for name, content in contents(Path("again")).items():
        assert str(tmp_path).encode() not in content, name


def test_an_edited_option_is_not_replaced(private: tuple[Path, list[str]], tmp_path: Path) -> None:
    _, command = private
    output = tmp_path / "results/first"
    assert main([*command, f"output.dir={output}", "-q"]) == 0
    config = output / "config.yaml"
    config.write_text(config.read_text().replace("root: My photos", "root: other"))
    assert run_options(output)["data"]["root"] == "other"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{home}/im/pets/1.png", "im/pets/1.png"),
        ("read '{home}/im'.", "read 'im'."),
        ("{home}/images/1.png", "~/images/1.png"),
        ("{work}/out/merged", "out/merged"),
        ("in {work}", "in ."),
        ("data.root={home}/im", "data.root=im"),
        ("a/b and 1/2", "a/b and 1/2"),
    ],
)
def test_what_is_written_in_place_of_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    home, work = tmp_path / "home/jane", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    private = PrivatePaths.of({"data": {"root": f"{home}/im"}, "n": 1}, Path("out"))
    assert private.text(text.format(home=home, work=work)) == expected
