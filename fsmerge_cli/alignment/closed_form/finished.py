"""What is solved of a closed form, saved after every stage, so that a run that is stopped can continue there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fsmerge_cli.alignment.closed_form.assembly import Assembly
from fsmerge_cli.architectures.ports import Port
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.training.snapshots import Snapshot, Snapshots

NETWORK, MAP, MORE = "network.", "map.", "more."
"""Prefixes of the names of tensors in a saved state."""


@dataclass
class Finished:
    """Stages (branches of blocks, or layers) in order, of which the first `done` are solved.

    The activations are not saved: they follow from the weights of the finished stages, to the bit. maps: whether
    the maps are part of the result. facts: lists with one entry per stage or one in all, by name. more: further
    tensors that the next stage needs.
    """

    assembly: Assembly
    maps: bool
    snapshot: Snapshot = field(default_factory=lambda: Snapshots().next_training())
    progress: Progress = silent
    facts: dict[str, list[list[float]]] = field(default_factory=dict)
    more: Mapping[str, Tensor] = field(default_factory=dict)
    done: int = 0

    def load(self) -> None:
        """Continue from the saved state, where there is one. Raises OutputError for a damaged file."""
        found = self.snapshot.load()
        if found is None:
            return
        tensors, metadata = found
        device = self.assembly.device
        for name, tensor in _part(tensors, NETWORK).items():
            self.assembly.assign(name, tensor.to(device))
        for name, tensor in _part(tensors, MAP).items():
            side, space, place, source = metadata["maps"][int(name)]
            maps = self.assembly.merge if side == "merge" else self.assembly.unmerge
            maps[Port(space, place), source] = tensor.to(device)
        self.more = {name: tensor.to(device) for name, tensor in _part(tensors, MORE).items()}
        self.facts.update(metadata["facts"])
        self.done = metadata["step"]

    def add(self, stages: int, more: Mapping[str, Tensor] | None = None) -> None:
        """One more of `stages` stages is solved; its weights are in the assembly. Saved where it is time to."""
        self.done += 1
        self.more = more or {}
        self.progress(Event("solve", self.done, stages))
        if self.snapshot.due(self.done) or self.done == stages:
            self._save(stages)

    def _save(self, stages: int) -> None:
        tensors = {f"{NETWORK}{name}": t for name, t in self.assembly.network.state_dict().items()}
        tensors |= {f"{MORE}{name}": t for name, t in self.more.items()}
        places: list[list[str | int]] = []
        if self.maps:
            for side, maps in (("merge", self.assembly.merge), ("unmerge", self.assembly.unmerge)):
                for (port, source), tensor in maps.items():
                    tensors[f"{MAP}{len(places)}"] = tensor
                    places.append([side, port.space, port.place, source])
        self.snapshot.save(tensors, {"step": self.done, "steps": stages, "maps": places, "facts": self.facts})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
