"""Outputs on the test images: the same from the cache as from the networks."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fsmerge_cli import merge
from fsmerge_cli.common.cache import feature_folder
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.data import ImageSet
from fsmerge_cli.evaluation import forward
from fsmerge_cli.evaluation.forward import Outputs, TestSet, ensemble_forward
from fsmerge_cli.models.source import Source
from fsmerge_cli.training import feature_key as feature_key_module
from fsmerge_cli.training.feature_key import feature_key
from tests.data.test_sampling import images, pair, picture
from tests.evaluation.test_score_table import labelled
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

CPU = torch.device("cpu")
SOURCES = [mlp_source("a", [8], 1), mlp_source("features", [6], 2, classes=None)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))


def entries() -> set[Path]:
    return set(feature_folder().glob("*.npy"))


LABELLED: dict[Path, ImageSet] = {}


def predicted(
    root: Path, sources: Sequence[Source] = SOURCES, progress: Progress = silent, **options: Any
) -> Outputs:
    hardware = Hardware(**{"device": "cpu", "eval_batch": 5, **options})
    if root not in LABELLED:  # `labelled` writes the images
        LABELLED[root] = labelled(root)
    tests = TestSet(("a", "features"), (LABELLED[root], None), hardware, CPU, progress)
    return tests.predict(ensemble_forward(sources, CPU), "sources")


def tensors(found: Outputs) -> list[Tensor]:
    return [*found.logits, *found.features]


def test_outputs_from_the_cache_are_those_of_the_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = predicted(tmp_path / "images", features="memory")
    assert not entries()
    first = predicted(tmp_path / "images")
    assert len(entries()) == 1

    def fails(*_: object) -> Tensor:
        raise AssertionError("a network was run")

    monkeypatch.setattr(forward, "functional_call", fails)
    second = predicted(tmp_path / "images")
    with pytest.raises(AssertionError, match="a network was run"):
        predicted(tmp_path / "images", features="live")
    assert [t.shape[1] for t in tensors(live)] == [3, 8, 6]
    for a, b, c in zip(tensors(live), tensors(first), tensors(second), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_other_weights_images_or_batches_are_another_entry(tmp_path: Path) -> None:
    predicted(tmp_path / "images")
    changed = replace(SOURCES[0], weights={name: t + 1 for name, t in SOURCES[0].weights.items()})
    for count, found in enumerate(
        [
            lambda: predicted(tmp_path / "images", [changed, SOURCES[1]]),
            lambda: predicted(tmp_path / "images", eval_batch=6),
            lambda: predicted(tmp_path / "images", SOURCES[:1]),
        ],
        2,
    ):
        found()
        assert len(entries()) == count
    first = sorted((tmp_path / "images/a/test").rglob("*.png"))[0]
    picture(first, 5000)
    for kept, live in zip(
        tensors(predicted(tmp_path / "images")), tensors(predicted(tmp_path / "images", features="memory"))
    ):
        assert torch.equal(kept, live)
    assert len(entries()) == 5


def test_without_a_writable_cache_the_outputs_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = predicted(tmp_path / "images")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "file"))
    events: list[Event] = []
    for a, b in zip(
        tensors(expected), tensors(predicted(tmp_path / "images", progress=events.append)), strict=True
    ):
        assert torch.equal(a, b)
    assert [event.phase for event in events if "cache" in event.phase.lower()] == [
        f"features are kept in memory: {tmp_path}/file/features cannot be written (Not a directory); "
        "set FSMERGE_CACHE=FOLDER to use another folder"
    ]


def test_other_code_of_a_network_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also code outside the module of `build`: blocks that an adapted network consists of."""
    source = vit_source("rotary, registers (DINOv3)", 1)
    network = source.family, source.arch, source.weights
    modules = feature_key_module._modules(source.family, source.arch)
    assert modules == {f"fsmerge_cli.architectures.{name}" for name in ("vit.arch", "eva.family", "eva.module")}
    before = feature_key([network], "", forward.__name__, Hardware(), CPU)
    real = inspect.getsource
    monkeypatch.setattr(
        inspect, "getsource", lambda module: real(module) + "#" * (module.__name__.endswith("eva.module"))
    )
    assert feature_key([network], "", forward.__name__, Hardware(), CPU) != before


@pytest.mark.full
def test_a_second_method_reuses_the_sources_and_the_average(tmp_path: Path) -> None:
    """Each merge adds no entry of its own evaluation to the first one's."""
    data = images(tmp_path / "images")
    first = merge(pair(tmp_path), data=data, method="average", output=tmp_path / "average")
    count = len(entries())
    second = merge(pair(tmp_path), data=data, method="slerp", output=tmp_path / "slerp")
    assert count == len(entries()) == 2
    for name in ("ensemble", "average"):
        assert first.scores[name] == second.scores[name]
