"""Least squares of every layer on averaged activations of the sources (PLeaS, arXiv 2407.02447, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.folds import FOLDS, FoldMoments, folds_of
from fsmerge_cli.alignment.closed_form.moments import Linear
from fsmerge_cli.alignment.closed_form.options import ROWS_PER_UNIT
from fsmerge_cli.alignment.closed_form.patches import input_rows, positions, sampled_places, weight_of
from fsmerge_cli.alignment.closed_form.stages import recorded
from fsmerge_cli.alignment.least_squares import by_position, linear_modules
from fsmerge_cli.alignment.statistics import BATCH
from fsmerge_cli.architectures.ports import Mapped, Port
from fsmerge_cli.common.inputs import in_use
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import batches, network

MAX_BYTES = 2 * 2**30
"""Most bytes of the sums of one pass over the images."""

SpaceMaps = Mapping[str, Sequence[Tensor]]
"""M_i [d', d_i] by space and source."""


def fitted_layers(
    problem: Problem,
    merge: SpaceMaps,
    start: Mapping[str, Tensor],
    ridge: float | None,
    rows_per_unit: float = ROWS_PER_UNIT,
    front_to_back: bool = False,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and biases of the layers that read a space, and the ridge of every layer.

    With x_i the inputs of a layer in source i and M_i the merge maps of the spaces that it reads and writes, all
    sources on the same images, W' and b' minimise

        |sum_i M_i (W_i x_i + b_i) - W' sum_i M_i x_i - b'|^2 + ridge |W' - W|^2,

    W being `start`. A convolution is fitted at about rows_per_unit positions per regressor over all images, which
    are sampled where there are more. The inputs are those of the sources, not those that merged layers produce;
    front_to_back: in place of sum_i M_i x_i the inputs x that the merged layers before it produce, one layer after
    the other.
    Kernels with more than MAX_INPUTS inputs stay as they are (VGG's first fully connected layer).
    """
    plan = problem.plan
    skeleton = plan.skeleton()
    modules = [
        n for n in linear_modules(plan) if _reads(problem, n) and not by_position(skeleton.get_submodule(n))
    ]
    found: dict[str, Tensor] = {}
    ridges: dict[str, float] = {}
    for group in [[name] for name in modules] if front_to_back else _passes(problem, modules):
        merged = _with(skeleton, {**start, **found}) if front_to_back else None
        sums = _observed(problem, group, merge, rows_per_unit / len(problem.images), merged)
        for name in group:
            if name not in sums:
                continue  # no forward pass runs it
            fit, chosen = _fit(problem, sums[name], start, name, ridge)
            weight = start[f"{name}.weight"]
            found[f"{name}.weight"] = fit.matrix.reshape(weight.shape).to(weight)
            if f"{name}.bias" in start:
                found[f"{name}.bias"] = fit.intercept.to(weight)
            ridges[name] = chosen
            problem.progress(Event("solve", len(ridges), len(modules)))
    return found, ridges


def _reads(problem: Problem, name: str) -> bool:
    role = problem.plan.roles[f"{name}.weight"]
    return isinstance(role, Mapped) and role.read is not None


def _fit(
    problem: Problem, sums: FoldMoments, start: Mapping[str, Tensor], name: str, ridge: float | None
) -> tuple[Linear, float]:
    prior = start[f"{name}.weight"].double().flatten(1).to(problem.device)
    fit, chosen = sums.fit(ridge, f"{name}.bias" in start, prior)
    return fit, chosen[0]


def _passes(problem: Problem, modules: Sequence[str]) -> list[list[str]]:
    """The layers of every pass, whose sums take at most MAX_BYTES together; at least one per pass."""
    network, parts, used = problem.plan.skeleton(), [list[str]()], 0
    for name in modules:
        weight = weight_of(network.get_submodule(name))
        p = weight[0].numel()
        size = 8 * FOLDS * p * (p + len(weight))
        if parts[-1] and used + size > MAX_BYTES:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += size
    return [part for part in parts if part]


def _with(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    module.load_state_dict({name: t.detach().clone() for name, t in weights.items()}, assign=True)
    return module.requires_grad_(False).eval()


def _observed(
    problem: Problem, modules: Sequence[str], merge: SpaceMaps, per_image: float, merged: nn.Module | None
) -> dict[str, FoldMoments]:
    """The sums of these layers over all images.

    per_image: positions of a convolution, per regressor. merged: the network whose inputs are taken (None: the
    means of those of the sources).
    """
    images, plan = problem.images.images, problem.plan
    networks = [network(source, problem.device) for source in problem.sources]
    folds = folds_of(len(images), len(images))
    found: dict[str, FoldMoments] = {}
    maps = {name: _layer_maps(plan.roles[f"{name}.weight"], merge, problem.device) for name in modules}
    with torch.inference_mode():
        for rows in batches(len(images), min(problem.hardware.eval_batch, BATCH)):
            batch = images[rows].to(problem.device)
            seen = []
            for own in [*networks, *([merged] if merged else [])]:
                with recorded(own, modules) as record:
                    own(batch)
                seen.append(record)
            mask = in_use(batch)
            for name in modules:
                if f"{name}.input" not in seen[0]:
                    continue
                layers = [own.get_submodule(name) for own in networks]
                values = [record[f"{name}.input"] for record in seen]
                x, y, weight = _rows(problem, layers, values, maps[name], mask, (name, rows.start), per_image)
                found.setdefault(name, FoldMoments()).add(x, y, folds[rows], weight)
            problem.progress(Event("layer inputs", rows.stop, len(images), images=1))
    return found


Pairs = tuple[list[Tensor], list[Tensor]]
"""For every source, M of the space that a layer reads, and M of those that it writes, one below the other."""


def _layer_maps(role: object, merge: SpaceMaps, device: torch.device) -> Pairs:
    if not isinstance(role, Mapped) or role.read is None:
        raise TypeError("the layer reads no space")
    k = len(next(iter(merge.values())))
    read, write = role.read[1], role.write[1]
    return [_side_by_side(read, merge, i, device) for i in range(k)], [
        _side_by_side(write, merge, i, device) for i in range(k)
    ]


def _side_by_side(ports: Sequence[Port], merge: SpaceMaps, source: int, device: torch.device) -> Tensor:
    parts = [merge[port.space][source] for port in ports]
    found = torch.zeros(sum(len(M) for M in parts), sum(M.shape[1] for M in parts), device=device)
    row = column = 0
    for M in parts:
        found[row : row + len(M), column : column + M.shape[1]] = M
        row, column = row + len(M), column + M.shape[1]
    return found


def _rows(
    problem: Problem,
    layers: Sequence[nn.Module],
    values: Sequence[Tensor],
    maps: Pairs,
    mask: Tensor | None,
    where: tuple[str, int],
    per_image: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs [n, p] and outputs [n, q] of the merged layer, and which rows count (None: all)."""
    x = y = torch.zeros(())
    places = None
    if isinstance(layers[0], nn.Conv2d):
        with torch.inference_mode():
            size = layers[0](values[0][:1])
        wanted = per_image * weight_of(layers[0])[0].numel()
        random = generator(problem.seed, "layer rows", *where)
        places = sampled_places(len(values[0]), positions(size), wanted, random)
    for layer, value, read, write in zip(layers, values, *maps):
        weight = weight_of(layer).detach()
        bias = layer.bias.detach() if isinstance(layer.bias, Tensor) else weight.new_zeros(len(weight))
        rows = _flat(layer, value, places)
        y = y + (rows @ weight.flatten(1).T + bias) @ write.T
        parts = rows.reshape(len(rows), weight.shape[1], -1)
        x = x + torch.einsum("ncp,dc->ndp", parts, read).flatten(1)
    if len(values) > len(layers):  # the last ones are those of the merged network
        x = _flat(layers[0], values[-1], places)
    used = None
    if mask is not None and values[0].shape[:-1] == mask.shape:
        used = mask.flatten().double().to(x.device)
    return x, y, used


def _flat(layer: nn.Module, value: Tensor, places: Tensor | None) -> Tensor:
    """The inputs of a layer as rows; places: positions of a convolution."""
    return value.flatten(0, -2) if places is None else input_rows(layer, value, places).flatten(0, 1)
