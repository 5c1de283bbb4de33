"""A text encoder in plain torch, with the tensor names of transformers and the same function (tested against it).

Written out here, so that a merge neither waits for the import of transformers nor depends on its version: the
attention is the same few products on every device and in every precision, also in fp64 and without weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.architectures.bert.arch import TextArch
from fsmerge_cli.architectures.bert.names import NAMES, Names
from fsmerge_cli.common.inputs import IDS, READ, TYPES, NamedTensors

ACTIVATIONS: dict[str, Any] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""By transformers' names."""

START = 0.02
"""Standard deviation of new weights, as in BERT (arXiv 1810.04805)."""


class Encoder(nn.Module):
    """Texts -> features [n, d]: the pooled first token; without a pooler that token itself, or the mean of all.

    With pooling=tokens: every token that is read, one after the other [rows, d]; those of all texts [n, length, d]
    where none is marked.
    """

    def __init__(self, arch: TextArch) -> None:
        super().__init__()
        names = NAMES[arch.model_type]
        self._arch, self._names = arch, names
        embedded, width = arch.embedded, arch.hidden_size
        tables = ((names.word, arch.vocab_size), (names.position, arch.positions), (names.types, arch.types))
        for path, rows in tables:
            if path is not None and rows:
                place(self, path, nn.Embedding(rows, embedded))
        place(self, names.norm, nn.LayerNorm(embedded, eps=arch.eps))
        if embedded != width and names.project is not None:
            place(self, names.project, nn.Linear(embedded, width))
        for i in range(arch.layers):
            place(self, names.block.format(i=i), Block(arch, names))
        if arch.pooler:
            place(self, names.pooler, nn.Linear(width, width))
        self.apply(_start)

    def forward(self, texts: NamedTensors) -> Tensor:
        """Features of a batch; what is padding in every text is cut off first."""
        arch, names = self._arch, self._names
        texts = texts.trimmed()
        used = texts.mask != 0
        x: Tensor = self.get_submodule(names.word)(texts.tensors[IDS])
        x = x + self.get_submodule(names.position)(self._positions(texts.tensors[IDS], used))
        if names.types is not None and arch.types:
            x = x + self.get_submodule(names.types)(texts.tensors[TYPES])
        x = self.get_submodule(names.norm)(x)
        if names.project is not None and arch.embedded != arch.hidden_size:
            x = self.get_submodule(names.project)(x)
        for i in range(arch.layers):
            x = self.get_submodule(names.block.format(i=i))(x, used)
        if arch.pooling == "mean":
            return (x * used[..., None]).sum(1) / used.sum(1, keepdim=True)
        if arch.pooling == "tokens":
            read = texts.tensors.get(READ)
            return x if read is None else x[read != 0]
        first = x[:, 0]
        if not arch.pooler:
            return first
        pooled: Tensor = ACTIVATIONS[names.pooling](self.get_submodule(names.pooler)(first))
        return pooled

    def _positions(self, ids: Tensor, used: Tensor) -> Tensor:
        """Rows of the table of positions, [n, length]; a padding token inside a text has none of its own."""
        if self._names.after_padding:
            used = used & (ids != self._arch.padding)
            return used.long().cumsum(1) * used + self._arch.padding
        return torch.arange(used.shape[1], device=used.device).expand(used.shape)


class Block(nn.Module):
    """Attention, then an MLP; the norm comes after each sum: x' = LN(x + F(x))."""

    def __init__(self, arch: TextArch, names: Names) -> None:
        super().__init__()
        self._arch, self._names = arch, names
        width, hidden = arch.hidden_size, arch.intermediate_size
        for path in (names.query, names.key, names.value, names.attended):
            place(self, path, nn.Linear(width, width))
        place(self, names.attended_norm, nn.LayerNorm(width, eps=arch.eps))
        place(self, names.hidden, nn.Linear(width, hidden))
        place(self, names.output, nn.Linear(hidden, width))
        place(self, names.output_norm, nn.LayerNorm(width, eps=arch.eps))

    def forward(self, x: Tensor, used: Tensor) -> Tensor:
        """x: the stream [n, length, d]; used: the positions that are not padding, [n, length]."""
        names, part = self._names, self.get_submodule
        q, k, v = (self._heads(part(path)(x)) for path in (names.query, names.key, names.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~used[:, None, None, :], torch.finfo(scores.dtype).min)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = part(names.attended_norm)(x + part(names.attended)(attended))
        hidden = ACTIVATIONS[self._arch.activation](part(names.hidden)(x))
        found: Tensor = part(names.output_norm)(x + part(names.output)(hidden))
        return found

    def _heads(self, x: Tensor) -> Tensor:
        """[n, length, d] -> [n, heads, length, d / heads]."""
        return x.reshape(*x.shape[:2], self._arch.heads, -1).transpose(1, 2)


def place(owner: nn.Module, path: str, module: nn.Module) -> None:
    """Add a module under a path of several names."""
    *parents, leaf = path.split(".")
    for name in parents:
        if name not in owner._modules:
            owner.add_module(name, nn.Module())
        owner = owner.get_submodule(name)
    owner.add_module(leaf, module)


def _start(module: nn.Module) -> None:
    """New weights as BERT starts with."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=START)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
