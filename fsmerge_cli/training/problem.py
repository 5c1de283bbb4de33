"""What every method is given and gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fsmerge_cli.common.distributed import World
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import Progress, silent
from fsmerge_cli.data.draw import Images
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.map_set import MergeMaps
from fsmerge_cli.training.snapshots import Keeper
from fsmerge_cli.training.state import Trace


@dataclass(frozen=True)
class Problem:
    """The sources, their plan and the unlabelled images; the same for every method."""

    plan: Plan
    sources: Sequence[Source]
    images: Images
    hardware: Hardware = field(default_factory=Hardware)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    progress: Progress = silent
    world: World = field(default_factory=World)
    keeper: Keeper = field(default_factory=Keeper)

    def own_images(self, source: int) -> Tensor:
        """The unlabelled images of one source's task, and those of no task. Raises DataError without any."""
        asked = [self.images.asked(i, "own") for i in range(len(self.sources))]
        if not bool(asked[source].any()):
            bare = ", ".join(own.name for own, mask in zip(self.sources, asked) if not bool(mask.any()))
            raise DataError(
                f"this method needs unlabelled images of every task, and there are none of {bare}. Give them some "
                "(data.images_per_task; with data=per_task data.tasks.TASK.images_per_task), or take "
                "method=fs_merge or method=kd, which ask every source about the images of all tasks."
            )
        return self.images.images[asked[source]]

    def weights(self, device: torch.device | str | None = None) -> list[dict[str, Tensor]]:
        """One fp32 state dict per source, on `device` (None: the problem's own); nothing is copied on the CPU."""
        where = self.device if device is None else torch.device(device)
        return [{n: _to(t, where) for n, t in s.weights.items()} for s in self.sources]


@dataclass(frozen=True)
class Stage:
    """What was folded with which maps, and what came out: all of a merge, or one of several one after the other.

    permutations: how each of the sources was reordered before it was folded, by space; empty where none was.
    """

    plan: Plan
    maps: MergeMaps
    sources: Sequence[Mapping[str, Tensor]]
    weights: Mapping[str, Tensor]
    permutations: tuple[Mapping[str, Tensor], ...] = ()


@dataclass(frozen=True)
class Solution:
    """A merged model: weights of one backbone, one projector U_out [d_i, d'] per source, and how it was found.

    maps: the maps that fold the sources to these weights, for methods that have them. permutations: how each
    source was reordered first, by space, where a method does. stages: what was folded, where it is not the sources
    as they are to these weights: one source after the other, in order; before a release; of reordered sources.
    facts: numbers worth knowing (condition numbers), by name. released: whether the weights were trained on after
    the last of the stages. dtype: whose values the weights have, and the heads that are made of them.
    """

    weights: Mapping[str, Tensor]
    projectors: tuple[Tensor, ...]
    trace: Trace = field(default_factory=Trace)
    maps: MergeMaps | None = None
    permutations: tuple[Mapping[str, Tensor], ...] = ()
    stages: tuple[Stage, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    finetuned: bool = False
    dtype: str = "float32"


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)
