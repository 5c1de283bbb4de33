"""A path that a command writes is refused where a link, or something that is not ours, is in its place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fsmerge_cli.checkpoints.embedded import content_key
from fsmerge_cli.cli import main
from fsmerge_cli.cli.sweep_folder import BY_HYDRA, LIST, SUMMARY
from fsmerge_cli.common.cache import cached_table
from fsmerge_cli.common.errors import OutputError
from fsmerge_cli.common.own_files import OwnPaths
from fsmerge_cli.reporting.logs import RunLog
from fsmerge_cli.runs.request import source_specs
from fsmerge_cli.training.snapshots import state_folder
from tests.support.command import PAIR
from tests.support.losses import MERGE, Loss, Prepare, both, check_refused, everything, link, nothing, put
from tests.support.paths import REPOSITORY

NEW = (*MERGE, "output.dir=new")
SWEEP = ("merge", "--multirun", *MERGE[1:], "seed=0,1", "hydra.sweep.dir=sweep")
PAGE = (REPOSITORY / "docs/security.md").read_text()
IS_LINK = (
    "{folder}/%s is a link, and links are not followed where something is written. Give the path that it leads "
    "to, or choose another %s..."
)


def beside(name: str, why: str) -> str:
    return (
        f"{{folder}}/{name} was not written by fsmerge ({why}), and a run into {{folder}}/new would replace it. "
        "Move it away, or choose another output.dir=..."
    )


def in_sweep(names: str) -> str:
    return (
        "{folder}/sweep holds what this sweep would replace and fsmerge did not write, or was changed since: "
        f"{names}. Move it away, or choose another hydra.sweep.dir=..."
    )


def case(name: str, prepare: Prepare, message: str, call: tuple[str, ...] = NEW) -> Loss:
    return Loss(name, prepare, call, message)


def read_from(name: str) -> Prepare:
    """Moves the source a to a path beside the output folder."""
    return lambda folder: (folder / "a").rename(folder / name)


FOLDERS = (
    ".new.state",
    ".new.logs",
    ".new.state.tmp",
    ".new.logs.tmp",
    "new.failed",
    ".new.old.tmp",
    ".new.123.tmp",
)
CASES = [
    case("output.dir", link("new", "images"), IS_LINK % ("new", "output.dir=")),
    case(
        "output.dir, to replace it",
        link("new", "out"),
        IS_LINK % ("new", "output.dir="),
        (*NEW, "output.overwrite=true"),
    ),
    case("output.dir, dangling", link("new", "gone"), IS_LINK % ("new", "output.dir=")),
    case("output.dir, a circle", link("new", "new"), IS_LINK % ("new", "output.dir=")),
    *(
        case(f"{name}, a link", link(name, "images"), beside(name, "it is a link"))
        for name in (*FOLDERS, ".new.lock")
    ),
    *(
        case(f"{name}, dangling", link(name, "gone"), beside(name, "it is a link"))
        for name in (*FOLDERS, ".new.lock")
    ),
    *(case(f"{name}, a file", put(name), beside(name, "it is no folder")) for name in FOLDERS),
    *(case(f"{name}, with a file", put(f"{name}/a.txt"), beside(name, "it holds a.txt")) for name in FOLDERS),
    case(
        "a run of ours as .new.old.tmp with a file",
        both(lambda f: (f / "out").rename(f / ".new.old.tmp"), put(".new.old.tmp/notes.txt")),
        beside(".new.old.tmp", "it holds notes.txt"),
    ),
    case(
        "logs with a link",
        both(put(".new.logs/run.log"), link(".new.logs/tensorboard", "images")),
        beside(".new.logs", "it holds tensorboard"),
    ),
    case("a log that is a link", link(".new.logs/run.log", "labels.txt"), beside(".new.logs", "it holds run.log")),
    case(
        "a state that is a link",
        link(".new.state/run.json", "a/config.json"),
        beside(".new.state", "it holds run.json"),
    ),
    case(
        "weights in the state",
        put(".new.state/model.safetensors"),
        beside(".new.state", "it holds model.safetensors"),
    ),
    case("the lock, a file of the user", put(".new.lock"), beside(".new.lock", "it is no lock")),
    case("the lock, a folder", put(".new.lock/a"), beside(".new.lock", "it is no lock")),
    case("the lock, a pipe", lambda f: os.mkfifo(f / ".new.lock"), beside(".new.lock", "it is no lock")),
    case(
        "the lock, a hard link",
        lambda f: ((f / "empty").touch(), os.link(f / "empty", f / ".new.lock")),
        beside(".new.lock", "it is no lock"),
    ),
    case(
        "a source beside",
        read_from("new.failed"),
        "source 'a' lies in {folder}/new.failed, which a run into {folder}/new would write. Choose another "
        "output.dir=...",
        ("merge", MERGE[1].replace("checkpoint:a", "checkpoint:new.failed"), *NEW[2:]),
    ),
    case("a sweep folder, a link", link("sweep", "images"), IS_LINK % ("sweep", "hydra.sweep.dir="), SWEEP),
    case(
        "a sweep folder, a file", put("sweep"), "hydra.sweep.dir={folder}/sweep is a file. Give a folder.", SWEEP
    ),
    *(
        case(f"a sweep folder with {name}", put(f"sweep/{name}"), in_sweep(name), SWEEP)
        for name in (*SUMMARY, *BY_HYDRA, LIST, "jobs")
    ),
    case("a sweep folder with a link", link("sweep/jobs", "images"), in_sweep("jobs"), SWEEP),
    case(
        "a sweep folder with jobs of others",
        put("sweep/jobs/00000.json", "{}"),
        in_sweep("jobs, jobs/00000.json"),
        SWEEP,
    ),
    *(
        case(
            key,
            nothing,
            f"{key}: Hydra would write files of its own, which could replace yours. Use output.dir=FOLDER, which "
            "holds the configuration (config.yaml) and the log (run.log).",
            (*NEW, key),
        )
        for key in ("hydra.run.dir=x", "hydra.output_subdir=.", "hydra/job_logging=default")
    ),
]


@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_path_of_ours_that_is_not_ours_is_refused(
    case: Loss, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(case, place, capsys)


def test_links_above_an_output_are_followed(place: Path) -> None:
    (place / "disk").mkdir()
    (place / "outputs").symlink_to(place / "disk")
    assert main([*MERGE, "output.dir=outputs/run"]) == 0
    assert main([*MERGE, "output.dir=outputs/run", "output.overwrite=true"]) == 0
    assert sorted(path.name for path in (place / "disk").iterdir()) == ["run"]


def test_dots_after_a_link_mean_the_folder_above_its_target(place: Path) -> None:
    (place / "far/below").mkdir(parents=True)
    (place / "linked").symlink_to(place / "far/below")
    assert main([*MERGE, "output.dir=linked/../run"]) == 0
    assert (place / "far/run/evaluation.json").is_file()


def sweep(*more: str) -> int:
    return main([*SWEEP, *more])


def test_a_sweep_replaces_only_what_a_sweep_wrote(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep() == 0
    (place / "sweep/notes.txt").write_text("mine")
    (place / "sweep/jobs/notes.json").write_text("mine")
    before = everything(place)
    capsys.readouterr()
    assert sweep() == 2
    assert capsys.readouterr().err == (
        f"fsmerge: error: {place}/sweep holds an earlier sweep. Pass resume=true to continue it, "
        "output.overwrite=true to replace it, or choose another hydra.sweep.dir=...\n"
    )
    assert everything(place) == before
    assert sweep("resume=true") == 0
    assert sweep("output.overwrite=true") == 0
    assert (place / "sweep/notes.txt").read_text() == (place / "sweep/jobs/notes.json").read_text() == "mine"
    (place / "sweep/summary.csv").write_text("edited")
    check_refused(case("edited", nothing, in_sweep("summary.csv"), (*SWEEP, "resume=true")), place, capsys)


def test_log_and_state_folders_are_emptied_of_our_files_only(place: Path) -> None:
    (place / ".run.logs").mkdir()
    (place / ".run.logs/mine.txt").write_text("mine")
    log = RunLog(place / "run", "command")
    log._remove()
    assert (place / ".run.logs/mine.txt").is_file()
    (place / ".away.logs").symlink_to(place / "images")
    RunLog(place / "away", "command")._remove()
    assert (place / "images/a/0.png").is_file()
    with pytest.raises(OutputError, match="is a link"):
        state_folder(place / ".away.logs")


@pytest.fixture
def entry(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of the first source of PAIR in an empty cache, from the working folder."""
    monkeypatch.setenv("FSMERGE_CACHE", str(place / "cache"))
    spec = source_specs("digits_mlp_pair")[0]
    return f"cache/sources/{content_key(spec)}"


