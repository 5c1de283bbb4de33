"""What the sources say about the queries: the targets of every method that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fsmerge_cli.data.queries import Images
from fsmerge_cli.progress import Event, Progress
from fsmerge_cli.sources import Source

Targets = Literal["own", "all"]


@dataclass(frozen=True)
class Captured:
    """Features of one source: features [n, d_i], wanted [n] (rows that are compared), their variance."""

    features: Tensor
    wanted: Tensor
    variance: float

    def at(self, rows: Tensor) -> Tensor:
        """Features of the images `rows`, [len(rows), d_i], on the device of `rows`."""
        return self.features[rows]


def network(source: Source, device: torch.device | str = "cpu") -> nn.Module:
    """The source's backbone as an ordinary frozen module in evaluation mode."""
    module = source.family.skeleton(source.arch)
    weights = {name: t.to(device) for name, t in source.weights.items()}
    module.load_state_dict(weights, assign=True)
    return module.requires_grad_(False).eval()


def batches(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def run(forward: Callable[[Tensor], Tensor], images: Tensor, device: torch.device, batch: int) -> Tensor:
    """`forward` over all images in large batches, without gradients; the result lies on `device` in fp32."""
    with torch.inference_mode():
        parts = [forward(images[rows].to(device)).float() for rows in batches(len(images), batch)]
    return torch.cat(parts)


def capture(
    sources: Sequence[Source],
    images: Images,
    targets: Targets,
    device: torch.device,
    batch: int,
    progress: Progress,
) -> tuple[Captured, ...]:
    """Each source's features on the images it is compared on: its own task's, or all of them.

    The variance (mean over units, over the wanted training images) scales the loss of its task, so that a
    source with large features does not drown the others.
    """
    captured = []
    for index, source in enumerate(sources):
        progress(Event("capture", index, len(sources)))
        wanted = torch.ones(len(images), dtype=torch.bool) if targets == "all" else images.task == index
        own = run(network(source, device), images.images[wanted], device, batch)
        features = own.new_zeros(len(images), own.shape[1])
        features[wanted.to(device)] = own
        seen = images.train[wanted[images.train]].to(device)
        spread = features[seen].double().var(0, correction=0).mean().item() if len(seen) else 0.0
        captured.append(Captured(features, wanted.to(device), spread if spread > 0 else 1.0))
    progress(Event("capture", len(sources), len(sources)))
    return tuple(captured)
