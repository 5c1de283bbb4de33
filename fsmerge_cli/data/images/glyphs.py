"""Drawn characters of eight alphabets, in the fonts that matplotlib ships: many tasks without a download.

An image is a pure function of its character, its split, its number and its size, so that it is the same in every
task that the character belongs to, whatever is asked before it. Train and test share neither seeds nor fonts.
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
    # Capitals only where neither the Latin nor the lower-case letter looks alike.
    "greek": "αβγδεζηθικλμνξοπρστυφχψωΓΔΛΞΣΩ",
    # Capitals, because the italics of the lower case are other letters' shapes.
    "cyrillic": "АБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ",
    # No final forms: some differ from another letter in nothing but length.
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשת",
    # Without the hyun, which is only written in digraphs and differs from the lyun in little but length.
    "armenian": "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցփքօֆ",
    # None that YAML, Hydra or a file name would read as something else.
    "symbols": "±×÷≠≤≥≈∞√∑∫∂∇∈∪∩⊂∀∃←→↑↓↔§¶€£¥†",  # noqa: RUF001
}
"""Alphabet -> its characters in order; no character is in two of them."""

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
"""File names of text fonts. The others that matplotlib ships have pieces of formulas or private encodings."""

SEED = 0
TYPICAL, LARGEST = 0.7, 0.88
"""Longer side of an alphabet's median character, and of any, as shares of the image before the random scale."""

OVERSAMPLING = 2
"""Characters are drawn this much larger than the image and then turned and shrunk in one step."""

TRIAL = 48
"""Point size at which the characters of a font are measured."""

TURN, SHEAR, SHIFT = 5.0, 0.08, 0.025
"""Largest rotation in degrees, shear, and translation as a share of the image."""

SCALE, ASPECT = 0.06, 0.04
"""Largest relative change of the size, and of width against height."""

CONTRAST = (0.45, 1.0)
"""Difference between ink and paper in grey levels of 0..1; the ink is the brighter one."""

TILT, NOISE = 0.1, (0.01, 0.06)
"""Largest change of the paper from one border to the other; standard deviation of the noise per pixel."""

Size = Annotated[int, Field(strict=True, ge=12)]


@dataclass(frozen=True, config=FORBID)
class Glyphs(DataConfig):
    """The characters of ALPHABETS that are a task's labels, from one alphabet or from several.

    train_images, test_images: images per class in each split. size: width and height of an image in pixels,
    from 12 on, under which characters cannot be told apart.
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
    """The labels of `task`, or DataError where it has none or one is not a character of the alphabets."""
    labels = task.labels or ()
    strangers = [label for label in labels if label not in _alphabet_of()]
    if labels and not strangers:
        return labels
    wrong = (
        f"the labels {', '.join(map(repr, strangers))} of task '{task.name}' are in none of its alphabets"
        if strangers
        else f"task '{task.name}' has no labels, which say what to draw"
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
        raise DataError("data=glyphs needs matplotlib's fonts: pip install 'fsmerge[embedded]'") from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@cache
def _covered(path: Path) -> frozenset[int]:
    """Code points that the font has a glyph for."""
    from fontTools.ttLib import TTFont  # comes with matplotlib

    with TTFont(path, lazy=True) as font:
        return frozenset(font.getBestCmap() or ())


@cache
def _points(path: Path, alphabet: str, size: int) -> float:
    """The point size at which the median character of `alphabet` fills TYPICAL of a stencil."""
    longer = statistics.median(max(_ink(path, character, TRIAL).size) for character in ALPHABETS[alphabet])
    return TRIAL * TYPICAL * OVERSAMPLING * size / longer


@cache
def _stencil(path: Path, character: str, size: int) -> Image.Image:
    """The character in white on black, in the middle, OVERSAMPLING times larger than the image."""
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
    """The character in white on black, cropped to what is drawn (a font's own boxes reach to the baseline)."""
    page = Image.new("L", (3 * points, 3 * points))
    ImageDraw.Draw(page).text((points, 2 * points), character, 255, _open(path, points), anchor="ls")
    return page.crop(page.getbbox())


@cache
def _open(path: Path, points: int) -> ImageFont.FreeTypeFont:
    """Basic layout: the other engine is not in every build of Pillow, and single characters need none."""
    return ImageFont.truetype(path, points, layout_engine=ImageFont.Layout.BASIC)


def _draw(character: str, fonts: tuple[Path, ...], split: Split, copy: int, size: int) -> Image.Image:
    """One image; the fonts take turns, so that every class sees each of them equally often."""
    random = np.random.default_rng(derive(SEED, "glyphs", split, character, copy))
    stencil = _stencil(fonts[copy % len(fonts)], character, size)
    place = _affine(random.uniform(-1, 1, 6).tolist(), size)
    ink = stencil.transform((size, size), Image.Transform.AFFINE, place, Image.Resampling.BILINEAR)
    return Image.fromarray(_shade(np.asarray(ink, dtype=np.float32) / 255, random))


def _affine(random: list[float], size: int) -> tuple[float, ...]:
    """Coefficients that take a pixel of the image to its place in the stencil, from six numbers in -1..1."""
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
    """Ink of 0..1 on a paper of random brightness and slope, with noise, in grey levels of 0..255."""
    contrast = random.uniform(*CONTRAST)
    paper = random.uniform(0, 1 - contrast)
    slope = np.linspace(-0.5, 0.5, len(ink), dtype=np.float32)
    across, down = random.uniform(-TILT, TILT, 2)
    noise = random.standard_normal(ink.shape, dtype=np.float32) * random.uniform(*NOISE)
    grey = paper + contrast * ink + across * slope + down * slope[:, None] + noise
    levels: npt.NDArray[np.uint8] = np.rint(grey.clip(0, 1) * 255).astype(np.uint8)
    return levels
