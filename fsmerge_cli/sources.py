"""The one door through which trained models enter: a folder or file becomes a `Source`.

Loading only reads; nothing here trains (that is `zoo`) and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsmerge_cli.errors import SourceError, unknown
from fsmerge_cli.options import FORBID, Count, NonNegativeFloat, Positive, PositiveFloat, Text, build
from fsmerge_cli.specs import SPECS, Family


@dataclass(frozen=True, config=FORBID)
class Recipe:
    """How an embedded source is trained on first use.

    data: key of the data set. seed: of initialisation and batches. steps, batch_size (images), lr,
    weight_decay: of AdamW with a one-cycle schedule.
    """

    data: Text
    seed: Count
    steps: Positive = 800
    batch_size: Positive = 64
    lr: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-2


@dataclass(frozen=True, config=FORBID)
class SourceSpec:
    """One entry of `models.sources`.

    name: the task's name. arch: `{family: ..., options}`; null where the checkpoint's config.json says it.
    checkpoint: a folder (config.json + model.safetensors [+ heads.safetensors]) or a .safetensors file.
    head: name of the head inside the checkpoint; null takes the only one. labels: class names in the order
    of the head's rows; null takes the checkpoint's. mean, std: per channel, of the normalisation that the
    source was trained with (pixels in 0..1); null takes the checkpoint's. recipe: how to train the source
    where no checkpoint is given.
    """

    name: Text
    arch: dict[str, Any] | None = None
    checkpoint: Text | None = None
    head: Text | None = None
    labels: tuple[Text, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    recipe: Recipe | None = None


@plain_dataclass(frozen=True)
class Head:
    """A linear classifier: weight [classes, d], bias [classes] or None, one label per class."""

    weight: Tensor
    bias: Tensor | None
    labels: tuple[str, ...]

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, classes] of features [n, d]."""
        return torch.nn.functional.linear(features, self.weight, self.bias)

    def to(self, device: torch.device | str) -> Head:
        """The same head on `device`."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)


@plain_dataclass(frozen=True)
class Source:
    """A trained model: backbone weights by name, its head (None: merged on features) and where it came from.

    The backbone reads pixels in 0..1: mean and std are already folded into its first layer.
    """

    name: str
    family: Family
    arch: Any
    weights: Mapping[str, Tensor]
    head: Head | None
    origin: str
    sha256: str

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names of the head, in order; None without a head."""
        return self.head.labels if self.head else None


def load(spec: SourceSpec) -> Source:
    """Read the source that `spec` names. Raises SourceError, in the user's words."""
    if spec.checkpoint is None:
        raise SourceError(
            f"source '{spec.name}' has no checkpoint and no recipe. "
            "Pass a folder or a .safetensors file: models.sources.N.checkpoint=PATH"
        )
    path = Path(spec.checkpoint).expanduser()
    where = f"source '{spec.name}': {path}"
    config = _read_config(path, where)
    weights_file = path / "model.safetensors" if path.is_dir() else path
    tensors, _ = read_tensors(weights_file, where)
    family, arch = _architecture(spec, config, where)
    head, tensors = _split_head(spec, path, tensors, where)
    preprocessing = config.get("pretrained_cfg", {})
    mean = spec.mean or tuple(preprocessing.get("mean") or (0.0,))
    std = spec.std or tuple(preprocessing.get("std") or (1.0,))
    weights = fold_normalisation(family, arch, tensors, mean, std, where)
    return Source(spec.name, family, arch, weights, head, str(path), file_sha256(weights_file))


