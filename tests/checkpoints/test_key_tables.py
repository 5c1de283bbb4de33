"""Third-party checkpoints: layouts of tensor names, torchvision, unsupported formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli.checkpoints.key_tables import LAYOUTS, REFUSED, recognise
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.check import inspect
from fsmerge_cli.runs.request import request
from fsmerge_cli.training.teachers import network
from tests.support.checkpoints import refused
from tests.support.third_party import (
    PIXELS,
    random_weights,
    torchvision_vit,
    vit_arch,
)


@pytest.mark.full
@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.model."])
def test_a_vit_of_torchvision_gives_the_same_logits(prefix: str, tmp_path: Path) -> None:
    module, pixels = torchvision_vit(1), torch.rand(3, 3, 8, 8)
    file = tmp_path / "model.pt"
    torch.save({f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}, file)
    found = load(SourceSpec("a", arch=vit_arch(), checkpoint=str(file), **PIXELS))
    assert found.head is not None
    torch.testing.assert_close(found.head(network(found)(pixels)), module(pixels))
    assert (found.labels, found.notes) == (("0", "1", "2", "3", "4"), ())


def test_tensor_names_of_older_torchvision_versions_are_read(tmp_path: Path) -> None:
    module, pixels = torchvision_vit(1), torch.rand(3, 3, 8, 8)
    old = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for name, tensor in module.state_dict().items()
    }
    save_file(old, tmp_path / "old.safetensors")
    found = load(SourceSpec("a", arch=vit_arch(), checkpoint=str(tmp_path / "old.safetensors"), **PIXELS))
    assert found.head is not None
    torch.testing.assert_close(found.head(network(found)(pixels)), module(pixels))


@pytest.mark.full
def test_published_sizes_of_torchvision_need_no_arch(tmp_path: Path) -> None:
    from torchvision.models import vit_b_32

    module, pixels = random_weights(vit_b_32(num_classes=3), 2, 0.05), torch.rand(1, 3, 224, 224)
    torch.save(module.state_dict(), tmp_path / "model.pth")
    found = load(SourceSpec("a", checkpoint=str(tmp_path / "model.pth")))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = module((pixels - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1))
    assert found.head is not None
    torch.testing.assert_close(found.head(network(found)(pixels)), expected, rtol=1e-3, atol=1e-3)
    assert found.arch.args["num_heads"] == 12
    assert found.preprocessing.crop_pct == 0.875
    advice = "if that is wrong, pass models.sources.N.arch={family: vit, ...}"
    assert found.notes == (
        f"'a': 12 attention heads are assumed, as in the published models of width 768; {advice}",
        "'a': square images of 224 x 224 pixels are assumed, from the number of its position embeddings; "
        + advice,
        "'a': mean and std are assumed to be those of torchvision's public weights; if it was trained with other "
        "values, pass models.sources.N.mean=[...] and std=[...]",
    )


def test_for_unpublished_sizes_the_number_of_heads_has_to_be_given(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(torchvision_vit(1).state_dict(), file)
    assert refused(SourceSpec("a", checkpoint=str(file))) == (
        f"source 'a': {file} (torchvision's VisionTransformer) is a vision transformer of width 12, whose number "
        "of attention heads is not in its tensors: 1, 2, 3, 4, 6, 12 are possible. Pass the one that it was "
        "trained with, for example 'models.sources.N.arch={family: vit, args: {num_heads: 1}}'"
    )
    entry = SourceSpec("a", checkpoint=str(file), arch={"family": "vit", "args": {"num_heads": 3}})
    assert load(entry).arch.args["num_heads"] == 3


# Unsupported formats

EXAMPLES = {
    "a convolutional stem of torchvision": "conv_proj.conv_last.weight",
    "torchvision's VisionTransformer with a representation layer": "heads.pre_logits.weight",
    "CLIP's ResNet": "visual.layer1.0.conv1.weight",
    "Hugging Face's BEiT or Data2Vec": "beit.encoder.layer.0.lambda_1",
    "Hugging Face's Swin": "swin.encoder.layers.0.blocks.0.layernorm_before.weight",
}


@pytest.mark.parametrize("title", REFUSED)
def test_unsupported_formats_are_refused_by_name(title: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({EXAMPLES[title]: torch.zeros(2)}, file)
    assert refused(SourceSpec("a", checkpoint=str(file))) == (
        f"source 'a': {file} contains {title}, which is not supported. Supported formats of other libraries are "
        "torchvision's VisionTransformer, Hugging Face's ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP, and the CLIP "
        "vision towers of OpenAI and open_clip. Load the model into timm, and save its state_dict."
    )


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.relative_position_bias_table", "x.rel_pos_bias.relative_position_bias_table"]
)
def test_a_file_of_timms_beit_is_refused_by_its_table(name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(2), "patch_embed.proj.weight": torch.zeros(2, 3, 4, 4)}, file)
    assert refused(SourceSpec("a", checkpoint=str(file))) == (
        f"source 'a': {file} contains a vision transformer of timm with a table of relative positions (BEiT) "
        f"({name}). The table adds to the logits of each head, so that heads cannot be mixed, and it cannot be "
        "merged. Use a model with position embeddings or rotary positions (vit_*, eva02_*)."
    )
    swin = {"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(1)}
    assert recognise(swin, {}, "here") is None  # of timm's Swin, which is refused elsewhere


def test_each_layout_is_recognised_by_one_tensor() -> None:
    for layout in LAYOUTS:
        assert recognise({f"x.{layout.anchor}": torch.zeros(1)}, {}, "here") is layout
    assert recognise({"patch_embed.proj.weight": torch.zeros(1), "my_class_token": torch.zeros(1)}, {}, "") is None


@pytest.mark.full
def test_check_reads_third_party_layouts_from_headers(tmp_path: Path) -> None:
    entries = []
    for seed in (1, 2):
        save_file(torchvision_vit(seed).state_dict(), tmp_path / f"{seed}.safetensors")
        entries.append(
            {"name": f"t{seed}", "arch": vit_arch(), "checkpoint": str(tmp_path / f"{seed}.safetensors")}
        )
    found = inspect(request(entries, "average", None, Hardware(device="cpu"), 0, overwrite=False))
    assert found.reasons == ()
    assert [row.classes for row in found.rows] == [5, 5]
    assert found.rows[0].mean == (0.485, 0.456, 0.406)
    assert found.rows[0].parameters == sum(t.numel() for t in torchvision_vit(1).state_dict().values())
    assert found.similarity is not None
    assert abs(found.similarity[0]) < 0.2
    assert "those of torchvision's public weights" in found.notes[0]
    same = [entries[0], {**entries[0], "name": "again"}]
    twin = inspect(request(same, "average", None, Hardware(device="cpu"), 0, overwrite=False))
    assert twin.similarity == pytest.approx((1.0,))
