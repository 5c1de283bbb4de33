"""The one door through which trained models enter: a folder or file becomes a `Source`.

Loading only reads; nothing here trains (that is `zoo`) and no code of a checkpoint is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from dataclasses import dataclass as plain_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.checkpoints import (
    file_sha256,
    hub_config,
    numbers,
    plain,
    read_config,
    read_hub,
    read_tensors,
    readable,
    tensors_sha256,
)
from fsmerge_cli.errors import SourceError, unknown
from fsmerge_cli.options import FORBID, Count, Flag, NonNegativeFloat, Positive, PositiveFloat, Text
from fsmerge_cli.preprocessing import PLAIN, Preprocessing, fold_normalisation
from fsmerge_cli.specs import SPECS, Family, resolve

LONGEST_NAME = 80
"""Characters of a task's name, which is part of file names."""


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

    name: the task's name. arch: a timm name, or `{family: ..., options}`; null where the checkpoint's
    config.json says it. checkpoint: a folder (config.json + model.safetensors [+ heads.safetensors]) or a
    .safetensors file; null with a timm name takes the hub's weights. head: name of the head inside the
    checkpoint; null takes the only one. labels: class names in the order of the head's rows, or the name of a
    label set of the recipe's data set; null takes the checkpoint's. mean, std: per channel, of the
    normalisation that the source was trained with (pixels in 0..1); null takes the checkpoint's. normalize:
    whether the head reads features of unit length (as CLIP's do); null takes the checkpoint's. recipe: how to
    train the source where no checkpoint is given.
    """

    name: Text
    arch: Text | dict[str, Any] | None = None
    checkpoint: Text | None = None
    head: Text | None = None
    labels: Text | tuple[Text, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    normalize: Flag | None = None
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        """A task's name becomes a folder's, a tensor's and a word of the terminal: nothing in it may act there."""
        plain = self.name.isprintable() and not set(self.name) & set("/\\") and self.name == self.name.strip()
        if not plain or not 0 < len(self.name) <= LONGEST_NAME or self.name.startswith("."):
            raise ValueError(
                f"the task name {self.name[: 2 * LONGEST_NAME]!r} cannot be used: it names a folder and a head. "
                f"Pass models.sources.N.name=... of 1 to {LONGEST_NAME} printable characters, without / and \\, "
                "no dot first, no space at an end."
            )


@plain_dataclass(frozen=True)
class Head:
    """A linear classifier: weight [classes, d], bias [classes] or None, one label per class.

    named: whether the labels are names, which may be shared with other tasks, or just numbers of rows.
    normalize: features are scaled to unit length first. readout: [d, d'] from merged features to the features
    that the head was made for, where it cannot be folded into the weight (None: there is none).
    """

    weight: Tensor
    bias: Tensor | None
    labels: tuple[str, ...]
    normalize: bool = False
    named: bool = True
    readout: Tensor | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, classes] of features [n, d] (or [n, d'] where there is a readout)."""
        if self.readout is not None:
            features = features @ self.readout.T
        if self.normalize:
            features = F.normalize(features, dim=-1)
        return F.linear(features, self.weight, self.bias)

    def to(self, device: torch.device | str) -> Head:
        """The same head on `device`."""
        bias, readout = (None if t is None else t.to(device) for t in (self.bias, self.readout))
        return replace(self, weight=self.weight.to(device), bias=bias, readout=readout)


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
    preprocessing: Preprocessing = PLAIN

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names of the head, in order; None without a head."""
        return self.head.labels if self.head else None


def load(spec: SourceSpec) -> Source:
    """Read the source that `spec` names. Raises SourceError, in the user's words."""
    heads: tuple[dict[str, Tensor], dict[str, str]] = {}, {}
    hub = hub_name(spec)
    if spec.checkpoint is None:
        if hub is None:
            raise SourceError(
                f"source '{spec.name}' has no checkpoint and no recipe. "
                "Pass a folder or a .safetensors file: models.sources.N.checkpoint=PATH"
            )
        where, origin = f"source '{spec.name}'", f"hub:{hub}"
        tensors, config = read_hub(hub, where)
        digest = tensors_sha256(tensors)
    else:
        path = readable(spec.checkpoint, f"source '{spec.name}'")
        where, origin = f"source '{spec.name}': {path}", str(path)
        config = read_config(path, where)
        file = path / "model.safetensors" if path.is_dir() else path
        tensors, _ = read_tensors(file, where)
        digest = file_sha256(file)
        if path.is_dir() and (path / "heads.safetensors").is_file():
            heads = read_tensors(path / "heads.safetensors", where)
    tensors, heads = plain(tensors, where), (plain(heads[0], where), heads[1])
    if hub and not config.get("pretrained_cfg"):
        config = {**config, "pretrained_cfg": hub_config(hub)}
    family, arch = architecture(spec, config, where)
    head, tensors = _split_head(spec, family.head(arch), tensors, heads, where)
    stated = config.get("pretrained_cfg") or {}
    mean = spec.mean or numbers(stated, "mean", where) or (0.0,)
    std = spec.std or numbers(stated, "std", where) or (1.0,)
    weights = fold_normalisation(family, arch, tensors, mean, std, where)
    return Source(spec.name, family, arch, weights, head, origin, digest, Preprocessing.of(stated, where))


def hub_name(spec: SourceSpec) -> str | None:
    """Timm's name of the weights that an entry asks for, if it does: an architecture with a tag."""
    name = spec.arch if isinstance(spec.arch, str) else (spec.arch or {}).get("name")
    return name if isinstance(name, str) and "." in name else None


def model_config(family: Family, arch: Any, preprocessing: Preprocessing | None = None) -> dict[str, Any]:
    """config.json in timm's layout: the architecture and the one preprocessing that the model states."""
    classes = arch.features if family.head(arch) is None else 0
    channels = arch.input_size[0]
    stated = {
        "input_size": list(arch.input_size),
        "fixed_input_size": True,
        **asdict(preprocessing or PLAIN),
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
        "num_classes": classes,
    }
    return {
        **family.config(arch),
        "num_classes": classes,
        "num_features": arch.features,
        "pretrained_cfg": stated,
    }


def head_tensors(heads: Mapping[str, Head]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Content of heads.safetensors: tensors by `NAME.weight|bias|readout`, and the facts that go with them."""
    tensors: dict[str, Tensor] = {}
    for name, head in heads.items():
        parts = {"weight": head.weight, "bias": head.bias, "readout": head.readout}
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    facts = {"labels": {name: list(head.labels) for name, head in heads.items()}}
    normalized = [name for name, head in heads.items() if head.normalize]
    return tensors, {**facts, **({"normalize": normalized} if normalized else {})}


def architecture(spec: SourceSpec, config: Mapping[str, Any], where: str) -> tuple[Family, Any]:
    """Family and options, from the entry itself or from the checkpoint's config.json; they may not disagree."""
    stated = config.get("architecture")
    if isinstance(spec.arch, str):
        _agree(spec.arch.split(".")[0], stated, where)
        return resolve(spec.arch, {}, config, f"{where}: arch")
    if spec.arch is not None:
        options = dict(spec.arch)
        name = options.pop("family", None)
        if not isinstance(name, str) or name not in SPECS:
            raise SourceError(f"{where}: {unknown('arch.family', str(name), SPECS)}")
        if isinstance(options.get("name"), str):
            _agree(options["name"].split(".")[0], stated, where)
        return resolve(name, options, {}, f"{where}: arch")
    if not isinstance(stated, str):
        raise SourceError(
            f"{where} says no architecture. Put a config.json beside the weights or pass "
            f"models.sources.N.arch.family=... ({', '.join(sorted(SPECS))})."
        )
    return resolve(stated, config.get("model_args") or {}, config, f"{where}: arch")


def _agree(asked: str, stated: Any, where: str) -> None:
    """Shapes alone do not tell architectures apart (GELU or quick-GELU), so a contradiction is refused."""
    if isinstance(stated, str) and stated != asked:
        raise SourceError(
            f"{where} is a {stated}, as its config.json says, but models.sources.N.arch asks for {asked}. "
            "Pass models.sources.N.arch=null to take the checkpoint's."
        )


def _split_head(
    spec: SourceSpec,
    inside: str | None,
    tensors: Mapping[str, Tensor],
    heads: tuple[Mapping[str, Tensor], Mapping[str, str]],
    where: str,
) -> tuple[Head | None, dict[str, Tensor]]:
    """The head, from heads.safetensors or from the module `inside` the weights, and the other tensors."""
    own = {n: t for n, t in tensors.items() if inside is not None and n.startswith(f"{inside}.")}
    backbone = {n: t for n, t in tensors.items() if n not in own}
    stored, metadata = heads if heads[0] else (own, {})
    facts = _stored_facts(metadata)
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
    weight = stored[f"{chosen}.weight"]
    given = (spec.labels,) if isinstance(spec.labels, str) else spec.labels
    names_given = given or tuple(facts["labels"].get(chosen, ()))
    classes = names_given or tuple(str(c) for c in range(len(weight)))
    unit = chosen in facts["normalize"] if spec.normalize is None else spec.normalize
    readout = stored.get(f"{chosen}.readout")
    return Head(weight, stored.get(f"{chosen}.bias"), classes, unit, bool(names_given), readout), backbone


def _stored_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Label names and normalised heads, from the one metadata key that fsmerge writes."""
    try:
        stored = json.loads(metadata.get("fsmerge", "{}"))
        labels = {str(name): [str(x) for x in entry] for name, entry in stored.get("labels", {}).items()}
        return {"labels": labels, "normalize": [str(name) for name in stored.get("normalize", [])]}
    except (ValueError, RecursionError, AttributeError, TypeError):
        return {"labels": {}, "normalize": []}
