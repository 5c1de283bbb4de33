"""`make device` with tiny shapes on a CPU: every row is measured and shown; without a GPU nothing changes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli.common import presets
from fsmerge_cli.common.options import build
from fsmerge_cli.methods.fs_merge import FSMerge
from scripts.speed import device, device_parts
from scripts.speed.device_parts import PAPER, PARTS, ROWS, Part, Setting
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # attention on a CPU, k times

TINY = ["--tiny", "--device", "cpu"]
HERE = Setting("cpu", tiny=True)


def page(folder: Path) -> Path:
    found = folder / "device.md"
    found.write_text((REPOSITORY / "docs/device.md").read_text())
    return found


@pytest.mark.slow
def test_every_row_is_measured_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)  # compiling takes minutes
    output, shown = tmp_path / "device.jsonl", page(tmp_path)
    assert device.main([*TINY, "--output", str(output), "--page", str(shown)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert {row["name"] for row in rows} == set(ROWS)
    assert len(rows) == len(ROWS)
    for row in rows:
        assert row["value"] > 0
        assert row["command"] == f"python -m scripts.speed.device --only {ROWS[row['name']].part} --tiny"
        assert set(row["versions"]) == {"python", "torch", "timm", "cuda"}
        assert row["device"].endswith(" cores")
        assert (row["met"] is None) == (ROWS[row["name"]].bar is None)
    table = shown.read_text().split("<!-- device.py: begin -->")[1]
    assert table.count("\n| ") == len(ROWS) + 1
    assert "not measured yet" not in table
    errors = capsys.readouterr().err
    assert [line for line in errors.splitlines() if line.endswith("...")] == [f"{name} ..." for name in PARTS]
    assert "Error" not in errors


def test_without_a_gpu_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output, shown = tmp_path / "device.jsonl", page(tmp_path)
    before = shown.read_text()
    assert device.main(["--output", str(output), "--page", str(shown)]) == 0
    assert capsys.readouterr().out == f"no CUDA device: nothing was measured, {output} is unchanged.\n"
    assert shown.read_text() == before
    assert not output.exists()


def rows_then(*ends: Any) -> Part:
    def run(setting: Setting) -> Iterator[device_parts.Found]:
        yield "published", 200.0, {}
        for end in ends:
            raise end

    return Part(run, 60)


def test_a_row_survives_an_error_after_it_and_a_later_row_replaces_it_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARTS, "published", rows_then(torch.OutOfMemoryError("CUDA out of\nmemory")))
    output, shown = tmp_path / "device.jsonl", page(tmp_path)
    run = [*TINY, "--only", "published", "--output", str(output), "--page", str(shown)]
    assert device.main(run) == 0
    assert capsys.readouterr().err == "published ...\npublished: OutOfMemoryError: CUDA out of memory\n"
    line = f"| {ROWS['published'].what} | 200 s |  | <= 180 s | MISSED | "
    assert line in shown.read_text()
    with output.open("a") as file:
        file.write(json.dumps({**json.loads(output.read_text()), "value": 100.0}) + "\n")
    monkeypatch.setitem(PARTS, "published", Part(lambda setting: iter(()), 60))
    assert device.main(run) == 0
    assert line.replace("200 s", "100 s").replace("MISSED", "met") in shown.read_text()
    assert shown.read_text().count(ROWS["published"].what) == 1


def test_a_part_is_stopped_at_its_limit_and_keeps_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = device.entry(("published", 1.0, {}), HERE)
    child = tmp_path / "child"
    lines = ["import time", "print('note')", f"print({json.dumps(row)!r}, flush=True)", "time.sleep(60)"]
    child.write_text("\n".join([f"#!{sys.executable}", *lines]))
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    monkeypatch.setitem(PARTS, "published", Part(PARTS["published"].run, 1.0))
    written: list[dict[str, Any]] = []
    device.measure(["published", "large"], HERE, written.append, total=5.5, inside=False)
    assert written == [row]
    assert capsys.readouterr().err == (
        "published ...\npublished: stopped after 1 s, with the rows so far\nlarge: not started, no time is left\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "--device cpu measures nothing of use: add --tiny to test the script."),
        (TINY, "--tiny: the values are not those of the bars; pass another --output."),
        (["--only", "speed"], f"--only: unknown part speed; available: {', '.join(PARTS)}"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as error:
        device.main(arguments)
    assert str(error.value) == message


def test_the_parts_fit_into_the_call_and_the_published_recipe_is_that_of_the_preset() -> None:
    assert device.TOTAL <= 540
    assert sum(part.limit for name, part in PARTS.items() if name != "large") <= 2 * device.TOTAL
    assert {about.part for about in ROWS.values()} == set(PARTS)
    assert asdict(PAPER) == asdict(build(FSMerge, presets.load("method", "fs_merge_paper"), "method"))


def test_the_page_names_every_row() -> None:
    text = (REPOSITORY / "docs/device.md").read_text()
    shown = device.rows_of(REPOSITORY / "docs/device.jsonl")
    assert device.markdown(shown) in text
