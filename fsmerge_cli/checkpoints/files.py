"""Reading checkpoints from disk and from the hub; no code in them is ever run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from fsmerge_cli.checkpoints.formats import kind_of
from fsmerge_cli.common.errors import SourceError, first_line, from_cache, reason, unknown
from fsmerge_cli.common.foreign_files import UnreadableError, read_json_object
from fsmerge_cli.common.safe_pickle import read_pickled
from fsmerge_cli.common.shown import brief, shown

FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
"""Data types of weights. fp8 and fp4 are not among them: their scales are stored in other tensors."""

MAX_CONFIG_VALUE = 1e30
"""Largest absolute value of a mean or std in a config.json; the maximum of fp32 is 3e38."""


def readable(text: str, where: str) -> Path:
    """A path given by the user. Raises SourceError if it is not a valid path on this system."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~ of an unknown user
        raise SourceError(
            f"{where}: the path {text[:200]!r} cannot be used ({reason(error)}). Pass another checkpoint."
        ) from None
    return path


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of data types in safetensors."""


def read_tensors(path: Path, where: str, headers: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors or legacy file, whatever its suffix.

    headers: read only names, shapes and types, as tensors on the `meta` device. Raises SourceError if the file
    cannot be read; its format is recognised by its first bytes (`formats`).
    """
    if kind_of(path, where) == "pickle":
        found = read_pickled(path, where)
        return {n: t.to("meta") for n, t in found.items()} if headers else found, {}
    try:
        with safe_open(path, framework="pt") as file:
            read = _header if headers else _tensor
            return {name: read(file, name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # safetensors, torch and the system raise different errors for corrupt files
        raise SourceError(f"{where} cannot be read: {shown(error)}. Copy or download the file again.") from None


def _tensor(file: Any, name: str) -> Tensor:
    tensor: Tensor = file.get_tensor(name)
    return tensor


def _header(file: Any, name: str) -> Tensor:
    stated = file.get_slice(name)
    dtype = DTYPES.get(stated.get_dtype())
    if dtype is None:  # a rare type, which torch itself resolves
        return torch.empty_like(_tensor(file, name), device="meta")
    return torch.empty(stated.get_shape(), dtype=dtype, device="meta")


FLAT = frozenset({"mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size", "fixed_input_size"})
"""Keys of pretrained_cfg that older versions of timm wrote into config.json itself, with the names in `labels`."""


def read_config(path: Path, where: str, name: str = "config.json") -> dict[str, Any]:
    """config.json in the folder `path`, or next to the file `path`; empty if there is none."""
    if not path.exists():
        raise SourceError(f"{where} does not exist. Check models.sources.N.checkpoint.")
    file = path / name if path.is_dir() else path.with_name(name)
    if not os.path.lexists(file):
        return {}
    try:
        config = read_json_object(file)
    except UnreadableError as error:
        remedy = error.remedy or "Repair it, or copy it again."
        raise SourceError(f"{where}: {name} cannot be read: {error.why}. {remedy}") from None
    _require_kinds(config, where, name)
    if name == "config.json" and "pretrained_cfg" not in config and FLAT & config.keys():
        config = {**config, "pretrained_cfg": {key: config[key] for key in FLAT & config.keys()}}
        config.setdefault("label_names", config.get("labels"))
    _require_one_order(config, where, name)
    size = (config.get("pretrained_cfg") or {}).get("input_size")
    if size and not (isinstance(size, list) and len(size) == 3 and all(type(n) is int and n > 0 for n in size)):
        raise SourceError(
            f"{where}: input_size in {name} should be [channels, height, width], it is {str(size)[:99]}."
        )
    return config


KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("model_args", "pretrained_cfg", "id2label", "label2id"), (dict,)),
    "architectures": (list,),
    "label_names": (list, dict),
}
"""Keys of config.json, and the kinds of value that their libraries write."""


def _require_kinds(config: Mapping[str, Any], where: str, name: str) -> None:
    """Raise SourceError where a key of config.json holds another kind of value than its library writes."""
    for key, kinds in KINDS.items():
        value = config.get(key)
        if value and not isinstance(value, kinds):
            what = "a list of texts" if list in kinds else "an object"
            raise SourceError(f"{where}: {key} in {name} should be {what}, it is {brief(value)}.")


