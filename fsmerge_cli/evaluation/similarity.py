"""How like the merged model is to each source, layer by layer on the source's own task, to see where it broke."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from fsmerge_cli.common.progress import Event
from fsmerge_cli.data import ImageSet
from fsmerge_cli.data.reading import read
from fsmerge_cli.evaluation.metrics import Alikeness
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import network

FEW = 8
"""Images at a time: the outputs of all layers of two models are held for them."""

LIMIT = 256
"""Test images per task that are looked at: enough for d x d statistics of tokens, and quick."""

Layers = dict[str, dict[str, float | None]]


def similarities(problem: Problem, backbone: nn.Module, sets: Sequence[ImageSet | None]) -> dict[str, Layers]:
    """By task and layer: linear CKA, and cosine and relative error of the outputs as they are, unit by unit.

    Every token is a row. Cosine and error compare units in the order of each model, so they are low where the
    merged model works in another basis; CKA does not see the basis.
    """
    found: dict[str, Layers] = {}
    hardware, device = problem.hardware, problem.device
    done, total = 0, sum(min(len(own), LIMIT) for own in sets if own)
    for source, own in zip(problem.sources, sets):
        if not own:
            continue
        teacher = network(source, device)
        names = problem.plan.family.layers(teacher)
        alike = {name: Alikeness() for name in names}
        rows = range(min(len(own), LIMIT))
        with torch.inference_mode():
            size = min(hardware.eval_batch, FEW)
            for pixels, _ in read(own, rows, size, hardware.workers, pinned=device.type == "cuda"):
                outputs = []
                for module in (backbone, teacher):
                    with listened(module, names) as heard:
                        module(pixels.to(device))
                    outputs.append(heard)
                for name in names:
                    x, y = (heard[name].float().flatten(0, -2) for heard in outputs)
                    alike[name].add(x, y)
                done += len(pixels)
                problem.progress(Event("compare layers", done, total, images=1))
        found[source.name] = {name: values.values() for name, values in alike.items()}
    return found


@contextmanager
def listened(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, the outputs of the named submodules come into the dictionary with every forward pass."""
    heard: dict[str, Tensor] = {}

    def note(name: str, output: Tensor) -> None:
        heard[name] = output

    with ExitStack() as stack:
        for name in names:
            hook = module.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: note(name, output)
            )
            stack.callback(hook.remove)
        yield heard
