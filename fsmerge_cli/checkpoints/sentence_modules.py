"""Folders of sentence-transformers: what becomes of the tokens of an encoder, as modules.json states it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsmerge_cli.checkpoints.files import as_float32, file_sha256
from fsmerge_cli.checkpoints.weights import locate
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json
from fsmerge_cli.common.shown import brief, few, shown
from fsmerge_cli.models.dense import ACTIVATIONS, Dense

KEY = "sentence_modules"
"""Under which the folder of modules.json is put into the content of config.json."""

DENSE = "dense"
"""Under which the layers behind the features are added to it."""

FILE = "modules.json"

CONFIG = "config.json"

LENGTH = "sentence_bert_config.json"
"""File of the Transformer, which states how long a text may be."""

POOLED = {"mean": "mean", "mean_tokens": "mean", "cls": "first", "cls_token": "first"}
"""Modes of pooling that are read, by the names in the library's files."""


def modules_beside(path: Path) -> dict[str, Path]:
    """Under KEY the folder of modules.json, in the folder `path` or beside the file `path`; empty without one."""
    folder = path if path.is_dir() else path.parent
    return {KEY: folder} if (folder / FILE).is_file() else {}


def with_dense(path: Path, sha256: str) -> str:
    """SHA-256 of the weights at `path` together with the Dense modules in their folder; without any that given."""
    folder = modules_beside(path).get(KEY)
    listed = [] if folder is None else _read(folder / FILE, f"{path}: {FILE}")
    dense = [own for own in listed if isinstance(own, dict) and str(own.get("type", "")).endswith(".Dense")]
    if folder is None or not dense:
        return sha256
    places = [folder / _folder(own, "Dense", str(path)) for own in dense]
    files = [file for place in places for file in sorted(place.iterdir()) if file.is_file()]
    lines = [f"{file_sha256(file)}  {file.parent.name}/{file.name}\n" for file in files]
    return hashlib.sha256("".join([sha256, *lines]).encode()).hexdigest()


def without_modules(config: Mapping[str, Any]) -> dict[str, Any]:
    """For the encoder alone: what a classifier on its pooled first token is trained from."""
    return {key: value for key, value in config.items() if key != KEY}


def longest(folder: Path, where: str) -> int | None:
    """Tokens of a text, as the folder of the Transformer states it; None where it does not. Raises SourceError."""
    if not (folder / LENGTH).is_file():
        return None
    stated = _read(folder / LENGTH, f"{where}: {LENGTH}")
    found = stated.get("max_seq_length") if isinstance(stated, Mapping) else None
    if found is None:
        return None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise SourceError(f"{where}: max_seq_length in {LENGTH} should be a number of tokens, is {brief(found)}.")
    return found


@dataclass(frozen=True)
class Modules:
    """What becomes of the tokens. pooling, unit_length: as in `TextArch`; dense: layers between them, in order."""

    pooling: str
    dense: tuple[Dense, ...]
    unit_length: bool


def read_modules(folder: Path, where: str, width: int, headers: bool = False) -> Modules:
    """The modules of an encoder with tokens of `width` units. Raises SourceError for other modules.

    headers: the layers are read without their values, on the meta device.
    """
    listed = _read(folder / FILE, f"{where}: {FILE}")
    if not isinstance(listed, list) or not all(isinstance(own, dict) for own in listed):
        raise SourceError(f"{where}: {FILE} is no list of modules, as sentence-transformers writes it.")
    kinds = [str(own.get("type", "")).rpartition(".")[2] for own in listed]
    unit = kinds[-1:] == ["Normalize"]
    inner = kinds[2 : len(kinds) - unit]
    if kinds[:2] != ["Transformer", "Pooling"] or {*inner} > {"Dense"} or {*inner} - {"Dense"}:
        found = shown(", ".join(kinds))
        raise SourceError(
            f"{where} has the modules {found} of sentence-transformers. Read are a Transformer, a Pooling, any "
            "number of Dense and a Normalize, in this order."
        )
    names = [_folder(own, kind, where) for own, kind in zip(listed[1:], ["Pooling", *inner])]
    place = folder / names[0] / CONFIG
    stated = _read(place, f"{where}: {names[0]}/{CONFIG}") if place.is_file() else {}
    layers: list[Dense] = []
    for name in names[1:]:
        layers.append(_dense(folder / name, f"{where}: {name}", width, headers))
        width = len(layers[-1].weight)
    return Modules(_pooling(stated, where), tuple(layers), unit)


def _folder(stated: Mapping[str, Any], kind: str, where: str) -> str:
    """The folder of a module, directly below that of the model. Raises SourceError."""
    name = str(stated.get("path", ""))
    if "/" in name or name in ("", ".", ".."):
        raise SourceError(f"{where}: the path of {kind} in {FILE} is {brief(name)}, which is no folder there.")
    return name


def _dense(folder: Path, where: str, width: int, headers: bool) -> Dense:
    """One layer; width: of its inputs. Raises SourceError."""
    stated = _read(folder / CONFIG, f"{where}/{CONFIG}")
    stated = stated if isinstance(stated, Mapping) else {}
    inputs, outputs = (stated.get(f"module_{way}_name") for way in ("input", "output"))
    other = [name for name in (inputs, outputs) if name not in (None, "sentence_embedding")]
    if other or stated.get("use_residual"):
        what = f"reads or writes {brief(other[0])}" if other else "adds its input to its output (use_residual)"
        raise SourceError(
            f"{where} is a Dense that {what}. Read are those from the pooled features to the embedding."
        )
    path = str(stated.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = path.rpartition(".")[2]
    if name not in ACTIVATIONS or not path.startswith("torch.nn."):
        raise SourceError(
            f"{where} has the activation {brief(path)}. Read are {', '.join(ACTIVATIONS)} of torch.nn."
        )
    tensors = as_float32(locate(folder, where).read(where, headers), where)
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or {*tensors} - {"linear.weight", "linear.bias"}:
        raise SourceError(
            f"{where} holds {few(sorted(tensors)) or 'no tensors'}. A Dense has linear.weight and linear.bias."
        )
    shapes = [list(weight.shape)] + ([] if bias is None else [list(bias.shape)])
    if weight.ndim != 2 or weight.shape[1] != width or (bias is not None and bias.shape != weight.shape[:1]):
        raise SourceError(
            f"{where} holds tensors of {' and '.join(map(str, shapes))}, and its inputs have {width} units: the "
            "weight should be [out, in]. Copy the folder again."
        )
    return Dense(weight, bias, name)


def _read(path: Path, where: str) -> Any:
    try:
        return read_json(path)
    except UnreadableError as error:
        raise SourceError(f"{where} cannot be read: {error.why}. Repair it, or copy it again.") from None


def _pooling(stated: Any, where: str) -> str:
    """The mode of pooling, which older versions of the library write as flags, and newer ones by name."""
    given = stated if isinstance(stated, Mapping) else {}
    prefix = "pooling_mode_"
    modes = [key.removeprefix(prefix) for key, on in given.items() if key.startswith(prefix) and on is True]
    if named := given.get("pooling_mode"):
        modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in POOLED:
        raise SourceError(
            f"{where}: its Pooling of sentence-transformers is {brief(few(modes) or 'not stated')}. Read are the "
            "mean of the tokens (mean) and the first token (cls)."
        )
    return POOLED[modes[0]]
