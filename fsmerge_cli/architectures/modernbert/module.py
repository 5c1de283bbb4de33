"""A ModernBERT in plain torch, with the tensor names of transformers and the same function (tested against it)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.bert.module import ACTIVATIONS, START, place
from fsmerge_cli.architectures.modernbert.arch import ModernArch
from fsmerge_cli.common.inputs import IDS, READ, NamedTensors


class Encoder(nn.Module):
    """Texts -> features [n, d], see `ModernArch`; with pooling=tokens as of `architectures.bert`."""

    def __init__(self, arch: ModernArch) -> None:
        super().__init__()
        self._arch, width = arch, arch.hidden_size
        place(self, "embeddings.tok_embeddings", nn.Embedding(arch.vocab_size, width))
        place(self, "embeddings.norm", _norm(arch))
        self.layers = nn.ModuleList(Block(arch, i) for i in range(arch.layers))
        self.final_norm = _norm(arch)
        if arch.pooler:
            place(self, "head.dense", nn.Linear(width, width, bias=arch.pooler_bias))
            place(self, "head.norm", _norm(arch))
        self.apply(_start)

    def forward(self, texts: NamedTensors) -> Tensor:
        """Features of a batch; what is padding in every text is cut off first."""
        texts = texts.trimmed()
        used, part = texts.mask != 0, self.get_submodule
        x: Tensor = part("embeddings.norm")(part("embeddings.tok_embeddings")(texts.tensors[IDS]))
        for block in self.layers:
            x = block(x, used)
        x = self._pooled(self.final_norm(x), used, texts.tensors.get(READ))
        if not self._arch.pooler:
            return x
        found: Tensor = part("head.norm")(ACTIVATIONS[self._arch.pooler_activation](part("head.dense")(x)))
        return found

    def _pooled(self, x: Tensor, used: Tensor, read: Tensor | None) -> Tensor:
        if self._arch.pooling == "tokens":
            return x if read is None else x[read != 0]
        if self._arch.pooling == "mean":
            return (x * used[..., None]).sum(1) / used.sum(1, keepdim=True)
        return x[:, 0]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); before the first attention there is no norm."""

    def __init__(self, arch: ModernArch, place: int) -> None:
        super().__init__()
        self.attn_norm = _norm(arch) if place else nn.Identity()
        self.attn = Attention(arch, place)
        self.mlp_norm = _norm(arch)
        self.mlp = GatedMLP(arch)

    def forward(self, x: Tensor, used: Tensor) -> Tensor:
        """x: the stream [n, length, d]; used: the positions that are not padding, [n, length]."""
        x = x + self.attn(self.attn_norm(x), used)
        found: Tensor = x + self.mlp(self.mlp_norm(x))
        return found


class Attention(nn.Module):
    """Attention with rotary positions, over the whole text or a window of it."""

    def __init__(self, arch: ModernArch, place: int) -> None:
        super().__init__()
        width, full = arch.hidden_size, place in arch.full
        self._heads, self._side = arch.heads, None if full else arch.window // 2
        self._theta = arch.theta if full else arch.local_theta
        self.Wqkv = nn.Linear(width, 3 * width, bias=arch.attention_bias)
        self.Wo = nn.Linear(width, width, bias=arch.attention_bias)

    def forward(self, x: Tensor, used: Tensor) -> Tensor:
        """x: the normalised stream; used: as of the block."""
        n, length = x.shape[:2]
        q, k, v = self.Wqkv(x).reshape(n, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        angles = rotary(length, q.shape[-1], self._theta, x.device)
        q, k = (_turned(own, angles) for own in (q, k))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        seen = used[:, None, None, :]
        if self._side is not None:
            at = torch.arange(length, device=x.device)
            seen = seen & ((at[:, None] - at).abs() <= self._side)
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        found: Tensor = self.Wo((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return found


class GatedMLP(nn.Module):
    """W (activation(a x) * (b x)), with a and b the halves of one weight (GLU Variants, arXiv 2002.05202)."""

    def __init__(self, arch: ModernArch) -> None:
        super().__init__()
        self._activation = ACTIVATIONS[arch.activation]
        self.Wi = nn.Linear(arch.hidden_size, 2 * arch.intermediate_size, bias=arch.mlp_bias)
        self.Wo = nn.Linear(arch.intermediate_size, arch.hidden_size, bias=arch.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: the normalised stream."""
        first, second = self.Wi(x).chunk(2, dim=-1)
        found: Tensor = self.Wo(self._activation(first) * second)
        return found


def rotary(length: int, size: int, theta: float, device: torch.device) -> Tensor:
    """Angles by which the pairs of a head's units are turned at every position, [length, size / 2], in fp32.

    In this precision transformers computes them, also for weights of another one.
    """
    frequency = 1.0 / theta ** (torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
    return torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Units j and j + size / 2 of every head turned as a pair; x: [n, heads, length, size]."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _norm(arch: ModernArch) -> nn.LayerNorm:
    return nn.LayerNorm(arch.hidden_size, eps=arch.eps, bias=arch.norm_bias)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=START)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