def _require_one_order(config: Mapping[str, Any], where: str, name: str) -> None:
    """Raise SourceError where label2id gives a class a row that has another name in id2label.

    A name that several rows have (`crane` of ImageNet) has only one of them in label2id.
    """
    names, rows = config.get("id2label"), config.get("label2id")
    if not isinstance(names, dict) or not isinstance(rows, dict):
        return
    for row, label in names.items():
        if isinstance(label, str) and label in rows and names.get(str(rows[label])) != label:
            raise SourceError(
                f"{where}: in {name} id2label has '{shown(label)}' in row {shown(row)}, label2id in row "
                f"{shown(rows[label])}. Correct one of them."
            )


def float_list(stated: Mapping[str, Any], key: str, where: str) -> tuple[float, ...]:
    """A list of numbers in config.json as floats; empty if there is none."""
    values = stated.get(key) or []
    if not isinstance(values, list | tuple) or not all(map(_number, values)):
        raise SourceError(f"{where}: {key} in config.json should be a list of numbers, it is {str(values)[:99]}.")
    return tuple(float(value) for value in values)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_CONFIG_VALUE


def as_float32(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Weights as fp32; integer counters keep their type. Raises SourceError if a value is not finite and real.

    Tensors on the `meta` device have no values and are only checked for their type.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        floating = tensor.dtype in FLOATS
        if not floating and (tensor.ndim or tensor.is_complex() or tensor.is_floating_point()):
            raise SourceError(
                f"{where}: {name} is of type {str(tensor.dtype).removeprefix('torch.')}; weights are fp32, fp16, "
                "bf16 or fp64. Quantised models cannot be merged: pass the original model."
            )
        found[name] = tensor.float() if floating else tensor
        if floating and not tensor.is_meta and not bool(found[name].isfinite().all()):
            raise SourceError(
                f"{where}: {name} contains values that are not finite. Train or download the model again."
            )
    return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes, for weights that are not in one file; nothing is copied."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_hub(name: str, where: str) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """Weights and configuration of a timm hub name, and notes. Raises SourceError if the hub cannot be reached."""
    from timm.models import create_model

    try:
        notes = _probe_hub(name, str(hub_config(name).get("hf_hub_id") or ""))
        model = create_model(name, pretrained=True)
    except Exception as error:  # timm, huggingface_hub and the network raise different errors
        raise SourceError(
            f"{where}: the hub cannot be reached for the weights '{name}' ({first_line(error)}). "
            "Pass a local checkpoint instead: models.sources.N.checkpoint=PATH"
        ) from None
    config = {
        "architecture": name.split(".")[0],
        "model_args": {},
        "pretrained_cfg": dict(cast(Any, model.pretrained_cfg)),
    }
    return dict(model.state_dict()), config, notes


def _probe_hub(name: str, repository: str) -> tuple[str, ...]:
    """Contact the hub once with a short timeout; the loader retries for a minute.

    A note where it does not answer and the weights are on disk, else its error.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    repository = repository.removesuffix("/")
    cached = any(
        isinstance(try_to_load_from_cache(repository, file), str)
        for file in ("model.safetensors", "open_clip_model.safetensors")
    )
    try:
        if repository:
            HfApi().model_info(repository, timeout=10)
    except Exception as error:  # huggingface_hub and the network raise different errors
        if not cached:
            raise
        return (from_cache(name, error),)
    return ()


def hub_config(name: str) -> dict[str, Any]:
    """Preprocessing and number of classes of hub weights, as listed in timm itself; the hub is not contacted.

    Raises SourceError for a tag that timm's model does not have.
    """
    from timm.models import get_pretrained_cfg, list_pretrained

    try:
        found = get_pretrained_cfg(name)
    except RuntimeError:
        tags = list_pretrained(f"{name.partition('.')[0]}.*")
        raise SourceError(unknown("timm name with weights", name, tags)) from None
    return {} if found is None else dict(cast(Any, found).to_dict())
