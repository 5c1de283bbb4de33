"""How much every row (a token of an image at some depth) matters for the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.stages import recorded
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.training.teachers import batches

ROWS_PER_UNIT = 100
"""Rows per regressor from which a regression is fitted, where there are more."""


def spread_rows(weights: Tensor | None, stream: Tensor) -> Tensor | None:
    """The weight of every row of a batch [n, T, d], given those of its tokens [T]; [n T]."""
    return None if weights is None else weights.to(stream.device).expand(len(stream), -1).flatten()


def sampled_rows(weights: Tensor | None, stream: Tensor, tokens: float, random: torch.Generator) -> Tensor | None:
    """As `spread_rows`, for a sample of about `tokens` rows of every image; 0 for the other rows.

    A row is in the sample with a probability p in proportion to its weight w, at most 1, and there weighs w / p,
    so that the expected value of every weighted sum is the same.
    """
    w = torch.ones(stream.shape[1]) if weights is None else weights.cpu()
    w = w.double()
    if tokens >= int((w > 0).sum()):
        return spread_rows(weights, stream)
    scale = tokens / w.sum()
    while (p := (scale * w).clamp(max=1)).sum() < 0.999 * tokens:  # those at most 1 leave room for the others
        scale = scale * tokens / p.sum()
    kept = torch.rand(stream.shape[:2], generator=random, dtype=torch.float64) < p
    found = torch.where(kept, w / p.clamp(min=1e-300), torch.zeros_like(w))
    return found.flatten().to(stream.device)


def row_weights(
    networks: Sequence[nn.Module],
    places: Sequence[tuple[str, str]],
    images: Sequence[Tensor],
    batch: int,
    floor: float,
    seed: int,
) -> list[Tensor]:
    """One weight per token at every place, [T], mean 1 over the tokens that the features depend on at all.

    places: (module, `input` or `output`) whose activation is the stream. images: those of each network's task.
    A weight is the mean squared gradient of the features with respect to the stream there, estimated with one
    random projection of the features per image, averaged over the networks, plus `floor`. Tokens on which no
    feature depends (all but the class token behind the last attention) have weight 0.
    """
    total = [torch.zeros((), dtype=torch.float64) for _ in places]
    for place, (network, own) in enumerate(zip(networks, images)):
        random = generator(seed, "row weights", place)
        sums: list[Tensor] = [torch.zeros((), dtype=torch.float64) for _ in places]
        for rows in batches(len(own), batch):
            squares = _squared_gradients(network, places, own[rows], random)
            sums = [a + b for a, b in zip(sums, squares)]
        total = [a + b / b.mean().clamp(min=1e-300) for a, b in zip(total, sums)]
    found = []
    for weight in total:
        used = weight > 1e-12 * weight.max()
        relative = weight / weight[used].mean()
        found.append(torch.where(used, relative + floor, torch.zeros_like(weight)))
    return found


def _squared_gradients(
    network: nn.Module, places: Sequence[tuple[str, str]], images: Tensor, random: torch.Generator
) -> list[Tensor]:
    device = next(network.parameters()).device
    inputs = [module for module, side in places if side == "input"]
    outputs = [module for module, side in places if side == "output"]
    with torch.enable_grad(), recorded(network, inputs, outputs) as found:
        features = network(images.to(device).requires_grad_(True))
        signs = torch.randint(0, 2, features.shape, generator=random).to(features) * 2 - 1
        streams = [found[f"{module}.{side}"] for module, side in places]
        gradients = torch.autograd.grad((features * signs).sum(), streams, allow_unused=True)
    return [
        torch.zeros(stream.shape[1], dtype=torch.float64) if g is None else g.double().square().sum((0, 2)).cpu()
        for g, stream in zip(gradients, streams)
    ]
