"""report.html and the model card: content and escaping. In a browser: test_browser."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from fsmerge_cli import merge
from fsmerge_cli.common.shown import printable
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.reporting import charts, schema, summary
from fsmerge_cli.reporting.html import LARGEST, data_uri, page
from fsmerge_cli.reporting.losses import losses
from fsmerge_cli.reporting.model_card import escaped, markdown, model_card
from fsmerge_cli.runs.result import CURVE, curve
from tests.support.pages import CASES, HOSTILE, evaluation, examples
from tests.support.sources import mlp_source


class Parsed(HTMLParser):
    """A parsed page: its elements with attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.html, self.text = text, ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", CASES)
def test_the_cases_match_the_schema(name: str) -> None:
    schema.typed(CASES[name][0])


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_a_page_has_no_scripts_and_loads_no_resources(name: str) -> None:
    parsed = Parsed(page(*CASES[name]))
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a", "video", "audio"}
    for tag, attributes in parsed.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("href", "srcset", "action")]
        if "src" in attributes:
            assert tag == "img"
            assert (attributes["src"] or "").startswith("data:image/png;base64,")
            assert attributes["alt"]
    (policy,) = (a["content"] for _, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )


def test_names_are_escaped_and_control_characters_are_shown() -> None:
    text = page(*CASES["hostile"])
    parsed = Parsed(text)
    for name in HOSTILE:
        assert parsed.text.count(printable(name)) >= 5
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "{{ 7 * 7 }}" in parsed.text  # names are not rendered as templates
    names = [tag for tag, _ in parsed.elements if tag == "img"]
    assert len(names) == 6 * len(HOSTILE)


def test_a_page_has_the_content_of_evaluation_json() -> None:
    parsed = Parsed(page(*CASES["plain"]))
    assert "The merged model has a top-1 accuracy of 86.5\xa0% (mean over its tasks)" in parsed.text
    bars = [a["aria-label"] for tag, a in parsed.elements if tag == "svg"]
    assert bars[:4] == ["source: 95.0 %", "ensemble: 95.0 %", "plain average: 30.5 %", "merged: 86.5 %"]
    for table in (summary.scores, summary.details, losses, summary.similarity, summary.cost):
        found = table(CASES["plain"][0])
        assert found
        for row in found.rows:
            for cell in row:
                assert cell in parsed.text
    assert "fsmerge merge +models=pair" in parsed.text


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [
        ("plain", {"scores", "details", "training", "similarity", "confusion", "mistakes", "examples"}, set()),
        ("unlabelled", {"details", "confusion", "examples", "training"}, {"scores", "mistakes"}),
        ("evaluated", {"scores", "details", "cost"}, {"training", "similarity", "confusion", "certificates"}),
        ("nothing", {"cost", "origin"}, {"scores", "details", "training", "similarity", "confusion", "examples"}),
    ],
)
def test_a_page_has_only_sections_with_content(name: str, present: set[str], absent: set[str]) -> None:
    found = {a.get("id") for tag, a in Parsed(page(*CASES[name])).elements if tag == "section"}
    assert present <= found
    assert not absent & found


@pytest.mark.parametrize(
    ("name", "sentences"),
    [
        ("evaluated", ("The model has a top-1 accuracy of 75.0 %.",)),
        ("nothing", ("Nothing was evaluated: there were no images to measure with.",)),
        (
            "unlabelled",
            (
                "The merged model and its source predict the same label on 85.0 % (mean over tasks) of the test "
                "images.",
                "The images have no labels, so the accuracy is not known.",
            ),
        ),
    ],
)
def test_the_verdict_if_labels_or_images_are_missing(name: str, sentences: tuple[str, ...]) -> None:
    assert summary.verdict(CASES[name][0]) == [*sentences]


def test_missing_and_non_finite_values_are_a_dash() -> None:
    content: dict[str, Any] = evaluation()
    content["similarity"]["low"]["blocks.1"] = {"cka": None, "cosine": float("nan"), "error": float("inf")}
    content["training"]["curve"][3]["loss"] = float("nan")
    content["rows"]["merged"]["mean_relative"] = None
    text = page(content)
    assert "nan" not in Parsed(text).text.lower()
    assert "- / - / -" in text
    heat = charts.similarity_map(content)
    assert heat
    assert heat.rows[0][1][1] == charts.Cell(None, "-", "low, blocks.1: CKA -, cosine -, relative error -")


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-1.0, 2.0], [1e-9, 1.0], [3.0, 3.0001], [1.0, 1e12]])
def test_a_curve_stays_inside_its_plot(values: list[float]) -> None:
    content = evaluation(steps=0)
    content["training"]["curve"] = [{"step": i + 1, "loss": v} for i, v in enumerate(values)]
    plot = charts.loss_plot(content)
    assert plot
    places = [place for line in plot.lines for point in line.points for place in point]
    places += [place for place, _ in (*plot.up, *plot.across)]
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in places)
    assert 1 <= len(plot.up) <= 12
    assert 2 <= len(plot.across) <= 12 or len(values) == 1


