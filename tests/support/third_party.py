"""Small third-party models with random values in every tensor, and their reference computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
"""timm's arguments for the models here."""

PIXELS: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
"""Options of an entry whose model expects pixels in 0..1."""


def vit_arch(ratio: float = 20 / 12) -> dict[str, Any]:
    """`arch` of the models here; ratio: of the hidden layer to the width."""
    return {"family": "vit", "name": "vit_base_patch16_224", "args": {**TINY, "mlp_ratio": ratio}}


def random_weights(module: nn.Module, seed: int, scale: float = 0.3) -> nn.Module:
    """Randomise all parameters, including norms, tokens and position embeddings, so that nothing cancels."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            around = 1.0 if "norm" in name or ".ln" in name else 0.0
            tensor.copy_(scale * torch.randn(tensor.shape, generator=random) + around * (tensor.ndim == 1))
    return module.eval()


def torchvision_vit(seed: int, classes: int = 5) -> nn.Module:
    """A ViT of torchvision with random weights."""
    from torchvision.models import VisionTransformer

    module = VisionTransformer(8, 4, 2, 3, 12, 20, num_classes=classes)
    return random_weights(module, seed)


def torchvision_source(folder: Path) -> Source:
    """A ViT of torchvision, written to `folder` and loaded."""
    torch.save(torchvision_vit(1).state_dict(), folder / "tv.pt")
    return load(SourceSpec("tv", arch=vit_arch(), checkpoint=str(folder / "tv.pt"), **PIXELS))


def hugging_face(seed: int, head: bool = True, **options: Any) -> Any:
    """A ViT of transformers with 3 classes; the test is skipped where the library is missing."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        **{"num_channels": 3, "id2label": {0: "cat", 1: "dog", 2: "ox"}, **options},
    )
    kind = transformers.ViTForImageClassification if head else transformers.ViTModel
    return random_weights(kind(config), seed)


def clip_tower(seed: int, prefix: str = "visual.", width: int = 12, out: int = 5) -> dict[str, Tensor]:
    """A CLIP vision tower as OpenAI and open_clip name it, with a few tensors of the text tower."""
    random = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (5, width),
        "conv1.weight": (width, 3, 4, 4),
        "proj": (width, out),
    }
    for norm in ("ln_pre", "ln_post", *(f"transformer.resblocks.{i}.ln_{n}" for i in range(2) for n in (1, 2))):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for i in range(2):
        block = f"transformer.resblocks.{i}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}.attn.out_proj.weight": (width, width), f"{block}.attn.out_proj.bias": (width,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (4 * width, width), f"{block}.mlp.c_fc.bias": (4 * width,)}
        shapes |= {f"{block}.mlp.c_proj.weight": (width, 4 * width), f"{block}.mlp.c_proj.bias": (width,)}
    tower = {f"{prefix}{n}": 0.3 * torch.randn(shape, generator=random) for n, shape in shapes.items()}
    text = {"token_embedding.weight": torch.randn(7, 6), "logit_scale": torch.tensor(1.0)} if prefix else {}
    return {**tower, **text}


def clip_features(state: dict[str, Tensor], pixels: Tensor, heads: int = 3) -> Tensor:
    """Reference features [n, out] of a CLIP tower, computed with torch's attention module."""
    w = {n.removeprefix("visual."): t for n, t in state.items()}
    width = w["class_embedding"].shape[0]

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    x = nn.functional.conv2d(pixels, w["conv1.weight"], stride=4).flatten(2).mT
    x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], 1) + w["positional_embedding"]
    x = norm(x, "ln_pre")
    for i in range(2):
        block = f"transformer.resblocks.{i}"
        attention: Any = nn.MultiheadAttention(width, heads, batch_first=True).eval()
        own = {n.removeprefix(f"{block}.attn."): t for n, t in w.items() if n.startswith(f"{block}.attn.")}
        attention.load_state_dict(own)
        y = norm(x, f"{block}.ln_1")
        x = x + attention(y, y, y, need_weights=False)[0]
        y = norm(x, f"{block}.ln_2") @ w[f"{block}.mlp.c_fc.weight"].T + w[f"{block}.mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y)
        x = x + y @ w[f"{block}.mlp.c_proj.weight"].T + w[f"{block}.mlp.c_proj.bias"]
    features: Tensor = norm(x[:, 0], "ln_post") @ w["proj"]
    return features
