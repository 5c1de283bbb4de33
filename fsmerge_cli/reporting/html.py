"""report.html: all results on one page, without scripts, fonts or other files."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image
from torch import Tensor

from fsmerge_cli.common.notes import notes_in, warnings_in
from fsmerge_cli.common.shown import printable
from fsmerge_cli.evaluation.predictions import Example
from fsmerge_cli.reporting import charts, class_charts, summary
from fsmerge_cli.reporting.losses import losses
from fsmerge_cli.reporting.stages import stages

if TYPE_CHECKING:
    from jinja2 import Environment

LARGEST = 160
"""Pixels on the longer side of an example image; larger images are resized to keep the page small."""

FEW_LAYERS, FEW_TASKS = 16, 4
"""Largest number of columns with values in the cells, and with task names as column titles."""


def page(evaluation: Mapping[str, Any], examples: Sequence[Example] = ()) -> str:
    """The content of evaluation.json, and example images with their predictions, as one HTML page.

    All names and control characters are escaped. The page loads no resources and runs no scripts, enforced by its
    Content-Security-Policy.
    """
    return printable(
        _environment()
        .get_template("report.html.j2")
        .render(
            evaluation=evaluation,
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


class _Lines(yaml.SafeDumper):
    """Writes lists of scalars on one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Flow style for lists of scalars, also inside mappings."""
        plain = not any(isinstance(value, list | dict) for value in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)


def _by_task(tasks: Sequence[str], examples: Sequence[Example]) -> list[tuple[str, list[tuple[Example, str]]]]:
    found = [(task, [(e, data_uri(e.pixels)) for e in examples if e.task == task]) for task in tasks]
    return [(task, own) for task, own in found if own]


def data_uri(pixels: Tensor) -> str:
    """uint8 pixels [C, H, W], grey or RGB, as a PNG in a `data:` URI."""
    image = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels[:3].movedim(0, -1).numpy())
    image.thumbnail((LARGEST, LARGEST))
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = files(__package__) / "templates"
    return Environment(
        loader=FileSystemLoader(str(templates)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
