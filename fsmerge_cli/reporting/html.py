"""report.html: all results on one page, without scripts, fonts or other files."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.notes import notes_in, warnings_in
from fsmerge_cli.common.options import choose
from fsmerge_cli.common.shown import printable
from fsmerge_cli.common.wording import Kind, Word, worded
from fsmerge_cli.evaluation.predictions import Example
from fsmerge_cli.methods import METHODS
from fsmerge_cli.reporting import charts, class_charts, summary
from fsmerge_cli.reporting.losses import losses
from fsmerge_cli.reporting.stages import stages

if TYPE_CHECKING:
    from jinja2 import Environment

LARGEST = 160
"""Pixels on the longer side of an example image; larger images are resized to keep the page small."""

FEW_LAYERS, FEW_TASKS = 16, 4
"""Largest number of columns with values in the cells, and with task names as column titles."""


def page(evaluation: Mapping[str, Any], examples: Sequence[Example] = (), kind: Kind = "image") -> str:
    """The content of evaluation.json, and example images with their predictions, as one HTML page.

    All names and control characters are escaped. The page loads no resources and runs no scripts, enforced by its
    Content-Security-Policy. kind: of the inputs.
    """
    return printable(
        _environment(kind, evaluation.get("counted") or kind)
        .get_template("report.html.j2")
        .render(
            evaluation=evaluation,
            from_images=evaluation["cost"]["images"] and _read_images(evaluation),
            summary=summary,
            losses=losses,
            stages=stages,
            verdict=summary.verdict(evaluation),
            warnings=warnings_in(evaluation["notes"]),
            notes=notes_in(evaluation["notes"]),
            panels=charts.panels(evaluation),
            plot=charts.loss_plot(evaluation),
            similarity_map=charts.similarity_map(evaluation),
            confusions=charts.confusion_maps(evaluation),
            class_charts=class_charts,
            pictures=_by_task(evaluation["tasks"], examples),
            config=yaml.dump(evaluation["config"], Dumper=_Lines, sort_keys=False, allow_unicode=True, width=90),
            few_layers=FEW_LAYERS,
            few_tasks=FEW_TASKS,
        )
    )


def _read_images(evaluation: Mapping[str, Any]) -> bool:
    """Whether the images made the model; of a method without them they only measure and calibrate it."""
    options = evaluation["config"].get("method")
    if evaluation["method"] not in METHODS:
        return True
    with suppress(ConfigError):  # written by a version with other options
        return choose(METHODS, options or {"name": evaluation["method"]}, "method").needs_images
    return METHODS[evaluation["method"]].uses_images


class _Lines(yaml.SafeDumper):
    """Writes lists of scalars on one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Flow style for lists of scalars, also inside mappings."""
        plain = not any(isinstance(value, list | dict) for value in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)


def _by_task(
    tasks: Sequence[str], examples: Sequence[Example]
) -> list[tuple[str, list[tuple[Example, str | None]]]]:
    uris = [(e, None if e.pixels is None else data_uri(e.pixels)) for e in examples]
    found = [(task, [pair for pair in uris if pair[0].task == task]) for task in tasks]
    return [(task, own) for task, own in found if own]


def data_uri(pixels: Tensor) -> str:
    """uint8 pixels [C, H, W], grey or RGB, as a PNG in a `data:` URI."""
    image = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels[:3].movedim(0, -1).numpy())
    image.thumbnail((LARGEST, LARGEST))
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


@cache
def _environment(kind: Kind, counted: Word) -> Environment:
    """The templates with the words for this kind of input, and for what the test counts count."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    templates = files(__package__) / "templates"
    found = Environment(
        loader=FunctionLoader(lambda name: _template((templates / name).read_text("utf-8"), kind)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["words"] = lambda text: worded(text, kind)  # of what a template puts out itself
    found.filters["counted"] = lambda text: worded(text, counted)
    return found


PROGRAM = re.compile(r"(\{[{%#].*?[}%#]\}|<[^>]*>|<style>.*?</style>)", re.DOTALL)
"""What is no text in a template."""


def _template(source: str, kind: Kind) -> str:
    """A template with the word for this kind of input in its text; code and tags stay."""
    parts = PROGRAM.split(source)
    return "".join(part if place % 2 else worded(part, kind) for place, part in enumerate(parts))
