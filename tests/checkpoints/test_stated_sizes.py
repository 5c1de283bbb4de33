"""A config.json of Hugging Face that states another network than its weights show is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli import load_source
from fsmerge_cli.common.errors import SourceError

pytestmark = pytest.mark.full

SIZES: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 8,
    "patch_size": 4,
}


@pytest.mark.parametrize(
    ("key", "stated", "found"),
    [("num_hidden_layers", 1, 2), ("qkv_bias", False, True), ("patch_size", 2, 4), ("num_channels", 1, 3)],
)
def test_a_contradiction_is_refused(key: str, stated: Any, found: Any, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**SIZES)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert load_source(tmp_path).arch.depth == 2
    (tmp_path / "config.json").write_text(json.dumps({**config, key: stated}))
    with pytest.raises(SourceError) as error:
        load_source(tmp_path)
    assert str(error.value) == (
        f"source 'source': {tmp_path}: {key} in its config.json is {stated}, and its weights have {found}. Put "
        "the config.json of these weights beside them."
    )
