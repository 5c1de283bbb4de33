"""The public names of `fsmerge_cli`, their types and docstrings, and `load_source`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fsmerge_cli
from fsmerge_cli import load_merged, load_source, merge
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.runs.result import MergeResult
from fsmerge_cli.training.teachers import network


def test_every_public_name_exists_with_types_and_docstring() -> None:
    assert set(fsmerge_cli.__all__) == {*fsmerge_cli._HOMES, "__version__"}
    for name in fsmerge_cli._HOMES:
        value = getattr(fsmerge_cli, name)
        assert inspect.getdoc(value), name
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            assert signature.return_annotation is not inspect.Signature.empty
            assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MergeResult]:
    folder = tmp_path_factory.mktemp("api") / "out"
    return folder, merge("digits_mlp_pair", method="average", output=folder)


def test_results_show_themselves_in_one_line_and_as_a_table_in_a_notebook(
    merged: tuple[Path, MergeResult],
) -> None:
    folder, result = merged
    score = result.scores["merged"]
    assert score.mean is not None
    mean, joint = f"{100 * score.mean:.1f}", f"{100 * score.joint['softmax']:.1f}"
    assert repr(result) == (
        f"MergeResult(method=average, tasks: low, high, top-1 accuracy {mean} %, joint {joint} %)"
    )
    html = result._repr_html_()
    assert html.count("<tr>") == 1 + 4  # the title; two sources, ensemble, merged
    assert mean in html
    assert "<td>low (source)</td>" in html
    model = load_merged(folder)
    assert repr(model) == f"Merged(mlp; low (5 classes), high (5 classes); from {folder}/merged)"
    assert repr(model.heads["low"]) == "Head(64 features -> 5 classes)"
    source = load_source(folder / "merged", head="low")
    assert repr(source) == f"Source(source: mlp, 8,320 parameters, 5 classes, from {source.origin})"


@pytest.mark.full
def test_progress_true_shows_the_phases_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    merge("digits_mlp_pair", method="average", data={"name": "none", "images_per_task": 20}, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"^[a-z ]+: \d+/\d+", err, re.MULTILINE), err
    merge("digits_mlp_pair", method="average", data={"name": "none", "images_per_task": 20}, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_source_is_loaded_from_a_folder_a_file_an_entry_and_a_module(
    merged: tuple[Path, MergeResult],
) -> None:
    folder, result = merged
    low = load_source(folder / "merged", head="low")
    assert (low.name, low.labels) == ("source", ("0", "1", "2", "3", "4"))
    arch = {"family": "mlp", "input_size": [1, 8, 8], "widths": [64, 64]}
    file = load_source(str(folder / "merged/model.safetensors"), arch=arch, name="file")
    entry = load_source({"name": "entry", "checkpoint": str(folder / "merged"), "head": "low"})
    module = load_source(nn.Sequential(result.backbone()), arch=arch)
    for other in (file, entry, module):
        assert all(torch.equal(other.weights[n], t) for n, t in low.weights.items())
    assert (file.name, entry.name, file.head) == ("file", "entry", None)
    pixels = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(network(low)(pixels), result.backbone()(pixels))


def test_an_embedded_source_is_trained_or_read_from_the_cache() -> None:
    from fsmerge_cli.common import presets

    entry = presets.load("models", "digits_mlp_pair")["sources"][0]
    assert load_source(entry).labels == ("0", "1", "2", "3", "4")


def test_several_heads_a_missing_file_and_an_unknown_key_are_refused(merged: tuple[Path, MergeResult]) -> None:
    folder, _ = merged
    with pytest.raises(ConfigError) as error:
        load_source(folder / "merged")
    assert str(error.value) == (
        f"{folder}/merged has 2 heads: low, high. Choose one with load_source(..., head=NAME); load_merged reads "
        "all of them."
    )
    with pytest.raises(SourceError, match=r"nowhere does not exist"):
        load_source("nowhere")
    with pytest.raises(ConfigError, match=r"unknown key in source 'lables'\. Did you mean 'labels'\?"):
        load_source("nowhere", lables=["a"])
