"""Temperature calibration: the images and the targets it uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fsmerge_cli import evaluate, merge
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.notes import notes_in
from fsmerge_cli.common.progress import silent
from fsmerge_cli.data import ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.draw import NO_TASK, Images
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.evaluation.forward import ensemble_forward
from fsmerge_cli.evaluation.metrics import temperatures
from fsmerge_cli.evaluation.scorer import Scorer
from tests.data.test_sampling import images, pair, picture
from tests.support.sources import mlp_source

CPU = torch.device("cpu")
SOURCES = [
    mlp_source("a", [8], 1),
    mlp_source("features", [6], 2, classes=None),
    mlp_source("b", [8], 3),
]
FACTORS = (3.0, 0.5)
"""Scales of the merged model's logits relative to those of the sources."""


def labelled(root: Path) -> ImageSet:
    found = images(root).build("test", Task("a", ("a-0", "a-1", "a-2")), ToPixels((1, 4, 4)))
    assert found is not None
    return found


def unlabelled(*task: int) -> Images:
    pixels = torch.rand(len(task), 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Images(pixels, torch.tensor(task), torch.arange(len(task)), torch.arange(0))


def scorer(root: Path, given: Images) -> Scorer:
    heads = {source.name: source.head for source in SOURCES}
    return Scorer.of(heads, [labelled(root), None, None], given, Hardware(device="cpu"), CPU, silent)


def scaled(pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    features, logits = ensemble_forward(SOURCES, CPU)(pixels)
    return features, [factor * own for factor, own in zip(FACTORS, logits)]


@pytest.mark.parametrize("task", [[NO_TASK] * 9, [0] * 9, [0, 1, NO_TASK] * 3])
def test_if_a_task_has_no_images_temperatures_match_the_confidence_of_the_sources(
    tmp_path: Path, task: list[int]
) -> None:
    it = scorer(tmp_path, unlabelled(*task))
    ensemble, reference = it.sources(SOURCES)
    assert ensemble.temperatures == {"a": 1.0, "b": 1.0}
    merged, _ = it.row("merged", scaled, reference)
    assert merged.temperatures == pytest.approx(dict(zip("ab", FACTORS)), rel=1e-3)
    assert merged.joint["softmax_calibrated"] == ensemble.joint["softmax"]
    without_sources, _ = it.row("merged", scaled)
    assert (without_sources.temperatures, without_sources.joint.keys()) == ({}, {"softmax", "logits"})


def test_if_every_task_has_images_only_they_set_the_temperatures(tmp_path: Path) -> None:
    it = scorer(tmp_path, unlabelled(*[0, 2, NO_TASK, 1] * 5))
    ensemble, reference = it.sources(SOURCES)
    merged, outputs = it.row("merged", scaled, reference)
    assert it.images is not None
    own = (it.images.task == 0) | (it.images.task == 2)
    _, logits = scaled(it.images.images[own])
    expected = temperatures(logits, torch.tensor([0, 1] * 5))
    assert list(merged.temperatures.values()) == pytest.approx(expected)
    assert [len(own) for own in outputs.calibrating] == [10, 10]
    assert ensemble.temperatures != {"a": 1.0, "b": 1.0}


def partly(root: Path, auxiliary: bool) -> dict[str, object]:
    """Test images of a, test and training images of b, and optionally auxiliary unlabelled images."""
    data = images(root / "images", train=8)
    own = {"name": "folder", "root": data.root}
    for n in range(4):
        picture(root / f"more/{n}.png", 5000 + n)
    return {
        "name": "per_task",
        "tasks": {"a": {**own, "images_per_task": 0}, "b": {**own, "images_per_task": 6}},
        **({"auxiliary": {"name": "folder", "root": str(root / "more")}} if auxiliary else {}),
    }


@pytest.mark.full
@pytest.mark.parametrize("auxiliary", [False, True])
def test_an_evaluation_with_the_sources_finds_the_temperatures_of_the_merge(
    tmp_path: Path, auxiliary: bool
) -> None:
    data = partly(tmp_path, auxiliary)
    found = merge(pair(tmp_path), data=data, method="average", output=tmp_path / "out")
    assert found.scores["merged"].temperatures.keys() == {"a", "b"}
    again = evaluate(tmp_path / "out", data="from_run", sources=True)
    assert again.scores["merged"].temperatures == pytest.approx(found.scores["merged"].temperatures, rel=1e-4)
    without_sources = evaluate(tmp_path / "out", data="from_run")
    assert without_sources.scores["merged"].temperatures == {}
    assert tuple(notes_in(without_sources.notes)) == (
        "not calibrated: some task has no images. With --sources the predictions of the sources are used instead",
    )


def test_an_evaluation_without_its_auxiliary_images_is_not_calibrated(tmp_path: Path) -> None:
    merge(pair(tmp_path), data=partly(tmp_path, auxiliary=True), method="average", output=tmp_path / "out")
    (tmp_path / "more").rename(tmp_path / "moved")
    with pytest.raises(DataError) as error:
        Folder(root=str(tmp_path / "more")).build("train", Task("", None), ToPixels((1, 4, 4)))
    found = evaluate(tmp_path / "out", data="from_run", sources=True)
    assert found.scores["merged"].temperatures == {}
    assert tuple(notes_in(found.notes)) == (
        f"not calibrated, which needs images besides the test images: data.auxiliary: {error.value}",
    )
