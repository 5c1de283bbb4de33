from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import ImageSet, Task
from fsmerge_cli.data.base import Split, ToPixels
from fsmerge_cli.data.images.digits import Digits
from fsmerge_cli.data.images.folder import SUFFIXES, Folder

PIXELS = ToPixels((1, 2, 2))
TASK = Task("birds", ("wren", "owl"))


def put(path: Path, value: int = 0, mode: str = "L", size: tuple[int, int] = (2, 2)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def build(root: Path, split: str = "train", task: Task = TASK, **options: float | str) -> ImageSet | None:
    return Folder(root=str(root), **options).build(split, task, PIXELS)  # type: ignore[arg-type]


def values(images: ImageSet | None) -> list[tuple[int, int]]:
    """(value of the image, class index) of every image, in order."""
    assert images is not None
    return [(round(images[i][0].max().item() * 255), images[i][1]) for i in range(len(images))]


def refused(root: Path | None, split: str = "train", task: Task = TASK) -> str:
    with pytest.raises(DataError) as error:
        Folder(root=None if root is None else str(root)).build(split, task, PIXELS)  # type: ignore[arg-type]
    return str(error.value)


# Layouts


def test_train_and_test_folders_of_classes(tmp_path: Path) -> None:
    put(tmp_path / "birds/train/owl/a.png", 1)
    put(tmp_path / "birds/train/owl/deep/b.png", 2)
    put(tmp_path / "birds/train/wren/a.png", 3)
    put(tmp_path / "birds/test/wren/a.png", 4)
    train, test = build(tmp_path), build(tmp_path, "test")
    assert values(train) == [(1, 1), (2, 1), (3, 0)]
    assert values(test) == [(4, 0)]
    assert train is not None
    assert train.labelled


def test_a_flat_train_folder_beside_labelled_test_images(tmp_path: Path) -> None:
    put(tmp_path / "birds/train/b.png", 2)
    put(tmp_path / "birds/train/a.png", 1)
    put(tmp_path / "birds/test/owl/c.png", 3)
    train = build(tmp_path)
    assert values(train) == [(1, -1), (2, -1)]
    assert train is not None
    assert not train.labelled
    assert values(build(tmp_path, "test")) == [(3, 1)]


def test_test_images_without_labels_serve_where_there_are_no_others(tmp_path: Path) -> None:
    put(tmp_path / "birds/train/owl/a.png", 1)
    put(tmp_path / "birds/test/c.png", 3)
    assert values(build(tmp_path, "test")) == [(3, -1)]
    put(tmp_path / "birds/test/owl/d.png", 4)
    assert values(build(tmp_path, "test")) == [(4, 1)]


def test_class_folders_are_split_by_name(tmp_path: Path) -> None:
    for n in range(100):
        put(tmp_path / "birds" / ("owl" if n % 2 else "wren") / f"{n}.png", n + 1)
    train, test = values(build(tmp_path)), values(build(tmp_path, "test"))
    assert sorted(train + test) == [(n + 1, n % 2) for n in range(100)]
    assert 10 <= len(test) <= 30
    put(tmp_path / "birds/owl/late.png", 200)
    put(tmp_path / "birds/wren/later.png", 201)
    after = values(build(tmp_path)), values(build(tmp_path, "test"))
    assert set(train) <= set(after[0])
    assert set(test) <= set(after[1])
    (tmp_path / "birds").rename(tmp_path / "moved")
    (tmp_path / "far").mkdir()
    (tmp_path / "moved").rename(tmp_path / "far/birds")
    assert (values(build(tmp_path / "far")), values(build(tmp_path / "far", "test"))) == after


def test_the_share_of_test_images_can_be_chosen(tmp_path: Path) -> None:
    for n in range(100):
        put(tmp_path / f"birds/owl/{n}.png", n + 1)
    assert build(tmp_path, "test", test_share=0.0) is None
    assert len(values(build(tmp_path, test_share=0.0))) == 100
    assert 35 <= len(values(build(tmp_path, "test", test_share=0.5))) <= 65


def test_flat_images_all_go_to_the_merge(tmp_path: Path) -> None:
    for n in range(5):
        put(tmp_path / f"birds/{n}.png", n + 1)
    train = build(tmp_path)
    assert values(train) == [(n + 1, -1) for n in range(5)]
    assert train is not None
    assert not train.labelled
    assert build(tmp_path, "test") is None


def test_a_task_without_labels_takes_class_folders_as_plain_images(tmp_path: Path) -> None:
    put(tmp_path / "birds/train/anything/a.png", 1)
    put(tmp_path / "birds/test/anything/b.png", 2)
    assert values(build(tmp_path, task=Task("birds", None))) == [(1, -1)]
    assert values(build(tmp_path, "test", task=Task("birds", None))) == [(2, -1)]


def test_other_files_and_empty_folders_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "birds/owl/a.PNG", 1)
    (tmp_path / "birds/owl/notes.txt").write_text("seen at dusk")
    (tmp_path / "birds/owl/folder.png").mkdir()
    (tmp_path / "birds/.cache").mkdir()
    (tmp_path / "birds/notes").mkdir()
    (tmp_path / "birds/notes/readme.md").write_text("")
    assert sorted(values(build(tmp_path, test_share=0.0))) == [(1, 1)]


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_named_kind_of_file_can_be_read(suffix: str, tmp_path: Path) -> None:
    put(tmp_path / f"birds/a{suffix}", 200)
    ((value, _),) = values(build(tmp_path))
    assert abs(value - 200) <= 2


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "images/birds/a.png", 9)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert values(build(Path("~/images"))) == [(9, -1)]


