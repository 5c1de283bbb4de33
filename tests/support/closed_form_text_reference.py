"""The closed form of a post-norm encoder written out: dense, fp64, without streaming, sampling or row weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.common.inputs import IDS, NamedTensors
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import network
from tests.support.closed_form_reference import best_units, projection, ridge_fit, root


def merged_features(sources: Sequence[Source], texts: NamedTensors, width: int, hidden: int, ridge: float) -> Any:
    """The merged network's approximation of every source's features on the texts it was fitted to (BERT)."""
    nets: list[Any] = [network(s).double() for s in sources]
    used = texts.mask != 0
    parts = [_taken_apart(net, texts, used) for net in nets]
    trace = [[x[used] for x in own["stream"]] for own in parts]
    R = projection(trace, width)

    def normed(z: Tensor) -> Tensor:
        return (z - z.mean(-1, keepdim=True)) / (
            z.var(-1, correction=0, keepdim=True) + sources[0].arch.eps
        ).sqrt()

    def target(place: int) -> Tensor:
        return sum(
            ((x - x.mean(-1, keepdim=True)) @ r.T for x, r in ((t[place], r) for t, r in zip(trace, R))), _0
        )

    def constants(place: int) -> Tensor:
        """sum_i R_i b_i."""
        own = [net.get_submodule(_norms(net)[place]).bias for net in nets]
        return sum((r @ (b - b.mean()) for r, b in zip(R, own)), _0)

    def behind(total: Tensor, place: int) -> Tensor:
        """The merged norm: one weight by least squares, and its bias."""
        unit, wanted = normed(total), target(place) - constants(place)
        return unit * (unit * wanted).sum() / unit.square().sum() + constants(place) + 1

    z = _embedded(nets, parts, R, used)
    for place in range(1, len(trace[0])):
        inner = []
        for net, own, before, r in zip(nets, parts, trace, R):
            B, a = ridge_fit(z, before[place - 1], ridge)
            if place % 2:
                size = width // sum(n._arch.heads for n in nets)
                inner.append(_heads(net, (place - 1) // 2, own["stream"][place - 1], z @ B + a, r, used, size))
            else:
                inner.append(_units(net, (place - 1) // 2, before[place - 1], z @ B + a, r))
        if place % 2:
            q, k, v = (_padded(torch.cat(p, -2), used).transpose(1, 2) for p in zip(*inner))
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~used[:, None, None], -1e300)
            x = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)[used]
        else:
            units = torch.cat([exact for exact, _, _ in inner], 1)
            chosen = best_units(units, units @ torch.cat([w for _, _, w in inner], 1).T, hidden)
            x = torch.cat([mine for _, mine, _ in inner], 1)[:, chosen]
        spread = torch.stack([own["spread"][place][used] for own in parts]).mean(0).sqrt()[:, None]
        wanted = (target(place) - constants(place)) * spread
        B, a = ridge_fit(x, wanted - target(place - 1), ridge)
        C, c = ridge_fit(x, target(place - 1) - z, ridge)
        z = behind(z + x @ (B + C) + a + c, place)
    return _pooled(nets, parts, trace, z, used, width, ridge)


_0 = torch.zeros(())


def _norms(net: Any) -> list[str]:
    names = net._names
    blocks = [names.block.format(i=i) for i in range(net._arch.layers)]
    return [names.norm, *(f"{b}.{n}" for b in blocks for n in (names.attended_norm, names.output_norm))]


def _taken_apart(net: Any, texts: NamedTensors, used: Tensor) -> dict[str, Any]:
    """What every norm puts out, and the variance of what it reads relative to the size of its weight."""
    found: dict[str, Any] = {"stream": [], "spread": [], "sum": []}

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        found["stream"].append(output)
        found["sum"].append(inputs[0])
        found["spread"].append(inputs[0].var(-1, correction=0) / module.weight.square().mean())

    handles = [net.get_submodule(name).register_forward_hook(keep) for name in _norms(net)]
    with torch.no_grad():
        found["features"] = net(texts)
    for handle in handles:
        handle.remove()
    found["ids"] = texts.tensors[IDS]
    return found


def _embedded(nets: Sequence[Any], parts: Sequence[Any], R: Sequence[Tensor], used: Tensor) -> Tensor:
    """The merged tables and the norm behind them, whose scale is fitted."""
    total, wanted, bias = _0, _0, _0
    for net, own, r in zip(nets, parts, R):
        norm, y = net.get_submodule(net._names.norm), own["sum"][0][used]
        y, g = y - y.mean(1, keepdim=True), norm.weight
        r = r - r.mean(1, keepdim=True)
        total = total + (y / y.square().mean().sqrt() * g) @ (r - (r * g).mean(1, keepdim=True) / g).T
        wanted, bias = wanted + own["stream"][0][used] @ r.T, bias + r @ norm.bias
    unit = (total - total.mean(-1, keepdim=True)) / total.std(-1, correction=0, keepdim=True)
    wanted = wanted - bias
    return unit * (unit * wanted).sum() / unit.square().sum() + bias + 1


def _linear(net: Any, block: int, path: str, x: Tensor) -> Tensor:
    module = net.get_submodule(f"{net._names.block.format(i=block)}.{path}")
    found: Tensor = x @ module.weight.T + module.bias
    return found


def _written(net: Any, block: int, path: str, r: Tensor) -> Tensor:
    found: Tensor = r @ net.get_submodule(f"{net._names.block.format(i=block)}.{path}").weight
    return found


def _units(net: Any, block: int, x: Tensor, mine: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden units of one source, those in the merged network, and what the source's write."""
    exact, found = (torch.nn.functional.gelu(_linear(net, block, net._names.hidden, own)) for own in (x, mine))
    return exact, found, _written(net, block, net._names.output, r)


