"""Per-token agreement: the patch tokens of a source, estimated from those of the merged model.

A linear map with a constant, the token projector, is fitted by ridge regression on the unlabelled images of the
merge, and compared on the images that measure it. Decoders (segmentation, detection) of the source read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.alignment.token_projectors import MAX_IMAGES, fitted
from fsmerge_cli.architectures import Family
from fsmerge_cli.architectures.token_outputs import Grid, on_grid
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.progress import Event
from fsmerge_cli.data import ImageSet
from fsmerge_cli.data.reading import read
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import batches, network, recorded_outputs

BATCH = 8


@dataclass(frozen=True)
class TokenAgreement:
    """The projected tokens of the merged model compared with those of a source.

    images, positions: compared, and patches of each. cosine: mean over tokens. explained: share of the variance of
    the source's tokens. same_place: share of the tokens whose most similar token of the source (cosine, in the
    same image) is the one at their place. weight [d_i, d'], bias [d_i]: the token projector. grid: rows and
    columns of the source's patches, where those of the merged model are others (None: they are the same).
    """

    images: int
    positions: int
    cosine: float
    explained: float
    same_place: float
    weight: Tensor
    bias: Tensor
    grid: Grid | None = None

    def entry(self) -> dict[str, float]:
        """The figures, as in evaluation.json."""
        names = ("images", "positions", "cosine", "explained", "same_place")
        return {name: getattr(self, name) for name in names}


def token_agreement(
    problem: Problem, backbone: nn.Module, sets: Sequence[ImageSet | None]
) -> dict[str, TokenAgreement]:
    """By source without a head, and by source whose tokens count (`reads`).

    Empty for families without tokens, and without images to fit on or to measure.
    """
    family, found = problem.plan.family, {}
    if family.grid(backbone) is None or not len(problem.images):
        return {}
    for source, own in zip(problem.sources, sets):
        if own and (source.head is None or source.reads != "pooled"):
            pair = _Pair(backbone, family, network(source, problem.device), source.family)
            found[source.name] = _compared(problem, pair, _fitted(problem, pair), own)
    return found


def tokens_of(module: nn.Module, place: tuple[str, int], pixels: Inputs) -> Tensor:
    """The patch tokens [n, T, d] of a batch. place: of `Family.tokens`."""
    name, prefix = place
    with recorded_outputs(module, [name]) as recorded:
        module(pixels)
    return recorded[name][:, prefix:].float()


@dataclass(frozen=True)
class _Pair:
    """The merged network and a source, with their families."""

    backbone: nn.Module
    family: Family
    teacher: nn.Module
    of_teacher: Family

    @property
    def other_grid(self) -> Grid | None:
        """The grid of the source where it differs from that of the merged network."""
        own = self.of_teacher.grid(self.teacher)
        return None if own == self.family.grid(self.backbone) else own

    def tokens(self, pixels: Inputs) -> tuple[Tensor, Tensor]:
        """The tokens of both at the places of the source's patches, [n, T, d'] and [n, T, d_i]."""
        found, grids = [], []
        for module, family in ((self.backbone, self.family), (self.teacher, self.of_teacher)):
            place, grid = family.tokens(module), family.grid(module)
            if place is None or grid is None:
                raise ValueError(f"networks of family '{family.name}' have no patch tokens")
            found.append(tokens_of(module, place, pixels))
            grids.append(grid)
        return on_grid(found[0], *grids), found[1]


def _fitted(problem: Problem, pair: _Pair) -> tuple[Tensor, Tensor]:
    """Weight and bias of the token projector."""
    images = problem.images.images
    count = min(len(images), MAX_IMAGES)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in batches(count, BATCH):
            yield pair.tokens(images[rows].to(problem.device))
            problem.progress(Event("fit token projectors", rows.stop, count, images=1))

    with torch.inference_mode():
        return fitted(pairs(), count)


def _compared(problem: Problem, pair: _Pair, projector: tuple[Tensor, Tensor], own: ImageSet) -> TokenAgreement:
    weight, bias = projector
    sums: dict[str, Tensor] = {}
    images = positions = 0
    with torch.inference_mode():
        for pixels in _pixels(problem, own):
            mine, source = (tokens.cpu() for tokens in pair.tokens(pixels.to(problem.device)))
            for name, value in _figures(mine @ weight.T + bias, source).items():
                sums[name] = sums.get(name, torch.zeros(())) + value
            images, positions = images + len(source), source.shape[1]
    rows = images * positions
    variance = float(sums["squares"] - (sums["sum"].square() / rows).sum())
    return TokenAgreement(
        images,
        positions,
        float(sums["cosine"]) / rows,
        1 - float(sums["error"]) / max(variance, 1e-300),
        float(sums["same"]) / rows,
        weight,
        bias,
        pair.other_grid,
    )


def _pixels(problem: Problem, own: ImageSet) -> Iterator[Inputs]:
    rows = range(min(len(own), MAX_IMAGES))
    for pixels, _ in read(own, rows, BATCH, problem.hardware.workers, pinned=problem.device.type == "cuda"):
        yield pixels


def _figures(found: Tensor, source: Tensor) -> Mapping[str, Tensor]:
    """Sums over the tokens of a batch [n, T, d], in fp64."""
    x, y = found.double(), source.double()
    similar = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT  # [n, T, T]
    return {
        "cosine": F.cosine_similarity(x, y, dim=-1).sum(),
        "error": (x - y).square().sum(),
        "squares": y.square().sum(),
        "sum": y.sum((0, 1)),
        "same": (similar.argmax(-1) == torch.arange(y.shape[1])).sum(),
    }
