"""Images generated from a seed: strokes, shapes and soft textures, for merging without any images.

Teachers can be run on such images much as on photographs or characters: the images need edges, junctions, curves
and shades at many scales, not meaning (compare Learning to See by Looking at Noise, arXiv 2106.05963, where such
images train features).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID, Positive
from fsmerge_cli.common.seeding import derive
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task

OVERSAMPLING = 2
"""Shapes are drawn larger than the image by this factor and then shrunk, for soft edges."""

MOST = 5
"""Largest number of strokes and shapes in an image."""

Point = tuple[float, float]


@dataclass(frozen=True, config=FORBID)
class Generated(DataConfig):
    """Generated auxiliary images: every source is a teacher on each of them, and nothing is evaluated on them.

    images_per_task: number of images, for all tasks together. size: width and height in pixels, before resizing to
    the input size of the sources.
    """

    auxiliary_only: ClassVar[bool] = True

    name: Literal["generated"] = "generated"
    images_per_task: Positive = 2000
    size: Positive = 64

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """Training images, the same for every `task`; None for the test split."""
        if split == "test":
            return None
        return ImageSet(self.images_per_task, partial(_read, self.size), transform, labelled=False)


def _read(size: int, i: int) -> tuple[Image.Image, int]:
    return _draw(size, np.random.default_rng(derive(0, "generated", i))), -1


def _draw(size: int, random: np.random.Generator) -> Image.Image:
    side = OVERSAMPLING * size
    paper = _paper(side, random)
    image = Image.fromarray(paper)
    pen = ImageDraw.Draw(image)
    contrast = random.uniform(0.45, 1.0) * random.choice([-1, 1])
    for _ in range(random.integers(1, MOST + 1)):
        x, y = random.integers(0, side, 2)
        _mark(pen, side, _ink(paper[y, x], contrast, random), random)
    small = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    noisy = small + random.standard_normal((size, size, 1)) * random.uniform(0, 0.06) * 255
    return Image.fromarray(np.rint(noisy.clip(0, 255)).astype(np.uint8))


def _paper(side: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The background: a soft texture between two shades, RGB [side, side, 3]."""
    cells = int(random.integers(2, 7))
    coarse = Image.fromarray(random.integers(0, 256, (cells, cells)).astype(np.uint8))
    soft = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)[..., None] / 255
    shade, depth = random.uniform(0, 255), random.uniform(0, 120) * (random.random() < 0.7)
    tint = random.uniform(-40, 40, 3)
    return (shade + tint + depth * (soft - 0.5)).clip(0, 255).astype(np.uint8)


def _ink(paper: npt.NDArray[np.uint8], contrast: float, random: np.random.Generator) -> tuple[int, ...]:
    """A colour that differs from the background at that point, brighter if the contrast allows."""
    towards = 255.0 if (contrast > 0) == (paper.mean() < 160) else 0.0
    colour = paper + abs(contrast) * (towards - paper) + random.uniform(-30, 30, 3)
    return tuple(int(value) for value in colour.clip(0, 255))


def _mark(pen: ImageDraw.ImageDraw, side: int, ink: tuple[int, ...], random: np.random.Generator) -> None:
    """One stroke or shape."""
    width = max(1, round(side * random.uniform(0.02, 0.14)))
    centre, reach = random.uniform(0.3, 0.7, 2) * side, random.uniform(0.2, 0.55) * side
    kind = random.choice(["line", "curve", "curve", "zigzag", "arc", "ellipse", "polygon"])
    points = centre + random.uniform(-1, 1, (5, 2)) * reach
    box = [*(centre - reach * random.uniform(0.4, 1, 2)), *(centre + reach * random.uniform(0.4, 1, 2))]
    if kind == "arc":
        start = random.uniform(0, 360)
        pen.arc(box, start, start + random.uniform(60, 330), fill=ink, width=width)
    elif kind == "ellipse":
        pen.ellipse(box, outline=ink, width=width, fill=ink if random.random() < 0.3 else None)
    elif kind == "polygon":
        corners = [tuple(p) for p in points[: random.integers(3, 6)]]
        pen.polygon(corners, outline=ink, width=width, fill=ink if random.random() < 0.3 else None)
    else:
        count = {"line": 2, "curve": 4, "zigzag": int(random.integers(3, 6))}[str(kind)]
        line = _bezier(points[:4]) if kind == "curve" else points[:count]
        pen.line([tuple(p) for p in line], fill=ink, width=width, joint="curve")


def _bezier(points: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """A cubic curve through 20 points, [20, 2]."""
    t = np.linspace(0, 1, 20)[:, None]
    a, b, c, d = points
    curve: npt.NDArray[np.floating] = (
        (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
    )
    return curve
