"""The folder of a run names no path of the machine, and the run is repeated from it on the same machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fsmerge_cli import evaluate
from fsmerge_cli.cli import main
from fsmerge_cli.common.private_paths import PrivatePaths, remember, restored
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


@pytest.mark.full
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
    assert b"root: '.../My photos'\n" in files["config.yaml"]
    assert b"copy.png is identical to .../My photos/a/test/" in files["evaluation.json"]

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


@pytest.mark.full
def test_an_edited_option_is_not_replaced(private: tuple[Path, list[str]], tmp_path: Path) -> None:
    _, command = private
    output = tmp_path / "results/first"
    assert main([*command, f"output.dir={output}", "-q"]) == 0
    config = output / "config.yaml"
    config.write_text(config.read_text().replace("root: '.../My photos'", "root: other"))
    assert run_options(output)["data"]["root"] == "other"


HIDDEN = (
    "the configuration of a run is written without the folders of the machine that it ran on. Pass where the "
    "files are here: "
)


@pytest.mark.full
def test_elsewhere_no_file_of_the_same_name_is_read(
    private: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With another cache, and files of the names beside the copied run, the keys are asked for."""
    home, command = private
    assert main([*command, f"output.dir={tmp_path}/first", "-q"]) == 0
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "other cache"))
    work = Path.cwd()
    (tmp_path / "first").rename(work / "first")
    (home / "My photos").rename(work / "My photos")
    write_entries(work, mlp_source("a", [8, 8], 0), mlp_source("b", [8, 8], 7))
    capsys.readouterr()
    repeat = ["merge", "first/config.yaml", "-o", "again"]
    assert main(repeat) == 2
    places = [f"models.sources.{i}.checkpoint" for i in range(2)]
    assert capsys.readouterr().err == (
        f"fsmerge: error: {places[0]} is .../a, {places[1]} is .../b: {HIDDEN}{places[0]}=PATH {places[1]}=PATH\n"
    )
    given = [f"{place}={name}" for place, name in zip(places, "ab")]
    assert main([*repeat, *given]) == 2
    assert capsys.readouterr().err == f"fsmerge: error: data.root is .../My photos: {HIDDEN}data.root=PATH\n"
    assert main(["evaluate", "first", "data=from_run", "-q"]) == 2
    assert capsys.readouterr().err == (
        f"fsmerge: error: first/config.yaml: data.root is .../My photos: {HIDDEN}data.root=PATH. Pass "
        "data=NAME with your own data.\n"
    )
    assert main([*repeat, *given, "data.root=My photos", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["evaluation"]["notes"]
    assert [note for note in notes if "repeated" in note] == [
        "'b': b has other weights than in the run that is repeated"
    ]


@pytest.mark.full
def test_changed_sources_are_reported_by_evaluate(private: tuple[Path, list[str]], tmp_path: Path) -> None:
    home, command = private
    assert main([*command, f"output.dir={tmp_path}/first", "-q"]) == 0
    write_entries(home, mlp_source("b", [8, 8], 7))
    notes = evaluate(tmp_path / "first", data="from_run", sources=True).notes
    assert [note for note in notes if "other weights" in note] == [
        f"warning: b: {home}/b has other weights than the source that was merged"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{home}/im/pets/1.png", ".../im/pets/1.png"),
        ("read '{home}/im'.", "read '.../im'."),
        ("{home}/images/1.png", "~/images/1.png"),
        ("{work}/out/merged", "out/merged"),
        ("in {work}", "in ."),
        ("data.root={home}/im", "data.root=.../im"),
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


def test_a_pipe_and_a_damaged_cache_change_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))
    options = {"data": {"root": "images"}}
    os.mkfifo(tmp_path / "pipe.json")
    assert restored(tmp_path / "pipe.json", options) == options
    (tmp_path / "evaluation.json").write_text("{}")
    remember(tmp_path / "evaluation.json", {"data": {"root": "/there/images"}}, options)
    assert restored(tmp_path / "evaluation.json", options) == {"data": {"root": "/there/images"}}
    (kept,) = (tmp_path / "cache/paths").iterdir()
    for content in ("5", "{}", "[5]", "[[]]", '[["data"]]', "not JSON"):
        kept.write_text(content)
        assert restored(tmp_path / "evaluation.json", options) == options
