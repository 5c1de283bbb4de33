"""Merges on folders of images, from the command line to evaluation.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.data import Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.digits import Digits
from tests.support.image_files import put


def export(root: Path, task: str, labels: tuple[str, ...], split: str, place: Callable[[str, int], str]) -> None:
    images = Digits().build(split, Task(task, labels), ToPixels((1, 8, 8)))  # type: ignore[arg-type]
    for i in range(len(images)):
        image, label = images.read(i)
        path = root / task / place(labels[label], i)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


TASKS = {"low": ("0", "1", "2", "3", "4"), "high": ("5", "6", "7", "8", "9")}


def run(*arguments: str) -> int:
    common = ["merge", "+models=digits_mlp_pair", "method=kd", "method.steps=60", "hardware.threads=1"]
    return main([*common, *arguments])


@pytest.mark.full
def test_png_files_give_the_same_scores_as_the_embedded_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for task, labels in TASKS.items():
        for split in ("train", "test"):
            export(tmp_path / "images", task, labels, split, lambda label, i, s=split: f"{s}/{label}/{i:04}.png")
    assert run("output.dir=embedded") == 0
    assert run("data=folder", "data.root=images", "output.dir=folder") == 0
    rows = {
        name: json.loads((tmp_path / name / "evaluation.json").read_text())["rows"]
        for name in ("embedded", "folder")
    }
    assert rows["folder"].keys() == rows["embedded"].keys()
    for row in (
        "low",
        "high",
        "ensemble",
        "average",
    ):  # without training, the same images give the same predictions
        for task, score in rows["embedded"][row]["tasks"].items():
            found = rows["folder"][row]["tasks"][task]
            assert (found["count"], found["top1"]) == (score["count"], score["top1"])
            assert found["loss"] == pytest.approx(score["loss"], rel=1e-4)
        for protocol in ("softmax", "logits"):  # temperatures depend on which images were sampled
            found, expected = (rows[kind][row]["joint_top1"] for kind in ("folder", "embedded"))
            assert found.get(protocol) == expected.get(protocol)
    merged = [rows[name]["merged"]["mean_top1"] for name in ("embedded", "folder")]
    assert merged[0] == pytest.approx(merged[1], abs=0.1)  # other images are sampled
    assert min(merged) > 0.55


@pytest.mark.full
def test_flat_unlabelled_images_suffice_for_a_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for task, labels in TASKS.items():
        export(tmp_path / "images", task, labels, "test", lambda label, i: f"{i:04}.png")
    assert run("data=folder", "data.root=images", "output.dir=out", "data.images_per_task=40") == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert found["cost"]["images"] == 80
    rows = found["rows"]
    assert rows["merged"]["tasks"] == {}
    assert found["measured_on"] == {task: {"images": 200, "kind": "held_back", "of": "task"} for task in TASKS}
    merged, average = (
        [own["same"] / own["images"] for own in rows[name]["agreement"].values()] for name in ("merged", "average")
    )
    assert min(merged) > 0.85
    assert max(average) < 0.85
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.full
def test_fewer_images_than_requested_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for task in TASKS:
        for n in range(3 if task == "low" else 50):
            put(tmp_path / f"images/{task}/{n}.png", 100 + n, size=(8, 8))
    assert run("data=folder", "data.root=images", "output.dir=out", "data.images_per_task=50") == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert found["cost"]["images"] == 43
    assert found["notes"] == [
        "task 'low' has 3 images, fewer than images_per_task=50; all of them are used",
        "task 'high' has 50 images, 10 of them held back, fewer than images_per_task=50; the other 40 are used",
        "there are no test images, so images are held back from the merge and measure it: 10 of 'high' "
        "(data.held_back=0.2)",
        "nothing is held back of 'low' (fewer than 16 images): agreement with the sources is measured on images "
        "that the merge used, so it is optimistic",
    ]


def test_an_unreadable_image_ends_the_run_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for task in TASKS:
        put(tmp_path / f"images/{task}/a.png", size=(8, 8))
    (tmp_path / "images/high/a.png").write_bytes(b"not an image")
    capsys.readouterr()
    assert run("data=folder", "data.root=images") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("fsmerge: error: the image images/high/a.png cannot be read (cannot identify image")
    assert message.endswith("). Repair or remove it.")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
