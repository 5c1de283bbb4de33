"""The greedy clustering of units of ZipIt (arXiv 2305.03053, section 4), with O(n^2) memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Zipped = tuple[list[Tensor], list[Tensor]]
"""Merge matrices M_i [d', d_i] and unmerge matrices U_i [d_i, d'] of one space."""


def within_heads(
    n: int, heads: int, matched: Sequence[Tensor], cluster: Callable[[Tensor], Zipped], shared: bool
) -> Zipped:
    """The maps of a space of attention heads [n], whose units are only merged with those of matched heads.

    matched: for each source, its units in the order of source 1's heads, [n]. cluster: the maps of the units with
    these indices among the k n of all sources, d of each source. shared: all heads have one inner order (q/k
    norms, rotary positions), so that units are averaged in that of `matched`.
    """
    d, k = n // heads, len(matched)
    merge = [torch.zeros(n, n, dtype=torch.float64) for _ in matched]
    unmerge = [torch.zeros(n, n, dtype=torch.float64) for _ in matched]
    eye = torch.eye(d, dtype=torch.float64)
    for h in range(heads):
        rows = [m[h * d : (h + 1) * d] for m in matched]  # this head's units in every source
        inside = slice(h * d, (h + 1) * d)
        at = torch.cat([own + i * n for i, own in enumerate(rows)])
        small = ([eye / k] * k, [eye] * k) if shared else cluster(at)
        for i, own in enumerate(rows):
            merge[i][inside, own] = small[0][i]
            unmerge[i][own, inside] = small[1][i]
    return merge, unmerge


def zip_units(similarity: Tensor, k: int, a: float, b: float) -> tuple[list[Tensor], list[Tensor]]:
    """Merge k n units into n clusters, the most similar pairs first.

    similarity: [k n, k n] of the concatenated units. Merging p and q leaves p with the smaller of the two
    similarities to every other unit (complete linkage), times `a`. Each source has a budget of `int((k n - n) /
    k b)` merges within itself. Returns M_i [n, n] (normalised: clusters are averaged) and U_i [n, n] (not
    normalised: every member reads its cluster).
    """
    total = len(similarity)
    n = total // k
    cluster = _cluster(similarity.cpu().double().clone(), k, n, a, int((total - n) / k * b))
    kept, member = torch.unique(cluster, return_inverse=True)
    P = torch.zeros(total, len(kept), dtype=torch.float64)
    P[torch.arange(total), member] = 1.0
    merge = (P / P.sum(0)).T
    return list(torch.split(merge, n, dim=1)), list(torch.split(P, n, dim=0))


def _cluster(S: Tensor, k: int, n: int, a: float, within: int) -> Tensor:
    """For every unit the index of the first unit of its cluster; overwrites S [k n, k n].

    The best partner of every row is cached and updated where a merge changed it, so that a step costs O(k n)
    unless many partners are merged.
    """
    total, original = len(S), S.clone()
    never = -torch.inf
    owner = torch.arange(total) // n
    budget = [within] * k
    cluster = torch.arange(total)
    alive = torch.ones(total, dtype=torch.bool)
    S.fill_diagonal_(never)
    for source in range(k):
        if within == 0:
            _forbid(S, owner == source)
    best, partner = S.max(1)
    for _ in range(total - n):
        p = int(best.argmax())
        if best[p] == never:  # all remaining pairs are within a source; needs three sources or more
            S.copy_(original)
            S[~alive], S[:, ~alive] = never, never
            S.fill_diagonal_(never)
            best, partner = S.max(1)
            p = int(best.argmax())
        q = int(partner[p])
        p, q = min(p, q), max(p, q)
        row = torch.minimum(S[p], S[q])
        # Pairs forbidden for p or q because a source has used its budget stay forbidden for the cluster.
        row = torch.where(row == never, row, row * a)
        row[[p, q]] = never
        S[p], S[:, p] = row, row
        S[q], S[:, q] = never, never
        cluster[cluster == q] = p
        alive[q] = False
        if owner[p] == owner[q]:
            source = int(owner[p])
            budget[source] -= 1
            if budget[source] == 0:
                _forbid(S, owner == source)
                best, partner = S.max(1)
                continue
        stale = (partner == p) | (partner == q)
        stale[p] = True
        best[stale], partner[stale] = S[stale].max(1)
        better = row > best
        best[better], partner[better] = row[better], p
        best[~alive] = never
    return cluster


def _forbid(S: Tensor, rows: Tensor) -> None:
    """Forbid merges among `rows`."""
    S[rows[:, None] & rows] = -torch.inf