def read_tensors(path: Path, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; SourceError where it is not one."""
    if path.suffix != ".safetensors":
        raise SourceError(
            f"{where} is not a .safetensors file. Pickled checkpoints can run code and are not opened; "
            "convert it once with safetensors.torch.save_file(state_dict, 'model.safetensors')."
        )
    if not path.is_file():
        raise SourceError(f"{where}: there is no file {path.name}. Check the path of the checkpoint.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{where} cannot be read: {error}. Copy or download the file again.") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fold_normalisation(
    family: Family,
    arch: Any,
    weights: Mapping[str, Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    where: str,
) -> dict[str, Tensor]:
    """Weights that read plain pixels instead of (pixels - mean) / std; exact but for rounding.

    W' = W / std and b' = b - sum W' mean, in fp64, along the channels of the entry weight.
    """
    channels = arch.input_size[0]
    if not all(len(values) in (1, channels) for values in (mean, std)) or 0.0 in std:
        raise SourceError(
            f"{where}: mean {list(mean)} and std {list(std)} need 1 or {channels} values each, std none of them 0."
        )
    name = f"{family.entry}.weight"
    if name not in weights or (set(mean) == {0.0} and set(std) == {1.0}):
        return dict(weights)
    weight = weights[name]
    grouped = weight.double().reshape(weight.shape[0], channels, -1)
    scaled = grouped / torch.tensor(std, dtype=torch.float64).reshape(1, -1, 1)
    shift = (scaled * torch.tensor(mean, dtype=torch.float64).reshape(1, -1, 1)).sum((1, 2))
    folded = {name: scaled.reshape(weight.shape).to(weight.dtype)}
    bias = weights.get(f"{family.entry}.bias")
    if bias is not None:
        folded[f"{family.entry}.bias"] = (bias.double() - shift).to(bias.dtype)
    elif set(mean) != {0.0}:
        raise SourceError(
            f"{where}: mean {list(mean)} cannot be folded into {family.entry}, which has no bias. "
            "Pass images that are already centred and models.sources.N.mean=[0.0]."
        )
    return {**weights, **folded}


def _read_config(path: Path, where: str) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path.with_name("config.json")
    if not path.exists():
        raise SourceError(f"{where} does not exist. Check models.sources.N.checkpoint.")
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SourceError(f"{where}: config.json is not valid JSON ({error}).") from None
    if not isinstance(config, dict):
        raise SourceError(f"{where}: config.json should hold an object, it holds {type(config).__name__}.")
    return config


def _architecture(spec: SourceSpec, config: dict[str, Any], where: str) -> tuple[Family, Any]:
    stated = dict(spec.arch or {"family": config.get("architecture"), **config.get("model_args", {})})
    name = stated.pop("family", None)
    if not isinstance(name, str):
        raise SourceError(
            f"{where} says no architecture. Put a config.json beside the weights or pass "
            f"models.sources.N.arch.family=... ({', '.join(sorted(SPECS))})."
        )
    if name not in SPECS:
        raise SourceError(f"{where}: {unknown('architecture', name, SPECS)}")
    return SPECS[name], build(SPECS[name].arch, stated, f"{where}: arch")


def _split_head(
    spec: SourceSpec, path: Path, tensors: dict[str, Tensor], where: str
) -> tuple[Head | None, dict[str, Tensor]]:
    """The head, from heads.safetensors or from `head.weight` among the weights, and the other tensors."""
    heads_file = path / "heads.safetensors"
    backbone = {name: t for name, t in tensors.items() if not name.startswith("head.")}
    if path.is_dir() and heads_file.is_file():
        stored, metadata = read_tensors(heads_file, where)
        labels = _stored_labels(metadata)
    else:
        stored, labels = {name: t for name, t in tensors.items() if name.startswith("head.")}, {}
    names = sorted(name.removesuffix(".weight") for name in stored if name.endswith(".weight"))
    chosen = spec.head or (names[0] if len(names) == 1 else None)
    if not names and spec.head is None:
        return None, backbone
    if chosen is None:
        raise SourceError(
            f"{where} has {len(names)} heads: {', '.join(names)}. "
            "Say which one this task uses: models.sources.N.head=NAME"
        )
    if chosen not in names:
        raise SourceError(f"{where}: {unknown('head', chosen, names)}")
    weight, bias = stored[f"{chosen}.weight"], stored.get(f"{chosen}.bias")
    classes = spec.labels or labels.get(chosen) or tuple(str(c) for c in range(len(weight)))
    return Head(weight, bias, tuple(classes)), backbone


def _stored_labels(metadata: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Label names per head from the one metadata key that fsmerge writes."""
    try:
        stored = json.loads(metadata.get("fsmerge", "{}"))
        return {str(name): tuple(str(x) for x in entry) for name, entry in stored["labels"].items()}
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
        return {}
