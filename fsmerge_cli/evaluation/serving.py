"""What serving costs: the size of one merged model and of its sources, and the time of a forward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.evaluation.forward import Forward, ensemble_forward, merged_forward
from fsmerge_cli.evaluation.score_table import backbone_of
from fsmerge_cli.methods import Problem, Solution
from fsmerge_cli.models.head import Head
from fsmerge_cli.supernet.fold import fold_head

BATCH, REPEATS, SECONDS = 32, 5, 0.5
"""Images at a time, how often they are run, and the time after which no further repeat begins."""


def milliseconds_per_image(forward: Forward, pixels: Inputs, device: torch.device) -> float:
    """The median of some forward passes over pixels [n, C, H, W], after one to warm up, per image."""

    def once() -> float:
        start = time.perf_counter()
        forward(pixels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.inference_mode():
        pixels = pixels[:BATCH].to(device)
        once()
        found = [once()]
        while len(found) < REPEATS and sum(found) < SECONDS:
            found.append(once())
    return 1000 * statistics.median(found) / len(pixels)


def serving(problem: Problem, solution: Solution, pixels: Inputs, dtype: str) -> dict[str, float | int]:
    """Parameters, bytes (in `dtype`) and milliseconds per image of the merged model and of all its sources.

    Both with their heads. pixels: some images [n, C, H, W], of which at most BATCH are run at a time.
    """
    size = getattr(torch, dtype).itemsize
    backbone = backbone_of(problem, solution)
    heads = [
        fold_head(s.head.to(problem.device), U) for s, U in zip(problem.sources, solution.projectors) if s.head
    ]
    served = merged_forward(backbone, (), heads)  # the projectors are folded into the heads
    merged = _parameters(solution.weights) + sum(map(_head_parameters, heads))
    sources = sum(_parameters(s.weights) + (_head_parameters(s.head) if s.head else 0) for s in problem.sources)
    return {
        "images": min(BATCH, len(pixels)),
        "merged_bytes": merged * size,
        "sources_bytes": sources * size,
        "merged_ms": milliseconds_per_image(served, pixels, problem.device),
        "sources_ms": milliseconds_per_image(
            ensemble_forward(problem.sources, problem.device), pixels, problem.device
        ),
    }


def _parameters(weights: Mapping[str, Tensor]) -> int:
    return sum(t.numel() for t in weights.values())


def _head_parameters(head: Head) -> int:
    return sum(t.numel() for t in (head.weight, head.bias, head.projector) if t is not None)
