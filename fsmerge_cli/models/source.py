"""A trained model as a value: the backbone, its head and its origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures import Family
from fsmerge_cli.architectures.token_outputs import TokenLayout, token_layout
from fsmerge_cli.common.shown import shown
from fsmerge_cli.models.dense import Dense, embedded
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.preprocessing import PLAIN
from fsmerge_cli.models.source_spec import Reads

Pixels = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std of the pixels, one value or one per channel."""


@dataclass(frozen=True, repr=False)
class Source:
    """A trained model: backbone weights by name, its head (None: merged on features) and its origin.

    A backbone of images expects pixels in 0..1: mean and std are folded into its first layer. preprocessing: what
    happens to an item before it (a `Preprocessing` of images, a `Tokenization` of texts). origin: path, hub name
    or module. notes: remarks for the user on how it was read. folded: the mean and std in its first layer (None:
    it has none there). reads: what of it counts, see `SourceSpec`. dense: layers
    behind the pooled features of an embedding model, whose outputs are its embeddings; the features are distilled.
    classes: class names of its images where it has no head, for a linear probe (None: there are none).
    """

    name: str
    family: Family
    arch: Any
    weights: Mapping[str, Tensor]
    head: Head | None
    origin: str
    sha256: str
    preprocessing: Any = PLAIN
    notes: tuple[str, ...] = ()
    folded: Pixels | None = None
    reads: Reads = "pooled"
    dense: tuple[Dense, ...] = ()
    classes: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        """One line: name, size, classes and origin."""
        classes = "no head" if self.head is None else f"{len(self.head.labels)} classes"
        size = sum(tensor.numel() for tensor in self.weights.values())
        name, origin = shown(self.name), shown(self.origin)
        return f"Source({name}: {self.family.name}, {size:,} parameters, {classes}, from {origin})"

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names of the head, in order; None without a head."""
        return self.head.labels if self.head else None

    def embeddings(self, features: Tensor) -> Tensor:
        """What the layers behind the features [n, d] make of them; of most models the features themselves."""
        return embedded(self.dense, features)

    @property
    def layout(self) -> TokenLayout | None:
        """The outputs of its network with its tokens; None where only its pooled features count."""
        return None if self.reads == "pooled" else token_layout(self.family, self.arch)
