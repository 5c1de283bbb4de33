"""A file that a command writes replaces nothing unasked, and never what the command reads or what is no file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import OutputError
from fsmerge_cli.common.output_files import check_files, write_files
from fsmerge_cli.common.separation import Input, same
from tests.support.losses import Loss, Prepare, both, check_refused, everything, link, nothing, put

MODEL, RUN, COMPARED = "the evaluated model", "the run of the evaluated model", "one of the compared runs"
FOLDER = ("data=folder", "data.root=images")


def evaluating(path: str, *more: str, key: str = "output.file", model: str = "out") -> tuple[str, ...]:
    return ("evaluate", model, *(more or FOLDER), f"{key}={path}", "output.overwrite=true")


def comparing(*more: str) -> tuple[str, ...]:
    return ("compare", "out", "other", *more, "--overwrite")


def is_read(shown: str, what: str) -> str:
    return f"{shown} is read by this command ({what}), so it is not written. Choose another file."


def lies_in(shown: str, folder: str, what: str) -> str:
    return f"{shown} lies in {folder} ({what}), which this command reads and never changes. Choose another file."


def is_link(path: str, key: str) -> str:
    return (
        f"{{folder}}/{path} is a link, and links are not followed where something is written. Give the path that "
        f"it leads to, or choose another {key}..."
    )


def hard_link(path: str, target: str) -> Prepare:
    return lambda folder: os.link(folder / target, folder / path)


def with_head(folder: Path) -> None:
    heads = load_file(folder / "v/heads.safetensors")
    head = {f"head.{name.rpartition('.')[2]}": tensor for name, tensor in heads.items()}
    save_file({**load_file(folder / "v/model.safetensors"), **head}, folder / "v/whole.safetensors")
    (folder / "labels.txt").write_text("\n".join(map(str, range(len(head["head.bias"])))))


def recorded_job(folder: Path) -> None:
    seconds = sum(json.loads((folder / "out/evaluation.json").read_text())["cost"]["seconds"].values())
    job = {"run": "", "exit_code": 0, "mean": None, "joint": None, "seconds": seconds, "folder": "out"}
    put("sweep/jobs/00000.json", json.dumps(job))(folder)


def case(name: str, call: tuple[str, ...], message: str, prepare: Prepare = nothing) -> Loss:
    return Loss(name, prepare, call, message)


OUT, MERGED = "output.file={folder}/out", "{folder}/out/merged"
LOSSES = [
    *(
        case(
            f"{key}: an existing file",
            ("evaluate", "out", *FOLDER, f"{key}=mine.txt"),
            f"{key}={{folder}}/mine.txt already exists. Pass output.overwrite=true to replace it, or choose "
            "another file.",
            put("mine.txt"),
        )
        for key in ("output.file", "output.report", "output.logits")
    ),
    *(
        case(
            f"{key}: weights that are read",
            evaluating("out/merged/model.safetensors", key=key),
            is_read(f"{key}={MERGED}/model.safetensors", MODEL),
        )
        for key in ("output.file", "output.report", "output.logits")
    ),
    case("a new file in the model", evaluating("out/merged/x"), lies_in(f"{OUT}/merged/x", "out/merged", MODEL)),
    case("a file of its run", evaluating("out/report.html"), is_read(f"{OUT}/report.html", RUN)),
    case("another spelling", evaluating("images/.././out//config.yaml"), is_read(f"{OUT}/config.yaml", RUN)),
    case(
        "by way of a linked folder",
        evaluating("linked/config.yaml"),
        is_read(f"{OUT}/config.yaml", RUN),
        link("linked", "out"),
    ),
    case(
        "a link",
        evaluating("linked.json"),
        is_link("linked.json", "output.file="),
        link("linked.json", "labels.txt"),
    ),
    case("a dangling link", evaluating("x.json"), is_link("x.json", "output.file="), link("x.json", "gone")),
    case(
        "a hard link to the weights",
        evaluating("hard.json"),
        is_read("output.file={folder}/hard.json", MODEL),
        hard_link("hard.json", "out/merged/model.safetensors"),
    ),
    case("an image", evaluating("images/a/0.png"), is_read("output.file={folder}/images/a/0.png", "data.root")),
    case(
        "a new file between the images",
        evaluating("images/b/x.json"),
        lies_in("output.file={folder}/images/b/x.json", "images/b", "data.root"),
    ),
    case(
        "an image behind a link",
        evaluating("disk/0.png"),
        is_read("output.file={folder}/disk/0.png", "data.root"),
        both(put("disk/0.png"), link("images/a/linked.png", "disk/0.png")),
    ),
    case(
        "an image with a second name",
        evaluating("second.png"),
        is_read("output.file={folder}/second.png", "data.root"),
        hard_link("second.png", "images/a/0.png"),
    ),
    case(
        "a file of images",
        evaluating("a.npz", "data=tensors", "data.test={task}.npz"),
        is_read("output.file={folder}/a.npz", "data.test"),
        put("a.npz"),
    ),
    case(
        "a file of torchvision",
        evaluating("data/MNIST/raw", "data=torchvision", "data.dataset=MNIST", "data.root=data"),
        is_read("output.file={folder}/data/MNIST/raw", "data.root"),
        put("data/MNIST/raw"),
    ),
    case(
        "a file of labels",
        evaluating("labels.txt", *FOLDER, "model.labels=labels.txt", "model.task=a", model="v/whole.safetensors"),
        is_read("output.file={folder}/labels.txt", "model.labels"),
        with_head,
    ),
    case(
        "a configuration",
        evaluating("conf/data/mine.yaml", "--config-dir", "conf", "data=mine"),
        is_read("output.file={folder}/conf/data/mine.yaml", "--config-dir"),
        put("conf/data/mine.yaml", "name: folder\nroot: images\n"),
    ),
    case(
        "a source with --sources",
        evaluating("a/model.safetensors", *FOLDER, "--sources"),
        is_read("output.file={folder}/a/model.safetensors", "source 'a'"),
    ),
    case("a device", evaluating("/dev/null"), "output.file=/dev/null is no regular file. Choose another file."),
    case(
        "a pipe",
        evaluating("pipe"),
        "output.file={folder}/pipe is no regular file. Choose another file.",
        lambda folder: os.mkfifo(folder / "pipe"),
    ),
    case("a folder", evaluating("images"), "output.file={folder}/images is a folder. Give the path of a file."),
    case(
        "no folder",
        evaluating("no/x"),
        "output.file={folder}/no/x: the folder {folder}/no does not exist. Create it, or choose another file.",
    ),
    case(
        "two outputs with one path",
        evaluating("x.json", *FOLDER, "output.report=images/../x.json"),
        "output.report={folder}/x.json and output.file={folder}/x.json are one file. Give two.",
    ),
    case(
        "two outputs that differ in case only",
        evaluating("x.json", *FOLDER, "output.logits=X.JSON"),
        "output.logits={folder}/X.JSON and output.file={folder}/x.json are one file. Give two.",
    ),
    case(
        "compare: an existing file",
        ("compare", "out", "other", "--csv", "labels.txt"),
        "--csv {folder}/labels.txt already exists. Pass --overwrite to replace it, or choose another file.",
    ),
    case(
        "compare: an existing plot",
        ("compare", "out", "other", "--plot", "x.svg"),
        "--plot {folder}/x.svg already exists. Pass --overwrite to replace it, or choose another file.",
        put("x.svg"),
    ),
    case(
        "compare: what is read",
        comparing("--csv", "out/evaluation.json"),
        is_read("--csv {folder}/out/evaluation.json", COMPARED),
    ),
    case(
        "compare: weights of a run",
        comparing("--csv", "other/merged/model.safetensors"),
        is_read("--csv {folder}/other/merged/model.safetensors", COMPARED),
    ),
    case(
        "compare: a model that is not read",
        comparing("--csv", "a/model.safetensors"),
        "--csv {folder}/a/model.safetensors holds weights of a model, so it is not replaced. Choose another file.",
    ),
    case("compare: into a run", comparing("--csv", "out/x"), lies_in("--csv {folder}/out/x", "out", COMPARED)),
    case(
        "compare: a device",
        comparing("--csv", "/dev/null"),
        "--csv /dev/null is no regular file. Choose another file.",
    ),
    case(
        "compare: a link", comparing("--plot", "l.svg"), is_link("l.svg", "--plot "), link("l.svg", "labels.txt")
    ),
    case(
        "compare: two outputs with one path",
        comparing("--csv", "x.svg", "--plot", "./x.svg"),
        "--plot {folder}/x.svg and --csv {folder}/x.svg are one file. Give two.",
    ),
    case(
        "compare: a table of a sweep as input",
        ("compare", "sweep", "--csv", "sweep/jobs/00000.json", "--overwrite"),
        is_read("--csv {folder}/sweep/jobs/00000.json", "the recorded jobs of a sweep"),
        recorded_job,
    ),
]


@pytest.mark.full
@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
def test_no_file_is_lost(case: Loss, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    check_refused(case, place, capsys)


@pytest.mark.full
def test_a_file_is_replaced_on_request_and_has_the_permissions_of_any_file(place: Path) -> None:
    (place / "runs.csv").write_text("old")
    assert main(["compare", "out", "other", "--csv", "runs.csv", "--overwrite", "-q"]) == 0
    assert (place / "runs.csv").read_text().startswith('"run","folder",')
    (place / "plain").touch()
    assert (place / "runs.csv").stat().st_mode == (place / "plain").stat().st_mode
    assert not [path.name for path in place.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_while_the_command_runs_is_kept(overwrite: bool, place: Path) -> None:
    path = check_files({"output.file=": "x"}, (), overwrite)["output.file="]

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        path.symlink_to("labels.txt") if overwrite else path.write_text("mine")
        before.update(everything(place))

    before: dict[str, object] = {}
    with pytest.raises(OutputError) as error:
        write_files({"output.file=": (path, write)}, overwrite)
    assert str(error.value) == (
        f"output.file={path} has appeared while the command ran, so it is kept. Choose another file."
    )
    after = everything(place)
    assert {name: before[name] for name in after} == after
    assert len(after) == len(before) - 1  # without the temporary file


def test_a_failure_leaves_the_old_file(place: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    before = everything(place)
    with pytest.raises(OutputError) as error:
        write_files({"output.file=": (place / "labels.txt", write)}, overwrite=True)
    assert str(error.value) == (
        f"cannot write output.file={place}/labels.txt: No space left on device. Choose another file."
    )
    assert everything(place) == before


def test_the_names_of_missing_files_are_compared_without_case_and_unicode_form(place: Path) -> None:
    assert same(place / "no/M\u00f6we", place / "NO/mo\u0308we")
    assert not same(place / "no/a", place / "no/b")
    assert same(place / "a", place / "images/../a")
    assert not same(place / "a", place / "A/../b")


def test_an_input_that_does_not_exist_or_is_no_path_hinders_nothing(place: Path) -> None:
    inputs = [Input("gone", "gone"), Input("name", "~nobody-of-that-name/x"), Input("null", "a\0b")]
    assert check_files({"k=": "gone"}, inputs, overwrite=False) == {"k=": place / "gone"}
