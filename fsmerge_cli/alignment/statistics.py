"""Activations of every space, streamed: a few images at a time into fp64 sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.architectures.ports import Mapped, Port
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.training.teachers import batches

FEW = 8
"""Images per batch where the activations of all places are held at once (ViT-B: about 0.5 GB per source)."""

AT_ONCE = 2 * 2**30
"""Bytes of sums that lie on a GPU at once; for two ViT-B they are 2.4 GB, of source 1 against both."""


@dataclass(frozen=True)
class Place:
    """Where a space shows: the input or output of a module ("" is the whole network), or a part of it."""

    space: str
    module: str
    side: str
    part: int
    parts: int


def reading_places(plan: Plan) -> dict[Port, Place]:
    """Where what a weight reads shows, by port, and where the features do."""
    found = {plan.features: Place(plan.features.space, "", "output", 0, 1)}
    for name, role in plan.roles.items():
        owner, _, leaf = name.rpartition(".")
        if isinstance(role, Mapped) and leaf == "weight" and role.read is not None:
            ports = role.read[1]
            found |= {p: Place(p.space, owner, "input", i, len(ports)) for i, p in enumerate(ports)}
    return found


def places(plan: Plan) -> tuple[Place, ...]:
    """Every place where a space is read by a weight or a head, or consumed by the attention."""
    found = [Place(plan.features.space, "", "output", 0, 1)]
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
def recording(network: nn.Module, wanted: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """While it lasts, every forward pass of `network` leaves the activations of `wanted` as rows [n, size]."""
    seen: dict[Place, Tensor] = {}

    def keep(place: Place, value: Tensor) -> None:
        part = value.detach().chunk(place.parts, dim=-1)[place.part]
        seen[place] = part.reshape(-1, part.shape[-1])

    handles = []
    for place in wanted:
        module = network.get_submodule(place.module)
        if place.side == "input":
            hook = _on_input(keep, place)
            handles.append(module.register_forward_pre_hook(hook))
        else:
            handles.append(module.register_forward_hook(_on_output(keep, place)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def correlations(
    plan: Plan,
    networks: Sequence[nn.Module],
    images: Tensor,
    batch: int,
    device: torch.device,
    progress: Progress = silent,
    first: bool = False,
    at_once: int | None = None,
) -> dict[str, Tensor]:
    """Pearson correlation of all sources' units, by space: [sum of sizes, sum of sizes], fp64, on the CPU.

    All sources see all images. A space that shows in several places gets the mean of their correlations.
    Units that never vary correlate with nothing. first: only of source 1's units with all others, [size of source
    1, sum of sizes]. Sums of more than `at_once` bytes (on a GPU AT_ONCE) take several passes over the images.
    """
    if at_once is None and device.type == "cuda":
        at_once = AT_ONCE
    sizes = {name: sum(space.sources) for name, space in plan.spaces.items()}
    rows = {name: space.sources[0] if first else sizes[name] for name, space in plan.spaces.items()}
    shown = places(plan)
    parts = _portions(shown, {name: 8 * rows[name] * size for name, size in sizes.items()}, at_once)
    often = Counter(place.space for place in shown)
    found: dict[str, Tensor] = {}
    for done, wanted in enumerate(parts):
        totals: dict[Place, tuple[int, Tensor, Tensor, Tensor]] = {}
        with torch.inference_mode():
            for some in batches(len(images), min(batch, FEW)):
                pixels = images[some].to(device)
                values = [_run(network, wanted, pixels) for network in networks]
                for place in wanted:
                    x = torch.cat([v[place] for v in values], dim=1).double()
                    count, total, square, product = totals.get(place, (0, 0.0, 0.0, 0.0))
                    product = product + x[:, : rows[place.space]].T @ x
                    totals[place] = count + len(x), total + x.sum(0), square + x.square().sum(0), product
                progress(Event("statistics", done * len(images) + some.stop, len(parts) * len(images), images=1))
        for place in wanted:
            share = _pearson(*totals.pop(place)).cpu() / often[place.space]
            found[place.space] = found[place.space].add_(share) if place.space in found else share
    return found


def _portions(wanted: Sequence[Place], sizes: Mapping[str, int], at_once: int | None) -> list[tuple[Place, ...]]:
    """The places in parts whose sums take no more than so many bytes together, or one by one."""
    parts: list[list[Place]] = [[]]
    for place in wanted:
        if at_once and parts[-1] and sum(sizes[own.space] for own in (*parts[-1], place)) > at_once:
            parts.append([])
        parts[-1].append(place)
    return [tuple(part) for part in parts]


def grams(
    network: nn.Module,
    modules: Sequence[str],
    images: Tensor,
    batch: int,
    device: torch.device,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """X^T X / rows of the inputs of linear layers and patch projections, [in, in], fp64, by module name.

    All tokens are rows; a convolution's input is unfolded into its patches, channels first.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    handles = []

    def add(name: str, module: nn.Module, value: Tensor) -> None:
        x = _rows(module, value.detach()).double()
        sums[name] = sums.get(name, 0) + x.T @ x
        counts[name] = counts.get(name, 0) + len(x)

    for name in modules:
        handles.append(network.get_submodule(name).register_forward_pre_hook(_on_module_input(add, name)))
    try:
        with torch.inference_mode():
            for rows in batches(len(images), batch):
                network(images[rows].to(device))
                progress(Event("inputs of the layers", rows.stop, len(images), images=1))
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / counts[name] for name, total in sums.items()}


