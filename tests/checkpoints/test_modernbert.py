"""ModernBERT in folders of transformers: what its config.json states, and the layers of a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsmerge_cli.architectures.modernbert import MODERNBERT, ModernArch
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.encoders import TOPIC, arch_of, save_encoder, sentence_source, texts

SOURCE = sentence_source("ModernBERT", 1, TOPIC)


def read(folder: Path) -> Source:
    return load(SourceSpec("topic", checkpoint=str(folder)))


def with_config(folder: Path, without: tuple[str, ...] = (), **keys: Any) -> Path:
    save_encoder(folder, SOURCE)
    config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k not in without}
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    return folder


def test_an_older_config_json_states_the_same(tmp_path: Path) -> None:
    older = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3}
    assert read(with_config(tmp_path, ("rope_parameters", "layer_types"), **older)).arch == SOURCE.arch


def test_a_language_model_is_an_encoder_without_a_pooler(tmp_path: Path) -> None:
    folder = with_config(tmp_path, architectures=["ModernBertForMaskedLM"])
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    save_file({**tensors, "decoder.bias": torch.zeros(3)}, folder / "model.safetensors")
    found = read(folder)
    assert (found.head, found.arch.pooler, found.arch.pooling) == (None, False, "first")
    assert found.notes == (
        "'topic': not used, no part of the features: decoder.bias, head.dense.weight, head.norm.weight",
    )
    assert network(found)(texts(found.arch, 2)).shape == (2, 16)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scaled positions": (
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0}}},
        "{} has scaled rotary positions ('yarn' in config.json). Only plain ones can be merged.",
    ),
    "kinds of attention": (
        {"layer_types": ["full_attention"]},
        "{}: layer_types in its config.json should be a list of full_attention or sliding_attention for each of 2 "
        "layers, is ['full_attention'].",
    ),
    "every": (
        {"layer_types": None, "global_attn_every_n_layers": 0},
        "{}: global_attn_every_n_layers in its config.json is 0.",
    ),
    "width": (
        {"hidden_size": 32},
        "{}: hidden_size in its config.json is 32, and its weights have 16. Put the config.json of these weights "
        "beside them.",
    ),
    "heads": (
        {"num_attention_heads": 3},
        "{}: config.json: hidden_size 16 cannot be divided into 3 heads of pairs of units. Pass the sizes of the "
        "weights.",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_told_or_contradicts_is_refused(kind: str, tmp_path: Path) -> None:
    keys, message = REFUSED[kind]
    with pytest.raises(SourceError) as error:
        read(with_config(tmp_path, **keys))
    assert str(error.value) == message.format(f"source 'topic': {tmp_path}")


def test_heads_keep_their_size() -> None:
    arch: ModernArch = arch_of("ModernBERT")
    wide = MODERNBERT.resize(arch, 24, None)
    assert (wide.heads, wide.hidden_size, wide.intermediate_size) == (6, 24, 36)
    for width, heads in ((18, None), (None, 8), (16, 2)):
        with pytest.raises(ConfigError) as error:
            MODERNBERT.resize(arch, width, heads)
        assert str(error.value) == (
            f"method.width={width}, method.heads={heads}: with rotary positions every head keeps its 4 units. "
            "Pass a width that is a multiple of 4, and heads=null."
        )
