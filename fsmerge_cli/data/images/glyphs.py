"""Drawn characters of eight alphabets, in the fonts that matplotlib ships: many tasks without a download.

An image is a pure function of its character, its split, its index and its size, so that it is the same in every
task with that character and in any order of access. Train and test share neither seeds nor fonts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.options import FORBID, Positive
from fsmerge_cli.common.seeding import derive
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task

ALPHABETS: dict[str, str] = {
    "digits": "0123456789",
    "capitals": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "lower": "abcdefghijklmnopqrstuvwxyz",
    # Only those capitals that look like neither a Latin nor a lower-case letter.
    "greek": "αβγδεζηθικλμνξοπρστυφχψωΓΔΛΞΣΩ",
    # Capitals, because lower-case italics look like other letters.
    "cyrillic": "АБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ",
    # No final forms: some differ from another letter only in length.
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשת",
    # Without hyun, which occurs only in digraphs and differs from lyun mainly in length.
    "armenian": "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցփքօֆ",
    # None with a special meaning in YAML, Hydra or file names.
    "symbols": "±×÷≠≤≥≈∞√∑∫∂∇∈∪∩⊂∀∃←→↑↓↔§¶€£¥†",  # noqa: RUF001
}
"""Alphabet -> its characters in order; the alphabets are disjoint."""

TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
    "cmb10",
    "cmr10",
    "cmti10",
    "cmtt10",
)
TEST_FONTS = ("DejaVuSans-Oblique", "DejaVuSansMono-Bold", "DejaVuSerif-Italic", "STIXGeneralBol", "cmss10")
"""File names of text fonts; matplotlib's other fonts hold parts of formulas or have private encodings."""

SEED = 0
TYPICAL, LARGEST = 0.7, 0.88
"""Longer side of an alphabet's median and largest character, relative to the image, before the random scale."""

OVERSAMPLING = 2
"""Characters are drawn larger than the image by this factor, then rotated and shrunk in one step."""

TRIAL = 48
"""Point size at which the characters of a font are measured."""

TURN, SHEAR, SHIFT = 5.0, 0.08, 0.025
"""Largest rotation in degrees, shear, and translation as a share of the image."""

SCALE, ASPECT = 0.06, 0.04
"""Largest relative change of the size, and of the ratio of width to height."""

CONTRAST = (0.45, 1.0)
"""Difference between foreground and background in grey levels of 0..1; the foreground is brighter."""

TILT, NOISE = 0.1, (0.01, 0.06)
"""Largest change of the background from border to border; range of the standard deviation of pixel noise."""

Size = Annotated[int, Field(strict=True, ge=12)]


@dataclass(frozen=True, config=FORBID)
class Glyphs(DataConfig):
    """Images of the characters of ALPHABETS that are a task's labels, from one alphabet or several.

    train_images, test_images: images per class in each split. size: width and height of an image in pixels, at
    least 12: in smaller images, characters cannot be distinguished.
    """

    name: Literal["glyphs"] = "glyphs"
    train_images: Positive = 100
    test_images: Positive = 20
    size: Size = 24

    @classmethod
    def label_sets(cls) -> Mapping[str, tuple[str, ...]]:
        """The alphabets by name."""
        return {name: tuple(characters) for name, characters in ALPHABETS.items()}

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet:
        """Images of one split; image i is of class i modulo the number of classes."""
        labels = _known(task)
        fonts = [_fonts(_alphabet_of()[label])[split] for label in labels]
        rows = range(len(labels) * (self.train_images if split == "train" else self.test_images))
        return ImageSet(len(rows), partial(_read, labels, fonts, split, self.size), transform, labelled=True)


def _read(
    labels: Sequence[str], fonts: Sequence[tuple[Path, ...]], split: Split, size: int, i: int
) -> tuple[Image.Image, int]:
    copy, index = divmod(i, len(labels))
    return _draw(labels[index], fonts[index], split, copy, size), index


def _known(task: Task) -> tuple[str, ...]:
    """The labels of `task`; DataError if it has none, or one is not a character of the alphabets."""
    labels = task.labels or ()
    unknown = [label for label in labels if label not in _alphabet_of()]
    if labels and not unknown:
        return labels
    wrong = (
        f"the labels {', '.join(map(repr, unknown))} of task '{task.name}' are in none of its alphabets"
        if unknown
        else f"task '{task.name}' has no labels, so there is nothing to draw"
    )
    raise DataError(
        f"data=glyphs: {wrong}. The alphabets are {', '.join(f'{n} ({c})' for n, c in ALPHABETS.items())}. "
        "Pass models.sources.N.labels=[...] with single characters, or another data=..."
    )


@cache
def _alphabet_of() -> dict[str, str]:
    """Character -> name of its alphabet."""
    return {character: name for name, characters in ALPHABETS.items() for character in characters}


