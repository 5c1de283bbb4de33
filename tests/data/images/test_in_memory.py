"""Images from Python: every form gives the same pixels, labels and results as the same images in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from fsmerge_cli import check, evaluate, load_source, merge
from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.data import Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.in_memory import InMemory
from tests.data.test_sampling import pair

PIXELS = torch.randint(0, 256, (24, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
LABELS = torch.arange(24) % 3
ONE = Task("a", ("a-0", "a-1", "a-2"), named=False)


class Images(Dataset[Any]):
    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        if index >= 24:
            raise IndexError
        return self.item(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(PIXELS, LABELS))


class Sized(Stream):
    def __len__(self) -> int:
        return 24


class Mappings(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter({"image": own, "label": label} for own, label in zip(PIXELS, LABELS))


def inverted(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([255 - own for own, _ in rows]), torch.stack([label for _, label in rows])


def picture(i: int) -> Image.Image:
    return Image.fromarray(PIXELS[i, 0].numpy())


def files(root: Path) -> list[Path]:
    for i in range(24):
        picture(i).save(root / f"{i:02}.png")
    return sorted(root.glob("*.png"))


UNLABELLED: dict[str, Callable[[Path], Any]] = {
    "tensor": lambda _: PIXELS,
    "floats": lambda _: PIXELS / 255,
    "half": lambda _: (PIXELS / 255).double(),
    "array, channels last": lambda _: PIXELS.movedim(1, -1).numpy(),
    "array without channels": lambda _: PIXELS[:, 0].numpy(),
    "list of images": lambda _: [picture(i) for i in range(24)],
    "list of tensors": lambda _: list(PIXELS),
    "list of paths": files,
    "list of strings": lambda root: [str(path) for path in files(root)],
    "folder in a mapping": lambda root: {"train": [*files(root)][:0] or root},
    "dataset": lambda _: Images(lambda i: PIXELS[i]),
    "tensor dataset": lambda _: TensorDataset(PIXELS),
    "loader": lambda _: DataLoader(TensorDataset(PIXELS / 255), batch_size=7),
    "generator": lambda _: (picture(i) for i in range(24)),
    "train": lambda _: {"train": PIXELS},
}

LABELLED: dict[str, Callable[[Path], Any]] = {
    "pair": lambda _: (PIXELS, LABELS),
    "pair of lists": lambda root: (files(root), LABELS.tolist()),
    "pairs": lambda _: [(picture(i), int(LABELS[i])) for i in range(24)],
    "dataset": lambda _: Images(lambda i: (PIXELS[i], LABELS[i])),
    "mappings": lambda _: Images(lambda i: {"img": picture(i), "label": int(LABELS[i])}),
    "tensor dataset": lambda _: TensorDataset(PIXELS, LABELS),
    "stream": lambda _: DataLoader(Stream(), batch_size=5),
    "a stream with a length": lambda _: Sized(),
    "a stream of mappings": lambda _: DataLoader(Mappings(), batch_size=5),
    "pair without channels": lambda _: (PIXELS[:, 0], LABELS),
    "a subset": lambda _: Subset(TensorDataset(PIXELS, LABELS), range(24)),
    "a loader that mixes": lambda _: DataLoader(TensorDataset(PIXELS, LABELS), batch_size=5, shuffle=True),
    "a collate function": lambda _: DataLoader(
        TensorDataset(255 - PIXELS, LABELS), batch_size=5, collate_fn=lambda rows: inverted(rows)
    ),
    "names": lambda _: (PIXELS, [f"a-{int(i)}" for i in LABELS]),
}


def prepare(root: Path, found: Any) -> InMemory:
    if isinstance(found, dict) and "train" in found:
        files(root)
    return InMemory(content=found)


@pytest.mark.parametrize("kind", UNLABELLED)
def test_every_form_without_labels_is_the_same_images(tmp_path: Path, kind: str) -> None:
    data = prepare(tmp_path, UNLABELLED[kind](tmp_path))
    assert data.is_mixed(["a", "b"])
    found = data.build("train", Task("", None), ToPixels((1, 4, 4)))
    assert found is not None
    assert data.build("test", Task("", None), ToPixels((1, 4, 4))) is None
    assert not found.labelled
    assert torch.equal(torch.stack([found[i][0] for i in range(len(found))]), PIXELS / 255)


@pytest.mark.parametrize("kind", LABELLED)
def test_every_form_with_labels_is_the_same_images_and_labels(tmp_path: Path, kind: str) -> None:
    data = prepare(tmp_path, LABELLED[kind](tmp_path))
    assert not data.is_mixed(["a", "b"])
    task = Task("a", ONE.labels) if kind == "names" else ONE
    found = data.build("train", task, ToPixels((1, 4, 4)))
    assert found is not None
    assert torch.equal(torch.stack([found[i][0] for i in range(len(found))]), PIXELS / 255)
    assert [found[i][1] for i in range(len(found))] == LABELS.tolist()


def test_colours_and_channels_are_kept() -> None:
    pixels = torch.rand(5, 3, 6, 6)
    data = InMemory(content=pixels)
    found = data.build("train", Task("", None), ToPixels((3, 6, 6)))
    assert found is not None
    torch.testing.assert_close(found[3][0], pixels[3], atol=0.51 / 255, rtol=0)


def test_a_dataset_with_targets_is_not_read_for_its_labels() -> None:
    def fails(_: int) -> Any:
        raise AssertionError("an image was read")

    own = Images(lambda i: (PIXELS[i], 0) if i == 0 else fails(i))
    own.targets = LABELS.tolist()  # type: ignore[attr-defined]
    own.classes = ["a-0", "a-1", "a-2"]  # type: ignore[attr-defined]
    data = InMemory(content=own)
    found = data.build("train", Task("a", ("a-2", "a-0")), ToPixels((1, 4, 4)))
    assert found is not None
    assert found.classes == [[1, -1, 0][i] for i in LABELS.tolist() if i != 1]
    assert data.classes(ONE) == ("a-0", "a-1", "a-2")


class NoImage:
    def __repr__(self) -> str:
        return "NoImage()"


WRONG: dict[str, tuple[Any, str]] = {
    "normalised": (
        PIXELS / 255 - 0.5,
        "data: images should be uint8, uint16 or bool, or floats in 0..1, and range from -0.5 to 0.5. Save the "
        "pixels without normalisation, divided by 255.",
    ),
    "shape": (
        torch.zeros(4, 5, 6, 7),
        "data: images should be [n, C, H, W], [n, H, W, C] or [n, H, W], with 1 or 3 channels, and are "
        "[4, 5, 6, 7]. Reshape them.",
    ),
    "count": ((PIXELS, LABELS[:5]), "data: there are 24 images and 5 labels."),
    "labels": ((PIXELS, LABELS / 2), "data: the label 0.0 is no class index and no name."),
    "no collection": (
        3,
        "data: 3 is no collection of images. Pass a tensor or array of images, a pair (images, labels), a list of "
        "images or paths, a folder, or a torch Dataset or DataLoader.",
    ),
    "no images": (
        [],
        "data holds no images. Pass a tensor or array of images, a pair (images, labels), a list of images or "
        "paths, a folder, or a torch Dataset or DataLoader.",
    ),
    "an item": (
        [NoImage()] * 4,
        "data[0] is no image: NoImage(). Pass a tensor or array of images, a pair (images, labels), a list of "
        "images or paths, a folder, or a torch Dataset or DataLoader.",
    ),
    "keys": (
        [{"text": "x"}],
        "data[0]: none of the keys text is image, img, images, pixels, pixel_values.",
    ),
    "another task": ({"b": PIXELS}, "data: there are no images for task 'a'. Given: b. Pass {\"a\": ...}."),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_images_is_refused(kind: str) -> None:
    content, message = WRONG[kind]

    def first() -> object:
        found = InMemory(content=content).build("train", ONE, ToPixels((1, 4, 4)))
        return found and found[0]

    with pytest.raises(DataError) as error:
        first()
    assert str(error.value) == message


def test_a_merge_of_loaded_sources_with_tensors_is_that_of_files(tmp_path: Path) -> None:
    entries = pair(tmp_path)
    loaded = [load_source(entry) for entry in entries]
    np.savez(tmp_path / "images.npz", images=PIXELS.numpy())
    stored = {"name": "tensors", "train": str(tmp_path / "images.npz"), "images_per_task": "all"}
    expected = merge(entries, data=stored, method="zipit")
    found = merge(loaded, data={"a": PIXELS, "b": PIXELS}, method="zipit", output=tmp_path / "out")
    for name, tensor in expected.solution.weights.items():
        assert torch.equal(found.solution.weights[name], tensor)
    assert [repr(check(loaded)), repr(check(entries))] == [repr(check(entries))] * 2
    with pytest.raises(ConfigError) as error:
        evaluate(tmp_path / "out", data="from_run")
    assert str(error.value) == (
        f"{tmp_path / 'out'}/config.yaml: the images came from Python "
        '({"a": "Tensor [24, 1, 4, 4]", "b": "Tensor [24, 1, 4, 4]"}) and are not in the folder of the run. Pass '
        "data=NAME with your own data."
    )


@pytest.mark.full
def test_a_changed_source_is_what_is_merged(tmp_path: Path) -> None:
    loaded = [load_source(entry) for entry in pair(tmp_path)]
    zero = replace(loaded[0], weights={n: torch.zeros_like(t) for n, t in loaded[0].weights.items()})
    found = merge([zero, loaded[1]], method="average", data="none")
    for name, tensor in loaded[1].weights.items():
        torch.testing.assert_close(found.solution.weights[name], tensor / 2)
    assert found.provenance["sources"][0]["sha256"] != loaded[0].sha256


def test_a_loaded_source_takes_no_further_keys(tmp_path: Path) -> None:
    loaded = load_source(pair(tmp_path)[0])
    with pytest.raises(ConfigError) as error:
        merge(
            [{"name": "a", "loaded": loaded, "labels": ["x"]}],
            method="average",
            data={"name": "none", "images_per_task": 20},
        )
    assert str(error.value) == ("source 'a' is loaded already, so labels has no effect. Pass it to load_source.")


def test_one_collection_for_all_tasks_has_labels_in_both_splits_or_in_none(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        merge(pair(tmp_path), data={"train": PIXELS, "test": (PIXELS, LABELS)}, method="regmean")
    assert str(error.value) == (
        "data: the test images have labels, and the training images have none, so that they belong to no task. "
        'Pass one entry per task: data={"TASK": {"train": ..., "test": ...}, ...}.'
    )


def test_a_folder_is_data_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    files(tmp_path / "photos")
    found = merge(pair(tmp_path), data=tmp_path / "photos", method="regmean")
    also = merge(pair(tmp_path), data=str(tmp_path / "photos"), method="regmean")
    tensor: Tensor
    for name, tensor in found.solution.weights.items():
        assert torch.equal(also.solution.weights[name], tensor)
