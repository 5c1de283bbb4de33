"""Opening the checkpoint of an entry: its files, its architecture, its tensors under fsmerge's names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fsmerge_cli.architectures import Family, resolve
from fsmerge_cli.checkpoints.adapter import config_with, read_adapter
from fsmerge_cli.checkpoints.adapter_merge import merge_adapter
from fsmerge_cli.checkpoints.architecture import (
    OpenEntry,
    architecture,
    hub_name,
    infer_architecture,
    open_entry,
    with_own_eps,
    with_usual_eps,
)
from fsmerge_cli.checkpoints.dinov2_code import of_timm
from fsmerge_cli.checkpoints.files import hub_config, read_config, read_hub, readable, tensors_sha256
from fsmerge_cli.checkpoints.head_facts import read_heads
from fsmerge_cli.checkpoints.image_processor import read_open_clip, read_processor
from fsmerge_cli.checkpoints.key_tables import recognise
from fsmerge_cli.checkpoints.kind import module_config, state_of
from fsmerge_cli.checkpoints.prefixes import ignored_notes, strip, without_wrappers
from fsmerge_cli.checkpoints.preprocessing import usual_pixels
from fsmerge_cli.checkpoints.sentence_modules import DENSE, modules_beside, with_dense
from fsmerge_cli.checkpoints.text_models import is_text, read_text_model, text_family
from fsmerge_cli.checkpoints.tokenizer import of_adapter, read_tokenizer
from fsmerge_cli.checkpoints.translation import Translation, translate
from fsmerge_cli.checkpoints.vit_shapes import ANCHOR, Inferred, inferred
from fsmerge_cli.checkpoints.weights import NAMES, Weights, locate, model_in
from fsmerge_cli.common.changed_files import of_model
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import shown
from fsmerge_cli.models.source_spec import SourceSpec

TOKENIZER = "tokenizer"
"""Key that `open_checkpoint` adds to the config.json of a text encoder: its `Tokenization`."""

USUAL = "usual_pixels"
"""Key that `interpret` adds to a config.json: mean and std of timm's own weights, where the files state none."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of an entry's files: tensors, heads (tensors and metadata), config.json.

    where: location for messages. origin: path, hub name or module. sha256: of the files of weights; empty if only
    their headers were read. weights: these files (None: there are none). notes: what the user should know about
    the choice of files.
    """

    where: str
    origin: str
    sha256: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    heads: tuple[Mapping[str, Tensor], Mapping[str, str]] = ({}, {})
    weights: Weights | None = None
    notes: tuple[str, ...] = ()


def open_checkpoint(spec: SourceSpec, headers: bool = False) -> Checkpoint:
    """Read the files of an entry, or only their headers. Raises SourceError."""
    if spec.module is not None:
        return _of_module(spec, spec.module, headers)
    if spec.loaded is not None:
        own = {n: t.to("meta") if headers else t for n, t in spec.loaded.weights.items()}
        digest = "" if headers else tensors_sha256(own)  # they may have been changed since they were read
        return Checkpoint(f"source '{spec.name}'", spec.loaded.origin, digest, {}, own)
    hub = hub_name(spec)
    if spec.checkpoint is None:
        if hub is None:
            raise SourceError(
                f"source '{spec.name}' has no checkpoint and no recipe. "
                "Pass a folder or a .safetensors file: models.sources.N.checkpoint=PATH"
            )
        where = f"source '{spec.name}'"
        if headers:
            return expected_checkpoint(spec)
        tensors, config, notes = read_hub(hub, where)
        notes = tuple(f"'{spec.name}': {note}" for note in notes)
        return Checkpoint(where, f"hub:{hub}", tensors_sha256(tensors), config, tensors, notes=notes)
    path = model_in(readable(spec.checkpoint, f"source '{spec.name}'"))
    where = f"source '{spec.name}': {shown(path)}"
    if spec.base is not None:
        return _on_base(spec, spec.base, path, where, headers)
    config = read_config(path, where)
    weights = locate(path, where)
    if path.is_dir() and weights.files[0].name not in NAMES and weights.index is None:  # the only file of weights
        where = f"{where}/{weights.files[0].name}"
    tensors = weights.read(where, headers)
    heads: tuple[dict[str, Tensor], dict[str, str]] = {}, {}
    if path.is_dir() and os.path.lexists(path / "heads.safetensors"):
        heads = read_heads(path, f"{where}: heads.safetensors", headers)
    if is_text(spec, config):
        config = {**config, TOKENIZER: read_tokenizer(path, where), **modules_beside(path)}
    elif "model_type" in config:  # Hugging Face's
        config = {**config, "preprocessor": read_processor(path, where)}
    changes = of_model(path)
    notes = (*((f"'{spec.name}': {changes}",) if changes else ()), *weights.notes(spec.name))
    pixels, unfollowed = read_open_clip(path, where)
    if pixels and not config.get("pretrained_cfg"):
        config = {**config, "pretrained_cfg": pixels}
        notes = (*notes, *(f"'{spec.name}': {text}" for text in unfollowed))
    sha256 = "" if headers else with_dense(path, weights.sha256())
    return Checkpoint(where, str(path), sha256, config, tensors, heads, weights, notes)


def digest(spec: SourceSpec) -> str | None:
    """SHA-256 of the weights of an entry, as `open_checkpoint` records it; None where it has no file."""
    path = None if spec.checkpoint is None else model_in(Path(spec.checkpoint).expanduser())
    if path is None or not path.exists():
        return None
    where = f"source '{spec.name}': {path}"
    return open_checkpoint(spec).sha256 if spec.base else with_dense(path, locate(path, where).sha256())


def _on_base(spec: SourceSpec, base: str, path: Path, where: str, headers: bool) -> Checkpoint:
    """The checkpoint of an entry with a base: the base, with the adapter at `path` merged into it."""
    adapter = read_adapter(path, where, headers)
    local = readable(base, f"source '{spec.name}'").exists()
    entry = SourceSpec(spec.name, checkpoint=base) if local else SourceSpec(spec.name, arch=base)
    if not local and (hub_name(entry) is None or not hub_config(base)):
        raise SourceError(
            f"source '{spec.name}': base={shown(base)} is no file or folder, and no timm name with weights "
            "(vit_base_patch16_224.augreg_in21k). Pass the model that the adapter was trained on."
        )
    found = open_checkpoint(entry, headers)
    tensors, note = merge_adapter(adapter, without_wrappers(found.tensors), shown(base), where, headers)
    config = config_with(adapter, found.config, path, where)
    if TOKENIZER in config:
        config[TOKENIZER] = of_adapter(config[TOKENIZER], path, where, chosen=spec.tokenizer is not None)
    digest = "" if headers else tensors_sha256(tensors)
    notes = (*found.notes, f"'{spec.name}': {note}")
    heads: Any = ({}, {}) if adapter.has_head else found.heads
    same_names = tensors.keys() - adapter.whole.keys() <= found.tensors.keys()
    return Checkpoint(
        where, str(path), digest, config, tensors, heads, found.weights if same_names else None, notes
    )


def _of_module(spec: SourceSpec, module: nn.Module, headers: bool) -> Checkpoint:
    """A torch module as a checkpoint; its tensors are read and never changed."""
    where = f"source '{spec.name}': module {type(module).__name__}"
    state = state_of(module, where)
    if unfit := [n for n, t in state.items() if not isinstance(t, Tensor) or t.is_quantized or is_lazy(t)]:
        raise SourceError(
            f"{where}: {unfit[0]} is no ordinary tensor (quantised, or of a lazy module that has not been run). "
            "Pass the original module, after one forward pass."
        )
    tensors = with_usual_eps(module, {name: tensor.detach() for name, tensor in state.items()})
    digest = "" if headers else tensors_sha256(tensors)
    tensors = {n: t.to("meta") if headers else t.cpu() for n, t in tensors.items()}
    config = module_config(module)
    for part in module.modules():
        known: Any = getattr(part, "pretrained_cfg", None)  # timm's
        if known:
            config["pretrained_cfg"] = dict(known if isinstance(known, Mapping) else known.to_dict())
            break
    return Checkpoint(where, f"module {type(module).__name__}", digest, config, tensors)


def expected_checkpoint(spec: SourceSpec) -> Checkpoint:
    """The checkpoint of an entry that has none yet (hub weights or an embedded source), from its architecture.

    Tensors are on the `meta` device; nothing is trained or downloaded. Raises SourceError if the architecture is
    unknown.
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


