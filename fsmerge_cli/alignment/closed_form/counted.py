"""What of a source the closed form is for, where its patch tokens count: the outputs that rows are weighed by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.stages import recorded
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import batches

IMAGES = 64
"""Images that the variances of features and tokens are estimated on."""


def counted_outputs(
    source: Source, network: nn.Module, images: Inputs, batch: int, device: torch.device
) -> Callable[[Inputs], Tensor]:
    """Images -> outputs [n, m] whose squared error is the loss of the source: its features, or with its tokens.

    With tokens each part is divided by its standard deviation and the root of its size, as the relative errors of
    a training are: features and tokens weigh alike, whatever their numbers.
    """
    place = source.family.tokens(network)
    if source.reads == "pooled" or place is None:
        return network
    name, prefix = place

    def parts(pixels: Inputs) -> tuple[Tensor, Tensor]:
        with recorded(network, outputs=[name]) as found:
            features = network(pixels)
        return features, found[f"{name}.output"][:, prefix:]

    with torch.no_grad():
        few = images[: min(IMAGES, len(images))]
        seen = [parts(few[rows].to(device)) for rows in batches(len(few), batch)]
        features, tokens = (torch.cat(own).double() for own in zip(*seen))
    sizes = [float(_variance(features) * features.shape[1]), float(_variance(tokens) * tokens[0].numel())]

    def outputs(pixels: Inputs) -> Tensor:
        pooled, patches = (own / size**0.5 for own, size in zip(parts(pixels), sizes))
        kept = [pooled] if source.reads == "both" else []
        return torch.cat([*kept, patches.flatten(1)], 1)

    return outputs


def _variance(rows: Tensor) -> Tensor:
    """Over all rows [..., d], mean over units; 1 for constant ones."""
    found = rows.flatten(0, -2).var(0, correction=0).mean()
    return torch.where(found > 0, found, torch.ones_like(found))
