"""Names of others are only text wherever they are shown: terminal, log, CSV, page, card, plots, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from markdown_it import MarkdownIt
from rich.table import Table

from fsmerge_cli import cli
from fsmerge_cli.cli.json_output import write_json
from fsmerge_cli.common.errors import DataError, MismatchError, describe, first_line, reason, unknown
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.shown import cell, json_text, listed, printable, shown, well_formed
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.reporting import tables, terminal
from fsmerge_cli.reporting.html import page
from fsmerge_cli.reporting.logs import RunLog, SafeFormatter
from fsmerge_cli.reporting.model_card import escaped, head_lines, model_card
from fsmerge_cli.reporting.plots import Point, plot_cost, plot_front
from tests.support.hostile_texts import EVERY, FORGED, FORMULAS, HOSTILE, MARKUP, safe
from tests.support.pages import evaluation, examples
from tests.support.sources import mlp_source


@pytest.mark.parametrize("name", EVERY)
def test_one_line_of_visible_characters(name: str) -> None:
    text = shown(EVERY[name])
    assert text.isprintable()
    assert safe(printable(EVERY[name]).replace("\n", ""))
    assert (text == EVERY[name]) == (name in MARKUP)
    assert text.encode("ascii", "backslashreplace").decode("unicode_escape") == EVERY[name] or name in MARKUP


def test_letters_of_all_scripts_are_kept() -> None:
    for text in ("Vögel", "名前", "עברית", "кошка", "ñandú", "a b", "🐈", "½ ∅ “x”"):
        assert shown(text) == text


@pytest.mark.parametrize("name", HOSTILE)
def test_errors(name: str) -> None:
    text = HOSTILE[name]
    library = ValueError(f"cannot read {text}")
    for error in (
        DataError(f"the image {shown(text)} cannot be read"),
        DataError(unknown("task", text, [text, "b"])),
        DataError(f"{reason(library)}, {first_line(library)}, {listed([text])}"),
        MismatchError([f"'{text}' lacks a tensor"]),
    ):
        message, code = describe(error)
        assert safe(message), message
        assert code == 2
    for other in (RuntimeError(text.replace("\n", "")), MemoryError(text.replace("\n", ""))):
        message, code = describe(other)
        assert safe(message), message
        assert code == 1


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_terminal(name: str, forced: bool) -> None:
    text, file = EVERY[name], io.StringIO()
    console = terminal.SafeConsole(file=file, width=400, force_terminal=forced, color_system=None)
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    table.add_row(terminal.line(text))
    console.print(table)
    console.print(terminal.line(f"note: {text}"), soft_wrap=True)
    console.print(text, style="bold")
    assert safe(file.getvalue().replace("\n" + FORGED, "")), file.getvalue()
    visible = shown(text).replace("\\n", "").replace(FORGED, "")
    assert file.getvalue().count(visible.strip()) >= 3  # as text: no markup, no emoji


@pytest.mark.parametrize("name", EVERY)
def test_progress(name: str) -> None:
    file = io.StringIO()
    with terminal.Reporter(terminal.SafeConsole(file=file, width=200, color_system=None)) as reporter:
        reporter(Event(EVERY[name], 1, 1))
        reporter(Event(f"read {EVERY[name]}", 2, 2, {"loss": 0.5}))
    assert file.getvalue() == f"{shown(EVERY[name])}\nread {shown(EVERY[name])}: 2/2 loss 0.5\n"


def test_progress_bars_on_a_terminal_control_it_only_themselves() -> None:
    file = io.StringIO()
    console = terminal.SafeConsole(file=file, width=200, force_terminal=True, color_system=None)
    with terminal.Reporter(console) as reporter:
        for text in EVERY.values():
            reporter(Event(f"read {text}", 1, 2))
    own = re.sub(r"\x1b\[(\?25[lh]|\d*[A-HJK])|\r", "", file.getvalue())
    assert safe(own), own


@pytest.mark.parametrize("name", [name for name in EVERY if name != "lone surrogate"])  # breaks pytest's own log
def test_log(name: str, tmp_path: Path) -> None:
    text = EVERY[name]
    with RunLog(tmp_path / "out", f"fsmerge merge {text}") as log:
        log(Event(f"read {text}", 2, 2))
        logging.getLogger("some.library").warning("broken: %s", text)
        (tmp_path / "out").mkdir()
        log.finish(f"note: {shown(text)}", {})
    written = (tmp_path / "out/run.log").read_text(encoding="utf-8")
    assert safe(written), written
    assert all(re.match(r"\d{4}-| {4}", line) for line in written.splitlines())
    assert shown(text).partition("\\n")[0] in written


def test_a_lone_surrogate_in_the_log() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, HOSTILE["lone surrogate"], None, None)
    assert SafeFormatter("%(message)s").format(record) == "cat\\udcff"


def test_a_traceback_in_the_log_is_escaped(tmp_path: Path) -> None:
    def fail() -> None:
        with RunLog(tmp_path / "out", "fsmerge merge") as log:
            log(Event("x", 1, 2))
            raise RuntimeError(HOSTILE["escape sequence"])

    with pytest.raises(RuntimeError):
        fail()
    written = (tmp_path / ".out.logs/run.log").read_text(encoding="utf-8")
    assert safe(written)
    assert "RuntimeError: \\x1b[31mred" in written


@pytest.mark.parametrize("text", FORMULAS)
def test_csv_cells_are_no_formulas(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    tables.write_csv(path, [{"run": text, text: 0.5, "less": -0.25, "none": None, "split": f"a;{text}"}])
    content = path.read_text(encoding="utf-8")
    header, row = csv.reader(io.StringIO(content))
    assert header[1] == row[0] == f"'{shown(text)}"
    assert row[1:4] == ["0.5", "-0.25", ""]
    assert safe(content.replace("\r\n", "\n"))
    assert f'"a;{shown(text)}"' in content  # quoted, so that no other separator begins a cell


@pytest.mark.parametrize("name", EVERY)
def test_csv_of_other_texts(name: str, tmp_path: Path) -> None:
    tables.write_cells(tmp_path / "x.csv", [["run"], [EVERY[name]]])
    (_, row) = csv.reader(io.StringIO((tmp_path / "x.csv").read_text(encoding="utf-8")))
    assert row[0].removeprefix("'") == shown(EVERY[name])
    assert cell(3) == 3


@pytest.mark.full
@pytest.mark.parametrize("name", EVERY)
def test_page_and_card(name: str) -> None:
    text = EVERY[name]
    tasks = [text, "other"]
    content = evaluation(tasks, notes=[text])
    content["config"]["data"] = {"name": "folder", "auxiliary": {"name": text}}
    content["config"]["method"] = {}
    content["provenance"]["command"] = f"fsmerge merge {text}"
    html = page(content, examples(tasks, [text, "b"]))
    assert all(c.isprintable() or c == "\n" for c in html)
    assert "<img src=x" not in html
    sources = [mlp_source(f"t{i}", [4], i) for i in range(2)]
    card = model_card(compile_plan(sources), {}, content, yaml.safe_dump({"label": text}, allow_unicode=True))
    assert all(c.isprintable() or c == "\n" for c in card)
    prose = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", card, flags=re.M | re.S)
    rendered = MarkdownIt("commonmark").enable("table").render(prose)
    assert not re.search(r"<(img|a|em|b|script)\b", rendered)
    assert "www.evil" not in prose
    assert "https://evil" not in prose
    assert "$y$" not in prose


@pytest.mark.parametrize("name", EVERY)
def test_code_of_the_card_is_code_with_any_task_name(name: str) -> None:
    head = mlp_source("a", [4], 1).head
    assert head is not None
    namespace: dict[str, Any] = {}
    compile(printable(head_lines({f"{EVERY[name]}\nimport os": head})), "card", "exec")
    lines = head_lines({f"{EVERY[name]}\nnamed = 1": head}).splitlines()
    exec("\n".join(line for line in lines if line.startswith("named")), namespace)
    assert "named" not in namespace


def test_markdown_of_the_card_stays_readable() -> None:
    assert escaped("85.4 (80.1 to 90.0) c.d http:x") == "85.4 \\(80.1 to 90.0\\) c.d http:x"


@pytest.mark.full
def test_plots_show_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)  # of the user's settings: would start LaTeX
    texts = [text for name, text in EVERY.items() if name not in ("tab", "backspaces")]
    points = [Point(text, text, 1.0 + i, 0.5, 0.4, 0.6) for i, text in enumerate(texts)]
    plot_cost(tmp_path / "a.svg", points, MARKUP["formula"], 0.7)
    plot_front(tmp_path / "b.svg", texts[-2:], [(text, text, (0.5, 0.5), True) for text in texts])
    for file in ("a.svg", "b.svg"):
        content = (tmp_path / file).read_text(encoding="utf-8")
        found = "".join(ElementTree.fromstring(content).itertext())
        assert safe(found.replace("\u00a0", " "))
        assert "$\\frac{1}{$ a_b^c $" in " ".join(found.split())


@pytest.mark.full
def test_tensorboard_takes_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # pytest's own log fails on a surrogate
    with RunLog(tmp_path / "out", "fsmerge", trackers=["tensorboard"]) as log:
        for text in EVERY.values():
            log(Event(text, 1, 2, {text: 0.5}))
    assert list((tmp_path / ".out.logs/tensorboard").iterdir())


@pytest.mark.parametrize("name", EVERY)
def test_json_has_escapes_and_reads_back(name: str) -> None:
    text = json_text({"label": EVERY[name], EVERY[name]: ["名前"]})
    assert safe(text)
    assert "名前" in text
    assert json.loads(text) == {"label": EVERY[name], EVERY[name]: ["名前"]}
    well_formed({EVERY[name]: (EVERY[name],)})[well_formed(EVERY[name])][0].encode()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_json_on_standard_output_has_escapes(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(content, encoding, errors="backslashreplace"))
    write_json([{**EVERY, "name": "名前"}])
    sys.stdout.flush()
    text = content.getvalue().decode(encoding)
    assert safe(text)
    assert ("名前" in text) == (encoding == "utf-8")
    assert json.loads(text) == [{**EVERY, "name": "名前"}]
    for path in Path(cli.__file__).parent.glob("*.py"):  # all commands print it with this one function
        assert "stdout.write(json" not in path.read_text(), path
