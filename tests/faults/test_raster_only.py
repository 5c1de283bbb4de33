"""No file of a data set starts a program: PostScript under the suffix of an image is refused everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.decode import FORMATS, open_image, raster_only
from fsmerge_cli.data.images.files import SUFFIXES
from tests.support.image_sets import EVERY, Opened

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    calls: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given: calls.append(given))
    return calls


@pytest.mark.full
@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_postscript_is_not_opened(kind: Opened, tmp_path: Path, started: list[object]) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "t/train" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"t/train/{label}/0.png")
        (tmp_path / f"t/train/{label}/1.png").write_bytes(POSTSCRIPT)
    images = kind(tmp_path).build("train", Task("t", ("cat", "dog")), ToPixels((3, 8, 8)))
    assert images is not None
    refused = 0
    for i in range(len(images)):
        try:
            images[i]
        except DataError as error:
            refused += "cannot be read" in str(error)
    assert refused == 2
    assert started == []


def test_the_formats_are_those_of_the_suffixes() -> None:
    Image.init()
    opened = {suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS}
    assert opened >= SUFFIXES


def format_of(path: Path) -> str | None:
    with Image.open(path) as image:
        return image.format


def test_postscript_would_be_opened_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(POSTSCRIPT)
    assert format_of(path) == "EPS"
    with raster_only(), pytest.raises(OSError, match="cannot identify image file"):
        Image.open(path)
    with pytest.raises(OSError, match="cannot identify image file"):
        open_image(path)
    assert format_of(path) == "EPS"  # afterwards nothing is changed for the process


def test_no_other_code_opens_an_image() -> None:
    """Programs, examples and pages of the documentation open files only through `open_image`."""
    root = Path(__file__).resolve().parents[2]
    kinds = ("fsmerge_cli/**/*.py", "scripts/**/*.py", "docs/**/*.md", "*.md")
    found = [path for kind in kinds for path in root.glob(kind) if "Image.open(" in path.read_text()]
    assert found == []