@pytest.mark.parametrize("name", ["cache/sources", "{entry}", "{entry}.lock"])
def test_a_link_in_the_cache_of_sources_is_refused(
    name: str, entry: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = name.format(entry=entry)
    message = (
        f"{{folder}}/{name} in the cache of embedded sources is a link, and links are not followed there. Remove "
        "it, or choose another folder: FSMERGE_CACHE=FOLDER"
    )
    check_refused(case(name, link(name, "images"), message, ("merge", PAIR, "method=average")), place, capsys)


def test_an_entry_of_the_cache_with_a_file_of_others_is_not_replaced(
    entry: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = (
        f"{{folder}}/{entry} in the cache of embedded sources is damaged, and it is not replaced, because it "
        "holds what fsmerge did not write: notes.txt. Move it away, or choose another folder: FSMERGE_CACHE=FOLDER"
    )
    check_refused(
        case("entry", put(f"{entry}/notes.txt"), message, ("merge", PAIR, "method=average")), place, capsys
    )


@pytest.mark.parametrize("name", ["features", "features/KEY.npy", "features/KEY.tmp", "features/KEY.lock"])
def test_a_link_in_the_cache_of_features_is_not_followed(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSMERGE_CACHE", str(place / "cache"))
    link(f"cache/{name.replace('KEY', 'a' * 64)}", "images" if name == "features" else "labels.txt")(place)
    before = everything(place)
    with pytest.raises(OSError, match="is a link"):
        cached_table("a" * 64, (1, 1), lambda: [torch.ones(1, 1)])
    assert everything(place) == before


def written(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> set[Path]:
    """Every path that is opened for writing, made, renamed or deleted while `run` runs (by audit events)."""
    import sys

    found: set[Path] = set()
    active = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if not active:
            return
        if (
            event == "open"
            and isinstance(arguments[0], str)
            and (
                set(str(arguments[1] or "")) & set("wax+") or (isinstance(arguments[2], int) and arguments[2] & 3)
            )
        ):
            found.add(Path(os.path.abspath(arguments[0])))
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.truncate", "os.link", "os.symlink"):
            found.update(Path(os.path.abspath(part)) for part in arguments[:2] if isinstance(part, str | Path))

    sys.addaudithook(hook)
    try:
        run()
    finally:
        active.clear()
    return found


@pytest.mark.full
def test_a_run_writes_only_the_documented_paths(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = ["merge", PAIR, "method=kd", "method.steps=4", "checkpoint.every=2", "output.dir=deep/new"]
    found = written(monkeypatch, lambda: main(digits))
    cache = Path(os.environ["FSMERGE_CACHE"]).resolve()
    own = OwnPaths(place / "deep/new")
    allowed = (own.folder, *own.beside(), cache, Path(os.devnull))
    strange = {path for path in found if not any(path.is_relative_to(root) for root in allowed)}
    strange = {path for path in strange if "__pycache__" not in path.parts} - {place, place / "deep"}
    assert strange == set()
    assert {own.folder, own.lock, own.logs, own.state, own.temporary} <= found


def test_the_page_lists_every_path() -> None:
    own = OwnPaths(Path("/x/NAME"))
    names = {re.sub(r"\.\d+\.tmp", ".PID.tmp", path.name) for path in own.beside()}
    for name in (*names, "NAME-new", *SUMMARY, *BY_HYDRA, LIST, "jobs/NNNNN.json", ".fsmerge.json"):
        assert f"`{name}`" in PAGE.replace("`.NAME.lock`, beside", "`.NAME.lock` beside"), name
