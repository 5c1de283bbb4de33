"""The slow reference of WIDEN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fsmerge_cli.methods import Problem


def widen(vectors: Sequence[Mapping[str, Tensor]], given: Problem) -> dict[str, Tensor]:
    """Column by column, and entry by entry in biases."""
    assert given.base is not None
    found = {}

    def scores(significance: list[list[float]], column: int) -> list[float]:
        e = sum(math.exp(own[column]) for own in significance)
        return [1.0 if own[column] > sum(own) / len(own) else math.exp(own[column]) / e for own in significance]

    for n, first in vectors[0].items():
        base = given.base.weights[n].double()
        if first.ndim == 1:
            moves = [v[n].abs().tolist() for v in vectors]
            rows = [scores(moves, j) for j in range(len(first))]
            found[n] = torch.stack([sum(s * v[n][j] for s, v in zip(row, vectors)) for j, row in enumerate(rows)])
            continue
        ranked = []
        for change in (
            lambda w, w_0: abs(float(w.norm()) - float(w_0.norm())),
            lambda w, w_0: 1 - float(w @ w_0) / float(w.norm() * w_0.norm()),
        ):
            changes = [[change(b + t, b) for t, b in zip(v[n].T, base.T)] for v in vectors]
            ranked.append([[sum(y < x for y in own) / len(own) for x in own] for own in changes])
        columns = []
        for j in range(first.shape[1]):
            lengths, turns = (scores(own, j) for own in ranked)
            columns.append(sum((a + b) / 2 * v[n][:, j] for a, b, v in zip(lengths, turns, vectors)))
        found[n] = torch.stack([torch.as_tensor(own) for own in columns], 1)
    return found
