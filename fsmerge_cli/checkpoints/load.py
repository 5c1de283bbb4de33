"""Loading of sources: every trained model is read here, from a folder or file into a `Source`.

Nothing is trained here (see `embedded`), and no code in a checkpoint is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures import Family
from fsmerge_cli.checkpoints.files import as_float32, float_list
from fsmerge_cli.checkpoints.heads import choose_head, stated_labels
from fsmerge_cli.checkpoints.open import Checkpoint, interpret, open_checkpoint
from fsmerge_cli.checkpoints.preprocessing import fold_normalisation
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.preprocessing import Preprocessing
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec


def load(spec: SourceSpec, headers: bool = False) -> Source:
    """Read the source that `spec` describes. Raises SourceError.

    headers: no weights are read; they are on the `meta` device, with the shapes in the files.
    """
    return assemble(spec, open_checkpoint(spec, headers))


def assemble(spec: SourceSpec, found: Checkpoint, skip_head: bool = False) -> Source:
    """The source in a checkpoint; with `skip_head` its heads are not read. Raises SourceError."""
    where = found.where
    family, arch, config, read = interpret(spec, found)
    notes = read.notes
    tensors = as_float32(read.tensors, where)
    inside = family.head(arch)
    own = {n: t for n, t in tensors.items() if inside is not None and n.startswith(f"{inside}.")}
    backbone = {n: t for n, t in tensors.items() if n not in own}
    if read.heads:  # next to the backbone, whose own head may remain from pretraining and have the same name
        own = {f"{read.prefix}{n}": t for n, t in own.items()}
    stored = {} if skip_head else as_float32(found.heads[0] or {**own, **read.heads}, where)
    head = None if skip_head else choose_head(spec, stored, found.heads[1], stated_labels(config), where)
    mean, std = normalisation(spec, config, where)
    weights = fold_normalisation(family, arch, backbone, mean, std, where)
    how = Preprocessing.of(config.get("pretrained_cfg") or {}, where)
    if spec.module is not None and spec.mean is spec.std is None and (set(mean), set(std)) != ({0.0}, {1.0}):
        notes += (
            f"'{spec.name}': mean {list(mean)} and std {list(std)} are taken from the module; if it was trained "
            "with other values, pass mean and std",
        )
    size = spec.input_size
    if size is not None and (target := (size, size) if isinstance(size, int) else size) != arch.input_size[1:]:
        old = arch.input_size[1:]
        arch, weights = _resample(family, arch, weights, target, where)
        notes += (
            f"'{spec.name}': its position embeddings were resampled from {old[0]} x {old[1]} to {target[0]} x "
            f"{target[1]} pixels, which is not exact: its scores differ from those at its original size",
        )
    return Source(spec.name, family, arch, weights, head, found.origin, found.sha256, how, notes)


def check_weights(source: Source, refuse_extra: bool = True) -> None:
    """Raise SourceError if weights of the architecture are missing or have wrong shapes.

    refuse_extra: also raise it if there are tensors that the architecture does not have.
    """
    names = source.family.skeleton(source.arch).state_dict()
    missing = [name for name in names if name not in source.weights]
    extra = [name for name in source.weights if name not in names] if refuse_extra else []
    wrong = [n for n, t in names.items() if n in source.weights and source.weights[n].shape != t.shape]
    for what, found in (("lacks", missing), ("has unknown tensors", extra), ("has wrong shapes", wrong)):
        if found:
            few = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            raise SourceError(
                f"{source.origin} does not match its architecture: it {what}: {few}. "
                "Check its config.json, or pass model.arch=..."
            )


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
    """Mean and std per channel that a source was trained with: of the entry or the checkpoint, else 0 and 1."""
    stated = config.get("pretrained_cfg") or {}
    mean = spec.mean or float_list(stated, "mean", where) or (0.0,)
    return mean, spec.std or float_list(stated, "std", where) or (1.0,)


def source_notes(sources: Sequence[Source]) -> list[str]:
    """Notes on how the sources were read, and on sources whose preprocessing differs from that of source 1."""
    first = sources[0]
    prepared = [
        f"images are preprocessed as for '{first.name}'; '{other.name}' was trained with {', '.join(different)}"
        for other in sources[1:]
        if (different := first.preprocessing.differences(other.preprocessing))
    ]
    return [*prepared, *(note for source in sources for note in source.notes)]
