"""The real commands on hostile labels, class folders and files: no control character of them is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.cli import main
from tests.support.hostile_texts import EVERY, FORGED, HOSTILE, safe
from tests.support.paths import REPOSITORY
from tests.support.sources import mlp_source

LABELS = tuple(sorted(text for name, text in EVERY.items() if "/" not in text))


def write_images(folder: Path, seed: int) -> None:
    for number, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        pixels = np.random.default_rng(1000 * seed + number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / label / "0.png")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for seed, name in enumerate("ab"):
        source = mlp_source(name, [8], seed, classes=len(LABELS), input_size=(1, 8, 8))
        assert source.head is not None
        heads = head_tensors({name: replace(source.head, labels=LABELS)})
        write_model(folder / name, model_config(source.family, source.arch), source.weights, *heads)
        for number, split in enumerate(("train", "test")):
            write_images(folder / "images" / name / split, 2 * seed + number)
    (folder / "images/a/test" / LABELS[0] / f"{HOSTILE['escape sequence']}\n{FORGED}.png").write_text("no image")
    (folder / "images/a/test" / f"x.y\n{FORGED}\x1b[0m").write_text("no image")
    return folder


MODELS = "+models.sources=[{name:a,checkpoint:a},{name:b,checkpoint:b}]"
DATA = ("data=folder", "data.root=images", "hardware=cpu")


def commands() -> list[tuple[int, list[str]]]:
    merge = ["merge", MODELS, *DATA, "method=average"]
    tune = ["finetune", "model.arch={family:mlp,input_size:[1,8,8],widths:[8]}", "model.start=random", *DATA]
    few = ["training.steps=2", "training.head_steps=2", "data.bad_files=skip"]
    return [
        (0, ["check", MODELS, *DATA, "data.bad_files=skip"]),
        (2, [*merge, "output.dir=refused"]),
        (0, [*merge, "data.bad_files=skip", "output.dir=out"]),
        (0, [*merge, "data.bad_files=skip", "output.dir=out", "resume=true"]),
        (0, ["evaluate", "out", "data=from_run", "--sources", "output.report=r.html", "output.file=e.json"]),
        (0, ["evaluate", "out", "data=from_run", "--json"]),
        (0, [*tune, *few, "model.task=a", "output.dir=tuned"]),
        (0, [*tune, *few, "model.task=b", "model.labels=data", "output.dir='t$x$'", "--json"]),
        (0, ["compare", "out", "tuned", "t$x$", "--csv", "c.csv"]),
        (2, ["evaluate", "out", "data=from_run", "tasks=['\x1b[31m']"]),
        (2, [*merge, "data=folder", "data.root='\x1b[31m'"]),
        (2, ["merge", MODELS, "method=\x1b[31m"]),
        (2, ["\x1b[31m"]),
    ]


@pytest.mark.full
def test_commands_show_no_control_characters(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(hostile)
    for code, arguments in commands():
        assert main(arguments) == code, arguments
        out, err = capfd.readouterr()
        assert safe(out), (arguments, out)
        assert safe(err), (arguments, err)
        if "--json" in arguments:
            assert out.isascii()
            assert json.loads(out)["tasks"]
    written = [path for path in hostile.rglob("*") if path.suffix in (".md", ".html", ".log", ".csv", ".json")]
    assert len(written) >= 12
    for path in written:
        text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
        assert all(c.isprintable() or c == "\n" for c in text), path
    assert json.loads((hostile / "out/evaluation.json").read_text())["method"] == "average"


@pytest.mark.full
@pytest.mark.parametrize(
    "encoding", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_terminal_of_another_encoding(encoding: dict[str, str], tmp_path: Path) -> None:
    source = mlp_source("名前", [8], 1, classes=5, input_size=(1, 8, 8))
    assert source.head is not None
    heads = head_tensors({"名前": replace(source.head, labels=tuple("01234"))})
    write_model(tmp_path / "m", model_config(source.family, source.arch), source.weights, *heads)
    command = [sys.executable, "-m", "fsmerge_cli", "evaluate", "m", "data=digits", "hardware=cpu"]
    ran = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY), **encoding}, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.isascii()
    assert "| \\u540d\\u524d |" in ran.stdout.decode("ascii")


@pytest.mark.full
@pytest.mark.parametrize(
    "arguments",
    [
        ["merge", "gone\nfsmerge: error/a.pt", "b.pt"],
        ["merge", "+models=digits_mlp_pair", "method=average", "output.dir='a\nfile'"],
        ["merge", "+models=digits_mlp_pair", "method=average", "data=folder", "data.root='a\nfile'"],
        ["merge", "+models=digits_mlp_pair", "method=average", "--config-dir", "a\nfile"],
        ["merge", "+models=digits_mlp_pair", "models.sources.0.checkpoint='gone\nfile'"],
        ["merge", "+models=digits_mlp_pair", "models.sources.0.labels='gone\nfile.txt'"],
        ["evaluate", "a\nfile"],
        ["evaluate", "gone\nfile"],
        ["compare", "gone\nfile"],
        ["compare", ".", "--csv", "a\nfile/x.csv"],
        ["init", "+models=digits_mlp_pair", "-o", "gone\nfile/x.yaml"],
        ["finetune", "model.checkpoint='gone\nfile'", "model.labels=[a,b]", "data=digits"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-1]!r}",
)
def test_a_line_break_in_a_path_that_was_typed_is_an_escape_in_the_message(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a\nfile").touch()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert "\\n" in err or "compare" in arguments[:1], err
