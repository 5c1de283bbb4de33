"""`compressed/`: the network of every task from the sum of the task vectors and one bit per parameter and task.

TALL masks (Wang et al., arXiv 2405.07813): the network of task i is W_0 + m_i s. Written by method=consensus with
method.masks=true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsmerge_cli.checkpoints.dtype import rounded, to_dtype
from fsmerge_cli.checkpoints.files import as_float32, read_tensors
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.preprocessing import refolded
from fsmerge_cli.common.atomic import write_json, write_tensors
from fsmerge_cli.common.errors import ConfigError, SourceError, unknown
from fsmerge_cli.common.foreign_files import UnreadableError, read_json_object
from fsmerge_cli.common.shown import shown
from fsmerge_cli.evaluation.certificates import TOLERANCE, Certificate, Certifier, network, relative_error
from fsmerge_cli.methods import Solution
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.problem import MaskedNetworks

FOLDER, BASE, SUM, MASKS, CONFIG = (
    "compressed",
    "base.safetensors",
    "sum.safetensors",
    "masks.safetensors",
    "config.json",
)


def write_compressed(folder: Path, certifier: Certifier, solution: Solution) -> list[Callable[[], Certificate]]:
    """Write the folder, if the solution has masks; its certificate.

    base.safetensors and sum.safetensors hold W_0 and s in the type of the merged model. masks.safetensors holds
    for each task ceil(n / 8) bytes, the bits of its n parameters in the order of config.json, and the tensors of
    its source that have no task vector (running statistics). config.json states the exact sizes.
    """
    found, dtype = solution.masked, solution.dtype
    if found is None:
        return []
    tasks, order = certifier.plan.tasks, sorted(found.total)
    folder.mkdir()
    masks = {f"{task}/mask": packed(own, order) for task, own in zip(tasks, found.masks)}
    masks |= {f"{t}/{n}": own.clone() for t, others in zip(tasks, found.others) for n, own in others.items()}
    parts = {BASE: to_dtype(dict(found.base), dtype), SUM: to_dtype(dict(found.total), dtype), MASKS: masks}
    for name, tensors in parts.items():
        write_tensors(folder / name, tensors, {"format": "pt"})
    content = {
        "tasks": list(tasks),
        "order": order,
        "pixels": found.pixels,
        "parameters": sum(t.numel() for t in found.total.values()),
        "bytes": {name: sum(t.numel() * t.element_size() for t in own.values()) for name, own in parts.items()},
    }
    write_json(folder / CONFIG, content)
    return [lambda: _certificate(certifier, folder.parent, found, dtype)]


def packed(masks: Mapping[str, Tensor], order: Sequence[str]) -> Tensor:
    """The bits of all masks, eight in a byte, [ceil(n / 8)]."""
    bits = torch.cat([masks[name].flatten().cpu() for name in order])
    return torch.from_numpy(np.packbits(bits.numpy()))


def unpacked(content: Tensor, shapes: Mapping[str, torch.Size], order: Sequence[str]) -> dict[str, Tensor]:
    """The masks of all tensors; the inverse of `packed`. Raises ValueError for another number of bytes."""
    sizes = [shapes[name].numel() for name in order]
    if len(content) != -(-sum(sizes) // 8):
        raise ValueError(f"{len(content)} bytes for {sum(sizes)} bits")
    bits = torch.from_numpy(np.unpackbits(content.numpy(), count=sum(sizes))).bool()
    return {name: own.reshape(shapes[name]) for name, own in zip(order, torch.split(bits, sizes))}


def load_compressed(folder: str | Path, task: str) -> Source:
    """The network of one task from the folder of a run, with its head, as `load_source` returns one.

    Raises SourceError for a run without compressed/, or where it cannot be read; ConfigError for an unknown task.
    """
    folder = Path(folder)
    place = folder / FOLDER
    where = shown(str(place))
    if not (place / CONFIG).is_file():
        raise SourceError(
            f"{where} does not exist. A run with method=consensus method.masks=true writes it; pass its folder."
        )
    try:
        content = read_json_object(place / CONFIG)
    except UnreadableError as error:
        raise SourceError(f"{where}/{CONFIG} cannot be read: {error.why}. Copy the folder again.") from None
    if task not in (tasks := content.get("tasks", ())):
        raise ConfigError(unknown("task", task, tasks))
    source = load(SourceSpec(task, checkpoint=str(folder / "merged"), head=task))
    base, total, masks = (as_float32_or_bits(place / name, where) for name in (BASE, SUM, MASKS))
    try:
        found = _read(content, task, base, total, masks)
    except (KeyError, RuntimeError, TypeError, ValueError):
        raise SourceError(f"{where}: its files do not belong together. Copy the folder again.") from None
    return replace(source, weights=weights_of(found, 0, source), origin=where)


def as_float32_or_bits(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a file as fp32; bytes of masks and counters as they are."""
    read, _ = read_tensors(path, f"{where}/{path.name}")
    bits = {name: t for name, t in read.items() if t.dtype == torch.uint8}
    return {**as_float32({n: t for n, t in read.items() if n not in bits}, where), **bits}


def _read(content: Mapping[str, Any], task: str, *parts: Mapping[str, Tensor]) -> MaskedNetworks:
    """The network of one task."""
    base, total, masks = parts
    order, pixels = content["order"], content["pixels"]
    own = unpacked(masks[f"{task}/mask"], {name: total[name].shape for name in order}, order)
    others = {n.removeprefix(f"{task}/"): t for n, t in masks.items() if n.startswith(f"{task}/")}
    others.pop("mask")
    stated = None if pixels is None else (tuple(pixels[0]), tuple(pixels[1]))
    return MaskedNetworks(base, total, (own,), (others,), stated)


def weights_of(found: MaskedNetworks, task: int, like: Source) -> dict[str, Tensor]:
    """W_0 + m_i s and what else the network of a task has, for pixels in 0..1; like: a source of its kind."""
    mine = {n: found.base[n].cpu() + found.masks[task][n].cpu() * s.cpu() for n, s in found.total.items()}
    weights = {**{n: t.cpu() for n, t in found.others[task].items()}, **mine}
    return weights if found.pixels is None else refolded(like.family, like.arch, weights, found.pixels)


def _certificate(certifier: Certifier, run: Path, found: MaskedNetworks, dtype: str) -> Certificate:
    """The features of the networks that are read back, compared with W_0 + m_i s in memory."""
    what = "features of the networks read from compressed/ = those of W_0 + m_i s, for every task"
    exact = replace(found, base=rounded(found.base, dtype), total=rounded(found.total, dtype))
    errors = []
    for i, source in enumerate(certifier.sources):
        expected = network(certifier.plan, weights_of(exact, i, source))(certifier.pixels.double())
        read = load_compressed(run, source.name)
        errors.append(relative_error(network(certifier.plan, read.weights)(certifier.pixels.double()), expected))
    return Certificate("compressed", what, max(errors), TOLERANCE)
