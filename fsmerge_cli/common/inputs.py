"""What a network reads: one tensor (pixels), or several named ones (the tokens of a text), one row per input.

Everything above `data/` indexes, joins, splits, moves and counts inputs through these few functions, and calls a
network with one value. So it knows no kind of input, and images stay the plain tensors that they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IDS, TYPES, SPECIAL = "input_ids", "token_type_ids", "special_tokens_mask"
"""Names of the tensors of a text: its tokens, which of two texts they belong to, and 1 at [CLS] and [SEP]."""

READ = "read_tokens"
"""Name of the tensor that is 1 at the tokens whose features are read; a text without it has one row of them."""

MASK = "attention_mask"
"""Name of the tensor that is 1 at the positions of an input and 0 at its padding."""


@dataclass(frozen=True, eq=False)
class NamedTensors:
    """Several tensors [n, ..., length] with one row per input; padding is zero in all of them.

    It is indexed, moved and counted like one tensor. Inputs of unequal length are padded at the end, see `join`;
    `attention_mask` tells the positions that are not padding. facts: what is the same for all inputs (the number
    of a tokenizer's [MASK]), by name.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.mask)

    def __getitem__(self, index: Any) -> NamedTensors:
        """The same rows of every tensor."""
        return self.each(lambda tensor: tensor[index])

    def __iter__(self) -> Iterator[NamedTensors]:
        """One row after the other."""
        return (self[row] for row in range(len(self)))

    @property
    def mask(self) -> Tensor:
        """1 at every position that is not padding, [n, ..., length]."""
        return self.tensors[MASK]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.mask.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def is_cuda(self) -> bool:
        """Whether the tensors are on a GPU."""
        return self.mask.is_cuda

    @property
    def ndim(self) -> int:
        """Number of axes, the length included."""
        return self.mask.ndim

    def each(self, change: Callable[[Tensor], Tensor]) -> NamedTensors:
        """The same names with changed tensors."""
        return replace(self, tensors={name: change(tensor) for name, tensor in self.tensors.items()})

    def replaced(self, tensors: Mapping[str, Tensor]) -> NamedTensors:
        """The same inputs with these tensors instead of those of the same names."""
        return replace(self, tensors={**self.tensors, **tensors})

    def to(self, *where: Any, non_blocking: bool = False) -> NamedTensors:
        """On another device; a floating type changes nothing, for the tensors are integers."""
        places: list[torch.device | str] = [own for own in where if not isinstance(own, torch.dtype)]
        return self.each(lambda tensor: tensor.to(places[0], non_blocking=non_blocking)) if places else self

    def double(self) -> NamedTensors:
        """The same: a network in fp64 reads the same integers."""
        return self

    def float(self) -> NamedTensors:
        """The same: the tensors are integers."""
        return self

    def flatten(self, start: int, end: int) -> NamedTensors:
        """The axes from `start` to `end` as one."""
        return self.each(lambda tensor: tensor.flatten(start, end))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """As for a tensor on a GPU."""
        for tensor in self.tensors.values():
            tensor.record_stream(stream)

    def trimmed(self) -> NamedTensors:
        """Without the positions at the end that are padding in every row; at least one position is left.

        On a GPU nothing is trimmed, for it would have to wait for the lengths.
        """
        if self.device.type != "cpu" or not self.mask.numel():
            return self
        length = max(1, int((self.mask.reshape(-1, self.mask.shape[-1]) != 0).any(0).sum()))
        return self if length == self.mask.shape[-1] else self[..., :length]


Inputs = Tensor | NamedTensors
"""The inputs of a network, one row each: pixels [n, C, H, W], or the named tensors of texts."""


def join(parts: Sequence[Inputs]) -> Inputs:
    """All rows of the parts, in order; shorter rows are padded to the longest."""
    if isinstance(parts[0], Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return _combined(torch.cat, [part for part in parts if isinstance(part, NamedTensors)])


def stack(items: Sequence[Inputs]) -> Inputs:
    """Single inputs as the rows of one value; shorter ones are padded to the longest."""
    if isinstance(items[0], Tensor):
        return torch.stack([item for item in items if isinstance(item, Tensor)])
    return _combined(torch.stack, [item for item in items if isinstance(item, NamedTensors)])


def _combined(how: Callable[[list[Tensor]], Tensor], parts: Sequence[NamedTensors]) -> NamedTensors:
    length = max(part.mask.shape[-1] for part in parts)
    padded = [part.each(lambda tensor: F.pad(tensor, (0, length - tensor.shape[-1]))) for part in parts]
    tensors = {name: how([part.tensors[name] for part in padded]) for name in parts[0].tensors}
    return replace(parts[0], tensors=tensors)


def split(inputs: Inputs, size: int) -> Sequence[Inputs]:
    """Consecutive parts of at most `size` rows, as views."""
    if isinstance(inputs, Tensor):
        return torch.split(inputs, size)
    return [inputs[start : start + size] for start in range(0, max(1, len(inputs)), size)]


def in_use(inputs: Inputs) -> Tensor | None:
    """Where a network's positions are not padding, [n, length], after `trimmed`; None: there is no padding."""
    return None if isinstance(inputs, Tensor) else inputs.trimmed().mask != 0


def used_rows(value: Tensor, used: Tensor | None) -> Tensor:
    """Activations [n, ..., d] as rows [m, d], without those of padding.

    used: as `in_use`; it applies where the activations have one row per position.
    """
    if used is not None and value.shape[:-1] == used.shape:
        return value[used]
    return value.reshape(-1, value.shape[-1])


def reads(inputs: Inputs) -> Tensor | None:
    """Number of rows of features of every input [n], in host memory; None: one row of each."""
    found = None if isinstance(inputs, Tensor) else inputs.tensors.get(READ)
    return None if found is None else (found != 0).sum(-1).cpu()


def feature_rows(counts: Tensor | None, inputs: Tensor) -> Tensor:
    """The rows of the features of some inputs [m], in their order. counts: of all inputs, see `reads`.

    >>> feature_rows(torch.tensor([2, 1, 3]), torch.tensor([2, 0])).tolist()
    [3, 4, 5, 0, 1]
    """
    if counts is None:
        return inputs
    starts, own = counts.cumsum(0) - counts, counts[inputs]
    first = (starts[inputs] - own.cumsum(0) + own).repeat_interleave(own)
    return first + torch.arange(int(own.sum()))


def per_feature(values: Tensor, counts: Tensor | None) -> Tensor:
    """Values of inputs [n] as values of their rows of features."""
    return values if counts is None else values.repeat_interleave(counts.to(values.device))


def content(item: Inputs) -> bytes:
    """The bytes of one input, without its padding: equal for equal inputs."""
    if isinstance(item, Tensor):
        return item.numpy().tobytes()
    own = item.trimmed()
    return b"".join(tensor.contiguous().numpy().tobytes() for _, tensor in sorted(own.tensors.items()))


def pixels_of(inputs: Inputs) -> Tensor:
    """The tensor of images, for what only exists for them. Raises TypeError for others."""
    if not isinstance(inputs, Tensor):
        raise TypeError("these inputs are no images")
    return inputs


def named(inputs: Inputs) -> dict[str, Tensor]:
    """The tensors by name; a single tensor is called `pixels`."""
    return {"pixels": inputs} if isinstance(inputs, Tensor) else dict(inputs.tensors)
