"""Hugging Face's preprocessor_config.json: every key is followed, named as not followed, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsmerge_cli.checkpoints.image_processor import timm_keys
from fsmerge_cli.checkpoints.load import load, normalisation
from fsmerge_cli.checkpoints.open import interpret, open_checkpoint
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.models.preprocessing import Preprocessing
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.third_party import hugging_face

NAN, INF = float("nan"), float("inf")
RAMP = np.random.default_rng(0).integers(0, 256, (41, 64, 3), dtype=np.uint8)

HEIGHT_WIDTH = {"size": {"height": 20, "width": 20}}
SHORT = {"size": {"shortest_edge": 20}}
CROP = {"do_center_crop": True, "crop_size": {"height": 16, "width": 16}}
FULL = {"size": {"height": 16, "width": 16}}

FOLLOWED: list[dict[str, Any]] = [
    FULL,
    {**FULL, "resample": 0},
    {**FULL, "resample": 1},
    {**FULL, "resample": 2},
    {**FULL, "resample": 3},
    {**FULL, "resample": 4},
    {**FULL, "resample": 5},
    {**HEIGHT_WIDTH, **CROP},
    {**SHORT, **CROP},
    {"size": {"shortest_edge": 24}, **CROP, "resample": 3},
    {"size": {"height": 22, "width": 22}, **CROP},
    {"size": 16, "image_processor_type": "ViTImageProcessor"},
    {"size": 20, "image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "crop_size": 16},
    {**FULL, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60.0] * 3},
    {**FULL, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    {**FULL, "do_normalize": False},
    {**FULL, "do_normalize": False, "do_rescale": False},
    {**FULL, "image_mean": [0.48, 0.45, 0.4], "image_std": [0.27, 0.26, 0.2]},
    {"size": 20, "image_processor_type": "CLIPImageProcessor", "crop_size": 16},  # which crops by default
]


@pytest.mark.parametrize("stated", FOLLOWED, ids=str)
def test_the_keys_of_a_hugging_face_processor_are_followed(stated: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    keys, notes = timm_keys({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **stated}, 3, "here")
    assert notes == ()
    assert keys["input_size"] == [3, 16, 16]
    own = ToPixels((3, 16, 16), Preprocessing.of(keys, "here"))
    kind = transformers.CLIPImageProcessorPil if "CLIP" in str(stated) else transformers.ViTImageProcessorPil
    options = {key: value for key, value in stated.items() if key != "image_processor_type"}
    crop = {} if "CLIP" in str(stated) else {"do_center_crop": False}
    processor = kind(**{"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **crop, **options})
    for size in ((64, 40), (40, 64), (16, 16), (50, 50)):  # whose margins are even
        image = Image.fromarray(RAMP).resize(size)
        expected = torch.as_tensor(np.array(processor(image)["pixel_values"][0]))
        mean, std = (torch.tensor(keys[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
        found = (own(image) - mean) / std
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=scale * 1e-4)


MEAN_STD = {"image_mean": [0.4] * 3, "image_std": [0.3] * 3}

NOT_FOLLOWED: list[tuple[dict[str, Any], str]] = [
    ({**FULL, "do_resize": False}, "do_resize=false is not followed: images of another size are resized"),
    ({**FULL, "do_pad": True}, "do_pad is not followed"),
    ({**FULL, "do_thumbnail": True}, "do_thumbnail is not followed"),
    ({**FULL, "size_divisor": 32}, "size_divisor is not followed"),
    (
        {**FULL, "do_center_crop": True},
        "do_center_crop with crop_size=None is not followed: whole images are resized",
    ),
    (CROP, "crop_size={'height': 16, 'width': 16} without size is not followed: whole images are resized"),
    (SHORT, "size={shortest_edge: 20} without a crop: the centre of an image that is not square is used"),
    (
        {"size": {"shortest_edge": 20, "longest_edge": 40}},
        "size={'shortest_edge': 20, 'longest_edge': 40} is not followed: whole images are resized",
    ),
    (
        {"size": {"shortest_edge": 12}, **CROP},
        "size={'shortest_edge': 12} with crop_size={'height': 16, 'width': 16} is not followed: whole images are "
        "resized",
    ),
    (
        {"size": {"height": 20, "width": 30}, **CROP},
        "size={'height': 20, 'width': 30} with crop_size={'height': 16, 'width': 16} is not followed: whole "
        "images are resized",
    ),
]


@pytest.mark.parametrize(("stated", "note"), NOT_FOLLOWED)
def test_a_key_that_is_not_followed_is_named(stated: dict[str, Any], note: str) -> None:
    assert timm_keys(stated, 3, "here")[1] == (note,)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            {"do_flip_channel_order": True},
            "do_flip_channel_order is true, so the model reads the channels as blue, green, red. Flip the input "
            "channels of its patch projection, save it again, and set the key to false.",
        ),
        ({"image_mean": [NAN]}, "image_mean should consist of finite numbers, it contains 'nan'."),
        ({"image_std": [INF] * 3}, "image_std should consist of finite numbers, it contains 'inf'."),
        ({"image_std": "half"}, "image_std should consist of finite numbers, it contains 'half'."),
        ({"image_mean": None}, "image_mean should consist of finite numbers, it contains 'None'."),
        ({"rescale_factor": NAN}, "rescale_factor should consist of finite numbers, it contains 'nan'."),
        ({"rescale_factor": -1.0}, "rescale_factor should be above 0, it is -1.0."),
        ({"rescale_factor": 0}, "rescale_factor should be above 0, it is 0."),
        ({"image_mean": []}, "image_mean should consist of finite numbers, it is empty."),
        ({"do_rescale": "no"}, "do_rescale should be true or false, it is 'no'."),
        (
            {"size": {"height": 0, "width": 16}},
            "size should be in whole pixels, it is {'height': 0, 'width': 16}.",
        ),
        (
            {"resample": 9},
            "resample should be one of 0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box), 5 (hamming), "
            "it is '9'.",
        ),
    ],
)
def test_a_value_of_a_processor_that_cannot_be_used(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError) as error:
        timm_keys(stated, 3, "here")
    assert str(error.value) == f"here: preprocessor_config.json: {message}"


SIXTEEN = {"height": 16, "width": 16}
OF_A_CLASS: list[tuple[str, dict[str, Any]]] = [
    ("Beit", FULL),
    ("Bit", {"size": 20, "crop_size": 16}),
    ("Blip", FULL),
    ("ChineseCLIP", {**SHORT, "crop_size": 16}),
    ("ConvNext", {"size": {"shortest_edge": 16}, "crop_pct": 0.8}),
    ("ConvNext", {"size": 16, "crop_pct": 0.8, "image_mean": [0.1, 0.2, 0.3]}),
    ("DeiT", {**HEIGHT_WIDTH, "crop_size": SIXTEEN}),
    ("EfficientNet", {**FULL, "image_std": [0.2, 0.3, 0.4]}),
    ("EfficientNet", {**FULL, "include_top": False}),
    ("EfficientNet", {**FULL, "do_normalize": False}),
    ("Levit", {"size": {"shortest_edge": 21}, "crop_size": SIXTEEN}),
    ("MobileNetV1", {**SHORT, "crop_size": SIXTEEN}),
    ("PoolFormer", {"size": {"shortest_edge": 18}, "crop_size": SIXTEEN}),
    ("Pvt", FULL),
    ("Siglip", FULL),
    ("ViT", FULL),
]


@pytest.mark.parametrize(("kind", "stated"), OF_A_CLASS, ids=str)
def test_a_class_of_processors_is_read_as_the_library_reads_it(kind: str, stated: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    keys, notes = timm_keys({"image_processor_type": f"{kind}ImageProcessorFast", **stated}, 3, "here")
    assert notes == ()
    assert keys["input_size"] == [3, 16, 16]
    own = ToPixels((3, 16, 16), Preprocessing.of(keys, "here"))
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**stated)
    image = Image.fromarray(RAMP).resize((50, 40))
    expected = torch.as_tensor(np.array(processor(image)["pixel_values"][0])).float()
    mean, std = (torch.tensor(keys[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    scale = float(expected.abs().max())
    torch.testing.assert_close((own(image) - mean) / std, expected, rtol=1e-4, atol=scale * 1e-4)


def test_an_unknown_class_of_processors_is_named() -> None:
    keys, notes = timm_keys({"image_processor_type": "MineImageProcessor", **FULL, **MEAN_STD}, 3, "here")
    assert keys["interpolation"] == "bilinear"
    assert notes == (
        "its class MineImageProcessor is not known, so keys that it leaves out are taken as those of "
        "ViTImageProcessor, and what the class does besides is not followed",
    )


@pytest.mark.parametrize(("kind", "share"), [("ViT", 1.0), ("DeiT", 0.8), ("Dinov2", 0.8)])
def test_without_a_class_it_is_that_of_the_model(kind: str, share: float, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"ViT": transformers.ViTConfig, "DeiT": transformers.DeiTConfig, "Dinov2": transformers.Dinov2Config}
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 8, "patch_size": 4}
    getattr(transformers, f"{kind}Model")(config[kind](**sizes)).save_pretrained(tmp_path)
    stated = {"size": {"height": 10, "width": 10}, "crop_size": 8}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    found = load(SourceSpec("a", checkpoint=str(tmp_path))).preprocessing
    assert found.crop_pct == pytest.approx(share)
    assert found.interpolation == ("bilinear" if kind == "ViT" else "bicubic")


@pytest.mark.parametrize(
    ("kind", "mode", "share"),
    [("CLIP", "center", 1.0), ("Bit", "center", 1.0), ("DeiT", "squash", 224 / 256), ("ViT", "squash", 1.0)],
)
def test_missing_keys_have_the_values_of_their_class(kind: str, mode: str, share: float) -> None:
    keys, notes = timm_keys({"image_processor_type": f"{kind}ImageProcessor"}, 3, "here")
    assert (keys["crop_mode"], keys["crop_pct"], notes) == (mode, pytest.approx(share), ())


def test_missing_mean_and_std_are_those_of_the_class_in_the_library() -> None:
    transformers = pytest.importorskip("transformers")
    for kind in ("CLIP", "Bit", "ViT", "DeiT"):
        keys, _ = timm_keys({"image_processor_type": f"{kind}ImageProcessor"}, 3, "here")
        library = getattr(transformers, f"{kind}ImageProcessor")()
        for name, own in (("mean", library.image_mean), ("std", library.image_std)):
            assert keys[name] * (3 // len(keys[name])) == [*own], kind


def mean_and_std(spec: SourceSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    found = open_checkpoint(spec)
    return normalisation(spec, interpret(spec, found)[2], found.where)


@pytest.mark.full
def test_a_processor_is_read_from_both_files(tmp_path: Path) -> None:
    hugging_face(1).save_pretrained(tmp_path)
    spec = SourceSpec("a", checkpoint=str(tmp_path))
    guess = "if it was trained with other values, pass models.sources.N.mean=[...] and std=[...]"
    assert load(spec).notes[1:] == (
        f"'a': no preprocessor_config.json, so mean and std are assumed to be 0.5; {guess}",
    )
    stated = {"image_mean": [0.4] * 3, "image_std": [0.3] * 3, "size": {"height": 8, "width": 8}, "do_pad": True}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": stated}))
    assert mean_and_std(spec) == ((0.4,) * 3, (0.3,) * 3)
    assert load(spec).notes[0] == "'a': preprocessor_config.json: do_pad is not followed"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 224}))
    assert mean_and_std(spec) == ((0.5,), (0.5,))
    assert load(spec).notes[1:] == (
        f"'a': preprocessor_config.json has no image_mean and no image_std, assumed to be 0.5; {guess}",
        "'a': images of 224 x 224 pixels are stated for it, but its architecture takes 8 x 8, so that they "
        "are resized to that",
    )
