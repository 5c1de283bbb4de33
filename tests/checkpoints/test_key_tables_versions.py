"""Every class of Hugging Face that is read, with the tensor names of transformers 4 and of transformers 5.

Both are compared with the real class with random weights, and a merge of the two loads in timm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.third_party import PIXELS, random_weights

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
TINY = {**SIZES, "intermediate_size": 20}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "ox"}}
TOWER = "vision_model."

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTModel": ("ViT", TINY),
    "ViTForImageClassification": ("ViT", {**TINY, **LABELS}),
    "DeiTModel": ("DeiT", TINY),
    "DeiTForImageClassification": ("DeiT", {**TINY, **LABELS}),
    "DeiTForImageClassificationWithTeacher": ("DeiT", {**TINY, **LABELS}),
    "Dinov2Model": ("Dinov2", {**SIZES, "mlp_ratio": 2}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegisters", {**SIZES, "mlp_ratio": 2, "num_register_tokens": 3}),
    "DINOv3ViTModel": ("DINOv3ViT", {**TINY, "num_register_tokens": 4}),
    "SiglipVisionModel": ("SiglipVision", TINY),
    "CLIPVisionModel": ("CLIPVision", TINY),
    "CLIPVisionModelWithProjection": ("CLIPVision", {**TINY, "projection_dim": 5}),
}


def model(name: str, seed: int) -> Any:
    transformers = pytest.importorskip("transformers")
    config, options = CLASSES[name]
    return random_weights(getattr(transformers, name)(getattr(transformers, f"{config}Config")(**options)), seed)


def stored(name: str, module: Any, folder: Path, version: int) -> None:
    """Write a model with the names of its tensors in version 4 or 5."""
    module.save_pretrained(folder)  # also version 5 writes the names of version 4, but for CLIP and SigLIP
    file = folder / "model.safetensors"
    if version == 5:
        save_file({n: t.detach().contiguous() for n, t in module.state_dict().items()}, file)
    elif name in ("SiglipVisionModel", "CLIPVisionModel"):
        save_file({n if n.startswith(TOWER) else f"{TOWER}{n}": t for n, t in load_file(file).items()}, file)


def outputs(module: Any, pixels: Tensor) -> Tensor:
    """Logits of a classifier, else what other libraries take as features."""
    found = module(pixels)
    for key in ("logits", "image_embeds"):
        if found.get(key) is not None:
            return found[key]
    tower = type(module).__name__.startswith(("Siglip", "CLIP"))
    return found.pooler_output if tower else found.last_hidden_state[:, 0]


@pytest.mark.full
@pytest.mark.parametrize("name", CLASSES)
def test_both_versions_have_the_outputs_of_the_class_and_merge(name: str, tmp_path: Path) -> None:
    from timm.models import create_model

    pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    names = []
    for version in (4, 5):
        module, folder = model(name, version), tmp_path / f"v{version}"
        stored(name, module, folder, version)
        names.append(sorted(load_file(folder / "model.safetensors")))
        source = load(SourceSpec("a", checkpoint=str(folder), **PIXELS))
        features = network(source)(pixels)
        found = features if source.head is None else source.head(features)
        assert (source.head is None) == ("For" not in name)
        torch.testing.assert_close(found, outputs(module, pixels), rtol=1e-5, atol=1e-5)
    assert names[0] != names[1] or name == "CLIPVisionModelWithProjection"
    entries = [{"name": f"v{v}", "checkpoint": str(tmp_path / f"v{v}"), **PIXELS} for v in (4, 5)]
    result = merge(entries, method="average", output=tmp_path / "out")
    loaded = create_model(f"local-dir:{tmp_path}/out/merged", pretrained=True).eval()
    torch.testing.assert_close(loaded(pixels), result.backbone()(pixels), rtol=1e-5, atol=1e-5)