def _heads(
    net: Any, block: int, x: Tensor, mine: Tensor, r: Tensor, used: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [rows, H, size] of one source's heads in the merged network."""
    names, H = net._names, net._arch.heads
    paths = (names.query, names.key, names.value)
    exact = [_linear(net, block, path, x).unflatten(-1, (H, -1)) for path in paths]
    merged = [_linear(net, block, path, mine).unflatten(-1, (H, -1)) for path in paths]
    d = exact[0].shape[-1]
    q, k, v = (part.transpose(1, 2) for part in exact)
    out = (q @ k.mT / d**0.5).masked_fill(~used[:, None, None], -1e300).softmax(-1) @ v
    count = used.sum(1)[:, None]
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for h in range(H):
        mean = (exact[1][:, :, h] * used[..., None]).sum(1) / count
        Sq = exact[0][:, :, h][used]
        Sk = (exact[1][:, :, h] - mean[:, None])[used]
        Sq, Sk = root(Sq.T @ Sq / len(Sq)), root(Sk.T @ Sk / len(Sk))
        U, S, V = torch.linalg.svd(Sq @ Sk)
        scale = (size / d) ** 0.25 * S[:size].sqrt()
        found[0].append(merged[0][:, h] @ torch.linalg.inv(Sq) @ U[:, :size] * scale)
        found[1].append(merged[1][:, h] @ torch.linalg.inv(Sk) @ V.T[:, :size] * scale)
        o = out[:, h][used]
        So = root(o.T @ o / len(o))
        P = torch.linalg.svd(So @ _written(net, block, names.attended, r)[:, h * d : (h + 1) * d].T)[0]
        found[2].append(merged[2][:, h] @ torch.linalg.inv(So) @ P[:, :size])
    return torch.stack(found[0], 1), torch.stack(found[1], 1), torch.stack(found[2], 1)


def _padded(rows: Tensor, used: Tensor) -> Tensor:
    whole = torch.zeros(*used.shape, *rows.shape[1:])
    whole[used] = rows
    return whole


def _pooled(nets: Any, parts: Any, trace: Any, z: Tensor, used: Tensor, width: int, ridge: float) -> list[Tensor]:
    first = _padded(z, used)[:, 0]
    mine = []
    for net, own in zip(nets, parts):
        B, a = ridge_fit(first, own["stream"][-1][:, 0], ridge)
        pooler = net.get_submodule(net._names.pooler)
        mine.append(torch.tanh((first @ B + a) @ pooler.weight.T + pooler.bias))
    exact = torch.cat([own["features"] for own in parts], 1)
    features = torch.cat(mine, 1)[:, best_units(exact, exact, width)]
    G = features.T @ features / len(features)
    G = G + ridge * G.diagonal().mean() * torch.eye(len(G))
    return [features @ torch.linalg.solve(G, features.T @ own["features"] / len(features)) for own in parts]
