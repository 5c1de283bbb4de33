"""Selection of the units of every space from which the layers that read it are regressed best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.moments import Moments
from fsmerge_cli.alignment.closed_form.patches import output_rows, positions, sampled_places, units_first
from fsmerge_cli.alignment.closed_form.selection import select_units
from fsmerge_cli.alignment.closed_form.stages import recorded
from fsmerge_cli.alignment.statistics import BATCH, Place, reading_places
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.models.plan import Plan, Space
from fsmerge_cli.training.teachers import batches

ROWS_PER_CANDIDATE = 20
"""Rows per candidate from which the units of a space are chosen, where there are more."""


def selected_units(
    plan: Plan,
    networks: Sequence[nn.Module],
    weights: Sequence[Mapping[str, Tensor]],
    images: Tensor,
    device: torch.device,
    seed: int,
) -> dict[str, Tensor]:
    """By space, the places of the selected units among those of all sources, side by side; in their order.

    A space that several layers read (the residual stream of a stage) has one selection: the rows at all these
    places count alike, and so do the outputs of every layer of every source, and the features themselves.
    """
    places = set(reading_places(plan).values())
    moments = place_moments(plan, networks, sorted(places, key=str), images, device, seed)
    return {
        name: _select(space, weights, {place: own for place, own in moments.items() if place.space == name})
        for name, space in plan.spaces.items()
    }


def _select(space: Space, weights: Sequence[Mapping[str, Tensor]], moments: Mapping[Place, Moments]) -> Tensor:
    """The selected units of one space, given the moments at all places where it is read."""
    gram = torch.stack([_of_mean_1(own.second()) for own in moments.values()]).sum(0)
    targets, end = [], 0
    for own, size in zip(weights, space.sources):
        part, square = gram[:, end : end + size], gram[end : end + size, end : end + size]
        end += size
        for place in moments:
            reader = _reader(own, place)
            power = square.trace() if reader is None else (reader @ square * reader).sum()
            target = part if reader is None else part @ reader.T
            targets.append(target / power.clamp(min=1e-300).sqrt())
    return select_units(gram, torch.cat(targets, 1), space.merged).sort().values


def _of_mean_1(second: Tensor) -> Tensor:
    return second / second.diagonal().mean().clamp(min=1e-300)


def _reader(weights: Mapping[str, Tensor], place: Place) -> Tensor | None:
    """The weight that reads at a place, every kernel position as a further output: [q kh kw, d_i], fp64.

    None for the features, which are themselves what is wanted.
    """
    if place.side == "output":
        return None
    weight = weights[f"{place.module}.weight"].double()
    return weight.flatten(2).transpose(1, 2).flatten(0, 1) if weight.ndim > 2 else weight


def place_moments(
    plan: Plan,
    networks: Sequence[nn.Module],
    places: Sequence[Place],
    images: Tensor,
    device: torch.device,
    seed: int,
) -> dict[Place, Moments]:
    """Second moments of the units of all sources side by side at every place, fp64, of sampled positions."""
    found = {place: Moments() for place in places}
    inputs = [place.module for place in places if place.side == "input"]
    outputs = [place.module for place in places if place.side == "output"]
    with torch.inference_mode():
        for part in batches(len(images), BATCH):
            values = []
            for network in networks:
                with recorded(network, inputs, outputs) as own:
                    network(images[part].to(device))
                values.append(own)
            for place, sums in found.items():
                part_of = networks[0].get_submodule(place.module)
                seen = [units_first(part_of, value[f"{place.module}.{place.side}"]) for value in values]
                wanted = ROWS_PER_CANDIDATE * sum(plan.spaces[place.space].sources) / len(images)
                random = generator(seed, "unit rows", place.module, part.start)
                at = sampled_places(len(seen[0]), positions(seen[0]), wanted, random)
                sums.add(torch.cat([output_rows(value, at) for value in seen], -1).flatten(0, 1))
    return found
