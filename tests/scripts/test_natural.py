"""The benchmark on photographs: archives of the tasks, the commands of its runs, and the page."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.natural import page, run, sources
from scripts.natural.tasks import CIFAR, TASKS, archive
from tests.support.benchmark_rows import row


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of data sets with two photographs per class of CIFAR-10, and three images of Fashion-MNIST."""
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    cells, labels = [], []
    for label in [*range(10)] * 2:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (20 * label, 0, 0)).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
        labels.append(label)
    (tmp_path / "cifar10").mkdir()
    parquet.write_table(arrow.table({"image": cells, "label": labels}), tmp_path / "cifar10/train.parquet")
    (tmp_path / "fashion_mnist").mkdir()
    images = np.full((3, 28, 28), 200, np.uint8)
    np.savez(tmp_path / "fashion_mnist/train.npz", images=images, labels=np.array([9, 0, 4]))
    return tmp_path


def test_a_task_has_its_classes_in_the_order_of_its_head(root: Path) -> None:
    path = archive(root, root / "made", "vehicles", "train")
    with np.load(path) as file:
        red, labels = file["images"][:, 0, 0, 0], file["labels"]
        assert file["images"].shape == (8, 32, 32, 3)
    assert {int(r) // 20: int(label) for r, label in zip(red, labels)} == {0: 0, 1: 1, 8: 2, 9: 3}
    assert [TASKS["vehicles"].classes[label] for label in labels] == [CIFAR[int(r) // 20] for r in red]


def test_grey_images_become_colour_images_of_32_pixels(root: Path) -> None:
    with np.load(archive(root, root / "made", "fashion", "train")) as file:
        assert file["images"].shape == (3, 32, 32, 3)
        assert (file["images"] == 200).all()
        assert file["labels"].tolist() == [9, 0, 4]


def test_auxiliary_images_have_no_labels(root: Path) -> None:
    with np.load(archive(root, root / "made", "other_photographs", "train", labels=False)) as file:
        assert file.files == ["images"]
        assert {int(value) // 20 for value in file["images"][:, 0, 0, 0]} == {0, 1, 2, 3, 5, 6}


def test_a_missing_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        archive(tmp_path, tmp_path / "made", "mnist", "test")
    assert str(error.value) == (
        f"{tmp_path / 'mnist'} has no test.parquet and no test.npz. Put the data sets into --root=FOLDER: "
        "cifar10/{train,test}.parquet, fashion_mnist/{train,test}.npz, mnist/{train,test}.npz."
    )


def test_the_runs_are_those_without_a_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.chdir(root)
    monkeypatch.setattr(run, "ensure", lambda task, root, work: root)
    monkeypatch.setattr(run, "archive", lambda root, folder, task, split, labels=True: Path(f"{task}-{split}"))
    monkeypatch.setattr(run, "fsmerge", lambda call: calls.append(call) or 0)
    monkeypatch.setattr(run, "file_sha256", lambda path: "0" * 64)
    monkeypatch.setattr(
        run,
        "row",
        lambda folder, group, images, name, overrides: {
            **row(int(str(folder)[-1]), name, {"animals": [1, 0], "vehicles": [1, 1]}),
            **{"group": group, "images": images, "overrides": list(overrides)},
        },
    )
    monkeypatch.setattr(sources, "SOURCES", root / "sources")
    words = ["natural", "--root=.", "--groups=animals_vehicles", "--images=50,auxiliary", "--methods=kd"]
    monkeypatch.setattr("sys.argv", [*words, "--seeds=0,1"])
    run.main()
    assert [(c[3], c[4]) for c in calls] == [("method=kd", f"seed={s}") for s in (0, 0, 1, 1)]
    assert "data.images_per_task=50" in calls[0]
    assert "data.images_per_task=0" in calls[1]
    assert "data.auxiliary={name: tensors, train: fashion-train, images_per_task: 5000}" in calls[1]
    run.main()
    assert len(calls) == 4  # every line is there
    monkeypatch.setattr("sys.argv", [*words, "--label=short", "--seeds=0", "method.steps=9"])
    run.main()
    assert "method.steps=9" in calls[4]
    lines = [json.loads(line) for line in (root / run.ROWS).read_text().splitlines()]
    assert [line["method"] for line in lines] == ["kd"] * 4 + ["short"] * 2
    assert "| animals_vehicles | 50 | 97.5 |" in (root / "docs/results/natural.md").read_text()


def test_a_source_is_trained_once_and_kept_in_float16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOURCES", tmp_path / "sources")
    monkeypatch.setattr(sources, "archive", lambda root, folder, task, split: folder / f"{task}-{split}.npz")
    asked: list[list[str]] = []

    def finetune(call: list[str]) -> int:
        asked.append(call)
        out = Path(next(key for key in call if key.startswith("output.dir=")).removeprefix("output.dir="))
        out.mkdir(parents=True)
        own = {"mnist": {"top1": 0.9, "count": 7}}
        cost = {"steps": 1000, "seconds": {"fit": 61.2}, "images_per_second": 9.0}
        found = {"rows": {"mnist": {"tasks": own}}, "cost": cost}
        (out / "evaluation.json").write_text(json.dumps(found))
        return 0

    def store(spec: object, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text("weights")

    monkeypatch.setattr(sources, "fsmerge", finetune)
    monkeypatch.setattr(sources, "store", store)
    for _ in range(2):
        sources.ensure("mnist", tmp_path, tmp_path / "work")
    assert len(asked) == 1
    assert "model.labels=[zero,one,two,three,four,five,six,seven,eight,nine]" in asked[0]
    assert sources.accuracy("mnist") == 0.9
    monkeypatch.setattr(page, "SOURCES", tmp_path / "sources")
    assert page.sources_table().splitlines()[-1] == "| mnist | 90.0 | 7 | 1000 | 1 |"