def _rows(module: nn.Module, value: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        patches = F.unfold(value, module.kernel_size, padding=module.padding, stride=module.stride)  # type: ignore[arg-type]
        value = patches.transpose(1, 2)
    return value.reshape(-1, value.shape[-1])


def _run(network: nn.Module, wanted: Sequence[Place], pixels: Tensor) -> Mapping[Place, Tensor]:
    with recording(network, wanted) as seen:
        network(pixels)
    return dict(seen)


def unmerging(
    plan: Plan,
    networks: Sequence[nn.Module],
    images: Tensor,
    batch: int,
    device: torch.device,
    ridge: float,
    ports: Sequence[Port] | None = None,
) -> dict[tuple[Port, int], Tensor]:
    """U [d_i, d_1] of every port and source with U x_1(p) closest to x_i(p), the activations there on all images.

    Ridge least squares, U^T = (X_1^T X_1 + r I)^-1 X_1^T X_i in fp64; r is `ridge` times the mean diagonal of
    X_1^T X_1. ports: which ones (None: all).
    """
    wanted = {port: place for port, place in reading_places(plan).items() if ports is None or port in ports}
    sums: dict[tuple[Port, int], Tensor] = {}
    with torch.inference_mode():
        for rows in batches(len(images), min(batch, FEW)):
            pixels = images[rows].to(device)
            values = [_run(network, tuple(wanted.values()), pixels) for network in networks]
            for port, place in wanted.items():
                first = values[0][place].double()
                for i, own in enumerate(values):
                    sums[port, i] = sums.get((port, i), 0) + first.T @ own[place].double()
    found = {}
    for port in wanted:
        square = sums[port, 0]
        eye = torch.eye(len(square), dtype=square.dtype, device=device)
        factor = torch.linalg.cholesky(square + (ridge * square.diagonal().mean()).clamp(min=1e-12) * eye)
        for i in range(1, len(networks)):
            found[port, i] = torch.cholesky_solve(sums.pop((port, i)), factor).T.float().cpu()
    return found


def _pearson(count: int, total: Tensor, square: Tensor, product: Tensor) -> Tensor:
    """[rows, columns], the rows being the first of the columns."""
    mean, rows = total / count, len(product)
    covariance = product / count - mean[:rows, None] * mean
    variance = (square / count - mean.square()).clamp(min=0)
    # A constant unit's variance is a rounding error: small against its mean square, or against the others.
    dead = (variance <= 1e-12 * square / count) | (variance <= 1e-18 * variance.max())
    scale = torch.where(dead, torch.zeros_like(variance), variance.clamp(min=1e-300).rsqrt())
    return (covariance * scale[:rows, None] * scale).clamp(-1, 1)


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
