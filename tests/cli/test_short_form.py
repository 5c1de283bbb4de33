"""Paths, --images, -o and YAML files stand for overrides; what a run reports is what was typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from fsmerge_cli.cli.composing import composed
from fsmerge_cli.cli.merge_command import composed as in_hydra_s_syntax
from fsmerge_cli.cli.short_form import expanded, source_names
from fsmerge_cli.common.errors import ConfigError
from tests.support.command import PAIR, Command


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files of weights."""
    for path in ("pets.safetensors", "cars.pth.tar", "runs/a/model.pt", "runs/b/model.pt", "c=1/epoch=3.ckpt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "old/merged").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys_of(*arguments: str) -> dict[str, Any]:
    return composed("merge", in_hydra_s_syntax([*arguments]), None)


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        expanded(arguments, "merge")
    return str(error.value)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["pets.safetensors", "cars.pth.tar"], ["pets", "cars"]),
        (["runs/a/model.pt", "runs/b/model.pt"], ["a", "b"]),
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["old/merged", "pets.safetensors"], ["old", "pets"]),
        (["old/merged", "old"], None),
        (["x/pets.pt", "y/pets.pt"], ["x-pets", "y-pets"]),
        (["pets.safetensors", "pets.safetensors"], None),
        (["c=1/epoch=3.ckpt", "checkpoint-500/pytorch_model.bin"], ["c=1", None]),
        ([".hidden.pt", "a\tb.pt"], ["hidden", "a_b"]),
        (["timm/vit_tiny_patch16_224.augreg_in21k", "m.index.json"], ["vit_tiny_patch16_224.augreg_in21k", "m"]),
        ([f"{'x' * 90}.pt", f"{'x' * 90}.bin"], None),
    ],
)
def test_names_come_from_files_and_folders_and_are_unique(
    paths: list[str], names: list[str | None] | None
) -> None:
    found = source_names([(None, path) for path in paths])
    assert len({*found}) == len(paths)
    assert all(0 < len(name) <= 80 and name.isprintable() and "/" not in name for name in found)
    assert all(name is None or name == own for name, own in zip(names or found, found))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (
            "pets.safetensors x=runs/a --images photos/ -o out method=kd",
            '+models.sources=[{name:"pets",checkpoint:"pets.safetensors"},{name:"x",checkpoint:"runs/a"}] '
            'data=folder data.root="photos/" output.dir="out" method=kd',
        ),
        (
            "c=1/epoch=3.ckpt seed=1 timm/vit_tiny_patch16_224.augreg_in21k --output=o",
            '+models.sources=[{name:"c=1",checkpoint:"c=1/epoch=3.ckpt"},{name:"vit_tiny_patch16_224.augreg_in21k",'
            'arch:"vit_tiny_patch16_224.augreg_in21k"}] output.dir="o" seed=1',
        ),
        ("digits_mlp_pair --images=x", 'data=folder data.root="x" +models=digits_mlp_pair'),
        ("+models=digits_mlp_pair method=kd seed=0,1 -m", "+models=digits_mlp_pair method=kd seed=0,1 -m"),
        ("--config-dir pets.safetensors +models=x", "--config-dir pets.safetensors +models=x"),
        ("models.sources.0.labels=a.txt hydra/launcher=joblib ~data ~ sed=1 method.lr +x", None),
    ],
)
def test_the_short_form_stands_for_overrides(typed: str, meant: str | None) -> None:
    assert " ".join(expanded(typed.split(), "merge")) == (meant or typed)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "pets.safetensors gone.pt",
            "fsmerge merge: there is no file or folder gone.pt. Pass checkpoints (files of weights, folders, or "
            "timm names with a tag), or KEY=VALUE.",
        ),
        ("pets.safetensors --images", "fsmerge merge: --images needs a path: --images PATH."),
        ("pets.safetensors --images -o out", "fsmerge merge: --images needs a path: --images PATH."),
        (
            "pets.safetensors +models=digits_mlp_pair",
            "fsmerge merge: sources are given twice, as pets.safetensors and as models=... Give them once.",
        ),
        (
            "pets.safetensors --images a data=digits",
            "fsmerge merge: --images stands for data=folder data.root=PATH, and data=... is given too. Give one "
            "of them.",
        ),
        (
            "pets.safetensors -o a output.dir=b",
            "fsmerge merge: -o stands for output.dir=FOLDER, which is given too. Give one.",
        ),
        (
            "gone.yaml",
            "gone.yaml: no such file. Give the config.yaml of a run, or a file of fsmerge init.",
        ),
        (
            "gone.yaml pets.safetensors",
            "fsmerge merge: gone.yaml states the sources, so no further file can be given. Change them with "
            "models.sources.0.KEY=VALUE.",
        ),
    ],
)
def test_what_contradicts_or_is_missing_is_refused(typed: str, message: str) -> None:
    assert refused(*typed.split()) == message


