from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.tensors import Tensors

PIXELS = ToPixels((3, 4, 6))
TASK = Task("pets", ("cat", "dog", "hen"))
COLOURS = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 0]


def save(path: Path, **arrays: Any) -> None:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, arrays["images"])
    elif path.suffix == ".safetensors":
        save_file({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}, path)
    else:
        torch.save({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}, path)


def build(path: Path, task: Task = TASK, split: str = "train", **options: object) -> ImageSet:
    found = Tensors(**{split: str(path)}, **options).build(split, task, PIXELS)  # type: ignore[arg-type]
    assert found is not None
    return found


def same(found: ImageSet, expected: np.ndarray[Any, Any] = COLOURS) -> bool:
    pixels = torch.stack([found[i][0] for i in range(len(found))])
    return torch.equal(pixels, torch.from_numpy(expected).movedim(-1, 1) / 255)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".pth"])
def test_images_and_labels_of_every_file_type(suffix: str, tmp_path: Path) -> None:
    save(tmp_path / f"a{suffix}", images=COLOURS, labels=np.array(LABELS))
    found = build(tmp_path / f"a{suffix}")
    assert same(found)
    assert [found[i][1] for i in range(5)] == list(found.classes or ()) == LABELS
    assert found.labelled
    assert found.title(1) == f"{tmp_path}/a{suffix} [1]"


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images.transpose(0, 3, 1, 2),
        lambda images: images.astype(np.float32) / 255,
        lambda images: images.astype(np.float64) / 255,
        lambda images: (images.astype(np.float32) / 255).transpose(0, 3, 1, 2),
    ],
)
def test_every_layout_and_dtype_gives_the_same_pixels(change: Callable[[Any], Any], tmp_path: Path) -> None:
    save(tmp_path / "a.npz", images=change(COLOURS))
    assert same(build(tmp_path / "a.npz"))


@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 1, 4, 6), (5, 4, 6, 1)])
def test_grey_images_with_and_without_a_channel_axis(shape: tuple[int, ...], tmp_path: Path) -> None:
    save(tmp_path / "a.npy", images=COLOURS[..., 0].reshape(shape))
    assert same(build(tmp_path / "a.npy"), COLOURS[..., :1].repeat(3, -1))


def test_files_of_one_tensor_or_of_a_pair(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(COLOURS), tmp_path / "a.pt")
    found = build(tmp_path / "a.pt")
    assert same(found)
    assert not found.labelled
    torch.save((torch.from_numpy(COLOURS), torch.tensor(LABELS)), tmp_path / "b.pt")
    assert build(tmp_path / "b.pt").classes == LABELS


def test_labels_by_name_select_the_images_of_a_task(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=COLOURS, labels=np.array(["dog", "Cat", "eel", "hen", "dog"]))
    found = build(tmp_path / "a.npz")
    assert [found[i][1] for i in range(4)] == [1, 0, 2, 1]
    assert same(found, COLOURS[[0, 1, 3, 4]])
    assert Tensors(test=str(tmp_path / "a.npz")).classes(TASK) == ("Cat", "dog", "eel", "hen")


def test_one_file_per_task_and_no_test_file(tmp_path: Path) -> None:
    save(tmp_path / "pets.npz", images=COLOURS)
    data = Tensors(train=str(tmp_path / "{task}.npz"))
    assert data.build("test", TASK, PIXELS) is None
    assert data.build("train", TASK, PIXELS) is not None
    with pytest.raises(DataError, match=r"/cars\.npz cannot be read \(No such file or directory\)\. Pass another"):
        data.build("train", Task("cars", None), PIXELS)


def refused(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as error:
        build(path, **options)  # type: ignore[arg-type]
    return str(error.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": np.zeros((5, 3, 4, 3), np.uint8)},
            "FILE: images of shape [5, 3, 4, 3] may be [n, C, H, W] or [n, H, W, C]. Pass data.layout=nchw or "
            "data.layout=nhwc.",
        ),
        (
            {"images": np.zeros((5, 4, 4, 4), np.uint8)},
            "FILE: images should be [n, C, H, W], [n, H, W, C] or [n, H, W], with 1 or 3 channels, and are "
            "[5, 4, 4, 4]. Reshape them.",
        ),
        (
            {"images": COLOURS.astype(np.float32)},
            "FILE: images should be uint8, uint16 or bool, or floats in 0..1, and range from 0 to 255. Save the "
            "pixels without normalisation, divided by 255.",
        ),
        (
            {"images": COLOURS.astype(np.float32) * np.nan},
            "FILE: images should be uint8, uint16 or bool, or floats in 0..1, and range from nan to nan. Save "
            "the pixels without normalisation, divided by 255.",
        ),
        (
            {"images": COLOURS.astype(np.int64)},
            "FILE: images should be uint8, uint16 or bool, or floats in 0..1, and are int64, whose range is not "
            "known. Save them as uint8 if they range over 0..255.",
        ),
        (
            {"x": COLOURS, "y": np.array(LABELS)},
            "FILE has no array 'images'. It holds x, y: pass data.images_key=NAME.",
        ),
        (
            {"images": COLOURS, "labels": np.eye(5)},
            "FILE: 'labels' should be 5 class indices or names, one per image, and is float64 [5, 5]. Several "
            "labels per image (multi-label) are not supported: one class index or name per image. Pass "
            "data.labels_key=NAME, or another file.",
        ),
        (
            {"images": COLOURS, "labels": np.array([0, 1, 2, 3, 4])},
            "FILE: task 'pets' has 3 labels, of which cat, dog, hen do not match any of the 5 classes without "
            "names. Pass models.sources.N.labels=[...] or another data=...",
        ),
        ({"images": COLOURS[:0]}, "FILE holds no images. Pass another data.train=PATH."),
    ],
)
def test_invalid_arrays_are_refused_with_advice(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **arrays)
    assert refused(tmp_path / "a.npz") == message


def test_the_layout_is_an_option(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 6, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", images=images)
    last, first = (build(tmp_path / "a.npz", layout=layout).read(0)[0] for layout in ("nhwc", "nchw"))
    assert np.array_equal(np.asarray(last), images[0])
    assert np.array_equal(np.asarray(first), images[0].transpose(1, 2, 0))


def test_malformed_files_are_refused_and_run_no_code(tmp_path: Path) -> None:
    for suffix in (".npz", ".npy", ".safetensors", ".pt"):
        (tmp_path / f"a{suffix}").write_bytes(b"no tensors")
        assert refused(tmp_path / f"a{suffix}").startswith("FILE cannot be read (")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert refused(tmp_path / "objects.npy").startswith("FILE cannot be read (it is damaged, or holds more")
    assert refused(tmp_path / "a.txt") == (
        "FILE: should be one of .npz, .npy, .safetensors, .pt, .pth. Pass another data.train=PATH, data.test=PATH."
    )
    with pytest.raises(DataError, match=r"^data=tensors needs data\.train=PATH \(\.npz,"):
        Tensors().build("train", TASK, PIXELS)