def test_a_long_curve_is_averaged_and_a_short_one_keeps_every_step() -> None:
    values = [float(i) for i in range(1201)]
    found = curve(values)
    assert len(found) == 401 <= CURVE
    assert found[0] == {"step": 3, "loss": 1.0}
    assert found[-1] == {"step": 1201, "loss": 1200.0}
    assert len(curve(values[:CURVE])) == CURVE
    assert curve([]) == []


def test_an_example_image_is_a_png_of_the_same_pixels() -> None:
    for example in examples(("large", "small"))[::6]:
        uri = data_uri(example.pixels)
        image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        assert max(image.size) <= LARGEST
        if len(example.pixels) == 1:
            assert image.mode == "L"
            assert list(image.tobytes()) == example.pixels.flatten().tolist()
        else:
            assert (image.mode, image.size) == ("RGB", (round(LARGEST * 180 / 224), LARGEST))


def test_cells_take_the_text_colour_with_more_contrast() -> None:
    assert not charts.Cell(0.7, "", "").strong
    assert charts.Cell(0.75, "", "").strong
    assert not charts.Cell(None, "", "").strong


@pytest.mark.parametrize("name", CASES)
def test_the_card_has_the_same_tables_and_names_are_escaped(name: str) -> None:
    content = CASES[name][0]
    sources = [mlp_source(f"t{i}", [4], i) for i in range(2)]
    card = model_card(compile_plan(sources), {}, content, "seed: 0\n")
    for table in (
        summary.scores(content),
        summary.details(content),
        summary.similarity(content),
        summary.confusion(content, "merged", "softmax"),
        summary.cost(content),
        summary.certificates(content),
    ):
        assert table is None or markdown(table) in card
    for task, own in content["predictions"].items():
        assert not own["pairs"] or f"**{escaped(task)}**\n\n{markdown(summary.mistakes(content, task))}" in card
    assert "/far/" not in card
    shown = Parsed(MarkdownIt("commonmark").enable("table").render(ModelCard(card).text))  # of rich
    assert not {"script", "img", "a", "style", "title"} & {tag for tag, _ in shown.elements}
    for name in content["tasks"]:
        assert shown.text.count(printable(name)) >= 1
    widths = [len(re.findall("<t[hd]", line)) for line in re.findall("<tr>.*?</tr>", shown.html, flags=re.S)]
    assert set(widths) <= {2, 3, 4, 5, 10, len(content["tasks"]) + 1, len(content["tasks"]) + 4}


@pytest.mark.full
@pytest.mark.parametrize("method", ["average", "fs_merge"])
def test_a_run_writes_the_page(method: str, tmp_path: Path) -> None:
    options = {"name": method, **({"steps": 3} if method == "fs_merge" else {})}
    result = merge("digits_mlp_pair", method=options, output=tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text()
    certificates = {name: {"what": "", "status": "not applicable"} for name in ("reloaded", "heads")}
    content = result.evaluation(certificates)
    parsed = Parsed(text)
    assert [tag for tag, _ in parsed.elements].count("img") == 12
    assert f"{100 * content['rows']['merged']['mean_top1']:.1f}" in parsed.text
    assert ("plain average" in parsed.text) == (method != "average")  # otherwise it is the merged model itself
    pixels = result.measured.examples[0].pixels
    assert (pixels.shape, pixels.dtype) == ((1, 8, 8), torch.uint8)
    assert data_uri(pixels) in text


def test_a_page_of_an_evaluation_does_not_describe_the_images_of_a_merge() -> None:
    merged = page(evaluation())
    assert "On test images that the merge did not use, in per cent" in merged
    assert "all images of the merge, in order" in merged
    auxiliary = {"name": "folder", "auxiliary": {"name": "generated"}}
    content = {**evaluation(), "certificates": {}, "config": {"data": auxiliary}}
    text = page(content)
    assert "On the test images of this evaluation, in per cent" in text
    assert "all images for the temperatures, in order" in text
    assert "2" * 64 in text
    assert "the merge used" not in text
    none = page({**content, "cost": {**content["cost"], "images": 0}})
    assert "1" * 64 not in none


@pytest.mark.parametrize(
    ("method", "options", "made"),
    [
        ("fs_merge", {}, True),
        ("ties", {}, False),
        ("average", {}, False),
        ("ot_fusion", {}, True),
        ("ot_fusion", {"cost": "weights"}, False),
        ("ot_fusion", {"option_of_another_version": 1}, True),
    ],
)
def test_images_that_only_measure_the_model_did_not_make_it(method: str, options: Any, made: bool) -> None:
    content = evaluation()
    config = {**content["config"], "method": {"name": method, **options}}
    text = page({**content, "method": method, "config": config})
    assert f"merged into one by <code>{method}</code>" in text
    assert ("</code> from " in text) is made
