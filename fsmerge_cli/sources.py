"""The one door through which trained models enter: a folder or file becomes a `Source`.

Loading only reads; nothing here trains (that is `zoo`) and no code of a checkpoint is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
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
from fsmerge_cli.entries import Recipe as Recipe
from fsmerge_cli.entries import SourceSpec as SourceSpec
from fsmerge_cli.errors import SourceError, unknown
from fsmerge_cli.preprocessing import PLAIN, Preprocessing, fold_normalisation
from fsmerge_cli.specs import SPECS, Family, resolve


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Checkpoint:
    """What an entry's files say, before it is a source: tensors, heads with their metadata, config.json.

    where: the place for messages. sha256: of the file of weights; empty where only its header was read.
    """

    where: str
    origin: str
    sha256: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    heads: tuple[Mapping[str, Tensor], Mapping[str, str]] = ({}, {})


def load(spec: SourceSpec, headers: bool = False) -> Source:
    """Read the source that `spec` names. Raises SourceError, in the user's words.

    headers: no weight is read; they are on the `meta` device, of the shapes that the files state.
    """
    return assemble(spec, open_checkpoint(spec, headers))


def open_checkpoint(spec: SourceSpec, headers: bool = False) -> Checkpoint:
    """The files of an entry, or their headers alone. Raises SourceError."""
    hub = hub_name(spec)
    if spec.checkpoint is None:
        if hub is None:
            raise SourceError(
                f"source '{spec.name}' has no checkpoint and no recipe. "
                "Pass a folder or a .safetensors file: models.sources.N.checkpoint=PATH"
            )
        where = f"source '{spec.name}'"
        if headers:
            return expected(spec)
        tensors, config = read_hub(hub, where)
        return Checkpoint(where, f"hub:{hub}", tensors_sha256(tensors), config, tensors)
    path = readable(spec.checkpoint, f"source '{spec.name}'")
    where = f"source '{spec.name}': {path}"
    config = read_config(path, where)
    file = path / "model.safetensors" if path.is_dir() else path
    tensors, _ = read_tensors(file, where, headers)
    digest = "" if headers else file_sha256(file)
    heads: tuple[dict[str, Tensor], dict[str, str]] = {}, {}
    if path.is_dir() and (path / "heads.safetensors").is_file():
        heads = read_tensors(path / "heads.safetensors", where, headers)
    return Checkpoint(where, str(path), digest, config, tensors, heads)


def expected(spec: SourceSpec) -> Checkpoint:
    """What an entry without a checkpoint will be, from its architecture: hub weights, or an embedded source.

    On the `meta` device; nothing is trained or downloaded. Raises SourceError where the architecture is unknown.
    """
    where, hub = f"source '{spec.name}'", hub_name(spec)
    stated = hub_config(hub) if hub else {}
    config = {"model_args": {}, "pretrained_cfg": stated} if hub else {}
    family, arch = architecture(spec, config, where)
    tensors = dict(family.skeleton(arch).state_dict())
    classes = len(spec.labels) if isinstance(spec.labels, tuple) else int(stated.get("num_classes") or 0)
    inside = family.head(arch)
    if inside is not None and classes:
        tensors |= {f"{inside}.weight": torch.empty(classes, arch.features, device="meta")}
        tensors |= {f"{inside}.bias": torch.empty(classes, device="meta")}
    return Checkpoint(where, f"hub:{hub}" if hub else "recipe", "", config, tensors)


def assemble(spec: SourceSpec, found: Checkpoint) -> Source:
    """The source that a checkpoint holds. Raises SourceError."""
    where, hub, config = found.where, hub_name(spec), found.config
    tensors, heads = plain(found.tensors, where), (plain(found.heads[0], where), found.heads[1])
    if hub and not config.get("pretrained_cfg"):
        config = {**config, "pretrained_cfg": hub_config(hub)}
    family, arch = architecture(spec, config, where)
    head, tensors = _split_head(spec, family.head(arch), tensors, heads, where)
    mean, std = normalisation(spec, config, where)
    weights = fold_normalisation(family, arch, tensors, mean, std, where)
    how = Preprocessing.of(config.get("pretrained_cfg") or {}, where)
    return Source(spec.name, family, arch, weights, head, found.origin, found.sha256, how)


def normalisation(
    spec: SourceSpec, config: Mapping[str, Any], where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel that a source was trained with: the entry's, the checkpoint's, or none."""
    stated = config.get("pretrained_cfg") or {}
    mean = spec.mean or numbers(stated, "mean", where) or (0.0,)
    return mean, spec.std or numbers(stated, "std", where) or (1.0,)


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
