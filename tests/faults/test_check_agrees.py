"""`fsmerge check` refuses what `fsmerge merge` refuses before its training, in the same words, and writes nothing.

--strict and --fail-under end with 1 where a warning or an accuracy fails.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from fsmerge_cli.cli import main
from fsmerge_cli.evaluation.plausibility import CAUSES
from tests.support.bad_inputs import CASES, Case, write_sources
from tests.support.bad_inputs.place import working_copy
from tests.support.exact import write_classes, write_classifier

ONLY_A_MERGE = {
    "an unknown command",
    "values beyond the range of float16",  # of the merged weights
    "an output that may not be written",  # found by writing, as the next ones
    "a read-only disk",
    "a disk that is full at the weights",
    "a disk that is full at the card",
    "a disk that is full at the report",
    "a disk that is full at the end",
    "the hub cannot be reached",  # a check downloads nothing
}
"""Cases of bad inputs that only show while a merge writes or downloads, or after its training."""


@pytest.fixture(scope="module")
def _valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    write_sources(folder)
    return folder


@pytest.fixture
def place(_valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_copy(_valid, tmp_path, monkeypatch)


def paths(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.full
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in ONLY_A_MERGE], ids=lambda case: case.name)
def test_a_check_refuses_what_a_merge_refuses(
    case: Case, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        case.prepare(place, patch)
        before = paths(place)
        code = main(["check", *shlex.split(case.call)[1:]])
        err = capsys.readouterr().err
    assert code == case.code, err
    assert paths(place) == before
    if case.code:
        message = case.message.replace("{folder}", str(place)).replace("{x}", "x" * 300)
        pattern = ".+".join(map(re.escape, message.split("{library}")))
        assert re.fullmatch(f"fsmerge: error: {pattern}\n", err), err


SOURCES = "models.sources=[{name: m, checkpoint: m}, {name: n, checkpoint: n}]"
DATA = ("data=folder", "data.root=images", "data.images_per_task=2", "hardware=cpu", "hardware.threads=1")
NUMBERS = [str(number) for number in range(12)]
SIXTH = (
    "'m' is right on 16.7 % of 72 test images (9.8 % to 26.9 %). With its classes in another order it would be "
    "right on 100.0 %: it was trained with its classes sorted as text (models.sources.N.labels=data)."
)
ROWS = (
    "task 'm': its head has no class names, so the class named '11' is taken as row 11 of the head. If it was "
    "trained with the names sorted as text (0, 1, 10, 11, 2, ...), as torchvision's ImageFolder does, pass "
    "models.sources.N.labels=data"
)


@pytest.fixture
def twelve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two exact classifiers, one with its rows in the order of the sorted folder names, and their images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    write_classifier(tmp_path / "m", [int(name) for name in sorted(NUMBERS)])
    write_classifier(tmp_path / "n", range(3), labels=["x", "y", "z"])
    for split in ("train", "test"):
        write_classes(tmp_path / "images/m", NUMBERS, split)
        write_classes(tmp_path / "images/n", ["x", "y", "z"], split)
    return tmp_path


Shown = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shown(twelve: Path, capsys: pytest.CaptureFixture[str]) -> Shown:
    def run(verb: str, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([verb, SOURCES, *DATA, "method=average", *arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.mark.full
def test_a_check_notes_guesses_and_measures_only_where_it_is_asked_to(shown: Shown, twelve: Path) -> None:
    before = paths(twelve)
    code, out, err = shown("check")
    assert (code, err) == (0, "")
    assert f"note: {ROWS}\n" in out
    assert "warning" not in out
    assert "top-1 accuracy of the sources" not in out
    assert f"note: {ROWS}\n" in shown("check", "--headers-only")[1]
    assert paths(twelve) == before


@pytest.mark.full
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strict",), f"--strict: {SIXTH}"),
        (("--fail-under=90",), "--fail-under=90: the source for 'm' has a top-1 accuracy of 16.7 %"),
        (("--fail-under", "16.7"), "--fail-under=16.7: the source for 'm' has a top-1 accuracy of 16.7 %"),
        (("--fail-under=16",), ""),
        (("--strict", "models.sources.0.labels=data"), ""),
        (("--strict", "--fail-under=100", "models.sources.0.labels=data"), ""),
    ],
)
def test_a_check_that_measures(arguments: tuple[str, ...], message: str, shown: Shown, twelve: Path) -> None:
    before = paths(twelve)
    code, out, err = shown("check", *arguments)
    assert (code, err) == ((1, f"fsmerge: error: {message}\n") if message else (0, ""))
    assert paths(twelve) == before
    wrong = "models.sources.0.labels=data" not in arguments
    assert out.startswith(f"warning: {SIXTH}\n") is wrong
    share = "16.7" if wrong else "100.0"
    assert f"top-1 accuracy of the sources on their test images: m {share} %, n 100.0 %\n" in out


@pytest.mark.full
def test_a_merge_warns_above_the_scores_in_terminal_report_file_and_card(shown: Shown, twelve: Path) -> None:
    code, out, err = shown("merge", "output.dir=out", "--strict", "--fail-under=1")
    assert code == 1
    assert err.endswith(f"fsmerge: error: --strict: {SIXTH}\n")
    assert out.startswith(f"warning: {SIXTH}\nTop-1 accuracy")
    notes = json.loads((twelve / "out/evaluation.json").read_text())["notes"]
    assert notes[0] == f"warning: {SIXTH}"
    assert ROWS in notes
    page = (twelve / "out/report.html").read_text()
    assert 0 < page.index('aria-label="warnings"') < page.index('aria-label="notes"') < page.index('id="scores"')
    card = (twelve / "out/merged/README.md").read_text()
    assert 0 < card.index("**Warning:** 'm' is right on 16.7 %") < card.index("## Scores") < card.index("## Notes")
    code, _, err = shown("evaluate", "out", "--strict")
    assert code == 2  # the arguments of a merge
    assert main(["evaluate", "out", *DATA, "--sources", "--strict"]) == 1
    assert main(["evaluate", "out", *DATA, "--fail-under=1"]) == 0


@pytest.mark.full
def test_a_source_far_below_its_stated_accuracy(shown: Shown, twelve: Path) -> None:
    (twelve / "m/eval_results.json").write_text('{"eval_accuracy": 0.975}')
    order = SIXTH.partition("). ")[2]
    assert shown("check", "--strict")[2] == (
        "fsmerge: error: --strict: 'm' is right on 16.7 % of 72 test images (9.8 % to 26.9 %), far below the "
        f"97.5 % in m/eval_results.json. {order}\n"
    )


@pytest.mark.parametrize(("std", "mean"), [(-1.0, 0.0)])
def test_wrong_mean_and_std(std: float, mean: float, shown: Shown) -> None:
    given = (f"models.sources.1.std=[{std}]", f"models.sources.1.mean=[{mean}]", "models.sources.0.labels=data")
    code, _, err = shown("check", "--strict", *given)
    if std < 0:
        assert code == 2
        return
    assert code == 1
    assert err.startswith(
        "fsmerge: error: --strict: 'n' is right on 33.3 % of 18 test images (16.3 % to 56.3 %), "
    )
    assert err.endswith(f"which is not above chance (33.3 %). {CAUSES}\n")


@pytest.mark.parametrize("value", ["", "x", "-1", "101", "nan"])
def test_a_limit_is_an_accuracy_in_per_cent(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("check", "merge", "evaluate"):
        assert main([verb, "+models=digits_mlp_pair", f"--fail-under={value}"]) == 2
        expected = f"fsmerge: error: --fail-under={value}: should be an accuracy in per cent, from 0 to 100.\n"
        assert capsys.readouterr().err == expected


@pytest.mark.full
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("merge", "--multirun", "seed=0,1", "--strict"),
            "--strict and --fail-under apply to one run. Leave out --multirun.",
        ),
        (
            ("check", "--headers-only", "--fail-under=1"),
            "--strict and --fail-under evaluate the sources. Leave out --headers-only.",
        ),
        (
            ("check", "--fail-under=1", "data.class_folders=none"),
            "--fail-under=1 compares the top-1 accuracy on labelled test images, and there are none. Put test "
            "images into class folders, or leave out --fail-under.",
        ),
    ],
)
def test_a_gate_that_cannot_be_compared(arguments: tuple[str, ...], message: str, shown: Shown) -> None:
    code, _, err = shown(*arguments)
    assert (code, err) == (2, f"fsmerge: error: {message}\n")


@pytest.mark.full
def test_the_output_folder_is_checked_if_it_is_given(shown: Shown, twelve: Path) -> None:
    def refused(*arguments: str) -> str:
        found = [shown(verb, *arguments) for verb in ("check", "merge")]
        assert [code for code, _, _ in found] == [2, 2]
        messages = {err.rpartition("fsmerge: error: ")[2] for _, _, err in found}
        assert len(messages) == 1
        return messages.pop()

    (twelve / "file").write_text("x")
    (twelve / "full").mkdir()
    (twelve / "full/x").write_text("x")
    assert "is a file, not a folder" in refused("output.dir=file")
    assert "a part of the path is a file" in refused("output.dir=file/out")
    assert "contains files but no .fsmerge.json" in refused("output.dir=full")
    assert "output.overwrite=true would replace" in refused("output.dir=m", "output.overwrite=true")
    with FileLock(twelve / ".busy.lock"):
        assert "another run is writing" in refused("output.dir=busy")
    assert shown("merge", "output.dir=done")[0] == 0
    assert "holds a finished run" in refused("output.dir=done")
    assert shown("check", "output.dir=done", "resume=true")[1] == (
        "already finished: a merge with resume=true would run nothing\n"
    )
    assert shown("check", "output.dir=new/folder")[0] == 0
    assert not (twelve / "new").exists()
