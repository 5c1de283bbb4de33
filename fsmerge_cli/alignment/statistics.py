"""Statistics of the activations of every space, streamed: a few images at a time into fp64 sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.alignment.least_squares import by_position
from fsmerge_cli.architectures.ports import Mapped, Port
from fsmerge_cli.common.inputs import Inputs, in_use, used_rows
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.training.teachers import batches

BATCH = 8
"""Images per batch where the activations of all places are in memory (ViT-B: about 0.5 GB per source)."""

MAX_BYTES = 2 * 2**30
"""Most bytes of sums on a GPU in one pass; for two ViT-B they take 2.4 GB (source 1 against both)."""


@dataclass(frozen=True)
class Place:
    """Where activations of a space occur: the input or output of a module ("": the network), or a part of it."""

    space: str
    module: str
    side: str
    part: int
    parts: int


def reading_places(plan: Plan) -> dict[Port, Place]:
    """The place of the input of every weight, by port, and the places of the features."""
    found = dict(zip(plan.feature_ports, places(plan)))
    for name, role in plan.roles.items():
        owner, _, leaf = name.rpartition(".")
        if isinstance(role, Mapped) and leaf == "weight" and role.read is not None:
            ports = role.read[1]
            found |= {p: Place(p.space, owner, "input", i, len(ports)) for i, p in enumerate(ports)}
    return found


def places(plan: Plan) -> tuple[Place, ...]:
    """Every place where a weight, a head or the attention reads a space; those of the features come first."""
    found = [Place(p.space, "", "output", i, len(plan.feature_ports)) for i, p in enumerate(plan.feature_ports)]
    read = {port.space for port in plan.reads}
    for name, role in plan.roles.items():
        owner, _, leaf = name.rpartition(".")
        if not isinstance(role, Mapped) or leaf != "weight":
            continue
        if role.read is not None:
            ports = role.read[1]
            found += [Place(port.space, owner, "input", i, len(ports)) for i, port in enumerate(ports)]
        ports = role.write[1]
        found += [
            Place(port.space, owner, "output", i, len(ports))
            for i, port in enumerate(ports)
            if port.space not in read
        ]
    return tuple(found)


@contextmanager
def recording(network: nn.Module, selected: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """Inside, every forward pass of `network` records the activations at the `selected` places, [n, size].

    The padding of texts is left out.
    """
    recorded: dict[Place, Tensor] = {}
    used: list[Tensor | None] = [None]

    def keep(place: Place, value: Tensor) -> None:
        rows = channels_last(network.get_submodule(place.module), value.detach())
        part = rows.chunk(place.parts, dim=-1)[place.part]
        recorded[place] = used_rows(part, used[0])

    handles = [network.register_forward_pre_hook(_on_inputs(used))]
    for place in selected:
        module = network.get_submodule(place.module)
        if place.side == "input":
            hook = _on_input(keep, place)
            handles.append(module.register_forward_pre_hook(hook))
        else:
            handles.append(module.register_forward_hook(_on_output(keep, place)))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def correlations(
    plan: Plan,
    networks: Sequence[nn.Module],
    images: Inputs,
    batch: int,
    device: torch.device,
    progress: Progress = silent,
    first: bool = False,
    max_bytes: int | None = None,
    measure: Measure | None = None,
    spaces: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Pearson correlations of the units of all sources, by space: [sum of sizes, sum of sizes], fp64, on the CPU.

    All sources run on all images. A space with several places gets the mean of their correlations. Constant units
    have correlation 0. first: only between the units of source 1 and all units, [size of source 1, sum of sizes].
    measure: computed instead of correlations (None: `pearson`). spaces: only these. Sums of more than `max_bytes`
    bytes (on a GPU MAX_BYTES) take several passes over the images.
    """
    if max_bytes is None and device.type == "cuda":
        max_bytes = MAX_BYTES
    sizes = {name: sum(space.sources) for name, space in plan.spaces.items()}
    rows = {name: space.sources[0] if first else sizes[name] for name, space in plan.spaces.items()}
    all_places = tuple(place for place in places(plan) if spaces is None or place.space in spaces)
    parts = _passes(all_places, {name: 8 * rows[name] * size for name, size in sizes.items()}, max_bytes)
    occurrences = Counter(place.space for place in all_places)
    found: dict[str, Tensor] = {}
    for done, selected in enumerate(parts):
        totals: dict[Place, tuple[int, Tensor, Tensor, Tensor]] = {}
        with torch.inference_mode():
            for chunk in batches(len(images), min(batch, BATCH)):
                pixels = images[chunk].to(device)
                values = [_run(network, selected, pixels) for network in networks]
                for place in selected:
                    x = torch.cat([v[place] for v in values], dim=1).double()
                    count, total, square, product = totals.get(place, (0, 0.0, 0.0, 0.0))
                    product = product + x[:, : rows[place.space]].T @ x
                    totals[place] = count + len(x), total + x.sum(0), square + x.square().sum(0), product
                seen = done * len(images) + chunk.stop
                progress(Event("compute statistics", seen, len(parts) * len(images), images=1))
        for place in selected:
            share = (measure or pearson)(*totals.pop(place)).cpu() / occurrences[place.space]
            found[place.space] = found[place.space].add_(share) if place.space in found else share
    return found


def _passes(selected: Sequence[Place], sizes: Mapping[str, int], max_bytes: int | None) -> list[tuple[Place, ...]]:
    """The places of every pass, whose sums take at most `max_bytes` together; at least one place per pass."""
    parts: list[list[Place]] = [[]]
    for place in selected:
        if max_bytes and parts[-1] and sum(sizes[own.space] for own in (*parts[-1], place)) > max_bytes:
            parts.append([])
        parts[-1].append(place)
    return [tuple(part) for part in parts]


