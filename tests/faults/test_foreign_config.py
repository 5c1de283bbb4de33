"""What a folder of somebody else names is not followed unasked: data sets, downloads, sources, runs of a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fsmerge_cli import evaluate, load_merged
from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, UserError
from fsmerge_cli.data.images import folder, hf, tensors, torchvision
from tests.support.evaluations import write_random_images
from tests.support.sources import mlp_source

LABELS = {name: tuple(f"{name}-{i}" for i in range(3)) for name in "ab"}
RUN = {"seed": 3, "method": {"name": "average"}, "models": {"sources": []}}


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with the tasks a and b, in the working directory."""
    monkeypatch.chdir(tmp_path)
    heads = {name: mlp_source(name, [8], 1, classes=3, input_size=(1, 8, 8)).head for name in "ab"}
    source = mlp_source("a", [8], 1, classes=3, input_size=(1, 8, 8))
    written = head_tensors({name: head for name, head in heads.items() if head is not None})
    write_model(tmp_path / "run/merged", model_config(source.family, source.arch), source.weights, *written)
    (tmp_path / "run/evaluation.json").write_text("{}")
    return tmp_path / "run"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every data set that is opened; none can be."""
    calls: list[object] = []

    def build(self: Any, *given: object) -> None:
        calls.append(self)

    for cls in (folder.Folder, hf.HuggingFace, tensors.Tensors, torchvision.TorchVision):
        monkeypatch.setattr(cls, "build", build)
        monkeypatch.setattr(cls, "classes", build)
    return calls


def state(run: Path, data: Any) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({**RUN, "data": data}))


NAMED: dict[str, tuple[Any, str]] = {
    "a download": (
        {"name": "torchvision", "dataset": "MNIST", "root": "/data", "download": True},
        "data=torchvision data.dataset=MNIST data.root=/data data.download=true",
    ),
    "a folder": ({"name": "folder", "root": "/home/me"}, "data=folder data.root=/home/me"),
    "a data set of the hub": ({"name": "hf", "path": "them/set"}, "data=hf data.path=them/set"),
    "auxiliary data": (
        {"name": "digits", "auxiliary": {"name": "folder", "root": "/x"}},
        'data=digits data.auxiliary={"name": "folder", "root": "/x"}',
    ),
    "one per task": (
        {"name": "per_task", "tasks": {"a": {"name": "folder", "root": "/x"}, "b": {"name": "digits"}}},
        'data=per_task data.tasks={"a": {"name": "folder", "root": "/x"}, "b": {"name": "digits"}}',
    ),
    "a preset": ("digits", "data=digits"),
}


@pytest.mark.full
@pytest.mark.parametrize("case", NAMED)
def test_data_of_a_run_are_named_and_not_opened(
    case: str, foreign: Path, opened: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    stated, text = NAMED[case]
    state(foreign, stated)
    assert main(["evaluate", "run", "--sources"]) == 2
    assert capsys.readouterr() == (
        "",
        f"fsmerge: error: no data: pass data=from_run to use what run/config.yaml names: {text}. It is not "
        "followed unasked, because a run's folder may come from somebody else. Or pass data=NAME "
        "(data.root=PATH for your own folder).\n",
    )
    assert opened == []


NOTHING = (
    "no data: run/merged is in no run's folder with a data set. Pass data=NAME (data.root=PATH for your own "
    "folder)."
)
UNUSABLE: dict[str, tuple[str, str]] = {
    "null": ("data: null", NOTHING),
    "empty": ("", NOTHING),
    "a list at the top": (
        "[1, 2]",
        "run/config.yaml cannot be read: it should hold keys and values, and holds a list. Move run/merged into "
        "another folder, and pass data=...",
    ),
    "a number": ("data: 7", "run/config.yaml: data: should be keys and values, got 7."),
    "a class": (
        "data: {name: digits, _target_: os.system}",
        "run/config.yaml: data._target_='os.system': a configuration cannot call Python code. Remove the key and "
        "choose by name (`fsmerge list` shows the names).",
    ),
    "a type": (
        "data: {name: digits, views: many}",
        "run/config.yaml: data.views: should be a valid integer, got 'many'.",
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("asked", [False, True])
def test_a_run_without_usable_data(
    case: str, asked: bool, foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = UNUSABLE[case]
    (foreign / "config.yaml").write_text(content)
    assert main(["evaluate", "run", *(["data=from_run"] if asked else [])]) == 2
    if message == NOTHING:
        expected = message.replace("no data:", "data=from_run:") if asked else message
    else:
        expected = message if "cannot be read" in message else f"{message} Pass data=NAME with your own data."
    assert capsys.readouterr().err == f"fsmerge: error: {expected}\n"


def test_a_model_outside_of_runs_has_no_data(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "run/merged", "data=from_run"]) == 2
    expected = NOTHING.replace("no data:", "data=from_run:")
    assert capsys.readouterr().err == f"fsmerge: error: {expected}\n"


def test_data_of_the_run_are_used_on_request(
    foreign: Path, opened: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    state(foreign, {"name": "hf", "path": "them/set"})
    assert main(["evaluate", "run", "data=from_run"]) == 2
    _, err = capsys.readouterr()
    assert err.splitlines()[0] == "data=from_run: data=hf data.path=them/set"
    assert [type(config) for config in opened] == [hf.HuggingFace, hf.HuggingFace]


def test_labels_of_data_are_those_of_the_run_only_on_request(foreign: Path, opened: list[object]) -> None:
    (foreign / "merged/heads.safetensors").unlink()
    state(foreign, {"name": "folder", "root": "/home/me"})
    for data, count in ((None, 0), ("from_run", 1)):
        with pytest.raises(UserError):
            load_merged(foreign, {"task": "a", "labels": "data"}, data)
        assert len(opened) == count


def test_own_data_are_used_whatever_the_folder_names(foreign: Path, tmp_path: Path) -> None:
    images = write_random_images(tmp_path / "images", LABELS)
    data = {"name": "folder", "root": str(images)}
    found = []
    for stated in ({"name": "torchvision", "dataset": "MNIST", "root": "/data", "download": True}, 7, None):
        state(foreign, stated)
        found.append(evaluate(foreign, data=data).evaluation())
    assert [own["rows"] for own in found] == [found[0]["rows"]] * 3
    assert [own["provenance"]["seed"] for own in found] == [0, 0, 0]  # not that of the folder
    assert [own["config"]["data"]["root"] for own in found] == [str(images)] * 3
    state(foreign, data)
    again = evaluate(foreign, data="from_run").evaluation()
    assert again["rows"] == found[0]["rows"]
    assert again["provenance"]["seed"] == 3


def test_a_method_that_the_folder_names_is_a_known_one_or_unknown(foreign: Path, tmp_path: Path) -> None:
    images = write_random_images(tmp_path / "images", LABELS)
    for stated, method in (({"name": "average"}, "average"), ({"name": "[red]best"}, "unknown"), (3, "unknown")):
        (foreign / "config.yaml").write_text(yaml.safe_dump({**RUN, "method": stated}))
        assert evaluate(foreign, data={"name": "folder", "root": str(images)}).method == method


def test_sources_are_named_before_they_are_read(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_random_images(tmp_path / "images", LABELS)
    sources = [{"name": "a", "checkpoint": "/far/a"}, {"name": "b", "arch": "vit_tiny_patch16_224.augreg_in21k"}]
    (foreign / "config.yaml").write_text(yaml.safe_dump({**RUN, "models": {"sources": sources}}))
    assert main(["evaluate", "run", "data=folder", f"data.root={images}", "--sources"]) == 2
    named = "--sources: a from /far/a, b from the weights vit_tiny_patch16_224.augreg_in21k of the hub"
    message = "fsmerge: error: source 'a': /far/a does not exist. Check models.sources.N.checkpoint."
    assert [line for line in capsys.readouterr().err.splitlines() if "test images" not in line] == [named, message]
    for models in (3, {"sources": 3}):
        (foreign / "config.yaml").write_text(yaml.safe_dump({**RUN, "models": models}))
        with pytest.raises(ConfigError):
            evaluate(foreign, data={"name": "folder", "root": str(images)}, sources=True)


@pytest.mark.parametrize("key", ["data.root=/x", "+data.root=/x", "data=digits"])
def test_data_of_the_run_take_no_other_keys(key: str, foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "run", "data=from_run", key]) == 2
    assert capsys.readouterr().err == (
        f"fsmerge: error: data=from_run takes the data as the run names them, so {key} cannot be given as well. "
        "Leave one of them out.\n"
    )


def evaluation(mean: float) -> str:
    content = json.loads(Path("run/evaluation.json").read_text())
    content["rows"]["merged"]["mean_top1"] = mean
    content["cost"]["seconds"] = {"fit": 1.5}
    return json.dumps(content)


@pytest.mark.full
def test_a_record_of_a_sweep_leads_to_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["merge", "+models=digits_mlp_pair", "method=average", "output.dir=run", "--quiet"]
    assert main(run) == 0
    for name, mean in (("mine", 0.5), ("theirs", 0.9)):
        Path(name).mkdir()
        Path(name, "evaluation.json").write_text(evaluation(mean))
    Path("sweep/jobs").mkdir(parents=True)
    joint = json.loads(evaluation(0.5))["rows"]["merged"]["joint_top1"]["softmax"]
    record = {"run": "x", "exit_code": 0, "mean": 0.5, "joint": joint, "seconds": 1.5, "folder": "mine"}
    Path("sweep/jobs/00000.json").write_text(json.dumps(record))
    assert main(["compare", "sweep", "--json"]) == 0
    assert [row["mean"] for row in json.loads(capsys.readouterr().out)] == [0.5]
    Path("sweep/jobs/00000.json").write_text(json.dumps({**record, "folder": "theirs"}))
    assert main(["compare", "sweep"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: sweep/jobs/00000.json names the run theirs, but that run has other scores or seconds: "
        "it was replaced, or the sweep was made elsewhere. Give the folders of the runs instead.\n"
    )
