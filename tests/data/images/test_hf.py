from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.data import ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.hf import HuggingFace

pytestmark = pytest.mark.full
PIXELS = ToPixels((1, 4, 4))
TASK = Task("birds", ("wren", "owl"))


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `hf` is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), value, dtype=np.uint8))


def values(images: ImageSet | None) -> list[tuple[int, int]]:
    assert images is not None
    return [(round(images[i][0].max().item() * 255), images[i][1]) for i in range(len(images))]


def tables(**options: Any) -> Any:
    """Two splits of six and three images; the classes owl, wren, eel alternate."""
    import datasets

    names = datasets.ClassLabel(names=["owl", "wren", "eel"])
    features = datasets.Features({"image": datasets.Image(), "label": names, **options})

    def split(first: int, count: int) -> Any:
        columns = {
            "image": [picture(first + n) for n in range(count)],
            "label": [n % 3 for n in range(count)],
            **{name: [0] * count for name in options},
        }
        return datasets.Dataset.from_dict(columns, features=features)

    return datasets.DatasetDict({"train": split(1, 6), "test": split(101, 3)})


def build(path: Path, split: str = "train", task: Task = TASK, **options: object) -> ImageSet | None:
    return HuggingFace(path=str(path), **options).build(split, task, PIXELS)  # type: ignore[arg-type]


def test_a_folder_written_by_save_to_disk(tmp_path: Path) -> None:
    tables().save_to_disk(str(tmp_path / "saved"))
    train = build(tmp_path / "saved")
    assert values(train) == [(1, 1), (2, 0), (4, 1), (5, 0)]
    assert values(build(tmp_path / "saved", "test")) == [(101, 1), (102, 0)]
    assert train is not None
    assert train.labelled
    assert train.notes == ("task 'birds': 2 of 6 images have none of its labels: not used",)
    assert train.title(2) == f"{tmp_path}/saved train 3"
    assert HuggingFace(path=str(tmp_path / "saved")).classes(TASK) == ("owl", "wren", "eel")
    tables()["train"].save_to_disk(str(tmp_path / "one_split"))
    assert len(values(build(tmp_path / "one_split"))) == 4


def test_a_folder_of_parquet_files_with_the_task_in_its_path(tmp_path: Path) -> None:
    for split, table in tables().items():
        (tmp_path / "birds").mkdir(exist_ok=True)
        table.to_parquet(str(tmp_path / f"birds/{split}-0.parquet"))
    assert values(build(tmp_path / "{task}")) == [(1, 1), (2, 0), (4, 1), (5, 0)]
    assert values(build(tmp_path / "{task}", "test")) == [(101, 1), (102, 0)]


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    for split, first in (("train", 1), ("test", 101)):
        for n in range(4):
            path = tmp_path / "images" / split / ("owl" if n % 2 else "wren") / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(first + n).save(path)
    assert sorted(values(build(tmp_path / "images"))) == [(1, 0), (2, 1), (3, 0), (4, 1)]
    assert sorted(values(build(tmp_path / "images", "test"))) == [(101, 0), (102, 1), (103, 0), (104, 1)]


def test_images_without_labels_and_an_unreadable_one(tmp_path: Path) -> None:
    import datasets

    paths = [str(tmp_path / f"{n}.png") for n in range(2)]
    picture(7).save(paths[0])
    (tmp_path / "1.png").write_bytes(b"no image")
    datasets.Dataset.from_dict({"file": paths}).save_to_disk(str(tmp_path / "saved"))
    found = build(tmp_path / "saved", image_column="file")
    assert found is not None
    assert not found.labelled
    assert found[0][1] == -1
    with pytest.raises(DataError, match=r"^data=hf: .*/saved: image 1 cannot be read \(.*\)\. Repair or"):
        found[1]


def refused(path: Path | str, **options: object) -> str:
    with pytest.raises((DataError, ConfigError)) as error:
        HuggingFace(path=str(path), **options).build("train", TASK, PIXELS)  # type: ignore[arg-type]
    return str(error.value)


def test_unknown_splits_and_columns_are_refused(tmp_path: Path) -> None:
    import datasets

    tables(picture=datasets.ClassLabel(names=["x"])).save_to_disk(str(tmp_path / "saved"))
    saved = tmp_path / "saved"
    assert refused(saved, train_split="trian") == (
        "data.train_split: unknown split 'trian'. Did you mean 'train'? Available: test, train."
    )
    assert refused(saved, image_column="imge") == (
        "data.image_column: unknown column 'imge'. Did you mean 'image'? Available: image, label, picture."
    )
    assert refused(saved, label_column="labels") == (
        "data.label_column: unknown column 'labels'. Did you mean 'label'? Available: image, label, picture."
    )
    datasets.Dataset.from_dict({"a": [1], "b": [2]}).save_to_disk(str(tmp_path / "numbers"))
    assert refused(tmp_path / "numbers") == (
        f"data.image_column: {tmp_path}/numbers has 0 image columns. Pass one of its columns: a, b."
    )
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").startswith(f"data=hf: {tmp_path}/empty cannot be loaded (")


def test_a_name_that_the_hub_does_not_know_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(*args: Any, **options: Any) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unknown)
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: pytest.fail("asked again"))
    for name in ("nobody/nothing", "no-such-set"):
        assert refused(name) == (
            f"data=hf: {name} cannot be loaded (no such folder, and no public data set of this name on the hub). "
            "Pass another data.path=PATH."
        )


def test_an_unreachable_hub_and_a_missing_library_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited to ask again"))
    message = refused("nobody/nothing")
    assert message.startswith("data=hf: nobody/nothing cannot be loaded (")
    assert message.endswith("). Without network access, pass a local path.")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert refused("nobody/nothing") == "data=hf needs Hugging Face's datasets: pip install datasets"


def test_a_copy_that_is_read_because_the_hub_does_not_answer_has_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: tables())
    note = (
        "data=hf: the hub did not answer for jane/birds (no route to the hub), so the copy that was downloaded "
        "before is read"
    )
    for answer, expected in ((unreachable, [note]), (lambda *a, **k: None, [])):
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", answer)
        found = build(Path("jane/birds"))
        assert found is not None
        assert [text for text in found.notes if "hub" in text] == expected


def test_no_path_and_no_test_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data=hf needs data\.path=PATH, a folder or the name of a data set on"):
        HuggingFace().build("train", TASK, PIXELS)
    assert HuggingFace(path="x", test_split=None).build("test", TASK, PIXELS) is None
