"""Mean, std, crop and interpolation: timm's keys are followed, and values that cannot be used refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fsmerge_cli.checkpoints.api import load_source
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.preprocessing import fold_normalisation
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.models.preprocessing import Preprocessing
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.checkpoints import refused, save
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

NAN, INF = float("nan"), float("inf")
RAMP = np.random.default_rng(0).integers(0, 256, (41, 64, 3), dtype=np.uint8)


def mlp(folder: Path) -> Path:
    return save(folder / "a", mlp_source("a", [6, 5], 3, input_size=(3, 4, 4)), "a")


COUNT = " need 1 or 3 values each, every std above 0."
VALUES: list[tuple[Any, Any, str]] = [
    ([0.5], [0.0], "mean [0.5] and std [0.0]" + COUNT),
    ([0.5], [-1.0], "mean [0.5] and std [-1.0]" + COUNT),
    ([0.5], [0.2, 0.0, 0.2], "mean [0.5] and std [0.2, 0.0, 0.2]" + COUNT),
    ([0.5, 0.5], [1.0], "mean [0.5, 0.5] and std [1.0]" + COUNT),
    ([0.5], [1e-40], "std [1e-40] should be at least 1e-06, for pixels in 0..1."),
    (
        [127.5],
        [127.5],
        "mean [127.5] and std [127.5] are not for pixels in 0..1. If they are for 0..255, divide both by 255: "
        "mean=[0.5] and std=[0.5].",
    ),
    (
        [0.0],
        [255.0],
        "mean [0.0] and std [255.0] are not for pixels in 0..1. If they are for 0..255, divide both by 255: "
        "mean=[0.0] and std=[1.0].",
    ),
    (
        [-2.0],
        [1.0],
        "mean [-2.0] and std [1.0] are not for pixels in 0..1. If they are for 0..255, divide both by 255: "
        "mean=[-0.007843] and std=[0.003922].",
    ),
]


@pytest.mark.parametrize(("mean", "std", "message"), VALUES)
@pytest.mark.parametrize("stated", ["entry", "config"])
def test_a_mean_or_std_that_cannot_be_used(mean: Any, std: Any, message: str, stated: str, tmp_path: Path) -> None:
    folder = mlp(tmp_path)
    given = {"mean": tuple(mean), "std": tuple(std)}
    if stated == "config":
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"] |= {"mean": mean, "std": std}
        (folder / "config.json").write_text(json.dumps(config))
        given = {}
    assert refused(SourceSpec("a", checkpoint=str(folder), **given)) == f"source 'a': {folder}: {message}"


def test_an_empty_list_is_not_taken_for_none_given(tmp_path: Path) -> None:
    folder = mlp(tmp_path)
    assert refused(SourceSpec("a", checkpoint=str(folder), mean=())) == (
        f"source 'a': {folder}: mean [] and std [1.0, 1.0, 1.0]" + COUNT
    )


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e31, "0.5", True, None, [0.5]])
def test_a_value_in_a_config_that_is_no_finite_number(value: Any, tmp_path: Path) -> None:
    folder = mlp(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for key in ("mean", "std"):
        changed = {**config, "pretrained_cfg": {**config["pretrained_cfg"], key: [value] * 3}}
        (folder / "config.json").write_text(json.dumps(changed))
        assert refused(SourceSpec("a", checkpoint=str(folder))) == (
            f"source 'a': {folder}: {key} in config.json should be a list of numbers, it is {[value] * 3}."
        )


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_value_of_an_entry_that_is_no_finite_number(value: float, tmp_path: Path) -> None:
    for key in ("mean", "std"):
        with pytest.raises(ConfigError) as error:
            load_source(tmp_path, **{key: (value,)})
        assert str(error.value) == f"source.{key}.0: should be a finite number, got {value}."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_pct": NAN}, "crop_pct should be from 0.1 to 1, it is nan."),
        ({"crop_pct": INF}, "crop_pct should be from 0.1 to 1, it is inf."),
        ({"crop_pct": 0}, "crop_pct should be from 0.1 to 1, it is 0."),
        ({"crop_pct": -0.5}, "crop_pct should be from 0.1 to 1, it is -0.5."),
        ({"crop_pct": True}, "crop_pct should be from 0.1 to 1, it is True."),
        ({"crop_pct": 1.125}, "crop_pct should be from 0.1 to 1, it is 1.125."),
        ({"crop_mode": "border"}, "crop_mode: unknown value 'border'. Available: center, squash."),
        (
            {"interpolation": "cubic"},
            "interpolation: unknown value 'cubic'. Did you mean 'bicubic'? Available: bicubic, bilinear, box, "
            "hamming, lanczos, nearest.",
        ),
    ],
)
def test_resizing_and_cropping_that_cannot_be_followed(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        Preprocessing(**values)
    assert str(error.value) == message
    with pytest.raises(SourceError) as refusal:
        Preprocessing.of({"crop_pct": 0.9, **values}, "here")
    assert str(refusal.value) == f"here: config.json: {message}"


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("share", [0.8, 0.875, 0.9, 0.95, 0.965, 1.0])
@pytest.mark.parametrize("size", [(64, 41), (41, 64), (50, 50), (16, 16), (100, 17), (33, 200)])
def test_timms_keys_give_timms_pixels(size: tuple[int, int], share: float, mode: str) -> None:
    from timm.data.transforms_factory import create_transform

    image = Image.fromarray(RAMP).resize(size)
    for interpolation in ("bicubic", "bilinear", "lanczos", "nearest"):
        transform = create_transform(
            (3, 16, 16),
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            interpolation=interpolation,
            crop_pct=share,
            crop_mode=mode,
        )
        own = ToPixels((3, 16, 16), Preprocessing(interpolation, share, mode))
        torch.testing.assert_close(own(image), transform(image), rtol=0, atol=1e-6)


def test_folding_that_exceeds_fp32_is_refused() -> None:
    source = mlp_source("a", [6, 5], 3, input_size=(3, 4, 4))
    weights = {**source.weights, "fc0.weight": source.weights["fc0.weight"] * 1e36}
    with pytest.raises(SourceError) as error:
        fold_normalisation(source.family, source.arch, weights, (0.5,), (1e-3,), "here")
    assert str(error.value) == "here: folding mean [0.5] and std [0.001] exceeds fp32. Check both."


@pytest.mark.full
def test_nothing_is_said_to_be_resampled_where_nothing_was(tmp_path: Path) -> None:
    from timm.models import create_model

    args: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
    for positions, said in (
        ("none", "its input size was changed"),
        ("learn", "its position embeddings were resampled"),
    ):
        own = {**args, "pos_embed": positions}
        save_file(
            create_model("vit_tiny_patch16_224", num_classes=0, **own).state_dict(), tmp_path / "a.safetensors"
        )
        arch = {"family": "vit", "name": "vit_tiny_patch16_224", "args": own}
        spec = SourceSpec(
            "a", arch=arch, checkpoint=str(tmp_path / "a.safetensors"), input_size=16, mean=(0.0,), std=(1.0,)
        )
        assert [said in note for note in load(spec).notes] == [True]


def test_the_older_layout_of_timms_config_is_read(tmp_path: Path) -> None:
    folder = mlp(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    stated = config["pretrained_cfg"] | {
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    nested = {**config, "pretrained_cfg": stated, "label_names": ["x", "y", "z"]}
    del config["pretrained_cfg"]
    found = []
    for content in (nested, {**config, **stated, "labels": ["x", "y", "z"]}):
        (folder / "config.json").write_text(json.dumps(content))
        found.append(load(SourceSpec("a", checkpoint=str(folder))))
    assert found[0].preprocessing == found[1].preprocessing == Preprocessing("bicubic", 0.9, "center")
    assert found[0].labels == found[1].labels
    assert all(torch.equal(found[0].weights[name], found[1].weights[name]) for name in found[0].weights)


@pytest.mark.parametrize(("size", "guessed"), [((1, 4, 4), True), ((1, 1, 16), False)])
def test_mean_and_std_of_an_mlp_of_images_are_a_guess_and_of_vectors_are_none(
    size: tuple[int, int, int], guessed: bool, tmp_path: Path
) -> None:
    source = mlp_source("a", [6, 5], 1)
    save_file(dict(source.weights), tmp_path / "a.safetensors")
    arch = {"family": "mlp", "input_size": list(size), "widths": [6, 5]}
    note = (
        "'a': its files do not state mean and std, so mean 0 and std 1 are assumed, for pixels in 0..1; if it was "
        "trained with other values, pass models.sources.N.mean=[...] and models.sources.N.std=[...]"
    )
    found = load_source(tmp_path / "a.safetensors", name="a", arch=arch)
    assert found.notes == ((note,) if guessed else ())
    assert load_source(tmp_path / "a.safetensors", name="a", arch=arch, mean=[0.0], std=[1.0]).notes == ()


@pytest.mark.parametrize(("stated", "noted"), [({"mean": [0.5]}, True), ({"mean": [0.5], "crop_pct": 0.9}, False)])
def test_a_missing_crop_is_a_note(stated: dict[str, Any], noted: bool, tmp_path: Path) -> None:
    source = vit_source("class token", 1)
    save_file({n: t.contiguous() for n, t in source.weights.items()}, tmp_path / "model.safetensors")
    config = {"architecture": source.arch.name, "model_args": dict(source.arch.args), "pretrained_cfg": stated}
    (tmp_path / "config.json").write_text(json.dumps(config))
    note = (
        "'a': its config.json does not state crop_pct, so whole images are resized; timm takes 0.875 of the short "
        "side then. Write crop_pct into its pretrained_cfg"
    )
    assert (note in load_source(tmp_path, name="a").notes) is noted
