"""`tasks/NAME/`: a merged text encoder with the projector of one source, as a folder of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.checkpoints.dtype import to_dtype
from fsmerge_cli.checkpoints.files import as_float32, read_config, read_tensors
from fsmerge_cli.checkpoints.projectors import of_headless
from fsmerge_cli.checkpoints.sentence_modules import FILE, LENGTH
from fsmerge_cli.checkpoints.text_models import read_text_model
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
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.models.tokenization import Tokenization

POOLING, DENSE, UNIT = "1_Pooling", "2_Dense", "3_Normalize"
"""Folders of the modules behind the encoder, as the library numbers them."""

LINEAR = "linear.weight"

LIBRARY = "sentence_transformers.models"


def write_embedding_tasks(
    folder: Path, certifier: Certifier, tokens: Any, solution: Solution
) -> list[Callable[[], Certificate]]:
    """One folder per source without a head and pooler: encoder, pooling, U_out, unit length; their certificate.

    tokens: the tokenization. solution: the weights as they are written.
    """
    plan, projectors = certifier.plan, of_headless(certifier.sources, solution.projectors)
    if plan.family.kind != "text" or plan.arch.pooler or plan.arch.pooling == "tokens" or not projectors:
        return []
    for task, U in projectors.items():
        _write(folder / task, plan, tokens, solution, task, U)
    return [lambda: _certificate(certifier, folder)]


def _write(own: Path, plan: Plan, tokens: Tokenization, solution: Solution, task: str, U: Tensor) -> None:
    archs, dtype = dict(zip(plan.tasks, plan.source_archs)), solution.dtype
    tensors = {name: tensor.cpu().clone() for name, tensor in solution.weights.items()}
    write_model(
        own, model_config(plan.family, plan.arch, dtype=dtype), to_dtype(tensors, dtype), {}, {}, tokens.files
    )
    most = min(plan.arch.longest, tokens.longest)
    write_json(own / LENGTH, {"max_seq_length": most, "do_lower_case": False})
    listed = [("", "Transformer"), (POOLING, "Pooling"), (DENSE, "Dense")]
    listed += [(UNIT, "Normalize")] * archs[task].unit_length
    write_json(own / FILE, [_module(place, path, kind) for place, (path, kind) in enumerate(listed)])
    for path, content in ((POOLING, _pooling(plan)), (DENSE, _dense(U))):
        (own / path).mkdir()
        write_json(own / path / "config.json", content)
    write_tensors(own / DENSE / "model.safetensors", to_dtype({LINEAR: U}, dtype), {"format": "pt"})


def _module(place: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": place, "name": str(place), "path": path, "type": f"{LIBRARY}.{kind}"}


def _pooling(plan: Plan) -> dict[str, Any]:
    modes = {"cls_token": plan.arch.pooling == "first", "mean_tokens": plan.arch.pooling == "mean"}
    flags = {f"pooling_mode_{name}": on for name, on in modes.items()}
    return {"word_embedding_dimension": plan.arch.features, **flags, "pooling_mode_max_tokens": False}


def _dense(U: Tensor) -> dict[str, Any]:
    return {
        "in_features": U.shape[1],
        "out_features": U.shape[0],
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }


def _certificate(certifier: Certifier, folder: Path) -> Certificate:
    """The written encoders and projectors, read back, compared with the projected features of the merged model."""
    what = "embeddings of the written folders of the tasks = projected features of the merged model"
    merged = network(certifier.plan, certifier.solution.weights)(certifier.pixels.double())
    errors = []
    with torch.no_grad():
        for task, expected in of_headless(certifier.sources, certifier.solution.projectors).items():
            own, spec = folder / task, SourceSpec(task, checkpoint=str(folder / task))
            tensors = as_float32(read_tensors(own / "model.safetensors", str(own))[0], str(own))
            encoder = read_text_model(spec, read_config(own, str(own)), tensors, str(own), False)
            place = own / DENSE / "model.safetensors"
            U = as_float32(read_tensors(place, str(place))[0], str(place))[LINEAR].double()
            features = network(certifier.plan, encoder.tensors)(certifier.pixels.double())
            errors.append(relative_error(features @ U.T, merged @ expected.double().T))
    return Certificate("tasks", what, max(errors), TOLERANCE if certifier.dtype == "float32" else ROUNDING)
