"""Loading of sources: every trained model is read here, from a folder or file into a `Source`.

Nothing is trained here (see `embedded`), and no code in a checkpoint is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures import Family
from fsmerge_cli.checkpoints.accounting import listed, refuse_beside, without_effect
from fsmerge_cli.checkpoints.depth import deepened
from fsmerge_cli.checkpoints.files import as_float32, float_list
from fsmerge_cli.checkpoints.head_facts import file_heads
from fsmerge_cli.checkpoints.heads import choose_head
from fsmerge_cli.checkpoints.open import TOKENIZER, USUAL, Checkpoint, interpret, open_checkpoint, sized
from fsmerge_cli.checkpoints.preprocessing import normalised
from fsmerge_cli.checkpoints.reads import with_reads
from fsmerge_cli.checkpoints.same_function import require_same_function
from fsmerge_cli.checkpoints.sentence_modules import DENSE, longest, without_modules
from fsmerge_cli.checkpoints.sentence_modules import KEY as MODULES
from fsmerge_cli.checkpoints.tokenizer import given_tokenizer, require_tokenizer, require_vocabulary
from fsmerge_cli.checkpoints.translation import Translation
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import shown
from fsmerge_cli.data import DATASETS
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.misfits import head_reasons
from fsmerge_cli.models.preprocessing import Preprocessing
from fsmerge_cli.models.source import Pixels, Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.models.tokenization import Tokenization

NO_NORMALISATION: Pixels = (0.0,), (1.0,)


def load(spec: SourceSpec, headers: bool = False) -> Source:
    """Read the source that `spec` describes. Raises SourceError.

    headers: no weights are read; they are on the `meta` device, with the shapes in the files.
    """
    return assemble(spec, open_checkpoint(spec, headers))


def assemble(spec: SourceSpec, found: Checkpoint, skip_head: bool = False) -> Source:
    """The source in a checkpoint; with `skip_head` its heads and modules are not read. Raises SourceError."""
    if spec.loaded is not None:
        return _loaded(spec, found)
    found = replace(found, config=without_modules(found.config)) if skip_head else found
    where = found.where
    family, arch, config, read = interpret(spec, found)
    notes = read.notes
    backbone, inside, unused = _split(spec, family, arch, read, where)
    notes += tuple(
        f"'{spec.name}': not used, without effect on the features: {listed(unused)}" for _ in unused[:1]
    )
    backbone, head = as_float32(backbone, where), None
    if not skip_head:
        head, more = _head(spec, found, config, read, inside, family.head(arch) or "")
        notes += more
    elif unread := _names(inside, read):
        notes += (f"'{spec.name}': the head of the checkpoint is not used: {listed(unread)}",)
    if family.kind == "text":
        tokens = tokenization(spec, config, where)
        require_vocabulary(tokens, arch.vocab_size, where)
        source = Source(spec.name, family, arch, backbone, head, found.origin, found.sha256, tokens, notes)
        source = replace(source, dense=config[DENSE], classes=_classes(spec, head))
        return replace(source, notes=notes + _compared(spec, source, read, NO_NORMALISATION, skip_head))
    if spec.tokenizer is not None:
        raise SourceError(f"{where}: models.sources.N.tokenizer is of a text encoder, and this is none.")
    pooler = [name for name in backbone if name.startswith("pooler.")]
    if pooler:  # of Hugging Face: a further layer, whose output a head may read instead of the features
        if head is not None and not found.heads[0]:  # those in heads.safetensors read the features
            raise SourceError(
                f"{where}: there is a head and a pooler ({listed(pooler)}), and whether the head reads the pooler "
                "is not in the file. Remove pooler.* from the file if the head reads the class token; otherwise "
                "train another head: fsmerge finetune model.checkpoint=... training.steps=0"
            )
        backbone = {name: tensor for name, tensor in backbone.items() if name not in pooler}
        notes += (f"'{spec.name}': the features are those before the pooler, which is not used: {listed(pooler)}",)
    if family.library == "timm" or min(arch.input_size[1:]) > 1:  # of vectors there is none
        notes += _guessed_pixels(spec, config, family.config(arch)["architecture"])
    mean, std = normalisation(spec, config, where)
    arch, weights = normalised(family, arch, backbone, mean, std, where)
    read_now = Source(spec.name, family, sized(spec, family, arch), weights, head, found.origin, found.sha256)
    notes += _compared(spec, read_now, read, (mean, std), skip_head and bool(inside or read.heads))
    how = Preprocessing.of(config.get("pretrained_cfg") or {}, where)
    notes += _crop_note(spec.name, found.config.get("pretrained_cfg") or {}) if spec.module is None else ()
    if spec.module is not None and spec.mean is spec.std is None and (set(mean), set(std)) != ({0.0}, {1.0}):
        notes += (
            f"'{spec.name}': mean {list(mean)} and std {list(std)} are taken from the module; if it was trained "
            "with other values, pass mean and std",
        )
    size = spec.input_size
    if size is not None and (target := (size, size) if isinstance(size, int) else size) != arch.input_size[1:]:
        old = arch.input_size[1:]
        own, (arch, weights) = weights, _resample(family, arch, weights, target, where)
        # A vision transformer without position embeddings has nothing to resample.
        positions = any(own.get(name) is not tensor for name, tensor in weights.items())
        what = "position embeddings were resampled" if positions else "input size was changed"
        notes += (
            f"'{spec.name}': its {what} from {old[0]} x {old[1]} to {target[0]} x {target[1]} pixels, which is "
            "not exact: its scores differ from those at its original size",
        )
    elif spec.arch is None and spec.module is None:
        notes += _size_notes(spec.name, config, arch.input_size)
    folded = (mean, std) if family.normalise is None and (set(mean), set(std)) != ({0.0}, {1.0}) else None
    source = Source(spec.name, family, arch, weights, head, found.origin, found.sha256, how, notes, folded)
    source = replace(source, classes=_classes(spec, head))
    return with_reads(spec, deepened(spec, source, where), where)


def _classes(spec: SourceSpec, head: Head | None) -> tuple[str, ...] | None:
    """The class names of an entry without a head."""
    return spec.labels if head is None and isinstance(spec.labels, tuple) else None


def _compared(
    spec: SourceSpec, source: Source, read: Translation, pixels: Pixels, skipped: bool
) -> tuple[str, ...]:
    """Raise SourceError where a module computes something else than what was read from it; notes.

    skipped: its head is not read, so that its outputs are not those of the source.
    """
    if spec.module is None or skipped:
        return ()
    check_weights(source)
    selected = spec.prefix is not None or spec.head is not None or spec.ema is not None
    return require_same_function(source, spec.module, read.prefix, pixels, selected)


def _loaded(spec: SourceSpec, found: Checkpoint) -> Source:
    """The source of an entry that is loaded already. Raises SourceError if it was changed to what cannot be."""
    own: Source = replace(spec.loaded, name=spec.name, weights=found.tensors, sha256=found.sha256)
    check_weights(own)
    return own


def tokenization(spec: SourceSpec, config: Mapping[str, Any], where: str) -> Tokenization:
    """The tokenizer of a text encoder: beside its weights, or of its recipe's data set. Raises SourceError."""
    for key in ("mean", "std", "input_size", "depth", "reads", "normalize"):
        if getattr(spec, key) is not None:
            raise SourceError(f"{where}: this is a text encoder, for which models.sources.N.{key} means nothing.")
    most = longest(config[MODULES], where) if MODULES in config else None
    if spec.tokenizer is not None:
        return given_tokenizer(spec.tokenizer, where).limited(most)
    if spec.module is not None:
        raise SourceError(
            f"{where}: a text encoder needs its tokenizer, which a module does not have. Pass it as well: "
            '{"name": ..., "module": model, "tokenizer": tokenizer}, or load_source(model, tokenizer=tokenizer).'
        )
    own = config.get(TOKENIZER)
    if own is None and spec.recipe is not None and spec.recipe.data in DATASETS:
        own = DATASETS[spec.recipe.data].tokenization()
    found: Tokenization = own or Tokenization()
    require_tokenizer(found, where)
    return found.limited(most)


