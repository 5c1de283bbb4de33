"""The attention heads of a merged network: which heads of which sources, and at what size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.attention import reduced_logits, reduced_values
from fsmerge_cli.alignment.closed_form.moments import Moments
from fsmerge_cli.alignment.closed_form.rows import spread_rows
from fsmerge_cli.alignment.closed_form.selection import select_groups
from fsmerge_cli.alignment.closed_form.stream import orthogonal_to_ones


class LogitMoments:
    """E[q q^T], and E[k k^T] of keys centred over each image, for every head of one source: [H, d, d], fp64.

    norms: of queries and keys, where the architecture has them; q and k are then those behind the norm.
    """

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self.norms: Sequence[nn.Module] = ()
        self._rows: Tensor | float = 0.0
        self._queries: Tensor | float = 0.0
        self._keys: Tensor | float = 0.0
        self._tokens = 0

    def add(
        self,
        queries: Tensor,
        keys: Tensor,
        weights: Tensor | None,
        norms: Sequence[nn.Module] = (),
        used: Tensor | None = None,
    ) -> None:
        """Add a batch [n, T, H d]. weights: of the queries' tokens, [T]; used: those without padding, [n, T]."""
        self.norms = norms
        q, k = (x.reshape(*x.shape[:2], self.heads, -1) for x in (queries, keys))
        q, k = (norm(x) for norm, x in zip(norms, (q, k))) if norms else (q, k)
        q, k = (x.double().permute(2, 0, 1, 3) for x in (q, k))
        if used is not None:
            self._add_used(q, k, spread_rows(weights, queries, used), used[..., None].to(k))
            return
        k = (k - k.mean(2, keepdim=True)).flatten(1, 2)
        w = torch.ones(q.shape[2], dtype=q.dtype, device=q.device) if weights is None else weights.to(q)
        scaled = (q * w[:, None]).flatten(1, 2)
        self._queries = self._queries + scaled.mT @ q.flatten(1, 2)
        self._rows = self._rows + w.sum() * q.shape[1]
        self._keys = self._keys + k.mT @ k
        self._tokens += k.shape[1]

    def _add_used(self, q: Tensor, k: Tensor, weights: Tensor | None, used: Tensor) -> None:
        """The same of padded inputs. q, k: [H, n, T, d]; weights: [n T]; used: 1 or 0, [n, T, 1]."""
        k = ((k - (k * used).sum(2, keepdim=True) / used.sum(1, keepdim=True)) * used).flatten(1, 2)
        w = torch.as_tensor(weights).to(q)
        self._queries = self._queries + (q.flatten(1, 2) * w[:, None]).mT @ q.flatten(1, 2)
        self._rows = self._rows + w.sum()
        self._keys = self._keys + k.mT @ k
        self._tokens += int(used.sum())

    def of(self, head: int) -> tuple[Tensor, Tensor]:
        """The moments of queries and keys of one head, [d, d]."""
        queries, keys = torch.as_tensor(self._queries), torch.as_tensor(self._keys)
        return queries[head] / self._rows, keys[head] / self._tokens


@dataclass(frozen=True)
class Heads:
    """Heads of the merged network.

    maps: of queries, keys and values, [d', d_i] per source. kept: share of each head's squared logits. counts:
    heads from each source. scales: weight of the norm of queries and of keys, by its name.
    """

    maps: tuple[list[Tensor], list[Tensor], list[Tensor]]
    kept: tuple[float, ...]
    counts: tuple[int, ...]
    scales: Mapping[str, float]


def merge_heads(
    logits: Sequence[LogitMoments], outputs: Moments, written: Tensor, sizes: Sequence[int], width: int, count: int
) -> Heads:
    """`count` heads of size width / count, each one head of one source.

    logits: of every source. outputs: of what all heads of all sources put out, side by side. written: [D', sum of
    sizes], what the output projections write into the merged stream. sizes: units of each source's heads together.
    With fewer heads than the sources have, those are selected from which what all write is regressed best.
    """
    own = [(i, h, size // m.heads) for i, (m, size) in enumerate(zip(logits, sizes)) for h in range(m.heads)]
    square = outputs.second()
    groups = list(torch.split(torch.arange(sum(sizes), device=square.device), [d for _, _, d in own]))
    places = list(range(len(own)))
    if count < len(own):
        places = select_groups(square, square @ written.T, groups, count)
    size = width // count
    maps = tuple([torch.zeros(width, d).to(square) for d in sizes] for _ in range(3))
    kept, scales = [], torch.zeros(2, dtype=torch.float64)
    for place, chosen in enumerate(places):
        i, h, d = own[chosen]
        rows, columns = slice(place * size, (place + 1) * size), slice(h * d, (h + 1) * d)
        pair, share, found = _queries_and_keys(logits[i], h, size)
        units = groups[chosen]
        E, _ = reduced_values(square[units][:, units], written[:, units], size)
        for whole, part in zip(maps, (*pair, E)):
            whole[i][rows, columns] = part
        kept.append(share)
        scales += torch.tensor(found, dtype=torch.float64) / count
    counts = [sum(own[place][0] == i for place in places) for i in range(len(logits))]
    names = dict(zip(("q_norm", "k_norm"), scales.tolist()))
    return Heads((maps[0], maps[1], maps[2]), tuple(kept), tuple(counts), names)


def _queries_and_keys(
    logits: LogitMoments, head: int, size: int
) -> tuple[tuple[Tensor, Tensor], float, tuple[float, float]]:
    """Maps of queries and keys of one head, the share of the logits they keep, and the scale of each.

    Behind a norm of queries and keys (which takes the scale away) the maps act before it, so that its weight is
    multiplied into them; one scale for all heads is all that the merged norm can give back. A norm that subtracts
    the mean leaves one direction less.
    """
    queries, keys = logits.of(head)
    centred = bool(logits.norms) and isinstance(logits.norms[0], nn.LayerNorm)
    lift = orthogonal_to_ones(size).to(queries) if centred and size > 1 else torch.eye(size).to(queries)
    A_q, A_k, values = reduced_logits(queries, keys, lift.shape[1])
    kept = float(values[: lift.shape[1]].square().sum() / values.square().sum().clamp(min=1e-300))
    if not logits.norms:
        return (A_q, A_k), kept, (1.0, 1.0)
    stretch = (size / lift.shape[1]) ** 0.25
    found, scales = [], []
    for A, moments, norm in zip((A_q, A_k), (queries, keys), logits.norms):
        gain = torch.as_tensor(norm.weight).double()
        found.append(lift @ (stretch * A * gain))
        scales.append(float((stretch**2 * (A @ moments * A).sum() / size).sqrt()))
    return (found[0], found[1]), kept, (scales[0], scales[1])