def interpret(spec: SourceSpec, found: Checkpoint) -> tuple[Family, Any, dict[str, Any], Translation]:
    """Family, options, completed config.json, and tensors under fsmerge's names. Raises SourceError."""
    where, config, hub = found.where, dict(found.config), hub_name(spec)
    stored = without_wrappers(found.tensors)
    if is_text(spec, config):
        return _text(spec, found, stored)
    layout = recognise(stored, config, where)
    selection = spec.prefix, spec.ema, spec.head
    stated: Mapping[str, Any] = {}
    given = open_entry(spec, where)
    if layout is not None:
        known = {"num_attention_heads": "num_heads", "image_size": "img_size", "global_pool": "global_pool"}
        own_keys = {key: given.args[name] for key, name in known.items() if given and name in given.args}
        own_keys |= {"layer_norm_eps": given.options["eps"]} if given and "eps" in given.options else {}
        has_arch = spec.arch is not None and given is None
        read = translate(layout, stored, {**config, **own_keys}, where, spec.name, selection, has_arch)
        stated = read.config
    if not config.get("pretrained_cfg"):
        config["pretrained_cfg"] = (hub_config(hub) if hub else {}) or stated.get("pretrained_cfg") or {}
    config = {**stated, **config}
    _refuse_depth(spec, config, len(stored), where)
    found_in: tuple[str, ...] = ()
    shaped = _shaped(spec, stored, given, where) if layout is None and "architecture" not in config else None
    if spec.module is not None and spec.arch is None and "architecture" not in config:
        family, arch = infer_architecture(spec.module, where)
    elif shaped is not None:
        family, arch = resolve("vit", shaped.options, {}, f"{where}: arch")
        found_in = (
            f"'{spec.name}': its architecture is read from its tensors: {shaped.note}; if that is wrong, pass "
            "models.sources.N.arch=...",
        )
    else:
        family, arch = architecture(spec, config, where)
        if spec.module is not None:
            arch = with_own_eps(arch, family.skeleton(arch), spec.module)
    if spec.module is not None and not _fits(config["pretrained_cfg"], arch.input_size[0]):
        config["pretrained_cfg"] = {}
    if spec.module is None and spec.recipe is None:
        config[USUAL] = usual_pixels(family, arch)
    if layout is None:
        own = strip(stored, f"{family.entry}.weight", where, *selection)
        tensors = of_timm(own.tensors) if family.library == "timm" else own.tensors
        try:
            tensors = family.from_file(sized(spec, family, arch), tensors)
        except SourceError as error:
            raise SourceError(f"{where}: {error}") from None
        notes = (*found_in, *(f"'{spec.name}': {note}" for note in own.notes), *ignored_notes(own, spec.name))
        parts = own.prefix, own.beside, own.rest
        return family, arch, config, Translation(tensors, own.heads, {}, (*found.notes, *notes), (), None, *parts)
    tensors = read.under(family.skeleton(arch), where) if read.clip is not None else read.tensors
    tensors = family.from_file(arch, tensors)
    notes = (*found.notes, *read.notes, *(read.guess if spec.mean is None and spec.std is None else ()))
    return family, arch, config, replace(read, tensors=tensors, config=stated, notes=notes, guess=(), clip=None)


