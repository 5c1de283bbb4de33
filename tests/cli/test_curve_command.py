"""`fsmerge curve`: the files are what is printed, and what is wrong is one message."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.support.command import Command


@pytest.mark.full
def test_the_command_writes_what_it_prints(
    fsmerge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    files = "output.file=c.json output.csv=c.csv output.plot=c.svg"
    command = f"curve +models=one_task_pair curve.points=3 {files}".split()
    code, out, err = fsmerge(*command)
    assert code == 0, err
    content = json.loads(Path("c.json").read_text())
    (before, after) = content["lines"]
    assert (before["alignment"], after["alignment"], content["images"]) == ("none", "weights", 540)
    assert after["barrier"]["loss"] < before["barrier"]["loss"] / 4
    assert f"barrier without alignment: loss {before['barrier']['loss']:.3f} nats" in out
    rows = list(csv.DictReader(Path("c.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [p["loss"] for line in content["lines"] for p in line["points"]]
    drawn = Path("c.svg").read_text()
    assert "without alignment" in drawn
    assert "after weight matching" in drawn
    assert fsmerge(*command, "output.overwrite=true", "-q") == (0, "", "")
    assert Path("c.svg").read_text() == drawn
    assert json.loads(fsmerge("curve", "+models=one_task_pair", "curve.points=3", "--json").out) == content


WRONG = [
    (
        "",
        "fsmerge curve takes two sources, and none is given. Pass two checkpoints, or +models=NAME (fsmerge list "
        "models shows the names; +models=one_task_pair is an example).",
    ),
    ("gone away", "fsmerge curve: 'gone' is no file, no folder and no KEY=VALUE. See fsmerge curve --help."),
    (
        "out/config.yaml",
        "fsmerge curve: out/config.yaml describes a merge. Give two checkpoints, or +models=NAME.",
    ),
    (
        "+models=one_task_pair --quite",
        "fsmerge curve: unknown option '--quite'. Did you mean '--quiet'? Available: --config-dir, --images, "
        "--json, --quiet, -q.",
    ),
    (
        "+models=digits_mlp_trio",
        "fsmerge curve takes two sources, but there are 3 (first, second, third). Give two.",
    ),
    (
        "+models=one_task_pair data=null",
        "a curve is measured on images, and no data set is given. Pass --images FOLDER or data=NAME; with labels "
        "(class folders) loss and accuracy are measured, without them agreement and feature error.",
    ),
    ("+models=one_task_pair curve.points=1", "curve.points: should be greater than or equal to 2, got 1."),
    (
        "+models=one_task_pair curve.align=acts",
        "curve.align: should be 'weights', 'activations' or 'none', got 'acts'.",
    ),
    (
        "+models=one_task_pair curve.algin=none",
        "unknown key in curve 'algin'. Did you mean 'align'? Available: align, points, repair.",
    ),
    ("+models=one_task_pair method=kd", "method is no group of this command."),
    (
        "+models=one_task_pair output.plot=c.txt",
        "output.plot=c.txt: give a file that ends in .svg, .png, .pdf.",
    ),
    (
        "+models=one_task_pair -m",
        "fsmerge curve computes one curve. Leave out --multirun and give every key one value.",
    ),
    (
        "+models=one_task_pair data.images_per_task=0 curve.align=activations -q",
        "curve.align=activations needs unlabelled images of the task. Pass data=... with data.images_per_task of "
        "1 or more, or curve.align=weights and curve.repair=false, which need none.",
    ),
    (
        "+models=one_task_pair curve.repair=true models.sources.0.arch.norm=batch "
        "models.sources.1.arch.norm=batch",
        "curve.repair=true resets the statistics of convolutions with BatchNorm and of hidden layers with a bias "
        "and without a norm, and these networks have none. Pass curve.repair=false.",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_is_wrong_is_one_message(arguments: str, message: str, fsmerge: Command) -> None:
    assert fsmerge("curve", *arguments.split()) == (2, "", f"fsmerge: error: {message}\n")
