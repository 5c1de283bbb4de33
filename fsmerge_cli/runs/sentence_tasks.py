"""`tasks/NAME/`: a merged text encoder with the projector of one source, as a folder of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fsmerge_cli.checkpoints.dtype import to_dtype
from fsmerge_cli.checkpoints.files import as_float32, read_config, read_tensors
from fsmerge_cli.checkpoints.projectors import of_headless
from fsmerge_cli.checkpoints.sentence_modules import CONFIG, FILE, LENGTH, modules_beside
from fsmerge_cli.checkpoints.text_models import TextModel, read_text_model
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.atomic import write_json, write_tensors
from fsmerge_cli.evaluation.certificates import (
    ROUNDING,
    TOLERANCE,
    Certificate,
    Certifier,
    network,
    relative_error,
)
from fsmerge_cli.methods import Solution
from fsmerge_cli.models.dense import Dense, embedded, projected
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.models.tokenization import Tokenization

POOLING = "1_Pooling"
"""Folder of the module behind the encoder, as the library numbers them."""

ACTIVATION = {"Identity": "torch.nn.modules.linear.Identity"}
"""Paths of activations that are not in torch.nn.modules.activation."""

LIBRARY = "sentence_transformers.models"


def write_embedding_tasks(
    folder: Path, certifier: Certifier, tokens: Any, solution: Solution
) -> list[Callable[[], Certificate]]:
    """A folder per source without head and pooler: encoder, pooling, U_out and Dense, unit length; a certificate.

    tokens: the tokenization. solution: the weights as they are written.
    """
    plan, projectors = certifier.plan, of_headless(certifier.sources, solution.projectors)
    if plan.family.kind != "text" or plan.arch.pooler or plan.arch.pooling == "tokens" or not projectors:
        return []
    for source in certifier.sources:
        if source.head is None:
            layers = projected(source.dense, projectors[source.name])
            _write(folder / source.name, plan, tokens, solution, layers, source.arch.unit_length)
    return [lambda: _certificate(certifier, folder)]


def _write(
    own: Path, plan: Plan, tokens: Tokenization, solution: Solution, layers: Sequence[Dense], unit: bool
) -> None:
    dtype = solution.dtype
    tensors = {name: tensor.cpu().clone() for name, tensor in solution.weights.items()}
    write_model(
        own, model_config(plan.family, plan.arch, dtype=dtype), to_dtype(tensors, dtype), {}, {}, tokens.files
    )
    most = min(plan.arch.longest, tokens.longest)
    write_json(own / LENGTH, {"max_seq_length": most, "do_lower_case": False})
    places = [f"{number}_Dense" for number in range(2, 2 + len(layers))]
    listed = [("", "Transformer"), (POOLING, "Pooling"), *((place, "Dense") for place in places)]
    listed += [(f"{2 + len(layers)}_Normalize", "Normalize")] * unit
    write_json(own / FILE, [_module(number, path, kind) for number, (path, kind) in enumerate(listed)])
    contents = {POOLING: _pooling(plan), **dict(zip(places, map(_dense, layers)))}
    for path, content in contents.items():
        (own / path).mkdir()
        write_json(own / path / CONFIG, content)
    for path, layer in zip(places, layers):
        named = {"linear.weight": layer.weight, **({} if layer.bias is None else {"linear.bias": layer.bias})}
        write_tensors(own / path / "model.safetensors", to_dtype(named, dtype), {"format": "pt"})


def _module(place: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": place, "name": str(place), "path": path, "type": f"{LIBRARY}.{kind}"}


def _pooling(plan: Plan) -> dict[str, Any]:
    modes = {"cls_token": plan.arch.pooling == "first", "mean_tokens": plan.arch.pooling == "mean"}
    flags = {f"pooling_mode_{name}": on for name, on in modes.items()}
    return {"word_embedding_dimension": plan.arch.features, **flags, "pooling_mode_max_tokens": False}


def _dense(layer: Dense) -> dict[str, Any]:
    return {
        "in_features": layer.weight.shape[1],
        "out_features": layer.weight.shape[0],
        "bias": layer.bias is not None,
        "activation_function": ACTIVATION.get(layer.activation, f"torch.nn.modules.activation.{layer.activation}"),
    }


def _certificate(certifier: Certifier, folder: Path) -> Certificate:
    """The written folders, read back, compared with the sources' Dense on the merged projected features."""
    what = "embeddings of the written folders of the tasks = those from the projected features of the merged model"
    merged = network(certifier.plan, certifier.solution.weights)(certifier.pixels.double())
    errors = []
    with torch.no_grad():
        for source, U in zip(certifier.sources, certifier.solution.projectors):
            if source.head is not None:
                continue
            found = _read(folder / source.name, source.name)
            features = network(certifier.plan, found.tensors)(certifier.pixels.double())
            expected = source.embeddings(merged @ U.cpu().double().T)
            errors.append(relative_error(embedded(found.dense, features), expected))
    return Certificate("tasks", what, max(errors), TOLERANCE if certifier.dtype == "float32" else ROUNDING)


def _read(folder: Path, task: str) -> TextModel:
    """A written folder as a source."""
    where = str(folder)
    config = {**read_config(folder, where), **modules_beside(folder)}
    tensors = as_float32(read_tensors(folder / "model.safetensors", where)[0], where)
    return read_text_model(SourceSpec(task, checkpoint=where), config, tensors, where, False)
