"""The input of every method, `Problem`, and its output, `Solution`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fsmerge_cli.common.distributed import World
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.hardware import Hardware, with_fp64
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.progress import Progress, silent
from fsmerge_cli.data.draw import Images
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source import Pixels, Source
from fsmerge_cli.supernet.map_set import MergeMaps
from fsmerge_cli.training.snapshots import Snapshots
from fsmerge_cli.training.state import Trace


@dataclass(frozen=True)
class Problem:
    """The sources, their plan and the unlabelled images; the same for every method.

    base: the pretrained weights that all sources were fine-tuned from, for methods with `uses_base`.
    """

    plan: Plan
    sources: Sequence[Source]
    images: Images
    hardware: Hardware = field(default_factory=Hardware)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    progress: Progress = silent
    world: World = field(default_factory=World)
    snapshots: Snapshots = field(default_factory=Snapshots)
    base: Source | None = None

    def task_images(self, source: int) -> Inputs:
        """The unlabelled images of one source's task and the auxiliary images. Raises DataError without any."""
        mask = self.images.selected(source, "own")
        if not bool(mask.any()):
            self.require_task_images()
        return self.images.images[mask]

    def require_task_images(self) -> None:
        """Raise DataError where some task has no unlabelled images and there are no auxiliary images."""
        masks = [self.images.selected(i, "own") for i in range(len(self.sources))]
        if missing := ", ".join(own.name for own, mask in zip(self.sources, masks) if not bool(mask.any())):
            raise DataError(
                f"this method needs unlabelled images of every task, but there are none of {missing}. Raise "
                "data.images_per_task (with data=per_task: data.tasks.TASK.images_per_task), or take "
                "method=fs_merge or method=kd, which run every source on the images of all tasks."
            )

    def in_fp64(self) -> Problem:
        """The problem on a device that has fp64: the CPU instead of Apple's MPS."""
        device = with_fp64(self.device)
        return self if device == self.device else replace(self, device=device)

    def weights(self, device: torch.device | str | None = None) -> list[dict[str, Tensor]]:
        """One fp32 state dict per source, on `device` (None: the problem's); not copied on the CPU."""
        target = self.device if device is None else torch.device(device)
        return [{n: _to(t, target) for n, t in s.weights.items()} for s in self.sources]


@dataclass(frozen=True)
class Stage:
    """One fold: the sources, the maps and the resulting weights. A sequential merge has several.

    permutations: of the units of every source before the fold, by space; empty without reordering.
    """

    plan: Plan
    maps: MergeMaps
    sources: Sequence[Mapping[str, Tensor]]
    weights: Mapping[str, Tensor]
    permutations: tuple[Mapping[str, Tensor], ...] = ()


@dataclass(frozen=True)
class MaskedNetworks:
    """The network of every task as W_0 + m_i s (TALL masks).

    base: W_0. total: s. masks: m_i, true or false, by task and tensor. others: by task, the tensors of its source
    that have no task vector. pixels: mean and std of the pixels that the first layer reads (None: pixels in 0..1).
    """

    base: Mapping[str, Tensor]
    total: Mapping[str, Tensor]
    masks: Sequence[Mapping[str, Tensor]]
    others: Sequence[Mapping[str, Tensor]]
    pixels: Pixels | None = None


@dataclass(frozen=True)
class Solution:
    """A merged model: weights of one backbone, one projector U_out [d_i, d'] per source, and how they were found.

    maps: the maps that fold the sources to these weights, for methods that have them. permutations: of the units
    of every source before the merge, by space, for methods that reorder. stages: the folds, in order, where `maps`
    do not fold the unchanged sources to these weights: in a sequential merge, before fine-tuning, and of reordered
    sources. facts: values to report (condition numbers), by name. finetuned: whether the folded weights were
    fine-tuned after the last stage. statistics: by convolution, mean and variance [C] of its output without bias,
    for the BatchNorms of the written file. dtype: to which the weights, and the heads made from them, are rounded.
    masked: networks of the tasks that are written beside the merged one.
    """

    weights: Mapping[str, Tensor]
    projectors: tuple[Tensor, ...]
    trace: Trace = field(default_factory=Trace)
    maps: MergeMaps | None = None
    permutations: tuple[Mapping[str, Tensor], ...] = ()
    stages: tuple[Stage, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    finetuned: bool = False
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    dtype: str = "float32"
    masked: MaskedNetworks | None = None

    def to(self, device: torch.device) -> Solution:
        """The same solution with its weights and projectors on `device`."""
        weights = {name: tensor.to(device) for name, tensor in self.weights.items()}
        return replace(self, weights=weights, projectors=tuple(U.to(device) for U in self.projectors))

    def tensors(self, plan: Plan) -> dict[str, Tensor]:
        """The tensors of a file of these weights, with BatchNorms where the family's files have them."""
        return plan.family.to_file(plan.arch, self.weights, self.statistics)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)
