"""Whatever never ends, blocks or is far too large ends in seconds, with one message that names what it is."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.common import foreign_files
from fsmerge_cli.common.foreign_files import require_regular
from tests.support.bad_inputs import write_sources
from tests.support.bad_inputs.place import working_copy
from tests.support.endless_files import CHECK, FILES, IMAGES, KINDS, a_socket, pipe, zeros
from tests.support.time_limit import within


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    with within(10):
        yield


@pytest.fixture(scope="module")
def _valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    write_sources(folder)
    shutil.copytree(folder / "a", folder / "run/merged")
    (folder / "run/evaluation.json").write_text("{}")
    (folder / "run/config.yaml").write_text("{}")
    for name, content in (("a", {}), ("b", {"labels": list("xyz")})):
        (folder / "conf/models").mkdir(parents=True, exist_ok=True)
        (folder / f"conf/models/{name}.yaml").write_text(json.dumps(content))
    return folder


@pytest.fixture
def place(_valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_copy(_valid, tmp_path, monkeypatch)


CASES = [
    pytest.param(kind, *rest, id=f"{title}: {kind}") for title, kinds, *rest in FILES for kind in kinds.split()
]


def message(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(shlex.split(command)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.partition("fsmerge: error: ")[2].removesuffix("\n")


@pytest.mark.full
@pytest.mark.parametrize(("kind", "path", "command", "expected"), CASES)
def test_what_is_no_file_of_its_kind(
    kind: str,
    path: str,
    command: str,
    expected: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if path == "cache":
        monkeypatch.setenv("FSMERGE_CACHE", "cache")
    make, what = KINDS[kind]
    make(path)
    before = sorted(place.rglob("*"))
    found = message(command, capsys)
    assert found == expected.replace("{}", what).replace("{place}", str(place))
    assert sorted(place.rglob("*")) == before


@pytest.mark.full
def test_files_that_are_no_images_are_passed_over_and_counted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe("images/a/3.png")
    zeros("images/a/4.png")
    a_socket("images/a/5.png")
    Path("images/a/up").symlink_to("..")
    Path("images/b/loop.png").symlink_to("loop.png")
    assert main(shlex.split(f"{CHECK} {IMAGES}")) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")] == [
        "note: task 'a': files in images/a that are no images were not used: 3 x no regular file",
        "note: task 'b': files in images/b that are no images were not used: 1 x broken link",
        "note: nothing is held back of 'a', 'b' (fewer than 16 images): agreement with the sources is measured on "
        "images that the merge used, so it is optimistic",
    ]


def test_a_stream_that_looks_like_a_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as /proc/kmsg, which is empty after its last message, and whose reader waits for the next one."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    monkeypatch.setattr(foreign_files, "_without_waiting", lambda path, flags: read)
    (tmp_path / "x").touch()
    with pytest.raises(OSError, match=r"^.Errno 22. it is a stream of the system, not a regular file"):
        require_regular(tmp_path / "x")
    os.close(write)


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/1").exists(), reason="only Linux has /proc")
def test_a_folder_without_weights_is_not_searched_for_ever(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = message(CHECK.replace(": a}", ": /proc}"), capsys)
    assert found.startswith("source 'a': /proc holds no weights")
    Path("tree").mkdir()
    for n in range(3):
        shutil.copytree("a", f"tree/{n}/x")
    assert message(CHECK.replace(": a}", ": tree}"), capsys) == (
        "source 'a': tree holds no weights, but folders below it do: tree/0/x, tree/1/x, tree/2/x. Pass one "
        "of them."
    )
