"""Names with symbols on the command line: they are read as they are, or the message says how to quote them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fsmerge_cli.cli import main
from fsmerge_cli.cli.overrides import checked_override
from tests.support.checkpoints import save
from tests.support.sources import mlp_source

NAMES = (
    "epoch=3.ckpt",
    "epoch=3-val_loss=0.1.ckpt",
    "model (1).pt",
    "model(1).pt",
    "a,b.pt",
    "[x].pt",
    "{x}.pt",
    "a b.pt",
    " a b ",
    "it's.pt",
    'say "x".pt',
    "a${b}.pt",
    "a#b&c;d.pt",
    "größe.pt",
    "日本.pt",
    "1e3",
    "true",
    "0x10",
    "a:b.pt",
    "a\\b.pt",
    "a\\",
    "choice(a,b)",
    "glob(*)",
)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_read_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "other", mlp_source("b", [6, 5], 2), "b")
    shutil.copytree(save(tmp_path / "own", mlp_source("a", [6, 5], 1), "a"), tmp_path / name)
    arguments = [
        "+models=digits_mlp_pair",
        "data=none",
        "data.images_per_task=20",
        f"models.sources.0.checkpoint={name}",
        "models.sources.1.checkpoint=other",
        "models.sources.0.labels=null",
        "models.sources.1.labels=null",
        "models.sources.0.recipe=null",
        "models.sources.1.recipe=null",
        "models.sources.0.arch=null",
        "models.sources.1.arch=null",
        "method=average",
    ]
    code = main(["check", *arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert name.strip()[:4] in out
    code = main(["evaluate", f"./{name}", "data=none", "data.images_per_task=20"])
    assert "does not exist" not in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_path_reaches_the_key_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for key in ("model.checkpoint", "data.root", "++models.sources.0.checkpoint"):
        found = OverridesParser.create().parse_override(checked_override(f"{key}={name}"))
        assert not found.is_sweep_override()
        assert OmegaConf.to_container(OmegaConf.create({"x": found.value()}), resolve=True) == {"x": name}


TEXTS = {  # of something that does not exist: an argument -> what Hydra gets
    "output.dir=out=1": 'output.dir="out=1"',
    "output.dir=model (1).x": 'output.dir="model (1).x"',
    "output.dir=2024": 'output.dir="2024"',
    "output.dir=~/größe": 'output.dir="~/größe"',
    "model.task=1": 'model.task="1"',
    "model.task=Bäume am See": 'model.task="Bäume am See"',
    "model.labels=[Bäume,Häuser]": 'model.labels=["Bäume","Häuser"]',
    "models.sources=[{name:größe,checkpoint:x}]": 'models.sources=[{name:"größe",checkpoint:x}]',
    "models.sources.0.checkpoint=~/a.pt,~/b.pt": 'models.sources.0.checkpoint="~/a.pt","~/b.pt"',
    # unchanged
    "models.sources.0.checkpoint=a.pt,b.pt": "models.sources.0.checkpoint=a.pt,b.pt",
    "data.root=${oc.env:HOME}/x": "data.root=${oc.env:HOME}/x",
    "model.labels=[cat,dog]": "model.labels=[cat,dog]",
    'model.task="x y"': 'model.task="x y"',
    "model.checkpoint=null": "model.checkpoint=null",
    "method.steps=100": "method.steps=100",
    "seed=0,1,2": "seed=0,1,2",
    "method.t=interval(0,1)": "method.t=interval(0,1)",
}


@pytest.mark.parametrize("argument", TEXTS)
def test_a_text_is_quoted_where_it_can_only_be_a_text(argument: str) -> None:
    assert checked_override(argument) == TEXTS[argument]


MESSAGES = {
    ("evaluate", "epoch=3.ckpt"): (
        "fsmerge evaluate takes one model, but none is given, since 'epoch=3.ckpt' is read as KEY=VALUE; write a "
        "path with = in its name as ./NAME. See fsmerge evaluate --help."
    ),
    ("evaluate", "./epoch=3.ckpt"): (
        "epoch=3.ckpt does not exist. Give the folder of a run, its merged/, or a checkpoint."
    ),
    ("check", "+models=digits_mlp_pair", "models.sources.0.checkpoint=a,b.pt"): (
        "models.sources.0.checkpoint=a,b.pt gives several values. Write a list as [a,b], one text with commas as "
        "'KEY=\"a,b\"'; several runs need `fsmerge merge --multirun`."
    ),
    ("check", "models.sources=[{name:a,checkpoint:model (1).pt}]"): (
        "cannot read 'models.sources=[{name:a,checkpoint:model (1).pt}]'. Write KEY=VALUE; quote a value with "
        "spaces or symbols: 'KEY=\"a, b\"'. Inside a list or a mapping: '[{name:a,checkpoint:\"a, b\"}]'."
    ),
}


@pytest.mark.parametrize("arguments", MESSAGES, ids=" ".join)
def test_a_message_says_how_to_write_it(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments]) == 2
    assert capsys.readouterr().err == f"fsmerge: error: {MESSAGES[arguments]}\n"


def test_a_model_in_the_working_folder_with_an_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "epoch=3", mlp_source("a", [6, 5], 1))
    assert main(["evaluate", "epoch=3", "data=generated"]) == 2
    assert capsys.readouterr().err.startswith("fsmerge: error: epoch=3 has no head")
