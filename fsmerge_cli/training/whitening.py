"""Whitened features (`method.standardise=whitened`): errors in units in which all directions vary alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fsmerge_cli.common.hardware import double
from fsmerge_cli.training.teachers import TeacherTargets

FLOOR = 1e-2
"""Added to every eigenvalue of the covariance, relative to their mean: directions without variance stay small."""


def whitened(targets: TeacherTargets, train: Tensor, batch: int) -> TeacherTargets:
    """The targets with the whitening of their features and tokens on the training images [n] in the mask.

    Without such images they stay as they are: no error of theirs is ever computed.
    """
    rows = train[targets.mask[train]]
    if not len(rows):
        return targets

    def outputs() -> Iterator[Tensor]:
        for part in torch.split(rows, batch):
            yield targets.at(part)

    tokens = targets.tokens
    if tokens is None:
        return replace(targets, whitening=whitening(outputs()))
    pooled = whitening(tokens.layout.features(part) for part in outputs())
    patches = whitening(tokens.layout.tokens(part).flatten(0, 1) for part in outputs())
    return replace(targets, whitening=pooled, tokens=replace(tokens, whitening=patches))


def whitening(parts: Iterator[Tensor]) -> Tensor:
    """W [d, d], symmetric (ZCA): the rows [n, d] of all parts times W have about unit covariance.

    (S + FLOOR mean eigenvalue)^-1/2 of the covariance S, scaled so that the mean variance is 1: predicting the
    mean of the features has the error 1, as with `isotropic`.
    """
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    device, dtype = torch.device("cpu"), torch.float32
    for part in parts:
        device, dtype, x = part.device, part.dtype, double(part).cpu()
        count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
    if not count:
        raise ValueError("no rows")
    mean = total / count
    values, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    values = values.clamp(min=0)
    if not float(values.sum()) > 0:
        return torch.eye(len(values), device=device, dtype=dtype)
    floored = values + FLOOR * values.mean()
    scale = (len(values) / (values / floored).sum()).sqrt()
    found: Tensor = scale * (vectors * floored.rsqrt()) @ vectors.T
    return found.to(device, dtype)