VALUES = {
    "models": {
        "sources": [
            {
                "name": "a b",
                "checkpoint": "x, [y].pt",
                "mean": [0.5, 1e-05],
                "arch": {"family": "vit", "args": {}},
            },
            {"name": "ü${x}", "checkpoint": "q\"u'ote.pt", "labels": ["1", "null", "a:b"], "recipe": None},
        ]
    },
    "data": {"name": "folder", "root": "photos, 1/", "images_per_task": "all", "auxiliary": {"name": "generated"}},
    "method": {"name": "kd", "steps": 7, "clip": 1.5, "task_weights": [1.0, 2.0], "views": "fresh"},
    "hardware": {"device": "cpu", "compile": True},
    "seed": 5,
    "evaluation": {"kd": True},
    "output": {"dtype": "float16"},
}


@pytest.mark.full
def test_a_file_of_a_run_gives_its_values_again_and_overrides_follow(folder: Path) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump(VALUES))
    keys = keys_of("run.yaml")
    assert keys["models"] == VALUES["models"]
    for group in ("data", "method", "hardware", "evaluation", "output"):
        given: Any = VALUES[group]
        assert {key: keys[group][key] for key in given} == given
    assert keys["seed"] == 5
    changed = keys_of(
        "run.yaml", "method=average", "seed=6", "-o", "out", "models.sources.0.name=z", "--images", "i"
    )
    assert (changed["method"]["name"], changed["seed"], changed["output"]["dir"]) == ("average", 6, "out")
    assert (changed["models"]["sources"][0]["name"], changed["data"]["root"]) == ("z", "i")
    assert changed["output"]["dtype"] == "float16"
    assert changed["data"]["images_per_task"] == "all"
    assert changed["data"]["auxiliary"] == {"name": "generated"}


def test_images_replace_another_data_set_of_a_file_with_a_note(folder: Path) -> None:
    notes: list[str] = []
    others: list[Any] = [
        {"name": "glyphs", "images_per_task": 7},
        {"name": "gone", "x": 1},
        {"name": "folder", "root": "elsewhere"},
        None,
    ]
    for data in others:
        (folder / "run.yaml").write_text(yaml.safe_dump({**VALUES, "data": data}))
        found = expanded(["run.yaml", "--images", "i"], "merge", notes)
        assert [text for text in found if "data" in text] == ["data=folder", '++data.root="i"']
    assert notes == [
        "--images replaces the data set of run.yaml, data=glyphs data.images_per_task=7",
        "--images replaces the data set of run.yaml, data=gone",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modles: 1", "run.yaml: unknown key 'modles'. Did you mean 'models'? Available: checkpoint, data, "),
        ("seed: 1", "run.yaml: models.sources is missing, a list of the models to merge."),
        ("models: {sources: []}\nmethod: {steps: 1}", "run.yaml: method.name is missing. Available: "),
    ],
)
def test_a_file_that_is_no_run_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "run.yaml").write_text(text)
    assert refused("run.yaml").startswith(message)


@pytest.mark.full
def test_init_writes_what_merge_would_be_given(folder: Path, fsmerge: Command) -> None:
    typed = ["pets.safetensors", "x=runs/a", "--images", "photos/", "method=regmean", "output.dir=out", "seed=3"]
    code, text, err = fsmerge("init", *typed)
    assert (code, err) == (0, "")
    assert fsmerge("init", *typed, "-o", "mine.yaml") == (0, "", "")
    assert (folder / "mine.yaml").read_text() == text
    assert keys_of("mine.yaml") == keys_of(*typed)
    assert "  scale: 0.9             # factor of the off-diagonal entries of the Gram matrices\n" in text
    again = fsmerge("init", *typed, "-o", "mine.yaml")
    assert again == (
        2,
        "",
        "fsmerge: error: -o mine.yaml exists, and fsmerge init replaces no file. Choose another one.\n",
    )
    assert (folder / "mine.yaml").read_text() == text
    assert keys_of("mine.yaml", "+models=digits_mlp_pair", "method=average")["data"]["root"] == "photos/"


@pytest.mark.full
def test_a_run_reports_the_command_as_typed_and_it_runs_again(folder: Path, fsmerge: Command) -> None:
    (folder / "conf/method").mkdir(parents=True)
    (folder / "conf/method/mine.yaml").write_text("name: average\n")
    typed = ["--config-dir", "conf", PAIR, "method=mine", "-o", "a run", "--quiet", "output.overwrite=true"]
    assert fsmerge("merge", *typed) == (0, "", "")
    command = json.loads((folder / "a run/evaluation.json").read_text())["provenance"]["command"]
    assert shlex.split(command) == ["fsmerge", "merge", *typed]
    assert fsmerge(*shlex.split(command)[1:]) == (0, "", "")
    rerun = fsmerge("merge", "a run/config.yaml", "-o", "again", "-q")
    assert rerun == (0, "", "")
    weights = [(folder / run / "merged/model.safetensors").read_bytes() for run in ("a run", "again")]
    assert weights[0] == weights[1]
