"""A config.json of Hugging Face that states another network than its weights show is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli import load_source
from fsmerge_cli.common.errors import SourceError
from tests.support.encoders import with_tokenizer

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


TEXTS: dict[str, dict[str, Any]] = {
    "Bert": {"vocab_size": 217, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24},
    "DistilBert": {"vocab_size": 217, "dim": 16, "n_layers": 2, "hidden_dim": 24},
    "Electra": {"vocab_size": 217, "hidden_size": 16, "num_hidden_layers": 2, "embedding_size": 8},
}
"""Name of a text encoder in transformers -> sizes that its weights show."""


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *((kind, key) for kind, sizes in TEXTS.items() for key in sizes),
        *(("Bert", "max_position_embeddings"), ("Bert", "type_vocab_size"), ("Bert", "num_labels")),
    ],
)
def test_a_contradiction_in_a_text_encoder_is_refused(kind: str, key: str, tmp_path: Path) -> None:
    import transformers

    heads = {"n_heads" if kind == "DistilBert" else "num_attention_heads": 4}
    sizes = {**TEXTS[kind], **heads, "max_position_embeddings": 66, "num_labels": 3}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(tmp_path)
    with_tokenizer(tmp_path)
    assert load_source(tmp_path).arch.hidden_size == 16
    file = tmp_path / "config.json"
    stated = json.loads(file.read_text())
    found = {**sizes, **stated}[key]
    file.write_text(json.dumps({**stated, key: 99}))
    with pytest.raises(SourceError) as error:
        load_source(tmp_path)
    assert str(error.value) == (
        f"source 'source': {tmp_path}: {key} in its config.json is 99, and its weights have {found}. Put "
        "the config.json of these weights beside them."
    )


def test_removed_heads_of_a_text_encoder_are_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(**TEXTS["Bert"], num_attention_heads=4)
    BertModel(config).save_pretrained(with_tokenizer(tmp_path))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pruned_heads": {"0": [1]}}))
    with pytest.raises(SourceError, match="so that transformers removes heads of attention") as error:
        load_source(tmp_path)
    assert "pruned_heads {'0': [1]}" in str(error.value)
