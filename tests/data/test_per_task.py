from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fsmerge_cli import merge
from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.common.options import build
from fsmerge_cli.common.separation import Input
from fsmerge_cli.data import Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.digits import Digits
from fsmerge_cli.data.per_task import PerTask
from fsmerge_cli.data.sampling import count_images, prepare_images
from tests.support.bad_inputs.case import save
from tests.support.sources import mlp_source

PIXELS = ToPixels((1, 8, 8))
TASKS = [Task("birds", ("owl", "wren")), Task("numbers", ("0", "1", "2"))]


def birds(root: Path) -> dict[str, Any]:
    for n in range(12):
        path = root / ("test" if n > 8 else "train") / ("owl" if n % 2 else "wren") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100 + n).save(path)
    return {"name": "folder", "root": str(root)}


def test_each_task_has_its_own_data_set(tmp_path: Path) -> None:
    own = {**birds(tmp_path / "mine"), "images_per_task": 4}
    mine = {"birds": own, "numbers": {"name": "digits"}}
    data = PerTask(tasks=mine, images_per_task=40, augment="shift", views=2)
    tests, images, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    assert [len(found) for found in tests.sets if found] == [3, len(Digits().build("test", TASKS[1], PIXELS))]
    assert [int((images.task == task).sum()) for task in (0, 1)] == [4 * 3, 40 * 3]
    assert notes == []
    assert count_images(data, TASKS, lambda: PIXELS)[0] == [12, 120]
    assert data.classes(TASKS[0]) == ("owl", "wren")
    assert data.inputs(["birds"]) == [Input("data.tasks.birds.root", str(tmp_path / "mine"))]


def test_the_root_may_be_the_tasks_own_folder_or_its_parent(tmp_path: Path) -> None:
    birds(tmp_path / "all/birds")
    for root in (tmp_path / "all", tmp_path / "all/birds"):
        data = PerTask(tasks={"birds": {"name": "folder", "root": str(root)}})
        found = data.build("train", TASKS[0], PIXELS)
        assert found is not None
        assert len(found) == 9


def test_a_task_may_have_only_test_images(tmp_path: Path) -> None:
    own = {**birds(tmp_path), "images_per_task": 0}
    data = PerTask(tasks={"birds": own, "numbers": {"name": "digits"}}, images_per_task=5)
    tests, images, _ = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    assert images.task.tolist() == [1] * 5
    assert all(tests.sets)


@pytest.mark.full
@pytest.mark.parametrize("targets", ["own", "all"])
def test_a_merge_works_with_a_task_without_training_images(tmp_path: Path, targets: str) -> None:
    own = {**birds(tmp_path / "images"), "images_per_task": 0}
    sources = []
    for seed, task in enumerate(TASKS):
        source = mlp_source(task.name, [8], seed, classes=len(task.labels or ()), input_size=(1, 8, 8))
        save(tmp_path / task.name, source)
        sources.append({"name": task.name, "checkpoint": str(tmp_path / task.name), "labels": task.labels})
    data = {"name": "per_task", "tasks": {"birds": own, "numbers": {"name": "digits"}}, "images_per_task": 30}
    method = {"name": "kd", "steps": 2, "targets": targets}
    merge(sources, data=data, method=method, output=tmp_path / "out")
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    # Temperatures are matched to the sources, as one task has no images to fit them on.
    assert found["rows"]["merged"]["joint_top1"].keys() == {
        "softmax",
        "logits",
        "softmax_calibrated",
        "logits_calibrated",
        "classifier",
    }
    assert found["rows"]["ensemble"]["temperatures"] == {"birds": 1.0, "numbers": 1.0}
    error = found["training"]["start_error"]
    assert list(error) == ["birds", "numbers"]
    assert (error["birds"] is None) == (targets == "own")
    assert error["numbers"] >= 0


def refused(error: type[Exception], tasks: Any) -> str:
    with pytest.raises(error) as found:
        build(PerTask, {"name": "per_task", "tasks": tasks}, "data").build("train", TASKS[0], PIXELS)
    return str(found.value)


def test_wrong_keys_are_reported_with_their_path() -> None:
    assert refused(DataError, {"numbers": {"name": "digits"}}) == (
        "data=per_task: no data set for task 'birds' in data.tasks. Listed: numbers. Pass "
        "data.tasks.birds={name: folder, root: PATH}"
    )
    assert refused(DataError, None).startswith(
        "data=per_task: no data set for task 'birds' in data.tasks. Listed: none."
    )
    assert refused(ConfigError, {"birds": {"name": "foldr"}}).startswith(
        "unknown data.tasks.birds 'foldr'. Did you mean 'folder'? Available: digits, "
    )
    assert refused(ConfigError, {"birds": {"name": "folder", "rot": "x"}}).startswith(
        "unknown key in data.tasks.birds 'rot'. Did you mean 'root'? Available: "
    )
    assert refused(ConfigError, {"birds": {"name": "folder", "augment": "shift"}}) == (
        "data.tasks.birds.augment: this key holds for all tasks. Set data.augment instead."
    )
    for name in ("none", "generated", "per_task"):
        assert refused(ConfigError, {"birds": {"name": name}}).startswith(
            f"data.tasks.birds.name={name}: this is not a data set of one task. Pass another one, or "
        )
    assert refused(ConfigError, {"birds": 3}) == "data.tasks: should be a valid dictionary, got 3."
