"""Sources given on the command line, and the output folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.support.command import PAIR, Command
from tests.support.sources import mlp_source


def test_sources_can_be_given_without_a_models_file_and_without_data(
    fsmerge: Command, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sources")
    entries = []
    for number, name in enumerate(("a", "b")):
        save_file(dict(mlp_source(name, [4], number).weights), folder / f"{name}.safetensors")
        arch = "arch:{family:mlp,input_size:[1,4,4],widths:[4]}"
        entries.append(f"{{name:{name},checkpoint:'{folder}/{name}.safetensors',{arch}}}")
    ran = fsmerge("merge", f"+models.sources=[{','.join(entries)}]", "method=average", "output.dir=out")
    assert (ran.code, ran.err) == (0, "certify: 6/6\nwrite: 2/2\n")
    assert "note: no data: nothing was evaluated\n" in ran.out
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["tasks"] == ["a", "b"]


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
def test_models_with_and_without_plus_are_the_same_run(fsmerge: Command, tmp_path: Path) -> None:
    for form, folder in ((PAIR, "one"), ("models=digits_mlp_pair", "two")):
        assert fsmerge("merge", form, "method=average", f"output.dir={folder}").code == 0
    assert (tmp_path / "one/config.yaml").read_bytes() == (tmp_path / "two/config.yaml").read_bytes()
    weights = [(tmp_path / folder / "merged/model.safetensors").read_bytes() for folder in ("one", "two")]
    assert weights[0] == weights[1]


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
def test_a_finished_folder_is_only_replaced_with_overwrite(fsmerge: Command, tmp_path: Path) -> None:
    run = ["merge", PAIR, "method=average", "output.dir=out"]
    assert fsmerge(*run).code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = (
        f"fsmerge: error: {tmp_path}/out holds a finished run. Pass output.overwrite=true to replace it, "
        "or choose another output.dir=...\n"
    )
    assert fsmerge(*run) == (2, "", message)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    run = ["merge", PAIR, "method=kd", "method.steps=2", "output.dir=out", "output.overwrite=true"]
    assert fsmerge(*run).code == 0
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["method"] == "kd"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before.keys()


@pytest.mark.full
def test_an_output_folder_below_a_file_is_refused(fsmerge: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in ("file/below", "file/far/below"):
        assert fsmerge("merge", PAIR, f"output.dir={folder}") == (
            2,
            "",
            f"fsmerge: error: cannot make the folder {tmp_path}/{folder}: a part of the path is a file. "
            "Choose another output.dir=...\n",
        )
    assert fsmerge("merge", PAIR, "output.dir=file") == (
        2,
        "",
        f"fsmerge: error: {tmp_path}/file is a file, not a folder. Choose another output.dir=...\n",
    )
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "mine")]


def test_a_cache_that_cannot_be_written_is_reported(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache") / "file"
    cache.write_text("")
    monkeypatch.setenv("FSMERGE_CACHE", str(cache))
    err = refused("merge", PAIR, "method=average")
    assert err == (
        f"fsmerge: error: cannot write the cache of embedded sources, {cache}/sources. "
        "Choose another folder: FSMERGE_CACHE=FOLDER\n"
    )
