"""Every tensor of a checkpoint is used, or cannot matter and is listed in a note, or is a reason to refuse it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import brief, few
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source_spec import SourceSpec

TRAINING = (
    r"(criterion|loss\w*|\w+_loss|(\w+_)?(metrics?|acc|accuracy|ema)|ema_\w+|optimi[sz]er\w*|(lr_)?scheduler)"
)
"""Names of modules that only a training uses."""

HARMLESS = re.compile(
    rf"(^|.*\.){TRAINING}(\..*|$)"
    r"|(^|.*\.)decoder_(embed|pos_embed|blocks|norm|pred)(\..*|$)"  # of a masked autoencoder
    r"|(^|.*\.)(mask_token|position_ids|relative_position_index|attn_mask|num_batches_tracked)"
    r"|(^|.*\.)(total_ops|total_params|n_averaged|epoch|(global_)?step|queue|queue_ptr)"
)
"""Tensors that do not affect the logits in evaluation: of a training, of a decoder, and constants."""

TEXT = re.compile(
    r"(^|.*\.)((text\w*|transformer|token_embedding|ln_final)\..*|positional_embedding|text_projection|logit_\w+)"
)
"""Tensors of the text tower next to a CLIP vision tower, which is recognised by its `token_embedding.weight`."""

PIXELS = re.compile(r"(^|.*[._])(?<!running_)(mean|std)")
"""Buffers of mean and std in a model that normalises its own input."""


def listed(names: Iterable[str]) -> str:
    """The first of the names, and how many there are besides."""
    return few(sorted(names))


def without_effect(names: Iterable[str], spec: SourceSpec, where: str) -> list[str]:
    """Those of the unused tensors that cannot matter. Raises SourceError for a mean or std that is not given.

    The values of such buffers are not used: whether they belong to pixels in 0..1 or 0..255 is not in the file.
    """
    unused = [*names]
    pixels = [name for name in unused if PIXELS.fullmatch(name) and not HARMLESS.fullmatch(name)]
    if pixels and (spec.mean is None or spec.std is None):
        raise SourceError(
            f"{where}: the model normalises its own input ({listed(pixels)}). Pass the same values for pixels in "
            "0..1: models.sources.N.mean=[...] and std=[...]."
        )
    return [name for name in unused if HARMLESS.fullmatch(name) or name in pixels]


def require_stated(config: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Raise SourceError where a config.json states another value than the one that the tensors show.

    found: by the key of config.json. Its library would build another network from it.
    """
    for key, value in found.items():
        if config.get(key) is not None and config[key] != value:
            raise SourceError(
                f"{where}: {key} in its config.json is {brief(config[key])}, and its weights have {value}. Put "
                "the config.json of these weights beside them."
            )


def refuse_beside(beside: Mapping[str, Tensor], head: Head, name: str, where: str) -> None:
    """Raise SourceError if tensors next to a chosen head may act before or after it.

    beside: all further tensors of the module that contains the head. What acts before the head ends with its
    number of units, what acts after it starts with its classes; a single number may scale both.
    """
    if head.weight.ndim != 2:
        return  # compile_plan reports it
    text = any(n.endswith("token_embedding.weight") for n in beside)
    left = {n: t for n, t in beside.items() if not HARMLESS.fullmatch(n) and not (text and TEXT.fullmatch(n))}
    modules: dict[str, list[tuple[int, ...]]] = {}
    for path, tensor in left.items():
        modules.setdefault(path.rpartition(".")[0], []).append(_axes(tensor))
    rows, width = head.weight.shape
    classes = {rows, 1} if rows == 2 else {rows}  # two rows may stand for one logit
    found = [p for p, t in left.items() if _may_act(modules[p.rpartition(".")[0]], t, classes, width)]
    if found:
        raise SourceError(
            f"{where}: next to the head '{name}' are tensors that may act between the features and the logits: "
            f"{listed(found)}. Save only the backbone and the head if they do not; if they do, train one linear "
            "head instead (`fsmerge finetune model.checkpoint=... training.steps=0`)."
        )


def _axes(tensor: Tensor) -> tuple[int, ...]:
    """The shape without axes of size 1, such as those of tokens [1, 1, d]."""
    return tuple(size for size in tensor.shape if size != 1)


def _may_act(module: list[tuple[int, ...]], tensor: Tensor, classes: set[int], width: int) -> bool:
    """Whether a tensor may transform features or logits; biases count only in a module without a matrix."""
    axes = _axes(tensor)
    if len(axes) > 1:
        return axes[0] == width or axes[1] in classes
    return not any(len(own) > 1 for own in module) and (not axes or axes[0] in {width, *classes})
