"""The pretrained weights of `models.base`, which all sources were fine-tuned from: read like a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fsmerge_cli.checkpoints.architecture import hub_name
from fsmerge_cli.checkpoints.embedded import ensure_trained, is_embedded
from fsmerge_cli.checkpoints.files import hub_config, readable
from fsmerge_cli.checkpoints.headers import SourceHeaders, open_headers
from fsmerge_cli.checkpoints.load import assemble, normalisation
from fsmerge_cli.checkpoints.open import Checkpoint, interpret, open_checkpoint
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.common.options import build
from fsmerge_cli.common.private_paths import refuse_hidden
from fsmerge_cli.common.progress import Progress
from fsmerge_cli.common.shown import brief, shown
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec

BASE = "models.base"

Base = str | Path | nn.Module | Source | SourceSpec | Mapping[str, Any]
"""A path or a timm name with a tag, a module, what `load_source` returned, or the keys of an entry."""


def base_entry(given: Base) -> SourceSpec:
    """The entry of the pretrained weights. Raises ConfigError, SourceError."""
    if isinstance(given, SourceSpec):
        return replace(given, name="base")
    if isinstance(given, Source):
        return build(SourceSpec, {"name": "base", "loaded": given}, BASE)
    if isinstance(given, nn.Module):
        return build(SourceSpec, {"name": "base", "module": given}, BASE)
    if isinstance(given, str | Path):
        return _named(str(given))
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{BASE}: should be a path, a timm name with a tag, or keys and values, got {brief(given)}."
        )
    found = build(SourceSpec, {**given, "name": "base"}, BASE)
    refuse_hidden({"checkpoint": found.checkpoint}, BASE)
    return found


def _named(text: str) -> SourceSpec:
    refuse_hidden(text, BASE)
    if readable(text, BASE).exists():
        return build(SourceSpec, {"name": "base", "checkpoint": text}, BASE)
    entry = build(SourceSpec, {"name": "base", "arch": text}, BASE)
    if hub_name(entry) is None or not hub_config(text):
        raise SourceError(
            f"{BASE}={shown(text)} is no file or folder, and no timm name with weights "
            "(vit_base_patch16_224.augreg_in21k). Pass the model that all sources were fine-tuned from."
        )
    return entry


def base_headers(spec: SourceSpec, first: Source) -> SourceHeaders:
    """The pretrained weights on the `meta` device; nothing is trained or downloaded. Raises SourceError.

    first: source 1, on the `meta` device.
    """
    with _Renamed():
        found = open_headers(spec, skip_head=True)
        return replace(found, source=_with_features_of(first, found.source))


def load_base(spec: SourceSpec, first: SourceHeaders, progress: Progress) -> Source:
    """The pretrained weights, without a head; trained where the entry has only a recipe. Raises SourceError.

    first: source 1. Where neither the entry nor the files state mean or std, those of source 1 are taken: with
    others, its first layer would differ from the pretrained one by a factor.
    """
    with _Renamed():
        if is_embedded(spec):
            spec = ensure_trained(spec, progress)
        found = open_checkpoint(spec)
        spec, taken = _with_pixels(spec, found, first)
        source = _with_features_of(first.source, assemble(spec, found, skip_head=True))
    notes = [note for note in source.notes if "the head of the checkpoint is not used" not in note]
    return replace(source, notes=tuple(map(_renamed, [*notes, *taken])))


def _with_features_of(first: Source, base: Source) -> Source:
    """A text encoder without the pooler, if source 1 leaves it out: an embedding model, a classifier of tokens."""
    if base.family is not first.family or base.family.kind != "text" or first.arch.pooler:
        return base
    weights = {name: tensor for name, tensor in base.weights.items() if name in first.weights}
    features = {key: getattr(first.arch, key) for key in ("pooler", "pooling", "unit_length")}
    return replace(base, weights=weights, arch=replace(base.arch, **features))


def _with_pixels(spec: SourceSpec, found: Checkpoint, first: SourceHeaders) -> tuple[SourceSpec, Sequence[str]]:
    if spec.loaded is not None or first.spec.loaded is not None or first.source.family.kind == "text":
        return spec, ()
    stated = interpret(spec, found)[2].get("pretrained_cfg") or {}
    missing = [key for key in ("mean", "std") if getattr(spec, key) is None and not stated.get(key)]
    if not missing or spec.recipe is not None:
        return spec, ()
    mean, std = normalisation(first.spec, interpret(first.spec, first.found)[2], first.found.where)
    values = {key: tuple(value) for key, value in (("mean", mean), ("std", std)) if key in missing}
    words = " and ".join(f"{key} {list(value)}" for key, value in values.items())
    changed = " and ".join(f"{BASE}.{key}=[...]" for key in values)
    note = (
        f"'base': its files do not state {' and '.join(missing)}, so {words} of '{first.spec.name}' are taken; if "
        f"it was trained with other values, pass {changed}"
    )
    return replace(spec, mean=values.get("mean", spec.mean), std=values.get("std", spec.std)), (note,)


class _Renamed:
    """Inside, the errors of a source are worded for `models.base`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SourceError | ConfigError) and (text := _renamed(str(error))) != str(error):
            raise type(error)(text) from None


def _renamed(text: str) -> str:
    return text.replace("models.sources.N.", f"{BASE}.").replace("source 'base'", BASE)
