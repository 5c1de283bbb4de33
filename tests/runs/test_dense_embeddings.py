"""Embedding models with a Dense behind the Pooling: read, merged and written as the real library computes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fsmerge_cli import load_merged, load_source, merge
from fsmerge_cli.checkpoints.open import digest
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.dense import Dense, embedded, projected
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.check import inspect
from fsmerge_cli.runs.request import request
from fsmerge_cli.training.teachers import network
from tests.support.embedding_models import DATA, TEXTS, Layer, embeddings, stored, tokens

WARNINGS = ("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

KINDS: dict[str, tuple[str, tuple[str, ...], list[Layer]]] = {
    "linear": ("mean_tokens", ("Dense",), [(8, False, "Identity")]),
    "tanh": ("mean_tokens", ("Dense", "Normalize"), [(6, True, "Tanh")]),
    "two": ("cls_token", ("Dense", "Dense", "Normalize"), [(10, True, "Tanh"), (8, False, "Identity")]),
}


def folder_of(path: Path, seed: int, kind: str) -> Path:
    mode, kinds, layers = KINDS[kind]
    return stored(path, seed, mode, kinds, layers)


def encoded(source: Any) -> torch.Tensor:
    """The embeddings of TEXTS of a source."""
    with torch.no_grad():
        found = source.embeddings(network(source)(tokens(source.preprocessing)))
    return F.normalize(found) if source.arch.unit_length else found


@pytest.mark.full
@pytest.mark.filterwarnings(*WARNINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_source_has_the_embeddings_of_the_library(kind: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", 1, kind)
    source, expected = load_source(folder), embeddings(folder)
    torch.testing.assert_close(encoded(source), expected, rtol=1e-4, atol=1e-5)
    assert source.notes[-1] == (
        f"'source': its embeddings have {expected.shape[1]} units, behind a Dense of its features; it is kept "
        "beside the merged encoder, and the agreement with the source is that of embeddings"
    )
    file = next(folder.glob("*_Dense")) / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    torch.testing.assert_close(encoded(load_source(folder)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.filterwarnings(*WARNINGS)
@pytest.mark.parametrize("kind", ["tanh", "two"])
def test_merged_models_are_folders_of_the_library_that_are_sources_again(kind: str, tmp_path: Path) -> None:
    folders = [folder_of(tmp_path / name, seed, kind) for seed, name in enumerate("ab", 1)]
    sources = [load_source(folder, name=folder.name) for folder in folders]
    data = {name: {"train": DATA, "test": TEXTS} for name in "ab"}
    merge(sources, method="regmean", data=data, output=tmp_path / "out")
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert {own["status"] for own in evaluation["certificates"].values()} <= {"holds", "not applicable"}
    assert evaluation["certificates"]["tasks"]["status"] == "holds"
    model, again = load_merged(tmp_path / "out"), tmp_path / "out/tasks"
    for source in sources:
        name = source.name
        found = source.embeddings(model.features(tokens(source.preprocessing), name))
        written = embeddings(again / name)
        torch.testing.assert_close(written, F.normalize(found), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(encoded(load_source(again / name)), written, rtol=1e-3, atol=1e-4)
        cosine = F.cosine_similarity(written, embeddings(tmp_path / name)).mean().item()
        assert evaluation["rows"]["merged"]["feature_cosine"][name] == pytest.approx(cosine, abs=1e-4)
        assert evaluation["rows"]["ensemble"]["feature_error"][name] == 0
    stated = json.loads((again / "a/2_Dense/config.json").read_text())
    assert stated == {
        "in_features": 16,
        "out_features": len(sources[0].dense[0].weight),
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    entries = [{"name": name, "checkpoint": str(again / name)} for name in "ab"]
    notes = inspect(request(entries, "average", None, "cpu", 0, overwrite=False)).notes
    assert "'b' and 'a' are tasks of one model: its weights are counted once per task" in notes


@pytest.mark.full
@pytest.mark.filterwarnings(*WARNINGS)
def test_the_digest_of_a_source_is_of_its_dense_too(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", 1, "tanh")
    spec = SourceSpec("a", checkpoint=str(folder))
    before, file = digest(spec), folder / "2_Dense/model.safetensors"
    assert before == load_source(folder).sha256
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    assert before != digest(spec) == load_source(folder).sha256


def test_a_dense_behind_a_projector_is_one_dense() -> None:
    random = torch.Generator().manual_seed(0)
    W, b, V, U, z = (torch.randn(*shape, generator=random) for shape in ((4, 5), (4,), (3, 4), (5, 6), (7, 6)))
    for layers in ([], [Dense(W, b, "Tanh")], [Dense(W, None, "ReLU"), Dense(V, None, "Identity")]):
        found = projected(layers, U)
        assert len(found) == max(1, len(layers))
        torch.testing.assert_close(embedded(found, z), embedded(layers, z @ U.T), rtol=1e-4, atol=1e-5)


def changed(folder: Path, **values: Any) -> None:
    path = folder / "2_Dense/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def shaped(folder: Path, **tensors: torch.Tensor) -> None:
    save_file({f"linear.{name}": tensor for name, tensor in tensors.items()}, folder / "2_Dense/model.safetensors")


REFUSED: list[tuple[str, Any, str]] = [
    (
        "activation",
        lambda folder: changed(folder, activation_function="torch.nn.modules.activation.Softmax"),
        "has the activation 'torch.nn.modules.activation.Softmax'. Read are Identity, Tanh, ReLU, GELU of "
        "torch.nn.",
    ),
    (
        "code of others",
        lambda folder: changed(folder, activation_function="mine.Tanh"),
        "has the activation 'mine.Tanh'. Read are Identity, Tanh, ReLU, GELU of torch.nn.",
    ),
    (
        "tokens",
        lambda folder: changed(folder, module_input_name="token_embeddings"),
        "is a Dense that reads or writes 'token_embeddings'. Read are those from the pooled features to the "
        "embedding.",
    ),
    (
        "residual",
        lambda folder: changed(folder, use_residual=True),
        "is a Dense that adds its input to its output (use_residual). Read are those from the pooled features to "
        "the embedding.",
    ),
    (
        "widths",
        lambda folder: shaped(folder, weight=torch.ones(4, 5)),
        "holds tensors of [4, 5], and its inputs have 16 units: the weight should be [out, in]. Copy the folder "
        "again.",
    ),
    (
        "bias",
        lambda folder: shaped(folder, weight=torch.ones(4, 16), bias=torch.ones(3)),
        "holds tensors of [4, 16] and [3], and its inputs have 16 units: the weight should be [out, in]. Copy the "
        "folder again.",
    ),
    (
        "names",
        lambda folder: shaped(folder, scale=torch.ones(4)),
        "holds linear.scale. A Dense has linear.weight and linear.bias.",
    ),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_another_dense_is_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", 1, "tanh")
    change(folder)
    with pytest.raises(SourceError) as error:
        load_source(folder)
    assert str(error.value) == f"source 'source': {folder}: 2_Dense {message}"
