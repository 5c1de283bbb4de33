from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.embedded import with_label_set
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common import presets
from fsmerge_cli.common.atomic import write_json
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.notes import notes_in
from fsmerge_cli.data.images.glyphs import ALPHABETS
from fsmerge_cli.models.preprocessing import Preprocessing
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.sources import mlp_source
from tests.support.vits import vit_source


def entry(folder: Path, seed: int, preprocessing: Preprocessing) -> dict[str, str]:
    source = vit_source("class token", seed)
    config = model_config(source.family, source.arch, preprocessing)
    write_model(folder / str(seed), config, source.weights, {}, {})
    return {"name": f"t{seed}", "checkpoint": str(folder / str(seed))}


def test_preprocessing_that_cannot_be_folded_is_that_of_source_1_and_differences_are_noted(tmp_path: Path) -> None:
    first = entry(tmp_path, 1, Preprocessing("bicubic", 0.9, "center"))
    second = entry(tmp_path, 2, Preprocessing("bilinear", 1.0, "center"))
    result = merge([first, second], method="average")
    assert result.preprocessing == Preprocessing("bicubic", 0.9, "center")
    assert result.notes == (
        "no data: nothing was evaluated",
        "images are preprocessed as for 't1'; 't2' was trained with interpolation bilinear instead of bicubic, "
        "crop_pct 1.0 instead of 0.9",
    )
    assert merge([first, {**first, "name": "twin"}], method="average").notes == (
        *result.notes[:1],
        "'twin' has the same weights as 't1'; check models.sources.N.checkpoint",
    )


def test_the_written_config_contains_the_preprocessing(tmp_path: Path) -> None:
    pair = [entry(tmp_path, seed, Preprocessing("bilinear", 0.8, "center")) for seed in (1, 2)]
    merge(pair, method="average", output=tmp_path / "out")
    stated = json.loads((tmp_path / "out/merged/config.json").read_text())
    assert stated["num_classes"] == 0
    assert stated["pretrained_cfg"] == {
        "input_size": [2, 8, 8],
        "fixed_input_size": True,
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "crop_mode": "center",
        "mean": [0.0, 0.0],
        "std": [1.0, 1.0],
        "num_classes": 0,
    }


@pytest.mark.parametrize("models", ["glyphs_vit_pair", "glyphs_vit_quad"])
def test_any_pairing_of_alphabets_by_override(models: str) -> None:
    for given in presets.load("models", models)["sources"]:
        for alphabet, characters in ALPHABETS.items():
            assert with_label_set(SourceSpec(**{**given, "labels": alphabet})).labels == tuple(characters)


def test_an_unknown_alphabet_is_reported_with_all_names() -> None:
    given = presets.load("models", "glyphs_vit_pair")["sources"][0]
    with pytest.raises(ConfigError) as error:
        with_label_set(SourceSpec(**{**given, "labels": "grek"}))
    assert str(error.value) == (
        "source 'digits': unknown label set 'grek'. Did you mean 'greek'? Available: armenian, capitals, "
        "cyrillic, digits, greek, hebrew, lower, symbols."
    )


@pytest.mark.full
def test_sources_may_differ_in_width_and_the_initial_error_is_noted(tmp_path: Path) -> None:
    models = []
    for name, widths in (("low", [10, 8]), ("high", [12, 9])):
        source = mlp_source(name, widths, len(models), classes=5, input_size=(1, 8, 8))
        digits = [str(d + 5 * len(models)) for d in range(5)]
        assert source.head is not None
        assert source.head.bias is not None
        tensors = {"task.weight": source.head.weight, "task.bias": source.head.bias}
        config = model_config(source.family, source.arch)
        write_model(tmp_path / name, config, source.weights, tensors, {"labels": {"task": digits}})
        write_json(tmp_path / name / "arch.json", asdict(source.arch))
        models.append({"name": name, "checkpoint": str(tmp_path / name)})
    result = merge(models, data="digits", method={"name": "fs_merge", "steps": 3, "width": [7, 6]})
    start = result.solution.trace.start_error
    assert start[0] > 0
    assert tuple(notes_in(result.notes)) == (
        "widths or heads differ, so the initial model reproduces no source; its relative feature error: "
        f"low {start[0]:.3f}, high {start[1]:.3f}",
    )
