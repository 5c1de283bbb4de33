"""Writing a backbone and its heads in the layout that timm and `load` read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures import Family
from fsmerge_cli.common.atomic import write_json, write_tensors, write_text
from fsmerge_cli.models.preprocessing import PLAIN


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a backbone and its heads in the layout that timm (`local-dir:`) and `load` read.

    Writes config.json, model.safetensors, and heads.safetensors with `NAME.weight`, `NAME.bias` per task; `facts`
    (label names, ...) are stored in the metadata of that file under the key `fsmerge`. files: of a tokenizer, by
    name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", weights, {"format": "pt"})
    if heads:
        write_tensors(folder / "heads.safetensors", heads, {"fsmerge": json.dumps(facts)})
    for name, content in (files or {}).items():
        write_text(folder / name, content.decode())


def model_config(family: Family, arch: Any, preprocessing: Any = None, dtype: str = "float32") -> dict[str, Any]:
    """config.json in timm's layout: architecture, preprocessing, dtype. Mean is 0 and std 1 where folded.

    That of a text encoder is transformers'.
    """
    if family.kind == "text":
        return {**family.config(arch), "dtype": dtype}
    classes = arch.features if family.head(arch) is None or family.writes_features(arch) else 0
    stated = {
        "input_size": list(arch.input_size),
        "fixed_input_size": True,
        **asdict(preprocessing or PLAIN),
        **family.pixels(arch),
        "num_classes": classes,
    }
    return {
        **family.config(arch),
        "num_classes": classes,
        "num_features": arch.features,
        **({"torch_dtype": dtype} if dtype != "float32" else {}),
        "pretrained_cfg": stated,
    }