def _guessed_pixels(spec: SourceSpec, config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A note where mean or std are neither in the entry nor in the files, so that they are a guess.

    name: of the architecture.
    """
    stated, usual = config.get("pretrained_cfg") or {}, config.get(USUAL) or {}
    guesses = {
        key: f"{key} {usual.get(key, value)}"
        for key, value in (("mean", 0), ("std", 1))
        if getattr(spec, key) is None and not stated.get(key)
    }
    if not guesses or spec.recipe is not None:
        return ()
    whose = f" (timm's for {name})" if usual else ""
    return (
        f"'{spec.name}': its files do not state {' and '.join(guesses)}, so {' and '.join(guesses.values())}"
        f"{whose} are assumed, for pixels in 0..1; if it was trained with other values, pass "
        + " and ".join(f"models.sources.N.{key}=[...]" for key in guesses),
    )


def _crop_note(name: str, stated: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where a config.json of timm states mean or std and no crop, for which timm has a default."""
    if stated.get("crop_pct") is not None or not (stated.get("mean") or stated.get("std")):
        return ()
    return (
        f"'{name}': its config.json does not state crop_pct, so whole images are resized; timm takes 0.875 of the "
        "short side then. Write crop_pct into its pretrained_cfg",
    )


def _size_notes(name: str, config: Mapping[str, Any], size: tuple[int, int, int]) -> tuple[str, ...]:
    """A note where the preprocessing that a checkpoint states ends in another size than its model takes."""
    stated = (config.get("pretrained_cfg") or {}).get("input_size")
    if not stated or tuple(stated[1:]) == size[1:]:
        return ()
    return (
        f"'{name}': images of {stated[1]} x {stated[2]} pixels are stated for it, but its architecture takes "
        f"{size[1]} x {size[2]}, so that they are resized to that",
    )


def _split(
    spec: SourceSpec, family: Family, arch: Any, read: Translation, where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """The tensors of the backbone (also unknown ones), those of its own head, and names of no effect."""
    known, place = family.skeleton(arch).state_dict(), family.head(arch)
    own = {n: t for n, t in read.tensors.items() if place is not None and n.startswith(f"{place}.")}
    further = [n for n in read.tensors if n not in own and n not in known]
    unused = without_effect(further, spec, where)
    without_effect(read.rest, spec, where)
    return {n: t for n, t in read.tensors.items() if n not in own and n not in unused}, own, unused


def _head(
    spec: SourceSpec,
    found: Checkpoint,
    config: Mapping[str, Any],
    read: Translation,
    inside: Mapping[str, Tensor],
    place: str,
) -> tuple[Head | None, tuple[str, ...]]:
    """The head of an entry: of heads.safetensors, next to the backbone, or inside it at `place`; and notes."""
    where, (tensors, metadata) = found.where, found.heads
    if tensors:
        notes: tuple[str, ...] = ()
        if unread := _names(inside, read):
            notes = (f"'{spec.name}': the heads are those in heads.safetensors; not used: {listed(unread)}",)
        head, _, more = choose_head(spec, file_heads(tensors, metadata, where), metadata, config, where)
        return head, (*notes, *more)
    # A head that the backbone has kept from pretraining may have the same name as the one next to it.
    within = {name.removeprefix(f"{place}."): tensor for name, tensor in inside.items()}
    kept = f"{read.prefix}{place}" if inside and read.heads else "head"
    stored = {**({kept: within} if inside else {}), **read.heads}
    stored = {name: _as_float32(parts, name, where) for name, parts in stored.items()}
    head, chosen, notes = choose_head(spec, stored, {}, config, where)
    if head is not None and read.heads:
        others = {f"{n}.{part}": t for n, parts in stored.items() for part, t in parts.items() if n != chosen}
        refuse_beside({**others, **read.beside}, head, chosen, where)
    return head, notes


def _as_float32(parts: Mapping[str, Tensor], head: str, where: str) -> dict[str, Tensor]:
    whole = as_float32({f"{head}.{part}": tensor for part, tensor in parts.items()}, where)
    return {name.removeprefix(f"{head}."): tensor for name, tensor in whole.items()}


def _names(inside: Mapping[str, Tensor], read: Translation) -> list[str]:
    """Names of all tensors of heads that are not in heads.safetensors."""
    return [*inside, *(f"{name}.{part}" for name, parts in read.heads.items() for part in parts)]


def check_weights(source: Source) -> None:
    """Raise SourceError if tensors are missing, unknown or of a wrong shape, in the backbone or in the head."""
    names = source.family.skeleton(source.arch).state_dict()
    missing = [name for name in names if name not in source.weights]
    extra = [name for name in source.weights if name not in names]
    wrong = [n for n, t in names.items() if n in source.weights and source.weights[n].shape != t.shape]
    for what, found in (("lacks", missing), ("has unknown tensors", extra), ("has wrong shapes", wrong)):
        if found:
            few = ", ".join(map(shown, found[:3])) + (", ..." if len(found) > 3 else "")
            raise SourceError(
                f"{source.origin} does not match its architecture: it {what}: {few}. "
                "Check its config.json, or pass model.arch=..."
            )
    for reason in head_reasons(source):
        raise SourceError(f"{source.origin} does not match its architecture: {reason}. Check the head and labels.")


def _resample(
    family: Family, arch: Any, weights: Mapping[str, Tensor], size: tuple[int, int], where: str
) -> tuple[Any, dict[str, Tensor]]:
    if family.resample is None:
        raise SourceError(
            f"{where}: {family.name} only accepts images of size {list(arch.input_size[1:])}. "
            "Remove models.sources.N.input_size."
        )
    return family.resample(arch, weights, size, where)


def normalisation(
    spec: SourceSpec, config: Mapping[str, Any], where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel that a source was trained with: of the entry or the checkpoint.

    Else timm's for the name of its architecture, else 0 and 1 (see `_guessed_pixels`).
    """
    stated, usual = config.get("pretrained_cfg") or {}, config.get(USUAL) or {}
    mean = float_list(stated, "mean", where) or tuple(usual.get("mean", (0.0,)))
    std = float_list(stated, "std", where) or tuple(usual.get("std", (1.0,)))
    return mean if spec.mean is None else spec.mean, std if spec.std is None else spec.std