@cache
def _fonts(alphabet: str) -> dict[str, tuple[Path, ...]]:
    """The fonts of each split that have every character of `alphabet`."""
    needed = {ord(character) for character in ALPHABETS[alphabet]}
    sides = {"train": TRAIN_FONTS, "test": TEST_FONTS}
    found: dict[str, tuple[Path, ...]] = {}
    for split, names in sides.items():
        paths = [_folder() / f"{name}.ttf" for name in names]
        found[split] = tuple(path for path in paths if path.is_file() and needed <= _covered(path))
    for split, names in sides.items():
        if not found[split]:
            raise DataError(
                f"data=glyphs: {_folder()} has no {split} font for {alphabet}: one of "
                f"{', '.join(names)} is needed. Reinstall matplotlib with its fonts: "
                "pip install --force-reinstall matplotlib"
            )
    return found


@cache
def _folder() -> Path:
    """Where matplotlib keeps its TrueType fonts."""
    try:
        import matplotlib
    except ImportError:
        raise DataError("data=glyphs needs matplotlib's fonts: pip install matplotlib") from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@cache
def _covered(path: Path) -> frozenset[int]:
    """Code points that the font has a glyph for."""
    from fontTools.ttLib import TTFont  # comes with matplotlib

    with TTFont(path, lazy=True) as font:
        return frozenset(font.getBestCmap() or ())


@cache
def _points(path: Path, alphabet: str, size: int) -> float:
    """The point size at which the median character of `alphabet` fills the share TYPICAL of a stencil."""
    longer = statistics.median(max(_ink(path, character, TRIAL).size) for character in ALPHABETS[alphabet])
    return TRIAL * TYPICAL * OVERSAMPLING * size / longer


@cache
def _stencil(path: Path, character: str, size: int) -> Image.Image:
    """The character in white on black, centred, OVERSAMPLING times larger than the image."""
    side = OVERSAMPLING * size
    points = _points(path, _alphabet_of()[character], size)
    ink = _ink(path, character, round(points))
    excess = max(ink.size) / (LARGEST * side)
    if excess > 1:
        ink = _ink(path, character, int(points / excess))
    stencil = Image.new("L", (side, side))
    stencil.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return stencil


def _ink(path: Path, character: str, points: int) -> Image.Image:
    """The character in white on black, cropped to its pixels (a font's own boxes extend to the baseline)."""
    page = Image.new("L", (3 * points, 3 * points))
    ImageDraw.Draw(page).text((points, 2 * points), character, 255, _open(path, points), anchor="ls")
    return page.crop(page.getbbox())


@cache
def _open(path: Path, points: int) -> ImageFont.FreeTypeFont:
    """The font in basic layout: Raqm is not in every build of Pillow, and single characters do not need it."""
    return ImageFont.truetype(path, points, layout_engine=ImageFont.Layout.BASIC)


def _draw(character: str, fonts: tuple[Path, ...], split: Split, copy: int, size: int) -> Image.Image:
    """One image; fonts alternate with `copy`, so that every class has each font equally often."""
    random = np.random.default_rng(derive(SEED, "glyphs", split, character, copy))
    stencil = _stencil(fonts[copy % len(fonts)], character, size)
    place = _affine(random.uniform(-1, 1, 6).tolist(), size)
    ink = stencil.transform((size, size), Image.Transform.AFFINE, place, Image.Resampling.BILINEAR)
    return Image.fromarray(_shade(np.asarray(ink, dtype=np.float32) / 255, random))


def _affine(random: list[float], size: int) -> tuple[float, ...]:
    """Coefficients of the affine map from image to stencil coordinates, from six random values in -1..1."""
    turn, shear, scale, aspect, right, down = random
    angle = math.radians(TURN * turn)
    cos, sin = math.cos(angle), math.sin(angle)
    wide = OVERSAMPLING / (1 + SCALE * scale) / (1 + ASPECT * aspect)
    high = OVERSAMPLING / (1 + SCALE * scale) * (1 + ASPECT * aspect)
    a, b = wide * (cos + SHEAR * shear * sin), wide * (SHEAR * shear * cos - sin)
    c, d = high * sin, high * cos
    x, y = size * (0.5 + SHIFT * right), size * (0.5 + SHIFT * down)
    middle = OVERSAMPLING * size / 2
    return a, b, middle - a * x - b * y, c, d, middle - c * x - d * y


def _shade(ink: npt.NDArray[np.floating], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A character in 0..1 on a background of random brightness and slope, with noise, in grey levels 0..255."""
    contrast = random.uniform(*CONTRAST)
    paper = random.uniform(0, 1 - contrast)
    slope = np.linspace(-0.5, 0.5, len(ink), dtype=np.float32)
    across, down = random.uniform(-TILT, TILT, 2)
    noise = random.standard_normal(ink.shape, dtype=np.float32) * random.uniform(*NOISE)
    grey = paper + contrast * ink + across * slope + down * slope[:, None] + noise
    levels: npt.NDArray[np.uint8] = np.rint(grey.clip(0, 1) * 255).astype(np.uint8)
    return levels
