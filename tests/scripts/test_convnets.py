"""The table of convolutional networks: runs without a line, and the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import convnets
from tests.support.benchmark_rows import row


def test_the_runs_are_those_without_a_line_and_notes_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(convnets, "fsmerge", lambda call: calls.append(call) or 0)
    monkeypatch.setattr(
        convnets,
        "row",
        lambda folder, group, images, name, overrides: {
            **row(int(str(folder)[-1]), name, {"digits": [1, 0], "capitals": [1, 1]}),
            **{"group": group, "images": images, "overrides": list(overrides)},
        },
    )
    monkeypatch.setattr("sys.argv", ["convnets", "--methods=pleas_2,kd", "--seeds=0,1"])
    convnets.main()
    assert [(c[4:-4], c[-4]) for c in calls] == [
        (["method=pleas", "method.budget_flops=2"], "seed=0"),
        (["method=kd", "method.budget=fast"], "seed=0"),
        (["method=pleas", "method.budget_flops=2"], "seed=1"),
    ]
    page = tmp_path / "docs/results/convnets.md"
    page.write_text(page.read_text() + "A note.\n")
    convnets.main()
    assert len(calls) == 3
    text = page.read_text()
    assert text.startswith("# Merging convolutional networks")
    assert "| pleas_2 | 2 |" in text
    assert text.endswith("## What was expected, and what came\n\nA note.\n")
