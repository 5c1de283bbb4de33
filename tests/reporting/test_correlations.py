"""What page, card, notebook and terminal say of tasks that predict a number, where there are no others."""

from __future__ import annotations

import csv
import json
from html import unescape
from pathlib import Path

import pytest

from fsmerge_cli import merge
from fsmerge_cli.cli import main
from fsmerge_cli.reporting.notebook import one_line
from fsmerge_cli.reporting.summary import details
from tests.runs.test_numbers import rows
from tests.support.encoders import save_encoder, sentence_source


@pytest.fixture(scope="module")
def numbers_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs regmean/ and average/ of two tasks that predict a number."""
    folder = tmp_path_factory.mktemp("numbers")
    entries = []
    for seed, name in enumerate(("likeness", "value")):
        save_encoder(folder / name, sentence_source("BERT", 3 + seed, (name,)))
        entries.append({"name": name, "checkpoint": str(folder / name)})
        (folder / "texts" / name).mkdir(parents=True)
        for split, count in (("train", 12), ("test", 9)):
            with (folder / "texts" / name / f"{split}.csv").open("w") as file:
                csv.writer(file).writerows([("text", "label"), *rows("likeness", count, 10 * seed + count)])
    data = {"name": "text", "root": str(folder / "texts"), "images_per_task": 12}
    for method in ("regmean", "average"):
        merge(entries, method=method, data=data, output=folder / method)
    return folder


@pytest.mark.full
def test_page_and_card_of_tasks_of_numbers_only_speak_of_correlations(numbers_runs: Path) -> None:
    evaluation = json.loads((numbers_runs / "regmean/evaluation.json").read_text())
    found = evaluation["rows"]["merged"]["numbers"]
    card, page = ((numbers_runs / "regmean" / name).read_text() for name in ("merged/README.md", "report.html"))
    scores = card.replace("\\", "").partition("## Scores")[2].partition("## Use")[0].strip().splitlines()
    assert scores[0] == "| model | likeness (Pearson) | value (Pearson) |"
    assert scores[-4] == (f"| merged | {found['likeness']['pearson']:.3f} | {found['value']['pearson']:.3f} |")
    assert " ".join(scores[-2:]) == (
        "Pearson's correlation with the labels of the test texts. `ensemble` runs every source and is the "
        "reference of a merge. `plain average` averages the sources' weights. `-`: not applicable."
    )
    section = page.partition('<section id="scores">')[2].partition("</section>")[0]
    assert "<h2>Correlation with the labels</h2>" in section
    words = " ".join(section.partition("<p>")[2].partition("</p>")[0].split())
    assert words == (
        "On test texts that the merge did not use: Pearson&#39;s correlation with the labels. The ensemble runs "
        "every source; it is the reference of a merge."
    )
    assert f'<td class="number"><bdi>{found["value"]["pearson"]:.3f}</bdi></td>' in section
    for text in (card, page):
        assert "“% of source”: of the source's Pearson correlation. Loss: squared error. Feature" in unescape(text)
        assert "accuracy" not in text.replace("joint accuracy", "")
    table = details(evaluation)
    assert table is not None
    assert table.columns == [
        *("task", "texts", "% of source", "loss", "Pearson", "Spearman"),
        *("feature error", "feature cosine", "feature CKA"),
    ]
    pearson = sum(own["pearson"] for own in found.values()) / 2
    assert (
        one_line("X", evaluation)
        == f"X(method=regmean, tasks: likeness, value, Pearson correlation {pearson:.3f})"
    )


@pytest.mark.full
def test_the_terminal_shows_correlations_in_80_columns(
    numbers_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    runs = {name: numbers_runs / name for name in ("regmean", "average")}
    found = {
        name: json.loads((run / "evaluation.json").read_text())["rows"]["merged"]["numbers"]
        for name, run in runs.items()
    }
    assert main(["evaluate", str(runs["regmean"]), "data=from_run", "--fail-under=10"]) == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == (
        "fsmerge: error: --fail-under=10 compares the top-1 accuracy: 'likeness', 'value' predict a number, which "
        "has no accuracy; leave out --fail-under."
    )
    lines = [cells(line) for line in out.splitlines()]
    assert " ".join(out.split()).startswith("Pearson's correlation with the labels of test texts (regmean)")
    assert ["task", "texts", "Pearson", "Spearman", "squared error"] in lines
    for task, own in found["regmean"].items():
        numbers = [f"{own[name]:.3f}" for name in ("pearson", "spearman", "loss")]
        assert [task, "9", *numbers] in lines
    assert "note: 'likeness', 'value': its head predicts a number" in out
    assert main(["compare", *map(str, runs.values())]) == 0
    out = capsys.readouterr().out
    lines = [cells(line) for line in out.splitlines()]
    assert max(map(len, out.splitlines())) <= 80
    assert lines[0] == ["Pearson's correlation with the labels of test texts"]
    assert lines[2][:3] == ["run", "likeness (Pearson)", "value (Pearson)"]
    for name, own in found.items():
        assert [f"method={name}", *(f"{own[task]['pearson']:.3f}" for task in ("likeness", "value"))] in [
            line[:3] for line in lines
        ]


def cells(line: str) -> list[str]:
    """The cells of a line of a table in the terminal."""
    return [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]
