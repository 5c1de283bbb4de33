"""The closed form of plain pre-norm ViTs once more: dense, fp64, without streaming, selection by brute force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import network


def ridge_fit(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """B, a of y = x B + a by the normal equations of the centred rows."""
    mx, my = x.mean(0), y.mean(0)
    square = (x - mx).T @ (x - mx) / len(x)
    B = torch.linalg.inv(square + ridge * square.diagonal().mean() * torch.eye(len(square))) @ (
        (x - mx).T @ (y - my) / len(x)
    )
    return B, my - mx @ B


def best_units(x: Tensor, y: Tensor, count: int) -> list[int]:
    """Forward selection by solving every candidate's least squares problem."""
    chosen: list[int] = []
    for _ in range(count):
        left = {}
        for unit in set(range(x.shape[1])) - set(chosen):
            X = x[:, [*chosen, unit]]
            left[unit] = float((y - X @ torch.linalg.lstsq(X, y).solution).square().sum())
        chosen.append(min(left, key=lambda unit: left[unit]))
    return chosen


def root(C: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(C)
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T


def merged_features(
    sources: Sequence[Source], images: Tensor, width: int, hidden: int, ridge: float
) -> list[Tensor]:
    """The merged network's approximation of every source's features on the images it was fitted to."""
    nets: list[Any] = [network(s).double() for s in sources]
    images = images.double()
    k, n = len(nets), len(images)
    streams = [_embed(net, images) for net in nets]
    depth, T = len(nets[0].blocks), streams[0].shape[1]
    trace = [[s] for s in streams]
    for net, own in zip(nets, trace):
        for block in net.blocks:
            own.append(own[-1] + block.attn(block.norm1(own[-1])))
            own.append(own[-1] + block.mlp(block.norm2(own[-1])))
    R = projection(trace, width)

    def target(place: int) -> Tensor:
        return sum(
            ((own[place] - own[place].mean(-1, keepdim=True)) @ r.T for own, r in zip(trace, R)), torch.zeros(())
        )

    def norm(z: Tensor) -> Tensor:
        return (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    z = target(0)
    for b in range(depth):
        x, queries, keys, values = norm(z).flatten(0, 1), [], [], []
        for net, own, r in zip(nets, trace, R):
            block = net.blocks[b]
            B, a = ridge_fit(x, block.norm1(own[2 * b]).flatten(0, 1), ridge)
            H, size = block.attn.num_heads, width // sum(m.blocks[b].attn.num_heads for m in nets)
            d = block.attn.head_dim
            exact = block.attn.qkv(block.norm1(own[2 * b])).reshape(n, T, 3, H, d)
            mine = ((x @ B + a) @ block.attn.qkv.weight.T + block.attn.qkv.bias).reshape(n, T, 3, H, d)
            out = (exact[:, :, 0].transpose(1, 2) @ exact[:, :, 1].permute(0, 2, 3, 1) / d**0.5).softmax(-1)
            out = out @ exact[:, :, 2].transpose(1, 2)
            for h in range(H):
                q, key = exact[:, :, 0, h], exact[:, :, 1, h]
                q, key = q.flatten(0, 1), (key - key.mean(1, keepdim=True)).flatten(0, 1)
                Sq, Sk = root(q.T @ q / len(q)), root(key.T @ key / len(key))
                U, S, V = torch.linalg.svd(Sq @ Sk)
                scale = (size / d) ** 0.25 * S[:size].sqrt()
                queries.append(mine[:, :, 0, h] @ torch.linalg.inv(Sq) @ U[:, :size] * scale)
                keys.append(mine[:, :, 1, h] @ torch.linalg.inv(Sk) @ V.T[:, :size] * scale)
                So = root(out[:, h].flatten(0, 1).T @ out[:, h].flatten(0, 1) / (n * T))
                P = torch.linalg.svd(So @ (r @ block.attn.proj.weight[:, h * d : (h + 1) * d]).T)[0]
                values.append(mine[:, :, 2, h] @ torch.linalg.inv(So) @ P[:, :size])
        q, key, v = (torch.stack(parts, 1) for parts in (queries, keys, values))
        inner = ((q @ key.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        z = _write(inner, target(2 * b + 1), z, ridge)
        x, candidates, mine, written = norm(z).flatten(0, 1), [], [], []
        for net, own, r in zip(nets, trace, R):
            block = net.blocks[b]
            read = block.norm2(own[2 * b + 1])
            B, a = ridge_fit(x, read.flatten(0, 1), ridge)
            mine.append(block.mlp.act(block.mlp.fc1(x @ B + a)))
            candidates.append(block.mlp.act(block.mlp.fc1(read)).flatten(0, 1))
            written.append(r @ block.mlp.fc2.weight)
        units = torch.cat(candidates, 1)
        chosen = best_units(units, units @ torch.cat(written, 1).T, hidden)
        z = _write(torch.cat(mine, 1)[:, chosen].reshape(n, T, -1), target(2 * b + 2), z, ridge)
    found = []
    for net, own in zip(nets, trace):
        features = net.norm(own[-1])[:, 0]
        B, a = ridge_fit(norm(z)[:, 0], features, ridge)
        found.append(norm(z)[:, 0] @ B + a)
    assert k == len(found)
    return found


def _embed(net: Any, images: Tensor) -> Tensor:
    patches = net.patch_embed(images)
    return torch.cat([net.cls_token.expand(len(images), -1, -1), patches], 1) + net.pos_embed


def _write(inner: Tensor, target: Tensor, z: Tensor, ridge: float) -> Tensor:
    B, a = ridge_fit(inner.flatten(0, 1), (target - z).flatten(0, 1), ridge)
    return z + inner @ B + a


def projection(trace: Sequence[Sequence[Tensor]], width: int) -> list[Tensor]:
    """R_i: the top directions of the streams [..., d_i] of all sources side by side, over all depths."""
    total = torch.zeros(())
    for place in range(len(trace[0])):
        rows = [own[place].flatten(0, -2) for own in trace]
        rows = [x - x.mean(1, keepdim=True) for x in rows]
        side = torch.cat([x / x.square().mean().sqrt() for x in rows], 1)
        total = total + side.T @ side / len(side)
    top = torch.linalg.eigh(total)[1][:, -(width - 1) :].flip(1)
    start = torch.eye(width)
    start[:, 0] = 1
    whole = torch.linalg.qr(start)[0][:, 1:] @ top.T
    last = [own[-1] - own[-1].mean(-1, keepdim=True) for own in trace]
    return [R / x.square().mean().sqrt() for R, x in zip(whole.chunk(len(trace), 1), last)]
