"""`fsmerge finetune`, resuming: the same bytes as without an interruption, and only of the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fsmerge_cli.common.errors import (
    ConfigError,
    OutputError,
)
from fsmerge_cli.common.progress import Event
from fsmerge_cli.data import labelled
from tests.support.finetuning import (
    StopError,
    small_finetune,
    stop_after,
    weight_bytes,
    write_class_folders,
)

pytestmark = pytest.mark.full


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("count", [3, 20, 33])
def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    count: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(labelled, "MAX_KEPT_BYTES", 0)
    data = {"augment": "shift", "images_per_task": 100}
    small_finetune(output=tmp_path / "whole", data=data)
    with pytest.raises(StopError):
        small_finetune(output=tmp_path / "parts", data=data, checkpoint_every=2, progress=stop_after(count))
    assert [path.name for path in tmp_path.iterdir() if path.name != "whole"] == [".parts.state"]
    seen: list[Event] = []
    done = small_finetune(output=tmp_path / "parts", data=data, resume=True, progress=seen.append)
    assert sum(event.phase.startswith("train") for event in seen) <= 60 - count + 3
    assert weight_bytes(tmp_path / "whole") == weight_bytes(tmp_path / "parts")
    assert len(done.trace.loss) == 60
    assert not (tmp_path / ".parts.state").exists()


def test_another_run_cannot_be_continued(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.phase == "train all" and event.done == 3:
            raise StopError

    with pytest.raises(StopError):
        small_finetune(output=tmp_path / "out", checkpoint_every=1, progress=stop)
    with pytest.raises(OutputError, match=r"an interrupted run into .*out left its state \(step 2 of 40\)"):
        small_finetune(output=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"training\.lr was 0\.003 and is now 0\.1"):
        small_finetune(output=tmp_path / "out", resume=True, training={"lr": 0.1})


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_on_other_images_cannot_be_continued(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(labelled, "MAX_KEPT_BYTES", 0)

    def stop(event: Event) -> None:
        if event.phase == "train all":
            raise StopError

    write_class_folders(tmp_path)
    data = {"name": "folder", "root": str(tmp_path), "test_share": 0.0}
    given: dict[str, Any] = {"task": "pets", "labels": ("cat", "dog"), "data": data, "output": tmp_path / "out"}
    with pytest.raises(StopError):
        small_finetune(**given, checkpoint_every=1, progress=stop)
    Image.new("L", (8, 8), 99).save(tmp_path / "pets/cat/3.png")
    with pytest.raises(ConfigError, match=r'has other options:\n  - images was "\w{64}" and is now "\w{64}"\n'):
        small_finetune(**given, resume=True)
