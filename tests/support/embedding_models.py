"""Folders of sentence-transformers with random weights, and what the real library computes from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli.common.inputs import stack
from fsmerge_cli.data.text.tokens import ToTokens
from fsmerge_cli.training.teachers import network
from tests.support.encoders import BERT, sentence_source, with_tokenizer

TEXTS = ["the new novel about rivers was not bad", "a striker scored", "the soup was cold and the waiter slow"]

DATA = [f"{first} {verb} {last}" for first in TEXTS for verb in ("and", "but") for last in (*TEXTS, "never")]


Layer = tuple[int, bool, str]
"""Units, whether there is a bias, and the activation of a Dense."""


def stored(
    folder: Path,
    seed: int,
    mode: str = "mean_tokens",
    kinds: tuple[str, ...] = ("Normalize",),
    dense: Sequence[Layer] = (),
) -> Path:
    """A folder of the library, as its version 2 writes it, with the pooler of BERT, which it does not run.

    dense: the layers of the modules Dense among `kinds`, in order, with random weights.
    """
    source = sentence_source("BERT", seed, ("a", "b"))
    with_tokenizer(folder)
    save_file({name: tensor.contiguous() for name, tensor in source.weights.items()}, folder / "model.safetensors")
    config = {k: v for k, v in BERT.config(source.arch).items() if k != "architecture"}
    (folder / "config.json").write_text(json.dumps(config))
    names = ("Transformer", "Pooling", *kinds)
    paths = ("", "1_Pooling", *(f"{place}_{kind}" for place, kind in enumerate(kinds, 2)))
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(zip(paths, names))
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for path in paths[1:]:
        (folder / path).mkdir()
    modes = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
    places = [path for path, kind in zip(paths, names) if kind == "Dense"]
    width, random = 16, torch.Generator().manual_seed(seed)
    for path, (units, bias, activation) in zip(places, dense):
        write_dense(folder / path, width, units, bias, activation, random)
        width = units
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    return folder


def write_dense(
    folder: Path, width: int, units: int, bias: bool, activation: str, random: torch.Generator
) -> None:
    """The files of a Dense, as the library writes them."""
    tensors = {"linear.weight": torch.randn(units, width, generator=random) / 2}
    tensors |= {"linear.bias": torch.randn(units, generator=random)} if bias else {}
    save_file(tensors, folder / "model.safetensors")
    place = "linear" if activation == "Identity" else "activation"
    stated = {
        "in_features": width,
        "out_features": units,
        "bias": bias,
        "activation_function": f"torch.nn.modules.{place}.{activation}",
    }
    (folder / "config.json").write_text(json.dumps(stated))


def embeddings(folder: Path) -> torch.Tensor:
    """What the library computes for TEXTS."""
    library: Any = pytest.importorskip("sentence_transformers")
    found: torch.Tensor = library.SentenceTransformer(str(folder), device="cpu").encode(
        TEXTS, convert_to_tensor=True
    )
    return found


def tokens(found: Any) -> Any:
    """TEXTS as a network reads them."""
    read = ToTokens(found.state, found.longest, 2)
    return stack([read(text) for text in TEXTS])


def features(source: Any) -> torch.Tensor:
    """What the source computes, divided by its length where the library does."""
    with torch.no_grad():
        found = network(source)(tokens(source.preprocessing))
    return torch.nn.functional.normalize(found) if source.arch.unit_length else found
