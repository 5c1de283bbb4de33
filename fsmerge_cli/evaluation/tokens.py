"""Per-token agreement: the patch tokens of a source without a head, estimated from those of the merged model.

A linear map with a constant, the token projector, is fitted by ridge regression on the unlabelled images of the
merge, and compared on the images that measure it. Decoders (segmentation, detection) of the source read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.folds import FoldMoments, folds_of
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.progress import Event
from fsmerge_cli.data import ImageSet
from fsmerge_cli.data.reading import read
from fsmerge_cli.evaluation.similarity import recorded_outputs
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import batches, network

MAX_IMAGES = 256
"""Images that a token projector is fitted on, and that it is compared on."""

BATCH = 8


@dataclass(frozen=True)
class TokenAgreement:
    """The projected tokens of the merged model compared with those of a source.

    images, positions: compared, and patches of each. cosine: mean over tokens. explained: share of the variance of
    the source's tokens. same_place: share of the tokens whose most similar token of the source (cosine, in the
    same image) is the one at their place. weight [d_i, d'], bias [d_i]: the token projector.
    """

    images: int
    positions: int
    cosine: float
    explained: float
    same_place: float
    weight: Tensor
    bias: Tensor

    def entry(self) -> dict[str, float]:
        """The figures, as in evaluation.json."""
        names = ("images", "positions", "cosine", "explained", "same_place")
        return {name: getattr(self, name) for name in names}


def token_agreement(
    problem: Problem, backbone: nn.Module, sets: Sequence[ImageSet | None]
) -> dict[str, TokenAgreement]:
    """By source without a head; empty for families without tokens, and without images to fit on or to measure."""
    place = problem.plan.family.tokens(backbone)
    if place is None or not len(problem.images):
        return {}
    found = {}
    for source, own in zip(problem.sources, sets):
        if source.head is None and own:
            teacher = network(source, problem.device)
            projector = _fitted(problem, backbone, teacher, place)
            found[source.name] = _compared(problem, backbone, teacher, place, projector, own)
    return found


def tokens_of(module: nn.Module, place: tuple[str, int], pixels: Inputs) -> Tensor:
    """The patch tokens [n, T, d] of a batch. place: of `Family.tokens`."""
    name, prefix = place
    with recorded_outputs(module, [name]) as recorded:
        module(pixels)
    return recorded[name][:, prefix:].float()


def _fitted(
    problem: Problem, backbone: nn.Module, teacher: nn.Module, place: tuple[str, int]
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the token projector; its ridge is chosen by cross-validation over images."""
    images, sums = problem.images.images, FoldMoments()
    count = min(len(images), MAX_IMAGES)
    folds = folds_of(count, count)
    with torch.inference_mode():
        for rows in batches(count, BATCH):
            pixels = images[rows].to(problem.device)
            x, y = (tokens_of(module, place, pixels).flatten(0, 1) for module in (backbone, teacher))
            sums.add(x.cpu(), y.cpu(), folds[rows])
            problem.progress(Event("fit token projectors", rows.stop, count, images=1))
    found, _ = sums.fit(None)
    return found.matrix.float(), found.intercept.float()


def _compared(
    problem: Problem,
    backbone: nn.Module,
    teacher: nn.Module,
    place: tuple[str, int],
    projector: tuple[Tensor, Tensor],
    own: ImageSet,
) -> TokenAgreement:
    weight, bias = projector
    sums: dict[str, Tensor] = {}
    images = positions = 0
    with torch.inference_mode():
        for pixels in _pixels(problem, own):
            mine, source = (tokens_of(m, place, pixels.to(problem.device)).cpu() for m in (backbone, teacher))
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
