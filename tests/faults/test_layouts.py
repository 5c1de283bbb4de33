"""Files and folders as others save them: read for what they are, or refused with the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli import load_source
from fsmerge_cli.checkpoints.image_processor import read_open_clip
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import SourceError
from tests.support.checkpoints import MLP_ARCH
from tests.support.layouts import REFUSED
from tests.support.layouts.files import SOURCE, Weights, renamed, tensors
from tests.support.layouts.read import READ
from tests.support.third_party import PIXELS, clip_tower, torchvision_vit, vit_arch
from tests.support.vits import vit_source


@pytest.mark.parametrize("case", READ)
def test_a_known_layout_is_read(case: str, tmp_path: Path) -> None:
    prepare, notes = READ[case]
    path = tmp_path / prepare(tmp_path, tensors())
    found = load_source(path, name="a", arch=MLP_ARCH, **PIXELS)
    assert found.weights.keys() == SOURCE.weights.keys()
    assert all(torch.equal(found.weights[n], t) for n, t in SOURCE.weights.items())
    assert found.head is not None
    assert torch.equal(found.head.weight, tensors()["head.weight"])
    assert found.notes == notes


def message(case: str, folder: Path) -> tuple[str, str]:
    """The path of a case, and its message after the name of the source."""
    prepare, text = REFUSED[case]
    path = str(folder / prepare(folder, tensors()))
    text = text.replace("{path!r}", repr(path)).replace("{path}", path).replace("{{", "{").replace("}}", "}")
    return path, f"{path}{text if text.startswith(':') else f' {text}'}"


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_has_its_own_sentence(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, text = message(case, tmp_path)
    with pytest.raises(SourceError) as error:
        load_source(path, name="a", arch=MLP_ARCH)
    assert str(error.value) == f"source 'a': {text}"
    assert not (tmp_path / "sprung").exists()


def test_the_two_lines_of_a_message_save_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for case in ("a .pth.tar with arguments", "arrays of NumPy as weights"):
        text = message(case, tmp_path)[1]
        exec("\n".join(line.strip() for line in text.splitlines()[1:]), {"torch": torch})
        found = load_source(tmp_path / "weights.pt", name="a", arch=MLP_ARCH)
        assert all(torch.equal(found.weights[n], t) for n, t in SOURCE.weights.items())


ALIKE = (
    "a .pth.tar with arguments",
    "a web page",
    "an empty folder",
    "a missing shard",
    "a folder of PEFT",
    "the state of an optimizer",
)


@pytest.mark.full
@pytest.mark.parametrize("case", ALIKE)
def test_every_command_says_the_same(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path, text = message(case, tmp_path)
    arch = "arch:{family:mlp,input_size:[1,4,4],widths:[6,5]}"
    entries = f"[{{name:a,checkpoint:'{path}',{arch}}},{{name:b,checkpoint:'{path}',{arch}}}]"
    both = [f"models.sources={entries}", "method=average"]
    one = "model.arch={family:mlp,input_size:[1,4,4],widths:[6,5]}"
    calls = {
        "check": [*both],
        "merge": [*both, "output.dir=out"],
        "evaluate": [path, one, "model.task=a", "data=generated"],
        "finetune": [
            f"model.checkpoint='{path}'",
            one,
            "model.task=a",
            "data=digits",
            "model.labels=[x,y]",
            "output.dir=out",
        ],
    }
    for command, arguments in calls.items():
        capsys.readouterr()
        assert main([command, *arguments]) == 2
        told = capsys.readouterr().err.partition("fsmerge: error: ")[2]
        named = "" if command == "evaluate" else "source 'a': "
        own = text.replace("models.sources.N.", "model.") if command in ("evaluate", "finetune") else text
        expected = f"{named}{own}\n"
        if command in ("check", "merge"):  # both sources at once
            expected += f"source 'b': {text}\n"
        assert told == expected, command
    assert not (tmp_path / "out").exists()


# Vision transformers: names of other code

VIT = vit_source("LayerScale", 1)


def read_vit(folder: Path, weights: Weights, source: Any = VIT) -> Any:
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / "x.safetensors")
    arch = {"family": "vit", "name": source.arch.name, "args": source.arch.args}
    return load_source(folder / "x.safetensors", name="a", arch=arch, **PIXELS)


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n.replace("blocks.1.", "_fsdp_wrapped_module.blocks.1._fsdp_wrapped_module.").replace(
            ".attn.", ".attn._orig_mod."
        ),
        lambda n: n.replace("blocks.", "blocks.0."),  # chunks of the original DINOv2
        lambda n: f"teacher.backbone.module.{n}",
    ],
)
def test_names_of_other_code_are_read(change: Callable[[str], str], tmp_path: Path) -> None:
    found = read_vit(tmp_path, renamed(change)(dict(VIT.weights)))
    assert all(torch.equal(found.weights[n], t) for n, t in VIT.weights.items())
    assert found.notes == ()


def test_what_only_served_pretraining_is_left_out_with_a_note(tmp_path: Path) -> None:
    extra = {"mask_token": torch.ones(1, 12), "decoder_pos_embed": torch.ones(1, 5, 8)}
    found = read_vit(tmp_path, {**VIT.weights, **extra})
    assert found.weights.keys() == VIT.weights.keys()
    assert found.notes == ("'a': not used, without effect on the features: decoder_pos_embed, mask_token",)


def test_register_tokens_of_the_original_dinov2_give_its_features(tmp_path: Path) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    source = vit_source("register tokens", 1, no_embed_class=True)
    model = source.family.build(source.arch).eval()
    random = torch.Generator().manual_seed(0)
    original = {n: t for n, t in source.weights.items() if n not in ("reg_token", "pos_embed")}
    original["register_tokens"] = torch.randn(1, 2, 12, generator=random)
    original["pos_embed"] = torch.randn(1, 5, 12, generator=random)
    original["mask_token"] = torch.randn(1, 12, generator=random)
    found = read_vit(tmp_path, original, source)
    expected = checkpoint_filter_fn(dict(original), model)  # type: ignore[arg-type]
    assert found.weights.keys() == expected.keys()
    assert all(torch.equal(found.weights[n], t) for n, t in expected.items())
    assert found.notes == ("'a': not used, without effect on the features: mask_token",)


def test_the_swiglu_of_the_original_dinov2(tmp_path: Path) -> None:
    source = vit_source("packed SwiGLU (DINOv2 giant)", 1)
    own = renamed(
        lambda n: n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3").replace("blocks.", "blocks.3.")
    )
    found = read_vit(tmp_path, own(dict(source.weights)), source)
    assert all(torch.equal(found.weights[n], t) for n, t in source.weights.items())


@pytest.mark.parametrize("old", ["heads.head.", "heads."])
def test_the_head_of_torchvision_under_both_names(old: str, tmp_path: Path) -> None:
    module = torchvision_vit(1)
    save_file(renamed(lambda n: n.replace("heads.head.", old))(module.state_dict()), tmp_path / "x.safetensors")
    found = load_source(tmp_path / "x.safetensors", name="a", arch=vit_arch(), **PIXELS)
    assert found.head is not None
    assert torch.equal(found.head.weight, module.state_dict()["heads.head.weight"])


def test_two_heads_of_torchvision_are_not_one(tmp_path: Path) -> None:
    state = torchvision_vit(1).state_dict()
    save_file({**state, "heads.weight": torch.ones(4, 12)}, tmp_path / "x.safetensors")
    with pytest.raises(SourceError) as error:
        load_source(tmp_path / "x.safetensors", name="a", arch=vit_arch(), **PIXELS)
    assert str(error.value) == (
        f"source 'a': {tmp_path}/x.safetensors: heads.head.weight and heads.weight are two names of one tensor. "
        "Save the weights of one model."
    )


def test_mean_and_std_in_the_config_of_open_clip_are_used(tmp_path: Path) -> None:
    from fsmerge_cli.checkpoints.open import open_checkpoint
    from fsmerge_cli.models.source_spec import SourceSpec

    save_file(clip_tower(1), tmp_path / "open_clip_model.safetensors")
    stated = {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.4, 0.4, 0.4],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": stated}))
    found = open_checkpoint(SourceSpec("a", arch="vit_base_patch16_clip_224", checkpoint=str(tmp_path)))
    assert found.config["pretrained_cfg"] == {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.4, 0.4, 0.4],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


@pytest.mark.parametrize(("stated", "filter_"), [("random", "bicubic"), ("bilinear", "bilinear")])
def test_what_open_clip_does_that_is_not_followed_is_named(stated: str, filter_: str, tmp_path: Path) -> None:
    values = {"mean": [0.5], "std": [0.4], "interpolation": stated, "resize_mode": "longest"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": values}))
    found, notes = read_open_clip(tmp_path, "here")
    assert (found["interpolation"], found["crop_mode"]) == (filter_, "center")
    assert notes == ("open_clip_config.json: resize_mode=longest is not followed: the centre of an image is used",)