def test_images_can_be_read_by_another_process(tmp_path: Path) -> None:
    put(tmp_path / "birds/train/owl/a.png", 1)
    assert values(pickle.loads(pickle.dumps(build(tmp_path)))) == [(1, 1)]


# Pixels


def test_colour_becomes_grey_and_grey_becomes_colour(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (2, 2), 51).save(tmp_path / "grey.png")
    with Image.open(tmp_path / "red.png") as red, Image.open(tmp_path / "grey.png") as grey:
        assert torch.equal(ToPixels((3, 2, 2))(red)[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
        assert torch.equal(ToPixels((1, 2, 2))(red), torch.full((1, 2, 2), 76 / 255))
        assert torch.equal(ToPixels((3, 2, 2))(grey), torch.full((3, 2, 2), 51 / 255))
        assert torch.equal(ToPixels((1, 2, 2))(grey), torch.full((1, 2, 2), 51 / 255))


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_of_image_becomes_pixels(mode: str) -> None:
    image = Image.new("RGB", (2, 2), (255, 255, 255)).convert(mode)
    for channels in (1, 3):
        assert torch.equal(ToPixels((channels, 2, 2))(image), torch.ones(channels, 2, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_and_not_cut_off(channels: int, tmp_path: Path) -> None:
    depth = np.array([[0, 257 * 51], [257 * 204, 65535]], dtype=np.uint16)
    Image.fromarray(depth).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        pixels = ToPixels((channels, 2, 2))(image)
    expected = torch.tensor([[0, 51], [204, 255]]) / 255
    torch.testing.assert_close(pixels, expected.expand(channels, 2, 2))


def test_rows_are_height_and_columns_are_width() -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    pixels = ToPixels((1, 2, 3))(image)
    assert pixels.shape == (1, 2, 3)
    assert torch.equal(pixels.mul(255).round().long()[0], torch.arange(6).reshape(2, 3))
    assert pixels.is_contiguous()


def test_another_size_is_resized_to_what_the_sources_read() -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (20, 1)))
    pixels = ToPixels((1, 5, 8))(ramp)
    assert pixels.shape == (1, 5, 8)
    assert (pixels[0].diff(dim=1) > 0).all()
    torch.testing.assert_close(pixels[0], pixels[0, :1].expand(5, 8))
    assert (pixels >= 0).all()
    assert (pixels <= 1).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_sources_that_read_neither_grey_nor_colour_are_refused(channels: int) -> None:
    with pytest.raises(DataError) as error:
        ToPixels((channels, 8, 8))
    assert str(error.value) == (
        f"the sources read images of {channels} channels; data sets give 1 (grey) or 3 (colour)."
    )


# What is refused


def test_a_root_is_needed(tmp_path: Path) -> None:
    assert refused(None) == "data=folder needs data.root=PATH, a folder with one folder per task in it."
    gone = tmp_path / "gone"
    assert refused(gone) == f"data.root={gone}: there is no such folder."
    gone.write_text("a file")
    assert refused(gone) == f"data.root={gone}: there is no such folder."


def test_every_task_needs_its_folder(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        f"data=folder: no folder for task 'birds' in {tmp_path}. "
        "Found: no folders. Name one folder after each task."
    )
    (tmp_path / "fish").mkdir()
    (tmp_path / "bird").mkdir()
    (tmp_path / "birds").write_text("a file")
    assert refused(tmp_path) == (
        f"data=folder: no folder for task 'birds' in {tmp_path}. "
        "Found: bird, fish. Name one folder after each task."
    )


@pytest.mark.parametrize(
    ("made", "named"), [("birds", "birds"), ("birds/train", "birds/train"), ("birds/test", "birds/train")]
)
def test_a_task_needs_images_to_merge(made: str, named: str, tmp_path: Path) -> None:
    (tmp_path / made).mkdir(parents=True)
    (tmp_path / made / "notes.txt").write_text("")
    assert refused(tmp_path) == (
        f"data=folder: no images for task 'birds' in {tmp_path / named}. "
        f"Put images there ({', '.join(sorted(SUFFIXES))}), flat or in class folders."
    )
    assert build(tmp_path, "test") is None


@pytest.mark.parametrize("place", ["birds", "birds/train", "birds/test"])
def test_class_folders_have_to_be_labels_of_the_task(place: str, tmp_path: Path) -> None:
    put(tmp_path / "birds/train/owl/a.png")
    for stranger in ("emu", "kiwi"):
        put(tmp_path / place / stranger / "a.png")
    if place == "birds":
        (tmp_path / "birds/train/owl").rename(tmp_path / "birds/owl")
        (tmp_path / "birds/train").rmdir()
    assert refused(tmp_path, "test" if place.endswith("test") else "train") == (
        f"data=folder: the class folders emu, kiwi in {tmp_path / place} are not labels of task "
        "'birds' (wren, owl). Rename the folders, pass models.sources.N.labels=[...] (labels=data: the folders' "
        "names, sorted), or data.class_folders=none (test: only those in test/ are classes) to use images without "
        "labels."
    )


def test_folders_that_are_no_classes_hold_images_without_labels(tmp_path: Path) -> None:
    for name in ("train/2024/05/a.png", "train/2024/b.png", "train/c.png", "test/owl/d.png"):
        put(tmp_path / "birds" / name)
    task = Task("birds", ("wren", "owl"))

    def labels(class_folders: str, split: Split) -> list[int]:
        found = build(tmp_path, split, task, class_folders=class_folders)
        assert found is not None
        return sorted(found.classes or ())

    assert (labels("test", "train"), labels("test", "test")) == ([-1, -1, -1], [1])
    assert (labels("none", "train"), labels("none", "test")) == ([-1, -1, -1], [-1])
    assert Folder(root=str(tmp_path), class_folders="test").classes(task) == ("owl",)
    assert Folder(root=str(tmp_path), class_folders="none").classes(task) is None
    for name in ("2023/a.png", "2024/05/b.png"):
        put(tmp_path / "plain/birds" / name)
    plain = Folder(root=str(tmp_path / "plain"), class_folders="none")
    whole = plain.build("train", task, PIXELS)
    assert whole is not None
    assert (len(whole), whole.labelled, plain.build("test", task, PIXELS)) == (2, False, None)


@pytest.mark.parametrize("kept", [0, 20, 300])
def test_an_image_that_cannot_be_read_is_named(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "birds/a.png"
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    images = build(tmp_path)
    assert images is not None
    with pytest.raises((OSError, SyntaxError)) as reason, Image.open(path) as image:
        image.load()
    with pytest.raises(DataError) as error:
        images[0]
    assert str(error.value) == f"the image {path} cannot be read ({reason.value}). Repair it or take it away."


# End to end


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
    for row in ("low", "high", "ensemble", "average"):  # no training: the same images give the same answers
        for task, score in rows["embedded"][row]["tasks"].items():
            found = rows["folder"][row]["tasks"][task]
            assert (found["count"], found["top1"]) == (score["count"], score["top1"])
            assert found["loss"] == pytest.approx(score["loss"], rel=1e-4)
        for protocol in ("softmax", "logits"):  # temperatures depend on which images were drawn
            found, expected = (rows[kind][row]["joint_top1"] for kind in ("folder", "embedded"))
            assert found.get(protocol) == expected.get(protocol)
    merged = [rows[name]["merged"]["mean_top1"] for name in ("embedded", "folder")]
    assert merged[0] == pytest.approx(merged[1], abs=0.1)  # other images are drawn
    assert min(merged) > 0.55


def test_flat_unlabelled_images_are_enough_to_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for task, labels in TASKS.items():
        export(tmp_path / "images", task, labels, "test", lambda label, i: f"{i:04}.png")
    assert run("data=folder", "data.root=images", "output.dir=out", "data.images_per_task=40") == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert found["rows"] == {}
    assert found["cost"]["images"] == 80
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.full
def test_fewer_images_than_asked_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for task in TASKS:
        for n in range(3 if task == "low" else 50):
            put(tmp_path / f"images/{task}/{n}.png", n, size=(8, 8))
    assert run("data=folder", "data.root=images", "output.dir=out", "data.images_per_task=50") == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert found["cost"]["images"] == 53
    assert found["notes"] == [
        "task 'low' has 3 images, fewer than images_per_task=50; all of them are used",
        "the data set has no test images: nothing was evaluated",
    ]


def test_a_broken_image_ends_the_run_with_its_name(
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
    assert message.endswith("). Repair it or take it away.")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
