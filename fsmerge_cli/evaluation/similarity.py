"""Similarity of the merged model to each source, layer by layer, on the images of the source's task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.common.inputs import in_use, used_rows
from fsmerge_cli.common.progress import Event
from fsmerge_cli.data import ImageSet
from fsmerge_cli.data.reading import read
from fsmerge_cli.evaluation.metrics import FeatureSimilarity
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import network, recorded_outputs

BATCH = 8
"""Images per batch: the outputs of all layers of two models are in memory at once."""

MAX_IMAGES = 256
"""Test images per task: enough for d x d statistics of tokens, and fast."""

Layers = dict[str, dict[str, float | None]]


def similarities(problem: Problem, backbone: nn.Module, sets: Sequence[ImageSet | None]) -> dict[str, Layers]:
    """By task and layer: linear CKA, cosine and relative error of the outputs.

    Every token, or position of a feature map, is a row. Cosine and error compare unit i of one model with unit i
    of the other, so they are poor if the merged model uses another basis. CKA does not depend on the basis.
    """
    found: dict[str, Layers] = {}
    hardware, device = problem.hardware, problem.device
    done, total = 0, sum(min(len(own), MAX_IMAGES) for own in sets if own)
    for source, own in zip(problem.sources, sets):
        if not own or (problem.plan.distilled and source.arch != problem.plan.arch):  # other layers and tokens
            continue
        teacher = network(source, device)
        names = problem.plan.family.layers(teacher)
        similarity = {name: FeatureSimilarity() for name in names}
        rows = range(min(len(own), MAX_IMAGES))
        with torch.inference_mode():
            size = min(hardware.eval_batch, BATCH)
            for pixels, _ in read(own, rows, size, hardware.workers, pinned=device.type == "cuda"):
                outputs, used = [], in_use(pixels.to(device))
                for module in (backbone, teacher):
                    with recorded_outputs(module, names) as recorded:
                        module(pixels.to(device))
                    outputs.append(recorded)
                for name in names:
                    x, y = (used_rows(_channels_last(recorded[name].float()), used) for recorded in outputs)
                    similarity[name].add(x, y)
                done += len(pixels)
                problem.progress(Event("compare layers", done, total, images=1))
        found[source.name] = {name: values.values() for name, values in similarity.items()}
    return found


def _channels_last(output: Tensor) -> Tensor:
    """A feature map [n, C, h, w] as [n, h, w, C], where every position is a row; other outputs as they are."""
    return output.movedim(1, -1) if output.ndim == 4 else output
