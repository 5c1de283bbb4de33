"""The one door through which trained models enter: a folder or file becomes a `Source`.

Loading only reads; nothing here trains (that is `zoo`) and no code of a checkpoint is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures import Family
from fsmerge_cli.checkpoints.files import numbers, plain
from fsmerge_cli.checkpoints.heads import choose_head, stated_labels
from fsmerge_cli.checkpoints.open import Checkpoint, open_checkpoint, translated
from fsmerge_cli.checkpoints.preprocessing import fold_normalisation
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.preprocessing import Preprocessing
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec


def load(spec: SourceSpec, headers: bool = False) -> Source:
    """Read the source that `spec` names. Raises SourceError, in the user's words.

    headers: no weight is read; they are on the `meta` device, of the shapes that the files state.
    """
    return assemble(spec, open_checkpoint(spec, headers))


def assemble(spec: SourceSpec, found: Checkpoint, headless: bool = False) -> Source:
    """The source that a checkpoint holds; headless: its heads are not looked at. Raises SourceError."""
    where = found.where
    family, arch, config, read = translated(spec, found)
    notes = read.notes
    tensors = plain(read.tensors, where)
    inside = family.head(arch)
    own = {n: t for n, t in tensors.items() if inside is not None and n.startswith(f"{inside}.")}
    backbone = {n: t for n, t in tensors.items() if n not in own}
    if read.heads:  # beside the backbone; its own may be left from another training, and be called the same
        own = {f"{read.prefix}{n}": t for n, t in own.items()}
    stored = {} if headless else plain(found.heads[0] or {**own, **read.heads}, where)
    head = None if headless else choose_head(spec, stored, found.heads[1], stated_labels(config), where)
    mean, std = normalisation(spec, config, where)
    weights = fold_normalisation(family, arch, backbone, mean, std, where)
    how = Preprocessing.of(config.get("pretrained_cfg") or {}, where)
    if spec.module is not None and spec.mean is spec.std is None and (set(mean), set(std)) != ({0.0}, {1.0}):
        notes += (
            f"'{spec.name}': mean {list(mean)} and std {list(std)} are those that the module states; where it was "
            "trained otherwise, pass mean and std",
        )
    size = spec.input_size
    if size is not None and (target := (size, size) if isinstance(size, int) else size) != arch.input_size[1:]:
        old = arch.input_size[1:]
        arch, weights = _resample(family, arch, weights, target, where)
        notes += (
            f"'{spec.name}': its positions were resampled from {old[0]} x {old[1]} to {target[0]} x {target[1]} "
            "pixels, which is not exact: its scores here are not those of the checkpoint at its own size",
        )
    return Source(spec.name, family, arch, weights, head, found.origin, found.sha256, how, notes)


def check_weights(source: Source, strangers: bool = True) -> None:
    """Raise SourceError where weights of the architecture are missing or have other shapes, or others are there.

    strangers: whether others matter.
    """
    names = source.family.skeleton(source.arch).state_dict()
    missing = [name for name in names if name not in source.weights]
    extra = [name for name in source.weights if name not in names] if strangers else []
    wrong = [n for n, t in names.items() if n in source.weights and source.weights[n].shape != t.shape]
    for what, found in (("lacks", missing), ("has other tensors too", extra), ("has other shapes", wrong)):
        if found:
            few = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            raise SourceError(
                f"{source.origin} does not hold the weights of its architecture: it {what}: {few}. "
                "Check its config.json, or pass model.arch=..."
            )


def _resample(
    family: Family, arch: Any, weights: Mapping[str, Tensor], size: tuple[int, int], where: str
) -> tuple[Any, dict[str, Tensor]]:
    if family.resample is None:
        raise SourceError(
            f"{where}: {family.name} reads images of {list(arch.input_size[1:])} alone. "
            "Take models.sources.N.input_size away."
        )
    return family.resample(arch, weights, size, where)


def normalisation(
    spec: SourceSpec, config: Mapping[str, Any], where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel that a source was trained with: the entry's, the checkpoint's, or none."""
    stated = config.get("pretrained_cfg") or {}
    mean = spec.mean or numbers(stated, "mean", where) or (0.0,)
    return mean, spec.std or numbers(stated, "std", where) or (1.0,)


def source_notes(sources: Sequence[Source]) -> list[str]:
    """What the user should know of how sources were read; what cannot be folded into weights is source 1's."""
    first = sources[0]
    prepared = [
        f"images are prepared as for '{first.name}'; '{other.name}' was trained with {', '.join(different)}"
        for other in sources[1:]
        if (different := first.preprocessing.differences(other.preprocessing))
    ]
    return [*prepared, *(note for source in sources for note in source.notes)]