def sized(spec: SourceSpec, family: Family, arch: Any) -> Any:
    """Options for the entry's own image size, where the same weights are run at every size."""
    size = spec.input_size
    if size is None or family.normalise is None or family.resample is None:
        return arch
    return family.resample(arch, {}, (size, size) if isinstance(size, int) else size, "")[0]


def _text(
    spec: SourceSpec, found: Checkpoint, stored: Mapping[str, Tensor]
) -> tuple[Family, Any, dict[str, Any], Translation]:
    read = read_text_model(spec, found.config, stored, found.where, bool(found.heads[0]))
    heads = {"classifier": read.head} if read.head else {}
    notes = (*found.notes, *read.notes)
    family, config = text_family(read.arch.model_type), {**found.config, DENSE: read.dense}
    return family, read.arch, config, Translation(read.tensors, heads, notes=notes, prefix=read.prefix)


def _shaped(
    spec: SourceSpec, stored: Mapping[str, Tensor], given: OpenEntry | None, where: str
) -> Inferred | None:
    """The architecture that the shapes of a timm vision transformer show; None for others.

    given: the arch of the entry; None: it names the architecture.
    """
    if given is None:
        return None
    own = strip(stored, ANCHOR, where, spec.prefix, spec.ema, spec.head)
    return inferred(of_timm(own.tensors), given.args, where, given.options)


def _refuse_depth(spec: SourceSpec, config: Mapping[str, Any], count: int, where: str) -> None:
    """Refuse more blocks than there are tensors, before a network of so many is built."""
    own = spec.arch if isinstance(spec.arch, dict) else {"args": config.get("model_args")}
    args = own.get("args") or {}
    depth = args.get("depth") if isinstance(args, Mapping) else None
    if isinstance(depth, int) and depth > count:
        raise SourceError(
            f"{where}: depth is {depth}, but there are only {count} tensors. Pass the depth of these weights, in "
            "arch.args or in model_args of config.json."
        )


def stored_names(spec: SourceSpec, found: Checkpoint) -> dict[str, str]:
    """Name in fsmerge -> name in the file, of the tensors that are used unchanged."""
    known = {id(tensor): name for name, tensor in found.tensors.items()}
    tensors = interpret(spec, found)[3].tensors
    return {name: known[id(tensor)] for name, tensor in tensors.items() if id(tensor) in known}


def _fits(stated: Mapping[str, Any], channels: int) -> bool:
    """Whether a normalisation has this number of channels; timm gives every module that of its public weights."""
    return all(len(stated.get(key) or ()) in (0, 1, channels) for key in ("mean", "std"))