def grams(
    network: nn.Module,
    modules: Sequence[str],
    images: Inputs,
    batch: int,
    device: torch.device,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Gram matrices X^T X / rows of the inputs of linear layers and patch projections, [in, in], fp64, by module.

    Every token is a row; the input of a convolution is unfolded into patches, channels first. Where these are too
    large (`by_position`), the products within every kernel position, [positions, in, in].
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    used: list[Tensor | None] = [None]
    handles = [network.register_forward_pre_hook(_on_inputs(used))]

    def add(name: str, module: nn.Module, value: Tensor) -> None:
        x = _rows(module, value.detach(), used[0]).double()
        if by_position(module):
            parts = x.reshape(len(x), value.shape[1], -1).permute(2, 1, 0)
            sums[name] = sums.get(name, 0) + parts @ parts.mT
        else:
            sums[name] = sums.get(name, 0) + x.T @ x
        counts[name] = counts.get(name, 0) + len(x)

    for name in modules:
        handles.append(network.get_submodule(name).register_forward_pre_hook(_on_module_input(add, name)))
    try:
        with torch.inference_mode():
            for rows in batches(len(images), batch):
                network(images[rows].to(device))
                progress(Event("layer inputs", rows.stop, len(images), images=1))
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / counts[name] for name, total in sums.items()}


def _rows(module: nn.Module, value: Tensor, used: Tensor | None) -> Tensor:
    if isinstance(module, nn.Conv2d):
        how = module.kernel_size, module.dilation, module.padding, module.stride
        patches = F.unfold(value, *how)  # type: ignore[arg-type]
        value = patches.transpose(1, 2)
    return used_rows(value, used)


def channels_last(module: nn.Module, value: Tensor) -> Tensor:
    """The input or output of a convolution [n, C, h, w] as [n, h, w, C]; every position is a row. Others as is."""
    return value.movedim(1, -1) if isinstance(module, nn.Conv2d) and value.ndim == 4 else value


def _run(network: nn.Module, selected: Sequence[Place], pixels: Inputs) -> Mapping[Place, Tensor]:
    with recording(network, selected) as recorded:
        network(pixels)
    return dict(recorded)


def unmerging(
    plan: Plan,
    networks: Sequence[nn.Module],
    images: Inputs,
    batch: int,
    device: torch.device,
    ridge: float,
    ports: Sequence[Port] | None = None,
) -> dict[tuple[Port, int], Tensor]:
    """U [d_i, d_1] of every port p and source i with U x_1(p) closest to x_i(p), the activations on all images.

    Ridge least squares, U^T = (X_1^T X_1 + r I)^-1 X_1^T X_i in fp64; r is `ridge` times the mean diagonal of
    X_1^T X_1. ports: only these (None: all).
    """
    selected = {port: place for port, place in reading_places(plan).items() if ports is None or port in ports}
    sums: dict[tuple[Port, int], Tensor] = {}
    with torch.inference_mode():
        for rows in batches(len(images), min(batch, BATCH)):
            pixels = images[rows].to(device)
            values = [_run(network, tuple(selected.values()), pixels) for network in networks]
            for port, place in selected.items():
                first = values[0][place].double()
                for i, own in enumerate(values):
                    sums[port, i] = sums.get((port, i), 0) + first.T @ own[place].double()
    found = {}
    for port in selected:
        square = sums[port, 0]
        eye = torch.eye(len(square), dtype=square.dtype, device=device)
        factor = torch.linalg.cholesky(square + (ridge * square.diagonal().mean()).clamp(min=1e-12) * eye)
        for i in range(1, len(networks)):
            found[port, i] = torch.cholesky_solve(sums.pop((port, i)), factor).T.float().cpu()
    return found


Measure = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Rows, and the sums of values [columns], squares [columns] and products [rows, columns] -> [rows, columns]."""


def covariance(count: int, total: Tensor, square: Tensor, product: Tensor) -> Tensor:
    """Covariances [rows, columns]; the rows are the first columns."""
    mean = total / count
    return product / count - mean[: len(product), None] * mean


def pearson(count: int, total: Tensor, square: Tensor, product: Tensor) -> Tensor:
    """Pearson correlations [rows, columns]; the rows are the first columns."""
    mean, rows = total / count, len(product)
    variance = (square / count - mean.square()).clamp(min=0)
    # The variance of a constant unit is rounding error: small relative to its mean square or to other variances.
    constant = (variance <= 1e-12 * square / count) | (variance <= 1e-18 * variance.max())
    scale = torch.where(constant, torch.zeros_like(variance), variance.clamp(min=1e-300).rsqrt())
    return (covariance(count, total, square, product) * scale[:rows, None] * scale).clamp(-1, 1)


def _on_inputs(used: list[Tensor | None]) -> Callable[[nn.Module, tuple[Inputs, ...]], None]:
    """A hook of a whole network that keeps which positions of its inputs are not padding."""

    def hook(module: nn.Module, inputs: tuple[Inputs, ...]) -> None:
        used[0] = in_use(inputs[0])

    return hook


Keep = Callable[[Place, Tensor], None]


def _on_input(keep: Keep, place: Place) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(place, inputs[0])

    return hook


def _on_output(keep: Keep, place: Place) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        keep(place, output)

    return hook


def _on_module_input(
    add: Callable[[str, nn.Module, Tensor], None], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        add(name, module, inputs[0])

    return hook
